//! The gradients of LayerNormalization and its relatives without a mean.

use smallvec::smallvec;

use super::LayerNorm;
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{axis, same_type};
use crate::engine::ops::broadcast::{Broadcast, map};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::ops::sum_to::sum_to;
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] = &[
    Rule::new("LayerNormalization", layer_norm),
    Rule::new("RMSNormalization", layer_norm),
    Rule::new("SimplifiedLayerNormalization", layer_norm),
    Rule { domain: "com.microsoft", ..Rule::new("SimplifiedLayerNormalization", layer_norm) },
];

static GRADIENT: OpDef = own("LayerNormalizationGradient");

fn layer_norm(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let norm = concrete::<LayerNorm>(op)?;
    let (g, x, scale) = (at.g()?, at.x(0)?, at.x(1)?);
    let op = LayerNormGradient { axis: norm.axis, epsilon: norm.norm.epsilon.into(), rms: norm.norm.rms };
    let found = emit.own(&GRADIENT, Box::new(op), &[g, x, scale].map(Some), 2)?;
    at.each(|i| match i {
        0 => Ok(found[0]),
        1 => sum_to(emit, found[1], scale),
        _ => sum_to(emit, g, at.x(i)?),
    })
}

/// Inputs: the gradient of the output, the input, the scale. Outputs: the gradient of the input, and that of a scale as long as a
/// row.
#[derive(Debug)]
struct LayerNormGradient {
    axis: i64,
    epsilon: f64,
    rms: bool,
}

impl LayerNormGradient {
    fn run_typed<T: Scalar>(&self, [g, x, scale]: [View<'_>; 3], outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let row = &x.shape()[axis(self.axis, x.shape().len())?..];
        let len: usize = row.iter().product();
        let mut full = vec![T::zero(); len];
        map(&Broadcast::new(row, [scale.shape()]), scale.slice::<T>()?, &mut full, |v, to| *to = *v);
        let (g, x) = (g.slice::<T>()?, x.slice::<T>()?);
        let mut of_scale = vec![0.0; len];
        let mut y = outputs.get(0).map(|y| y.slice::<T>()).transpose()?;
        for (number, (g, x)) in g.chunks_exact(len.max(1)).zip(x.chunks_exact(len.max(1))).enumerate() {
            let mean = if self.rms { 0.0 } else { x.iter().map(|x| x.wide()).sum::<f64>() / len as f64 };
            let variance = x.iter().map(|x| (x.wide() - mean).powi(2)).sum::<f64>() / len as f64;
            let inverse = 1.0 / (variance + self.epsilon).sqrt();
            // The gradient of the normalised row: its mean (where one is taken off), and its part along the row.
            let (mut plain, mut along) = (0.0, 0.0);
            for (((g, x), scale), sum) in g.iter().zip(x).zip(&full).zip(&mut of_scale) {
                let (g, normal) = (g.wide(), (x.wide() - mean) * inverse);
                *sum += g * normal;
                plain += g * scale.wide();
                along += g * scale.wide() * normal;
            }
            let plain = if self.rms { 0.0 } else { plain / len as f64 };
            let along = along / len as f64;
            if let Some(y) = &mut y {
                for (((y, g), x), scale) in y[number * len..][..len].iter_mut().zip(g).zip(x).zip(&full) {
                    *y = T::of(inverse * (g.wide() * scale.wide() - plain - (x.wide() - mean) * inverse * along));
                }
            }
        }
        if let Some(y) = outputs.get(1) {
            y.slice::<T>()?.iter_mut().zip(&of_scale).for_each(|(y, &v)| *y = T::of(v));
        }
        Ok(())
    }
}

impl Op for LayerNormGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kind = same_type(inputs, 3, 0..3)?.swap_remove(0);
        Ok(smallvec![kind.clone(), kind])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(1)?;
        Ok(vec![x.into(), x[axis(self.axis, x.len())?..].into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let operands = [inputs.at(0)?, inputs.at(1)?, inputs.at(2)?];
        with_scalar!(operands[0].dtype(), T => self.run_typed::<T>(operands, outputs))
    }
}
