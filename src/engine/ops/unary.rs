//! Elementwise functions without parameters: signs, roundings, roots, exponentials, trigonometry, and the tests of a
//! number or a truth value (Not, IsNaN, IsInf).

pub(crate) mod gradient;

use super::ANY;
use super::axes::{require, same_type};
use super::number::{Number, erf, through_f32, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::ViewMut;

const fn def(name: &'static str, from: u16, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types, build }
}

/// A row for a function on floats, given in f32 and in f64.
macro_rules! float {
    ($name:literal, $from:literal, $f32:expr, $f64:expr) => {
        def($name, $from, types::FLOATS, |_| Ok(Box::new(Unary(Function::Float { f32: $f32, f64: $f64 }))))
    };
}

const SIGNED: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::I16, DType::I32, DType::I64];

pub(crate) const DEFS: &[OpDef] = &[
    def("Abs", 1, types::NUMBERS, |_| Ok(Box::new(Unary(Function::Abs)))),
    def("Neg", 1, SIGNED, |_| Ok(Box::new(Unary(Function::Neg)))),
    def("Sign", 9, types::NUMBERS, |_| Ok(Box::new(Unary(Function::Sign)))),
    def("Erf", 9, types::NUMBERS, |_| Ok(Box::new(Unary(Function::Erf)))),
    def("Exp", 1, types::FLOATS, |_| Ok(Box::new(Unary(Function::Exp)))),
    float!("Log", 1, f32::ln, f64::ln),
    float!("Sqrt", 1, f32::sqrt, f64::sqrt),
    float!("Reciprocal", 1, |x| 1.0 / x, |x| 1.0 / x),
    float!("Floor", 1, f32::floor, f64::floor),
    float!("Ceil", 1, f32::ceil, f64::ceil),
    float!("Round", 11, f32::round_ties_even, f64::round_ties_even),
    float!("Sin", 7, f32::sin, f64::sin),
    float!("Cos", 7, f32::cos, f64::cos),
    float!("Tan", 7, f32::tan, f64::tan),
    float!("Asin", 7, f32::asin, f64::asin),
    float!("Acos", 7, f32::acos, f64::acos),
    float!("Atan", 7, f32::atan, f64::atan),
    float!("Sinh", 9, f32::sinh, f64::sinh),
    float!("Cosh", 9, f32::cosh, f64::cosh),
    // The inverses lose digits near 0 in f32.
    float!("Asinh", 9, |x| f64::from(x).asinh() as f32, f64::asinh),
    float!("Acosh", 9, |x| f64::from(x).acosh() as f32, f64::acosh),
    float!("Atanh", 9, |x| f64::from(x).atanh() as f32, f64::atanh),
    def("Not", 1, types::BOOL, |_| Ok(Box::new(Not))),
    def("IsNaN", 9, types::FLOATS, |_| Ok(Box::new(Is { nan: true, positive: false, negative: false }))),
    def("IsInf", 10, types::FLOATS, |a| {
        let (positive, negative) = (a.bool_or("detect_positive", true)?, a.bool_or("detect_negative", true)?);
        Ok(Box::new(Is { nan: false, positive, negative }))
    }),
];

/// A function whose result is of its argument's type.
#[derive(Debug)]
struct Unary(Function);

#[derive(Clone, Copy, Debug)]
enum Function {
    Abs,
    Neg,
    Sign,
    Erf,
    Exp,
    Float { f32: fn(f32) -> f32, f64: fn(f64) -> f64 },
}

impl Unary {
    fn apply(&self, y: &mut ViewMut<'_>, isa: Isa) -> Result<(), OpError> {
        let dtype = y.dtype();
        let wrong = || OpError::wrong_type(DType::F32, dtype);
        match self.0 {
            Function::Abs => with_number!(dtype, T => each::<T>(y, Number::abs), else Err(wrong())),
            Function::Neg => with_number!(dtype, T => each::<T>(y, Number::neg), else Err(wrong())),
            Function::Sign => with_number!(dtype, T => each::<T>(y, Number::sign), else Err(wrong())),
            Function::Erf => floats(y, |block| vector::erf_in_place(isa, block), erf),
            Function::Exp => floats(y, |block| vector::exp_in_place(isa, block), f64::exp),
            Function::Float { f32, f64 } => floats(y, |block| block.iter_mut().for_each(|v| *v = f32(*v)), f64),
        }
    }
}

fn each<T: Number>(y: &mut ViewMut<'_>, f: fn(T) -> T) -> Result<(), OpError> {
    y.slice::<T>()?.iter_mut().for_each(|y| *y = f(*y));
    Ok(())
}

/// f32 by slices, f64 one by one, half precision through f32, integers through f64.
fn floats(y: &mut ViewMut<'_>, narrow: impl Fn(&mut [f32]), wide: impl Fn(f64) -> f64) -> Result<(), OpError> {
    match y.dtype() {
        DType::F32 => narrow(y.slice()?),
        DType::F64 => y.slice::<f64>()?.iter_mut().for_each(|y| *y = wide(*y)),
        DType::F16 => through_f32(y.slice::<half::f16>()?, narrow),
        DType::BF16 => through_f32(y.slice::<half::bf16>()?, narrow),
        dtype => with_number!(dtype, T => y.slice::<T>()?.iter_mut().for_each(|y| *y = T::from_f64(wide(y.to_f64()))),
            else return Err(OpError::wrong_type(DType::F32, dtype))),
    }
    Ok(())
}

impl Op for Unary {
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

/// The other truth value.
#[derive(Debug)]
struct Not;

impl Op for Not {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?.slice::<bool>()?;
        outputs.at(0)?.slice::<bool>()?.iter_mut().zip(x).for_each(|(y, x)| *y = !x);
        Ok(())
    }
}

/// Whether each element is NaN, or an infinity of a wanted sign.
#[derive(Debug)]
struct Is {
    nan: bool,
    positive: bool,
    negative: bool,
}

impl Op for Is {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(Kinds::from_iter([Kind::Tensor(DType::Bool)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let y = outputs.at(0)?.slice::<bool>()?;
        with_float!(x.dtype(), T => {
            for (y, x) in y.iter_mut().zip(x.slice::<T>()?) {
                let (nan, highest, lowest) = (x.nan(), *x == T::HIGHEST, *x == T::LOWEST);
                *y = (self.nan && nan) || (self.positive && highest) || (self.negative && lowest);
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, op, tensor};
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn functions_agree_in_every_float_type() {
        type Definition = fn(f64) -> f64;
        let cases: &[(&'static str, Definition)] = &[
            ("Exp", f64::exp),
            ("Log", f64::ln),
            ("Sqrt", f64::sqrt),
            ("Reciprocal", |x| 1.0 / x),
            ("Erf", erf),
            ("Sin", f64::sin),
            ("Cos", f64::cos),
            ("Tan", f64::tan),
            ("Asin", f64::asin),
            ("Acos", f64::acos),
            ("Atan", f64::atan),
            ("Sinh", f64::sinh),
            ("Cosh", f64::cosh),
            ("Asinh", f64::asinh),
            ("Acosh", f64::acosh),
            ("Atanh", f64::atanh),
        ];
        // Those that a domain excludes give NaN on both sides.
        let x = [0.25_f32, 0.75, 1.0, 2.0, -0.5, f32::NAN];
        for &(name, f) in cases {
            let want: Vec<f32> = x.iter().map(|&x| f(f64::from(x)) as f32).collect();
            assert_close(&op(name).one(&[&tensor(&[2, 3], &x)]), &[2, 3], &want, 1e-6);
            let wide = op(name).one(&[&tensor(&[6], &x.map(f64::from))]);
            let wide: Vec<f32> = wide.slice::<f64>().unwrap().iter().map(|&v| v as f32).collect();
            assert_close(&tensor(&[6], &wide), &[6], &want, 1e-6);
            let half = op(name).one(&[&tensor(&[6], &x.map(f16::from_f32))]);
            let half: Vec<f32> = half.slice::<f16>().unwrap().iter().map(|v| v.to_f32()).collect();
            assert_close(&tensor(&[6], &half), &[6], &want, 2e-3);
        }
    }

    #[test]
    fn halves_round_to_even() {
        let x = tensor(&[6], &[0.5_f32, 1.5, 2.5, -0.5, -1.5, 1.2]);
        assert_close(&op("Round").one(&[&x]), &[6], &[0.0, 2.0, 2.0, -0.0, -2.0, 1.0], 0.0);
        assert_close(&op("Floor").one(&[&x]), &[6], &[0.0, 1.0, 2.0, -1.0, -2.0, 1.0], 0.0);
        assert_close(&op("Ceil").one(&[&x]), &[6], &[1.0, 2.0, 3.0, -0.0, -1.0, 2.0], 0.0);
    }

    #[test]
    fn signs_of_integers_and_floats() {
        let ints = tensor(&[3], &[-3_i8, 0, i8::MIN]);
        assert_eq!(op("Abs").one(&[&ints]), tensor(&[3], &[3_i8, 0, i8::MIN]));
        assert_eq!(op("Neg").one(&[&ints]), tensor(&[3], &[3_i8, 0, i8::MIN]));
        assert_eq!(op("Sign").one(&[&ints]), tensor(&[3], &[-1_i8, 0, -1]));
        assert_eq!(op("Sign").one(&[&tensor(&[2], &[0_u64, 9])]), tensor(&[2], &[0_u64, 1]));
        let floats = tensor(&[4], &[-2.0_f32, 0.0, 7.0, f32::NAN]);
        assert_close(&op("Sign").one(&[&floats]), &[4], &[-1.0, 0.0, 1.0, f32::NAN], 0.0);
        assert_close(&op("Abs").one(&[&floats]), &[4], &[2.0, 0.0, 7.0, f32::NAN], 0.0);
        assert_eq!(op("Abs").one(&[&tensor(&[1], &[bf16::from_f32(-1.5)])]), tensor(&[1], &[bf16::from_f32(1.5)]));
        assert!(matches!(op("Neg").error(&[&tensor(&[1], &[1_u8])]), OpError::Type(_)));
        assert!(op("Abs").run(&[]).is_err());
    }

    #[test]
    fn tests_give_truth_values() {
        let x = tensor(&[4], &[1.0_f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(op("IsNaN").one(&[&x]), tensor(&[4], &[false, true, false, false]));
        assert_eq!(op("IsInf").one(&[&x]), tensor(&[4], &[false, false, true, true]));
        assert_eq!(op("IsInf").attr("detect_negative", 0_i64).one(&[&x]), tensor(&[4], &[false, false, true, false]));
        assert_eq!(op("Not").one(&[&tensor(&[2, 1], &[true, false])]), tensor(&[2, 1], &[false, true]));
        assert!(matches!(op("Not").error(&[&x]), OpError::Type(_)));
    }
}
