//! Gradients of what moves, joins, parts and repeats elements.

use super::{Concat, Split, Transpose};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, ValueId, concrete};
use crate::engine::attrs::Attr;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type, size, strides};
use crate::engine::ops::own;
use crate::engine::ops::scalar::with_scalar;
use crate::engine::ops::sum_to::sum_to;
use crate::engine::tensor::Kind;

pub(crate) const RULES: &[Rule] = &[
    Rule::new("Transpose", transpose),
    Rule::new("Concat", concat),
    Rule::new("Split", split),
    Rule::new("Expand", |_, at, emit| Ok(vec![Some(sum_to(emit, at.g()?, at.x(0)?)?)])),
    Rule::new("Tile", tile),
];

static TILE: OpDef = own("TileGradient");

fn transpose(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let transpose = concrete::<Transpose>(op)?;
    // Without an order the dimensions are reversed, which is its own inverse.
    let Some(perm) = &transpose.perm else { return Ok(vec![Some(emit.op("Transpose", &[at.g()?])?)]) };
    let order = transpose.order(perm.len())?;
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to as i64);
    Ok(vec![Some(emit.with("Transpose", &[("perm", Attr::Ints(inverse))], &[at.g()?])?)])
}

fn concat(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let along = concrete::<Concat>(op)?.axis;
    let axis = emit.ints(&[along]);
    let mut sizes: Vec<ValueId> = Vec::new();
    for i in 0..at.inputs.len() {
        let shape = emit.shape(at.x(i)?)?;
        sizes.push(emit.op("Gather", &[shape, axis])?);
    }
    let sizes = emit.with("Concat", &[("axis", Attr::Int(0))], &sizes)?;
    let parts = emit.call("Split", &[("axis", Attr::Int(along))], &[Some(at.g()?), Some(sizes)], at.inputs.len())?;
    at.each(|i| Ok(parts[i]))
}

fn split(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let along = concrete::<Split>(op)?.axis;
    let mut parts: Vec<ValueId> = Vec::new();
    for (i, gradient) in at.gradients.iter().enumerate() {
        parts.push(match gradient {
            Some(gradient) => *gradient,
            None => emit.zeros_like(at.y(i)?)?,
        });
    }
    Ok(vec![Some(emit.with("Concat", &[("axis", Attr::Int(along))], &parts)?)])
}

fn tile(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<super::Tile>(op)?;
    let shape = emit.shape(at.x(0)?)?;
    Ok(vec![Some(emit.one(&TILE, TileGradient, &[at.g()?, shape])?)])
}

/// The sum over the repetitions. Inputs: the gradient of the output, the shape of the input.
#[derive(Debug)]
struct TileGradient;

impl Op for TileGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (g, shape) = (inputs.shape(0)?, inputs.ints(1)?.into_iter().map(size).collect::<Result<Shape, _>>()?);
        let fits = g.len() == shape.len() && g.iter().zip(&shape).all(|(g, n)| if *n == 0 { *g == 0 } else { g.is_multiple_of(*n) });
        if fits { Ok(vec![shape]) } else { Err(OpError::shape(format!("{g:?} is no repetition of {shape:?}"))) }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        let (from, shape) = (strides(g.shape()), Shape::from(y.shape()));
        let to = strides(&shape);
        with_scalar!(g.dtype(), T => {
            let (values, y) = (g.slice::<T>()?, y.slice::<T>()?);
            y.fill(num_traits::Zero::zero());
            for (i, &value) in values.iter().enumerate() {
                let place: usize = (0..shape.len()).map(|d| i / from[d] % g.shape()[d] % shape[d] * to[d]).sum();
                y[place] += value;
            }
            Ok(())
        })
    }
}
