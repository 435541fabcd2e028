//! Activations: elementwise functions with parameters, in place where the plan allows it.

pub(crate) mod gradient;

use std::f64::consts::FRAC_1_SQRT_2;

use super::ANY;
use super::axes::{require, same_type};
use super::broadcast::{Broadcast, zip};
use super::legacy::{Align, aligned};
use super::number::{Number, erf, through_f32, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_number};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, from: u16, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types: types::FLOATS, build }
}

const fn experimental(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { opsets: 1..=9, ..def(name, 1, build) }
}

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { types: types::NUMBERS, ..def("Relu", 1, |_| kernel(Activation::Relu)) },
    def("LeakyRelu", 1, |a| kernel(Activation::LeakyRelu { alpha: a.float_or("alpha", 0.01)? })),
    def("Sigmoid", 1, |_| kernel(Activation::Sigmoid)),
    def("Tanh", 1, |_| kernel(Activation::Tanh)),
    def("HardSigmoid", 1, |a| kernel(Activation::HardSigmoid { alpha: a.float_or("alpha", 0.2)?, beta: a.float_or("beta", 0.5)? })),
    def("HardSwish", 14, |_| kernel(Activation::HardSwish)),
    def("Gelu", 20, gelu),
    def("Swish", 24, |a| match a.float_or("alpha", 1.0)? {
        1.0 => kernel(Activation::Silu),
        alpha => plain(Function::Swish { alpha }),
    }),
    def("Elu", 1, |a| plain(Function::Elu { alpha: a.float_or("alpha", 1.0)? })),
    OpDef {
        opsets: 1..=5,
        ..def("Selu", 1, |a| {
            let (alpha, gamma) = (a.float_or("alpha", 1.6732)?, a.float_or("gamma", 1.0507)?);
            plain(Function::Selu { alpha, gamma })
        })
    },
    def("Selu", 6, |a| {
        let (alpha, gamma) = (a.float_or("alpha", 1.673_263_2)?, a.float_or("gamma", 1.050_701)?);
        plain(Function::Selu { alpha, gamma })
    }),
    def("Celu", 12, |a| plain(Function::Celu { alpha: a.float_or("alpha", 1.0)? })),
    // Before opset 10 it was experimental, and so were the next three, which were then given up.
    def("ThresholdedRelu", 1, |a| plain(Function::ThresholdedRelu { alpha: a.float_or("alpha", 1.0)? })),
    experimental("Affine", |a| plain(Function::Affine { alpha: a.float_or("alpha", 1.0)?, beta: a.float_or("beta", 0.0)? })),
    experimental("ScaledTanh", |a| {
        plain(Function::ScaledTanh { alpha: a.required("alpha", a.float("alpha")?)?, beta: a.required("beta", a.float("beta")?)? })
    }),
    experimental("ParametricSoftplus", |a| {
        let (alpha, beta) = (a.required("alpha", a.float("alpha")?)?, a.required("beta", a.float("beta")?)?);
        plain(Function::ParametricSoftplus { alpha, beta })
    }),
    OpDef {
        types: types::NUMBERS,
        ..def("Shrink", 9, |a| plain(Function::Shrink { bias: a.float_or("bias", 0.0)?, lambd: a.float_or("lambd", 0.5)? }))
    },
    def("Softplus", 1, |_| plain(Function::Softplus)),
    def("Softsign", 1, |_| plain(Function::Softsign)),
    def("Mish", 18, |_| plain(Function::Mish)),
    OpDef {
        opsets: 1..=10,
        ..def("Clip", 1, |a| {
            kernel(Activation::Clip { min: a.float_or("min", f32::MIN)?, max: a.float_or("max", f32::MAX)? })
        })
    },
    OpDef { types: types::NUMBERS, ..def("Clip", 11, |_| Ok(Box::new(Clip))) },
    OpDef { opsets: 1..=6, ..def("PRelu", 1, |_| aligned(Align::Channels, PRelu)) },
    OpDef { types: types::NUMBERS, ..def("PRelu", 7, |_| Ok(Box::new(PRelu))) },
];

fn kernel(activation: Activation) -> Result<Box<dyn Op>, OpError> {
    plain(Function::Kernel(activation))
}

fn plain(function: Function) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Activate { function }))
}

fn gelu(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    match attrs.string_or("approximate", "none")?.as_str() {
        "none" => kernel(Activation::Gelu),
        "tanh" => kernel(Activation::GeluTanh),
        other => Err(OpError::Attribute(format!("attribute `approximate` is `{other}`, not `none` or `tanh`"))),
    }
}

/// An activation function of one variable.
#[derive(Debug)]
pub(crate) struct Activate {
    function: Function,
}

#[derive(Clone, Copy, Debug)]
enum Function {
    /// One that the kernels can also apply to a product's output.
    Kernel(Activation),
    Elu {
        alpha: f32,
    },
    Selu {
        alpha: f32,
        gamma: f32,
    },
    Celu {
        alpha: f32,
    },
    ThresholdedRelu {
        alpha: f32,
    },
    Swish {
        alpha: f32,
    },
    Affine {
        alpha: f32,
        beta: f32,
    },
    ScaledTanh {
        alpha: f32,
        beta: f32,
    },
    ParametricSoftplus {
        alpha: f32,
        beta: f32,
    },
    Shrink {
        bias: f32,
        lambd: f32,
    },
    Softplus,
    Softsign,
    Mish,
}

impl Activate {
    /// The function as the kernels know it, if they do.
    pub(crate) fn epilogue(&self) -> Option<Activation> {
        match self.function {
            Function::Kernel(activation) => Some(activation),
            _ => None,
        }
    }

    fn apply(&self, y: &mut ViewMut<'_>, isa: Isa) -> Result<(), OpError> {
        match y.dtype() {
            DType::F32 => self.function.f32(isa, y.slice()?),
            DType::F64 => y.slice::<f64>()?.iter_mut().for_each(|y| *y = self.function.f64(*y)),
            dtype if dtype.is_float() => {
                with_float!(dtype, T => through_f32(y.slice::<T>()?, |block| self.function.f32(isa, block)), else {});
            }
            // Of the functions here only Relu and Shrink take integers.
            dtype => with_number!(dtype, T => y.slice::<T>()?.iter_mut().for_each(|y| *y = match self.function {
                Function::Shrink { .. } => T::from_f64(self.function.f64(y.to_f64())),
                _ => y.greater(T::ZERO),
            }), else return Err(OpError::wrong_type(DType::F32, dtype))),
        }
        Ok(())
    }
}

impl Function {
    fn f32(self, isa: Isa, x: &mut [f32]) {
        let map = |x: &mut [f32], f: &dyn Fn(f64) -> f64| x.iter_mut().for_each(|x| *x = f(f64::from(*x)) as f32);
        match self {
            Self::Kernel(activation) => vector::activation_in_place(isa, activation, x),
            Self::ThresholdedRelu { alpha } => x.iter_mut().for_each(|x| *x = threshold(*x, alpha)),
            Self::Softsign => x.iter_mut().for_each(|x| *x /= 1.0 + x.abs()),
            other => map(x, &|v| other.f64(v)),
        }
    }

    /// The definitions of the standard.
    fn f64(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        // max(0, x) + ln(1 + exp(-|x|)) is ln(1 + exp(x)) without overflow.
        let softplus = |x: f64| x.greater(0.0) + (-x.abs()).exp().ln_1p();
        let below = |x: f64, f: &dyn Fn(f64) -> f64| if x < 0.0 { f(x) } else { x };
        match self {
            Self::Kernel(activation) => match activation {
                Activation::None => x,
                Activation::Relu => x.greater(0.0),
                Activation::LeakyRelu { alpha } => below(x, &|x| f64::from(alpha) * x),
                Activation::Clip { min, max } => x.greater(f64::from(min)).smaller(f64::from(max)),
                Activation::Sigmoid => sigmoid(x),
                Activation::Tanh => x.tanh(),
                Activation::Silu => x * sigmoid(x),
                Activation::Gelu => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
                Activation::GeluTanh => {
                    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
                }
                Activation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).greater(0.0).smaller(1.0),
                Activation::HardSwish => x * (x / 6.0 + 0.5).greater(0.0).smaller(1.0),
            },
            Self::Elu { alpha } => below(x, &|x| f64::from(alpha) * x.exp_m1()),
            Self::Selu { alpha, gamma } => f64::from(gamma) * below(x, &|x| f64::from(alpha) * x.exp_m1()),
            Self::Celu { alpha } => below(x, &|x| f64::from(alpha) * (x / f64::from(alpha)).exp_m1()),
            Self::ThresholdedRelu { alpha } => threshold(x, f64::from(alpha)),
            Self::Swish { alpha } => x * sigmoid(f64::from(alpha) * x),
            Self::Affine { alpha, beta } => f64::from(alpha) * x + f64::from(beta),
            Self::ScaledTanh { alpha, beta } => f64::from(alpha) * (f64::from(beta) * x).tanh(),
            Self::ParametricSoftplus { alpha, beta } => f64::from(alpha) * softplus(f64::from(beta) * x),
            Self::Shrink { bias, lambd } => shrink(x, f64::from(bias), f64::from(lambd)),
            Self::Softplus => softplus(x),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Mish => x * softplus(x).tanh(),
        }
    }
}

/// `x` moved by `bias` towards zero, if it lies further than `lambd` from it.
fn shrink(x: f64, bias: f64, lambd: f64) -> f64 {
    if x < -lambd {
        x + bias
    } else if x > lambd {
        x - bias
    } else {
        0.0
    }
}

/// `x` above `alpha`, zero otherwise, for NaN too.
fn threshold<T: Number>(x: T, alpha: T) -> T {
    if x > alpha { x } else { T::ZERO }
}

impl Op for Activate {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        y.data().copy_from(0, &inputs.at(0)?.data());
        self.apply(y, ctx.isa)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.apply(outputs.at(0)?, ctx.isa)
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}

/// Clip with bounds as inputs, each of which may be omitted.
#[derive(Debug)]
pub(crate) struct Clip;

impl Clip {
    /// The bounds, where they are constants of type f32.
    pub(crate) fn epilogue(min: Option<&Tensor>, max: Option<&Tensor>) -> Option<Activation> {
        let bound = |tensor: Option<&Tensor>, default: f32| match tensor {
            None => Some(default),
            Some(tensor) => tensor.slice::<f32>()?.first().copied(),
        };
        Some(Activation::Clip { min: bound(min, f32::MIN)?, max: bound(max, f32::MAX)? })
    }

    fn apply(inputs: &Inputs<'_>, y: &mut ViewMut<'_>, isa: Isa) -> Result<(), OpError> {
        let dtype = y.dtype();
        if dtype == DType::F32 {
            let (min, max) = bounds::<f32>(inputs)?;
            vector::activation_in_place(isa, Activation::Clip { min, max }, y.slice()?);
            return Ok(());
        }
        with_number!(dtype, T => {
            let (min, max) = bounds::<T>(inputs)?;
            y.slice::<T>()?.iter_mut().for_each(|y| {
                let low = if *y < min { min } else { *y };
                *y = if low > max { max } else { low };
            });
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, dtype)))
    }
}

fn bounds<T: Number>(inputs: &Inputs<'_>) -> Result<(T, T), OpError> {
    let bound = |view: Option<View<'_>>, default: T| match view {
        None => Ok(default),
        Some(view) => match view.slice::<T>()? {
            [only] => Ok(*only),
            other => Err(OpError::shape(format!("a bound has one element, not {}", other.len()))),
        },
    };
    Ok((bound(inputs.get(1), greatest::<T>(T::LOWEST))?, bound(inputs.get(2), greatest::<T>(T::HIGHEST))?))
}

/// A bound that is not given: the greatest number of a sign, which infinities exceed.
fn greatest<T: Number>(end: T) -> T {
    let finite = match T::DTYPE {
        DType::F32 => f64::from(f32::MAX),
        DType::F64 => f64::MAX,
        DType::F16 => half::f16::MAX.to_f64(),
        DType::BF16 => half::bf16::MAX.to_f64(),
        _ => return end,
    };
    T::from_f64(if end > T::ZERO { finite } else { -finite })
}

impl Op for Clip {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, 0..3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        y.data().copy_from(0, &inputs.at(0)?.data());
        Self::apply(inputs, y, ctx.isa)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        Self::apply(inputs, outputs.at(0)?, ctx.isa)
    }
}

/// Relu with a slope per element for negative values; the slope broadcasts to the input.
#[derive(Debug)]
struct PRelu;

impl Op for PRelu {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, slope) = (inputs.shape(0)?, inputs.shape(1)?);
        if super::broadcast::shape([x, slope])?.as_slice() != x {
            return Err(OpError::shape(format!("the slope's shape {slope:?} does not broadcast to {x:?}")));
        }
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Number + Element>(x: View<'_>, slope: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
            let plan = Broadcast::new(y.shape(), [x.shape(), slope.shape()]);
            zip(&plan, x.slice::<T>()?, slope.slice::<T>()?, y.slice::<T>()?, |&x, &s| if x < T::ZERO { s.mul(x) } else { x });
            Ok(())
        }
        let (x, slope) = (inputs.at(0)?, inputs.at(1)?);
        with_number!(x.dtype(), T => body::<T>(x, slope, outputs.at(0)?), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use half::f16;

    const X: [f32; 7] = [-100.0, -2.0, -0.5, 0.0, 0.5, 2.0, 100.0];

    #[test]
    fn functions_agree_with_their_definitions() {
        type Definition = fn(f32) -> f32;
        let cases: &[(&'static str, Definition)] = &[
            ("Relu", |x| x.max(0.0)),
            ("LeakyRelu", |x| if x < 0.0 { 0.01 * x } else { x }),
            ("Sigmoid", |x| 1.0 / (1.0 + (-x).exp())),
            ("Tanh", f32::tanh),
            ("HardSigmoid", |x| (0.2 * x + 0.5).clamp(0.0, 1.0)),
            ("HardSwish", |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
            ("Gelu", |x| (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) * FRAC_1_SQRT_2))) as f32),
            ("Swish", |x| x / (1.0 + (-x).exp())),
            ("Elu", |x| if x < 0.0 { x.exp() - 1.0 } else { x }),
            ("Selu", |x| 1.050_701 * if x < 0.0 { 1.673_263_2 * (x.exp() - 1.0) } else { x }),
            ("Celu", |x| if x < 0.0 { x.exp() - 1.0 } else { x }),
            ("ThresholdedRelu", |x| if x > 1.0 { x } else { 0.0 }),
            ("Softplus", |x| if x > 50.0 { x } else { (1.0 + x.exp()).ln() }),
            ("Softsign", |x| x / (1.0 + x.abs())),
            ("Mish", |x| if x > 50.0 { x } else { x * (1.0 + x.exp()).ln().tanh() }),
        ];
        for &(name, definition) in cases {
            let want: Vec<f32> = X.iter().map(|&x| definition(x)).collect();
            let y = op(name).opset(24).one(&[&tensor(&[7], &X)]);
            assert_close(&y, &[7], &want, 1e-6);
            let wide = op(name).opset(24).one(&[&tensor(&[7], &X.map(f64::from))]);
            let narrowed: Vec<f32> = wide.slice::<f64>().unwrap().iter().map(|&v| v as f32).collect();
            assert_close(&tensor(&[7], &narrowed), &[7], &want, 1e-6);
            let half = op(name).opset(24).one(&[&tensor(&[7], &X.map(f16::from_f32))]);
            let widened: Vec<f32> = half.slice::<f16>().unwrap().iter().map(|v| v.to_f32()).collect();
            assert_close(&tensor(&[7], &widened), &[7], &want, 1e-3);
            let nan = op(name).opset(24).one(&[&tensor(&[1], &[f32::NAN])]);
            // What is not above the threshold is zero, and NaN is not.
            assert_eq!(nan.slice::<f32>().unwrap()[0].is_nan(), name != "ThresholdedRelu", "{name}");
            let empty = op(name).opset(24).one(&[&tensor::<f32>(&[2, 0], &[])]);
            assert_eq!(empty.shape(), [2, 0]);
        }
    }

    #[test]
    fn shrinking_moves_towards_zero() {
        let x = tensor(&[6], &[-2.0_f32, -1.0, 0.5, 1.0, 2.0, f32::NAN]);
        let shrink = op("Shrink").attr("lambd", 1.0_f32).attr("bias", 1.5_f32);
        assert_close(&shrink.one(&[&x]), &[6], &[-0.5, 0.0, 0.0, 0.0, 0.5, 0.0], 0.0);
        assert_eq!(shrink.one(&[&tensor(&[3], &[-7_i8, 1, 9])]), tensor(&[3], &[-5_i8, 0, 7]));
        assert_close(&op("Shrink").one(&[&tensor(&[2], &[0.5_f32, -0.75])]), &[2], &[0.0, -0.75], 0.0);
    }

    #[test]
    fn forms_of_the_first_opsets() {
        let x = tensor(&[2], &[-1.0_f32, 2.0]);
        let e = (-1.0_f32).exp();
        assert_close(&op("Selu").opset(1).one(&[&x]), &[2], &[1.0507 * 1.6732 * (e - 1.0), 2.1014], 1e-6);
        let of = |name| op(name).opset(1).attr("alpha", 2.0_f32).attr("beta", 3.0_f32);
        assert_close(&of("Affine").one(&[&x]), &[2], &[1.0, 7.0], 0.0);
        assert_close(&of("ScaledTanh").one(&[&x]), &[2], &[2.0 * (-3.0_f32).tanh(), 2.0 * 6.0_f32.tanh()], 1e-6);
        assert_close(&of("ParametricSoftplus").one(&[&x]), &[2], &[2.0 * (-3.0_f32).exp().ln_1p(), 2.0 * (6.0 + (-6.0_f32).exp().ln_1p())], 1e-6);
        assert!(matches!(op("ScaledTanh").opset(1).error(&[&x]), OpError::Attribute(_)));
        assert!(op("Affine").opset(10).run(&[&x]).is_err());
        let hinted = op("Relu").opset(5).attr("consumed_inputs", &[0_i64][..]);
        assert_close(&hinted.one(&[&x]), &[2], &[0.0, 2.0], 0.0);
    }

    #[test]
    fn a_long_row_of_halves_is_done_in_blocks() {
        let x: Vec<f16> = noise(1000, 1).into_iter().map(f16::from_f32).collect();
        let y = op("Tanh").one(&[&tensor(&[1000], &x)]);
        for (x, y) in x.iter().zip(y.slice::<f16>().unwrap()) {
            assert!((x.to_f32().tanh() - y.to_f32()).abs() < 1e-3);
        }
    }

    #[test]
    fn relu_takes_integers() {
        assert_eq!(op("Relu").one(&[&tensor(&[3], &[-1_i32, 0, 5])]), tensor(&[3], &[0_i32, 0, 5]));
    }

    #[test]
    fn gelu_knows_two_approximations() {
        let x = tensor(&[1], &[1.0_f32]);
        assert_close(&op("Gelu").attr("approximate", "tanh").one(&[&x]), &[1], &[0.841_192], 1e-6);
        assert!(matches!(op("Gelu").attr("approximate", "erf").error(&[&x]), OpError::Attribute(_)));
    }

    #[test]
    fn clip_bounds_are_attributes_and_later_inputs() {
        let x = tensor(&[4], &[-3.0_f32, 0.0, 3.0, f32::NAN]);
        let old = op("Clip").opset(6).attr("min", -1.0_f32).attr("max", 2.0_f32).one(&[&x]);
        let new = op("Clip").one(&[&x, &Tensor::scalar(-1.0_f32), &Tensor::scalar(2.0_f32)]);
        assert_close(&old, &[4], &[-1.0, 0.0, 2.0, f32::NAN], 0.0);
        assert_close(&new, &[4], &[-1.0, 0.0, 2.0, f32::NAN], 0.0);
        let upper = op("Clip").run_some(&[Some(&x), None, Some(&Tensor::scalar(1.0_f32))]).unwrap();
        assert_close(&upper[0], &[4], &[-3.0, 0.0, 1.0, f32::NAN], 0.0);
        // A bound that is left out is the greatest number, which is not infinity.
        let ends = tensor(&[2], &[f32::INFINITY, f32::NEG_INFINITY]);
        assert_close(&op("Clip").one(&[&ends]), &[2], &[f32::MAX, f32::MIN], 0.0);
        assert_close(&op("Clip").opset(6).one(&[&ends]), &[2], &[f32::MAX, f32::MIN], 0.0);
        let half = [f16::INFINITY, f16::NEG_INFINITY];
        assert_eq!(op("Clip").one(&[&tensor(&[2], &half)]), tensor(&[2], &[f16::MAX, f16::MIN]));
        assert_eq!(op("Clip").one(&[&tensor(&[2], &[i8::MIN, i8::MAX])]), tensor(&[2], &[i8::MIN, i8::MAX]));
        // A minimum above the maximum gives the maximum, as the standard says.
        let crossed = op("Clip").one(&[&tensor(&[2], &[0_i64, 9]), &Tensor::scalar(5_i64), &Tensor::scalar(3_i64)]);
        assert_eq!(crossed, tensor(&[2], &[3_i64, 3]));
        assert!(matches!(op("Clip").error(&[&x, &Tensor::scalar(0_i64)]), OpError::Type(_)));
        assert!(matches!(op("Clip").error(&[&x, &tensor(&[2], &[0.0_f32, 1.0])]), OpError::Shape(_)));
    }

    #[test]
    fn infinity_times_zero_is_nan_below() {
        let x = tensor(&[9], &[f32::NEG_INFINITY, f32::MIN, -1e4, -0.0, f32::INFINITY, f32::NAN, -1.0, -2.0, f32::NEG_INFINITY]);
        for case in [op("Gelu"), op("Gelu").attr("approximate", "tanh"), op("Swish").opset(24), op("Swish").opset(24).attr("alpha", 1.5_f32)] {
            let y = case.one(&[&x]);
            let y = y.slice::<f32>().unwrap();
            assert!(y[0].is_nan() && y[5].is_nan() && y[8].is_nan(), "{y:?}");
            assert!(y[1..4].iter().all(|&v| v == 0.0) && y[4] == f32::INFINITY, "{y:?}");
        }
    }

    #[test]
    fn prelu_broadcasts_its_slope_one_way() {
        let x = tensor(&[1, 2, 2], &[-1.0_f32, 1.0, -2.0, 2.0]);
        let y = op("PRelu").one(&[&x, &tensor(&[2, 1], &[0.5_f32, 0.25])]);
        assert_close(&y, &[1, 2, 2], &[-0.5, 1.0, -0.5, 2.0], 0.0);
        assert!(matches!(op("PRelu").error(&[&x, &tensor(&[3], &[0.0_f32; 3])]), OpError::Shape(_)));
        assert!(matches!(op("PRelu").error(&[&tensor(&[1], &[0.0_f32]), &tensor(&[3], &[0.0_f32; 3])]), OpError::Shape(_)));
        assert!(op("PRelu").run(&[&x]).is_err());
    }
}
