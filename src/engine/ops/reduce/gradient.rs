//! Gradients of reductions: the gradient of each result is spread over the elements that it was made of.

use super::{Function, Reduce};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, ValueId, concrete};
use crate::engine::attrs::Attr;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, require, same_type, size};
use crate::engine::ops::broadcast::{Broadcast, map};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const RULES: &[Rule] = &[
    Rule::new("ReduceSum", reduce),
    Rule::new("ReduceMean", reduce),
    Rule::new("ReduceMax", reduce),
    Rule::new("ReduceMin", reduce),
    Rule::new("ReduceProd", reduce),
    Rule::new("ReduceL1", reduce),
    Rule::new("ReduceL2", reduce),
    Rule::new("ReduceLogSum", reduce),
    Rule::new("ReduceLogSumExp", reduce),
    Rule::new("ReduceSumSquare", reduce),
];

static SPREAD: OpDef = own("Spread");
static COUNT: OpDef = own("SumInPlace");
static PRODUCT: OpDef = own("ProductOfOthers");

fn reduce(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let reduce = concrete::<Reduce>(op)?;
    let (g, x, y) = (at.g()?, at.x(0)?, at.y(0)?);
    let form = || Reduce { function: Function::Sum, axes: reduce.axes.clone(), keep: true, noop: reduce.noop };
    let shape = emit.shape(x)?;
    let spread = |emit: &mut dyn Emit, value: ValueId| {
        let inputs = [Some(value), Some(shape), at.inputs.get(1).copied().flatten()];
        Ok::<_, OpError>(emit.own(&SPREAD, Box::new(Spread(form())), &inputs, 1)?[0])
    };
    let gradient = match reduce.function {
        Function::Sum => spread(emit, g)?,
        Function::Mean => {
            let share = share_of_mean(emit, g, x, y)?;
            spread(emit, share)?
        }
        Function::Max | Function::Min => {
            // Equally great elements share.
            let (wide, to) = (spread(emit, y)?, emit.dtype(x)?.onnx());
            let same = emit.op("Equal", &[x, wide])?;
            let mask = emit.with("Cast", &[("to", Attr::Int(to.into()))], &[same])?;
            let inputs = [Some(mask), Some(shape), at.inputs.get(1).copied().flatten()];
            let count = emit.own(&COUNT, Box::new(Count(form())), &inputs, 1)?[0];
            let wide = spread(emit, g)?;
            let share = emit.op("Div", &[wide, count])?;
            emit.op("Mul", &[share, mask])?
        }
        Function::Prod => {
            let inputs = [Some(x), Some(shape), at.inputs.get(1).copied().flatten()];
            let others = emit.own(&PRODUCT, Box::new(Others(form())), &inputs, 1)?[0];
            let wide = spread(emit, g)?;
            emit.op("Mul", &[wide, others])?
        }
        Function::L1 => {
            let (wide, sign) = (spread(emit, g)?, emit.op("Sign", &[x])?);
            emit.op("Mul", &[wide, sign])?
        }
        Function::L2 => {
            // Of no length, no direction.
            let (zero, quotient) = (emit.number(y, 0.0)?, emit.op("Div", &[g, y])?);
            let nothing = emit.op("Equal", &[y, zero])?;
            let share = emit.op("Where", &[nothing, zero, quotient])?;
            let wide = spread(emit, share)?;
            emit.op("Mul", &[wide, x])?
        }
        Function::LogSum => {
            let total = emit.op("Exp", &[y])?;
            let share = emit.op("Div", &[g, total])?;
            spread(emit, share)?
        }
        Function::LogSumExp => {
            let (wide, log) = (spread(emit, g)?, spread(emit, y)?);
            let difference = emit.op("Sub", &[x, log])?;
            let share = emit.op("Exp", &[difference])?;
            emit.op("Mul", &[wide, share])?
        }
        Function::SumSquare => {
            let double = emit.scale(g, 2.0)?;
            let wide = spread(emit, double)?;
            emit.op("Mul", &[wide, x])?
        }
    };
    Ok(vec![Some(gradient)])
}

/// The gradient over the number of elements that each mean is of: a number known as soon as shapes are.
fn share_of_mean(emit: &mut dyn Emit, g: ValueId, x: ValueId, y: ValueId) -> Result<ValueId, OpError> {
    let to = [("to", Attr::Int(emit.dtype(g)?.onnx().into()))];
    let (all, kept) = (emit.op("Size", &[x])?, emit.op("Size", &[y])?);
    let (all, kept) = (emit.with("Cast", &to, &[all])?, emit.with("Cast", &to, &[kept])?);
    let factor = emit.op("Div", &[kept, all])?;
    emit.op("Mul", &[g, factor])
}

/// The shape with the reduced dimensions kept as 1.
fn kept(reduce: &Reduce, shape: &[usize], axes: Option<&[i64]>) -> Result<Shape, OpError> {
    let reduced = reduce.reduced(shape.len(), axes)?;
    Ok(shape.iter().enumerate().map(|(d, &n)| if reduced.contains(&d) { 1 } else { n }).collect())
}

fn wide_kinds(inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
    require(inputs, 2)?;
    same_type(inputs, 2, [0])
}

fn wide_shape(inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
    if inputs.get(2).is_some() {
        inputs.ints(2)?;
    }
    Ok(vec![inputs.ints(1)?.into_iter().map(size).collect::<Result<_, _>>()?])
}

/// Each result repeated where its elements were. Inputs: what the reduction gave, the shape of its operand, its axes.
#[derive(Debug)]
struct Spread(Reduce);

impl Op for Spread {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        wide_kinds(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        wide_shape(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        let narrow = kept(&self.0, y.shape(), inputs.get(2).map(ints).transpose()?.as_deref())?;
        if narrow.iter().product::<usize>() != g.len() {
            return Err(OpError::shape(format!("{:?} is not what {:?} was reduced to", g.shape(), y.shape())));
        }
        let plan = Broadcast::new(y.shape(), [&narrow]);
        with_scalar!(g.dtype(), T => {
            map(&plan, g.slice::<T>()?, y.slice::<T>()?, |v, to| *to = *v);
            Ok(())
        })
    }
}

/// The sum over the reduced elements, at each of them.
#[derive(Debug)]
struct Count(Reduce);

impl Count {
    fn run_typed<T: Scalar>(plan: &Broadcast<1>, len: usize, x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let mut sums = vec![T::zero(); len];
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        each(plan, |i, group| sums[group] += x[i]);
        each(plan, |i, group| y[i] = sums[group]);
        Ok(())
    }
}

/// Calls `f` with every element and the result that it belongs to.
fn each(plan: &Broadcast<1>, mut f: impl FnMut(usize, usize)) {
    plan.for_each(|run| {
        for i in 0..run.len {
            f(run.start + i, run.from[0] + if run.moves[0] { i } else { 0 });
        }
    });
}

impl Op for Count {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        wide_kinds(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        wide_shape(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let narrow = kept(&self.0, y.shape(), inputs.get(2).map(ints).transpose()?.as_deref())?;
        let (plan, len) = (Broadcast::new(y.shape(), [&narrow]), narrow.iter().product());
        with_scalar!(x.dtype(), T => Self::run_typed::<T>(&plan, len, x, y))
    }
}

/// The product of the other elements that are reduced with each: not the product divided by it, which may be zero.
#[derive(Debug)]
struct Others(Reduce);

impl Others {
    fn run_typed<T: Scalar>(plan: &Broadcast<1>, len: usize, x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        let mut order: Vec<(usize, usize)> = Vec::with_capacity(x.len());
        each(plan, |i, group| order.push((i, group)));
        let mut products = vec![T::one(); len];
        for &(i, group) in &order {
            y[i] = products[group];
            products[group] = products[group] * x[i];
        }
        products.fill(T::one());
        for &(i, group) in order.iter().rev() {
            y[i] = y[i] * products[group];
            products[group] = products[group] * x[i];
        }
        Ok(())
    }
}

impl Op for Others {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        wide_kinds(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        wide_shape(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let narrow = kept(&self.0, y.shape(), inputs.get(2).map(ints).transpose()?.as_deref())?;
        let (plan, len) = (Broadcast::new(y.shape(), [&narrow]), narrow.iter().product());
        with_scalar!(x.dtype(), T => Self::run_typed::<T>(&plan, len, x, y))
    }
}
