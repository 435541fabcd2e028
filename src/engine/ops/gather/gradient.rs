//! Gradients of picked elements: added up at the places that they were picked from.

use super::{Gather, GatherElements, GatherNd, Slice, position};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::attrs::Attr;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{around, axis, ints, offsets, require, same_type, size, strides};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const RULES: &[Rule] = &[
    Rule::new("Gather", gather),
    Rule::new("GatherElements", elements),
    Rule::new("GatherND", tuples),
    Rule::new("Slice", slice),
];

static GATHER: OpDef = own("GatherGradient");
static SLICE: OpDef = own("SliceGradient");

fn gather(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let axis = concrete::<Gather>(op)?.axis;
    let shape = emit.shape(at.x(0)?)?;
    Ok(vec![Some(emit.one(&GATHER, GatherGradient { axis }, &[at.g()?, at.x(1)?, shape])?)])
}

fn elements(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let axis = concrete::<GatherElements>(op)?.axis;
    let zeros = emit.zeros_like(at.x(0)?)?;
    let attrs = [("axis", Attr::Int(axis)), ("reduction", Attr::String("add".into()))];
    Ok(vec![Some(emit.with("ScatterElements", &attrs, &[zeros, at.x(1)?, at.g()?])?)])
}

fn tuples(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    if concrete::<GatherNd>(op)?.batch != 0 {
        return Err(OpError::unsupported("GatherND with batch dimensions has no gradient"));
    }
    let zeros = emit.zeros_like(at.x(0)?)?;
    Ok(vec![Some(emit.with("ScatterND", &[("reduction", Attr::String("add".into()))], &[zeros, at.x(1)?, at.g()?])?)])
}

fn slice(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let attributes = concrete::<Slice>(op)?.attributes.clone();
    let mut inputs = vec![Some(at.g()?), Some(emit.shape(at.x(0)?)?)];
    inputs.extend(at.inputs.iter().skip(1));
    Ok(vec![Some(emit.own(&SLICE, Box::new(SliceGradient(Slice { attributes })), &inputs, 1)?[0])])
}

/// A gradient in the shape that input 1 is.
fn kinds_of(inputs: &[Option<Kind>], count: usize) -> Result<Kinds, OpError> {
    require(inputs, count)?;
    same_type(inputs, count, [0])
}

fn shape_of(inputs: &Facts<'_>, index: usize) -> Result<Shape, OpError> {
    inputs.ints(index)?.into_iter().map(size).collect()
}

/// Inputs: the gradient of the slices, the indices, the shape of what was picked from.
#[derive(Debug)]
struct GatherGradient {
    axis: i64,
}

impl GatherGradient {
    fn run_typed<T: Scalar>(&self, g: View<'_>, indices: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (outer, size, inner) = around(y.shape(), axis(self.axis, y.shape().len())?);
        let indices: Vec<usize> = ints(indices)?.iter().map(|&i| position(i, size)).collect::<Result<_, _>>()?;
        let (g, y) = (g.slice::<T>()?, y.slice::<T>()?);
        y.fill(T::zero());
        if g.len() != outer * indices.len() * inner {
            return Err(OpError::shape("the gradient does not fit the indices"));
        }
        let mut rows = g.chunks_exact(inner.max(1));
        for o in 0..outer {
            for &i in &indices {
                let Some(row) = rows.next() else { return Ok(()) };
                y[(o * size + i) * inner..][..inner].iter_mut().zip(row).for_each(|(y, &g)| *y += g);
            }
        }
        Ok(())
    }
}

impl Op for GatherGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        kinds_of(inputs, 3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![shape_of(inputs, 2)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let g = inputs.at(0)?;
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, inputs.at(1)?, outputs.at(0)?))
    }
}

/// Inputs: the gradient of the slice, the shape of what was sliced, and the bounds as the operator has them.
#[derive(Debug)]
struct SliceGradient(Slice);

impl Op for SliceGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        kinds_of(inputs, 2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![shape_of(inputs, 1)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        let shape = Shape::from(y.shape());
        let ranges = self.0.ranges(&shape, |i| inputs.get(i + 1).map(|v| ints(v).map(|v| v.to_vec())).transpose())?;
        let from = strides(&shape);
        let start: usize = ranges.iter().zip(&from).map(|(r, s)| r.0 * s).sum();
        let steps: Vec<isize> = ranges.iter().zip(&from).map(|(r, s)| r.1 * *s as isize).collect();
        let dims: Shape = ranges.iter().map(|r| r.2).collect();
        if dims.as_slice() != g.shape() {
            return Err(OpError::shape(format!("a gradient of shape {:?} for a slice of shape {dims:?}", g.shape())));
        }
        with_scalar!(g.dtype(), T => {
            let (mut g, y) = (g.slice::<T>()?.iter(), y.slice::<T>()?);
            y.fill(num_traits::Zero::zero());
            offsets(&dims, &steps, start as isize, |to| {
                if let Some(&g) = g.next() {
                    y[to as usize] = g;
                }
            });
            Ok(())
        })
    }
}
