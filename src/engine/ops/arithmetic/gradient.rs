//! Gradients of arithmetic with broadcasting.

use super::{Arithmetic, Mod, Pow, Variadic};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, ValueId, concrete};
use crate::engine::attrs::Attr;
use crate::engine::op::{Op, OpError};
use crate::engine::ops::sum_to::sum_to;

pub(crate) const RULES: &[Rule] = &[
    Rule::new("Add", add),
    Rule::new("Sub", sub),
    Rule::new("Mul", mul),
    Rule::new("Div", div),
    Rule::new("Pow", pow),
    Rule::new("Mod", modulo),
    Rule::new("Min", extreme),
    Rule::new("Max", extreme),
    Rule::new("Sum", sum),
    Rule::new("Mean", sum),
];

fn add(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Arithmetic>(op)?;
    at.each(|i| sum_to(emit, at.g()?, at.x(i)?))
}

fn sub(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Arithmetic>(op)?;
    at.each(|i| {
        let summed = sum_to(emit, at.g()?, at.x(i)?)?;
        if i == 0 { Ok(summed) } else { emit.op("Neg", &[summed]) }
    })
}

fn mul(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Arithmetic>(op)?;
    at.each(|i| {
        let product = emit.op("Mul", &[at.g()?, at.x(1 - i)?])?;
        sum_to(emit, product, at.x(i)?)
    })
}

/// `d(a/b) = da / b - db · (a/b) / b`.
fn div(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Arithmetic>(op)?;
    let share = emit.op("Div", &[at.g()?, at.x(1)?])?;
    at.each(|i| {
        if i == 0 {
            return sum_to(emit, share, at.x(0)?);
        }
        let product = emit.op("Mul", &[share, at.y(0)?])?;
        let summed = sum_to(emit, product, at.x(1)?)?;
        emit.op("Neg", &[summed])
    })
}

/// `d(a^b) = da · b · a^(b-1) + db · a^b · ln a`, where an exponent of 0 and a base of 0 add nothing.
fn pow(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Pow>(op)?;
    let (g, a, b) = (at.g()?, at.x(0)?, at.x(1)?);
    let dtype = emit.dtype(a)?;
    // The exponent may be of another type.
    let exponent = if emit.dtype(b)? == dtype { b } else { emit.with("Cast", &[("to", Attr::Int(dtype.onnx().into()))], &[b])? };
    let zero = emit.number(a, 0.0)?;
    at.each(|i| {
        if i == 0 {
            let one = emit.number(a, 1.0)?;
            let less = emit.op("Sub", &[exponent, one])?;
            let power = emit.op("Pow", &[a, less])?;
            let slope = emit.op("Mul", &[exponent, power])?;
            let constant = emit.op("Equal", &[exponent, zero])?;
            let slope = emit.op("Where", &[constant, zero, slope])?;
            let product = emit.op("Mul", &[g, slope])?;
            return sum_to(emit, product, a);
        }
        let log = emit.op("Log", &[a])?;
        let slope = emit.op("Mul", &[at.y(0)?, log])?;
        let nothing = emit.op("Equal", &[a, zero])?;
        let slope = emit.op("Where", &[nothing, zero, slope])?;
        let product = emit.op("Mul", &[g, slope])?;
        sum_to(emit, product, b)
    })
}

/// `a mod b = a - b · q` with a quotient that is constant but for jumps.
fn modulo(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Mod>(op)?;
    at.each(|i| {
        if i == 0 {
            return sum_to(emit, at.g()?, at.x(0)?);
        }
        let whole = emit.op("Sub", &[at.y(0)?, at.x(0)?])?;
        let slope = emit.op("Div", &[whole, at.x(1)?])?;
        let product = emit.op("Mul", &[at.g()?, slope])?;
        sum_to(emit, product, at.x(1)?)
    })
}

/// Operands that are equally great, or small, share the gradient.
fn extreme(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<Variadic>(op)?;
    let to = [("to", Attr::Int(emit.dtype(at.y(0)?)?.onnx().into()))];
    let mut masks: Vec<ValueId> = Vec::new();
    for i in 0..at.inputs.len() {
        let same = emit.op("Equal", &[at.x(i)?, at.y(0)?])?;
        masks.push(emit.with("Cast", &to, &[same])?);
    }
    let share = if masks.len() > 1 {
        let count = emit.op("Sum", &masks)?;
        emit.op("Div", &[at.g()?, count])?
    } else {
        at.g()?
    };
    at.each(|i| {
        let product = emit.op("Mul", &[share, masks[i]])?;
        sum_to(emit, product, at.x(i)?)
    })
}

fn sum(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let factor = if concrete::<Variadic>(op)?.mean { 1.0 / at.inputs.len() as f64 } else { 1.0 };
    at.each(|i| {
        let summed = sum_to(emit, at.g()?, at.x(i)?)?;
        emit.scale(summed, factor)
    })
}
