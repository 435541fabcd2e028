//! The chain rule of elementwise functions: a gradient times the derivative at an element.

use std::fmt;

use super::axes::same_type;
use super::own;
use super::scalar::{Scalar, with_scalar};
use crate::engine::adjoint::{Emit, ValueId};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::threads::Threads;
use crate::engine::view::{View, ViewMut};

static CHAIN: OpDef = own("Chain");

/// A derivative, as a function of the operator's input or of its output.
pub(crate) enum Slope {
    /// Of a rectifier with this slope below zero, where input and output have one sign.
    Rectifier(f64),
    /// Of the logistic function, at its output.
    Sigmoid,
    /// Of the hyperbolic tangent, at its output.
    Tanh,
    /// Any other, in f64.
    Of(Box<dyn Fn(f64) -> f64 + Send + Sync>),
}

impl Slope {
    pub(crate) fn of(slope: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Self {
        Self::Of(Box::new(slope))
    }

    /// `g = g * slope(at)`, on as many threads as the work is worth.
    fn apply<T: Scalar>(&self, at: View<'_>, g: &mut ViewMut<'_>, threads: &Threads) -> Result<(), OpError> {
        let (g, at) = (g.slice::<T>()?, at.slice::<T>()?);
        let cost = if matches!(self, Self::Of(_)) { 50 } else { 2 };
        let part = g.len().div_ceil(threads.parts(cost * g.len() as u64)).max(1);
        threads.for_each(g.chunks_mut(part).zip(at.chunks(part)), |(g, at)| self.apply_here(at, g));
        Ok(())
    }

    fn apply_here<T: Scalar>(&self, at: &[T], g: &mut [T]) {
        let pairs = g.iter_mut().zip(at);
        match self {
            Self::Rectifier(below) if *below == 0.0 => pairs.for_each(|(g, &at)| *g = if at > T::zero() { *g } else { T::zero() }),
            Self::Rectifier(below) => {
                let below = T::of(*below);
                pairs.for_each(|(g, &at)| *g = if at > T::zero() { *g } else { *g * below });
            }
            Self::Sigmoid => pairs.for_each(|(g, &y)| *g = *g * (y * (T::one() - y))),
            Self::Tanh => pairs.for_each(|(g, &y)| *g = *g * (T::one() - y * y)),
            Self::Of(slope) => pairs.for_each(|(g, &x)| *g = T::of(g.wide() * slope(x.wide()))),
        }
    }
}

impl fmt::Debug for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rectifier(_) => "Rectifier",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::Of(_) => "Of",
        })
    }
}

/// `gradient * slope(at)`, element by element.
pub(crate) fn chain(emit: &mut dyn Emit, gradient: ValueId, at: ValueId, slope: Slope) -> Result<ValueId, OpError> {
    emit.one(&CHAIN, Chain { slope }, &[gradient, at])
}

#[derive(Debug)]
struct Chain {
    slope: Slope,
}

impl Op for Chain {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (g, at) = (inputs.shape(0)?, inputs.shape(1)?);
        if g != at {
            return Err(OpError::shape(format!("a gradient of shape {g:?} at values of shape {at:?}")));
        }
        Ok(vec![g.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, at, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        y.data().copy_from(0, &g.data());
        with_scalar!(g.dtype(), T => self.slope.apply::<T>(at, y, ctx.threads))
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (at, y) = (inputs.at(1)?, outputs.at(0)?);
        with_scalar!(at.dtype(), T => self.slope.apply::<T>(at, y, ctx.threads))
    }
}
