//! Gradients of the activations.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use super::{Activate, Function, PRelu};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::op::{Op, OpError};
use crate::engine::ops::chain::{Slope, chain};
use crate::engine::ops::number::erf;
use crate::engine::ops::sum_to::sum_to;

pub(crate) const RULES: &[Rule] = &[
    Rule::new("Relu", activate),
    Rule::new("LeakyRelu", activate),
    Rule::new("Sigmoid", activate),
    Rule::new("Tanh", activate),
    Rule::new("HardSigmoid", activate),
    Rule::new("HardSwish", activate),
    Rule::new("Gelu", activate),
    Rule::new("Swish", activate),
    Rule::new("Elu", activate),
    Rule::new("Selu", activate),
    Rule::new("Celu", activate),
    Rule::new("ThresholdedRelu", activate),
    Rule::new("Affine", activate),
    Rule::new("ScaledTanh", activate),
    Rule::new("ParametricSoftplus", activate),
    Rule::new("Shrink", activate),
    Rule::new("Softplus", activate),
    Rule::new("Softsign", activate),
    Rule::new("Mish", activate),
    Rule::new("Clip", clip),
    Rule::new("PRelu", prelu),
];

fn activate(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let function = concrete::<Activate>(op)?.function;
    // The derivative as a function of the output keeps the input from being kept.
    let (point, slope) = match function {
        Function::Kernel(Activation::Relu) => (at.y(0)?, Slope::Rectifier(0.0)),
        Function::Kernel(Activation::LeakyRelu { alpha }) if alpha > 0.0 => (at.y(0)?, Slope::Rectifier(f64::from(alpha))),
        Function::Kernel(Activation::Sigmoid) => (at.y(0)?, Slope::Sigmoid),
        Function::Kernel(Activation::Tanh) => (at.y(0)?, Slope::Tanh),
        function => (at.x(0)?, Slope::of(move |x| function.slope(x))),
    };
    Ok(vec![Some(chain(emit, at.g()?, point, slope)?)])
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// 1 between two numbers, else 0.
fn inside(x: f64, low: f64, high: f64) -> f64 {
    if x > low && x < high { 1.0 } else { 0.0 }
}

impl Function {
    /// The derivative; at a corner the one that PyTorch takes.
    fn slope(self, x: f64) -> f64 {
        let below = |slope: &dyn Fn(f64) -> f64| if x <= 0.0 { slope(x) } else { 1.0 };
        match self {
            Self::Kernel(activation) => of_kernel(activation, x),
            Self::Elu { alpha } => below(&|x| f64::from(alpha) * x.exp()),
            Self::Selu { alpha, gamma } => f64::from(gamma) * below(&|x| f64::from(alpha) * x.exp()),
            Self::Celu { alpha } => below(&|x| (x / f64::from(alpha)).exp()),
            Self::ThresholdedRelu { alpha } => inside(x, f64::from(alpha), f64::INFINITY),
            Self::Swish { alpha } => {
                let alpha = f64::from(alpha);
                let s = sigmoid(alpha * x);
                s + alpha * x * s * (1.0 - s)
            }
            Self::Affine { alpha, .. } => f64::from(alpha),
            Self::ScaledTanh { alpha, beta } => {
                let (alpha, beta) = (f64::from(alpha), f64::from(beta));
                alpha * beta * (1.0 - (beta * x).tanh().powi(2))
            }
            Self::ParametricSoftplus { alpha, beta } => f64::from(alpha) * f64::from(beta) * sigmoid(f64::from(beta) * x),
            Self::Shrink { lambd, .. } => 1.0 - if x.abs() > f64::from(lambd) { 0.0 } else { 1.0 },
            Self::Softplus => sigmoid(x),
            Self::Softsign => 1.0 / (1.0 + x.abs()).powi(2),
            Self::Mish => {
                let tanh = (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh();
                tanh + x * (1.0 - tanh * tanh) * sigmoid(x)
            }
        }
    }
}

fn of_kernel(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu => inside(x, 0.0, f64::INFINITY),
        Activation::LeakyRelu { alpha } => if x <= 0.0 { f64::from(alpha) } else { 1.0 },
        Activation::Clip { min, max } => if x >= f64::from(min) && x <= f64::from(max) { 1.0 } else { 0.0 },
        Activation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
        Activation::Tanh => 1.0 - x.tanh().powi(2),
        Activation::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        Activation::Gelu => {
            let density = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0 * (-0.5 * x * x).exp();
            0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density
        }
        Activation::GeluTanh => {
            let root = (2.0 / PI).sqrt();
            let tanh = (root * (x + 0.044_715 * x * x * x)).tanh();
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * root * (1.0 + 3.0 * 0.044_715 * x * x)
        }
        Activation::HardSigmoid { alpha, beta } => f64::from(alpha) * inside(f64::from(alpha) * x + f64::from(beta), 0.0, 1.0),
        Activation::HardSwish if x <= -3.0 => 0.0,
        Activation::HardSwish if x >= 3.0 => 1.0,
        Activation::HardSwish => x / 3.0 + 0.5,
    }
}

/// The gradient passes where the output is the input. Bounds as inputs take none.
fn clip(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    if op.downcast::<Activate>().is_some() {
        return activate(op, at, emit);
    }
    if at.wants(1) || at.wants(2) {
        return Err(OpError::unsupported("the bounds of Clip have no gradient"));
    }
    let (zero, same) = (emit.number(at.g()?, 0.0)?, emit.op("Equal", &[at.x(0)?, at.y(0)?])?);
    Ok(vec![Some(emit.op("Where", &[same, at.g()?, zero])?)])
}

fn prelu(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    concrete::<PRelu>(op)?;
    let (g, x, slope) = (at.g()?, at.x(0)?, at.x(1)?);
    let zero = emit.number(x, 0.0)?;
    // At zero the slope is that of negative numbers, as PyTorch has it.
    let negative = emit.op("LessOrEqual", &[x, zero])?;
    at.each(|i| {
        if i == 0 {
            let scaled = emit.op("Mul", &[g, slope])?;
            return emit.op("Where", &[negative, scaled, g]);
        }
        let product = emit.op("Mul", &[g, x])?;
        let share = emit.op("Where", &[negative, product, zero])?;
        sum_to(emit, share, slope)
    })
}
