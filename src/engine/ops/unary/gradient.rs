//! Gradients of the elementwise functions without parameters.

use std::f64::consts::FRAC_2_SQRT_PI;

use crate::engine::adjoint::Rule;
use crate::engine::ops::chain::{Slope, chain};

/// A row for a function whose derivative is given as one of its argument.
macro_rules! slope {
    ($name:literal, $slope:expr) => {
        Rule::new($name, |_, at, emit| {
            let slope: fn(f64) -> f64 = $slope;
            Ok(vec![Some(chain(emit, at.g()?, at.x(0)?, Slope::of(slope))?)])
        })
    };
}

/// A row for a function that is constant but for jumps.
macro_rules! flat {
    ($name:literal) => {
        Rule::new($name, |_, _, _| Ok(Vec::new()))
    };
}

pub(crate) const RULES: &[Rule] = &[
    slope!("Abs", |x| if x == 0.0 { 0.0 } else { x.signum() }),
    Rule::new("Neg", |_, at, emit| Ok(vec![Some(emit.op("Neg", &[at.g()?])?)])),
    slope!("Erf", |x| FRAC_2_SQRT_PI * (-x * x).exp()),
    Rule::new("Exp", |_, at, emit| Ok(vec![Some(emit.op("Mul", &[at.g()?, at.y(0)?])?)])),
    slope!("Log", |x| 1.0 / x),
    slope!("Sqrt", |x| 0.5 / x.sqrt()),
    slope!("Reciprocal", |x| -1.0 / (x * x)),
    slope!("Sin", f64::cos),
    slope!("Cos", |x| -x.sin()),
    slope!("Tan", |x| 1.0 + x.tan().powi(2)),
    slope!("Asin", |x| 1.0 / (1.0 - x * x).sqrt()),
    slope!("Acos", |x| -1.0 / (1.0 - x * x).sqrt()),
    slope!("Atan", |x| 1.0 / (1.0 + x * x)),
    slope!("Sinh", f64::cosh),
    slope!("Cosh", f64::sinh),
    slope!("Asinh", |x| 1.0 / (x * x + 1.0).sqrt()),
    slope!("Acosh", |x| 1.0 / (x * x - 1.0).sqrt()),
    slope!("Atanh", |x| 1.0 / (1.0 - x * x)),
    flat!("Sign"),
    flat!("Floor"),
    flat!("Ceil"),
    flat!("Round"),
];
