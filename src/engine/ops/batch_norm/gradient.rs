//! The gradients of BatchNormalization, as it serves and as it trains.

use smallvec::smallvec;

use super::channels::{each_plane, moments, weighted};
use super::{BatchNorm, Sizes, Statistical, doubles, write};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::same_type;
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] = &[Rule::new("BatchNormalization", batch_norm)];

static GRADIENT: OpDef = own("BatchNormalizationGradient");

fn batch_norm(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let (epsilon, spatial, training) = match (op.downcast::<BatchNorm>(), op.downcast::<Statistical>()) {
        (Some(norm), _) => (norm.epsilon, true, false),
        (None, Some(form)) => (form.norm.epsilon, form.spatial, form.training.is_some()),
        (None, None) => return Err(OpError::unsupported("this form of the operator has no gradient")),
    };
    // The running statistics are no function that anything is differentiated by.
    let inputs = [at.g()?, at.x(0)?, at.x(1)?, at.x(3)?, at.x(4)?].map(Some);
    let op = BatchNormGradient { epsilon: epsilon.into(), spatial, training };
    let found = emit.own(&GRADIENT, Box::new(op), &inputs, if training { 3 } else { 5 })?;
    Ok(found.into_iter().map(Some).collect())
}

/// Inputs: the gradient of the output, the input, the scale, and the given statistics, which count only if it does not train.
/// Outputs: the gradients of the input, the scale and the bias, and of the given mean and variance if they count.
#[derive(Debug)]
struct BatchNormGradient {
    epsilon: f64,
    spatial: bool,
    training: bool,
}

impl BatchNormGradient {
    fn run_typed<T: Scalar>(&self, g: View<'_>, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(1)?;
        let sizes = Sizes::of(x.shape(), self.spatial)?;
        let mut lists: [Vec<f64>; 6] = ctx.scratch.take_all();
        let [scale, mean, variance, inverse, plain, weights] = &mut lists;
        let (g, x, threads) = (g.slice::<T>()?, x.slice::<T>()?, ctx.threads);
        doubles(inputs.at(2)?, scale)?;
        if self.training {
            moments(x, sizes, threads, [mean, variance]);
        } else {
            doubles(inputs.at(3)?, mean)?;
            doubles(inputs.at(4)?, variance)?;
        }
        inverse.clear();
        inverse.extend(variance.iter().map(|variance| 1.0 / (variance + self.epsilon).sqrt()));
        weighted(g, x, mean, sizes, threads, [plain, weights]);
        let (plain, weighted, inverse, mean) = (&*plain, &*weights, &*inverse, &*mean);
        let count = (sizes.samples * sizes.size) as f64;
        let factor = |c: usize| scale[c] * inverse[c];
        if let Some(y) = outputs.get(0) {
            each_plane([g, x], y.slice::<T>()?, sizes, threads, |c, [g, x], y| {
                // In training the mean and the variance move with the input.
                let (shift, slope) = if self.training { (plain[c] / count, weighted[c] * inverse[c] * inverse[c] / count) } else { (0.0, 0.0) };
                let [factor, shift, slope, mean] = [factor(c), shift, slope, mean[c]].map(T::of);
                for ((y, &g), &x) in y.iter_mut().zip(g).zip(x) {
                    *y = factor * (g - shift - (x - mean) * slope);
                }
            });
        }
        let channels = || 0..sizes.channels;
        write(channels().map(|c| weighted[c] * inverse[c]), outputs.get(1))?;
        write(plain.iter().copied(), outputs.get(2))?;
        write(channels().map(|c| -plain[c] * factor(c)), outputs.get(3))?;
        write(channels().map(|c| -0.5 * weighted[c] * factor(c) * inverse[c] * inverse[c]), outputs.get(4))?;
        ctx.scratch.give_all(lists);
        Ok(())
    }
}

impl Op for BatchNormGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let x = same_type(inputs, 5, 0..2)?.swap_remove(0);
        let (scale, statistics) = (same_type(inputs, 5, [2])?.swap_remove(0), same_type(inputs, 5, 3..5)?.swap_remove(0));
        Ok(smallvec![x, scale.clone(), scale, statistics.clone(), statistics])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let scale: Shape = inputs.shape(2)?.into();
        Ok(vec![inputs.shape(1)?.into(), scale.clone(), scale, inputs.shape(3)?.into(), inputs.shape(4)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let g = inputs.at(0)?;
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, inputs, outputs, ctx))
    }
}
