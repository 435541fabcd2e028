//! Cast and CastLike: every element type to every other, strings included.
//!
//! Floats to integers truncate and saturate, NaN to zero; integers to narrower ones wrap, as numpy has it.

pub(crate) mod gradient;

use super::ANY;
use super::axes::require;
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_narrow, with_number};
use crate::engine::narrow::{F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, Narrow as _, PowerRounding};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Buffer, Kind};
use crate::engine::view::{Slice, View, ViewMut};

const fn def(name: &'static str, from: u16, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[def("Cast", 6, cast), def("CastLike", 15, cast_like)];

/// To a type given by attribute, or to the type of input 1.
#[derive(Debug)]
struct Cast {
    to: Option<DType>,
    narrowing: Narrowing,
}

/// What becomes of numbers that an 8-bit float does not hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrowing {
    /// Beyond the range: the greatest value, instead of infinity or NaN.
    pub(crate) saturate: bool,
    /// Between two powers of two, for float8e8m0.
    pub(crate) rounding: PowerRounding,
}

impl Default for Narrowing {
    fn default() -> Self {
        Self { saturate: true, rounding: PowerRounding::Up }
    }
}

impl Narrowing {
    fn of(attrs: &Attrs) -> Result<Self, OpError> {
        let rounding = match attrs.string_or("round_mode", "up")?.as_str() {
            "up" => PowerRounding::Up,
            "down" => PowerRounding::Down,
            "nearest" => PowerRounding::Nearest,
            other => return Err(OpError::Attribute(format!("attribute `round_mode` is `{other}`, not up, down or nearest"))),
        };
        Ok(Self { saturate: attrs.bool_or("saturate", true)?, rounding })
    }
}

fn cast(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let number = attrs.required("to", attrs.int("to")?)?;
    let to = i32::try_from(number).ok().and_then(DType::from_onnx);
    match to {
        Some(to) => Ok(Box::new(Cast { to: Some(to), narrowing: Narrowing::of(attrs)? })),
        None => Err(OpError::unsupported(format!("element type {number} is not supported"))),
    }
}

fn cast_like(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Cast { to: None, narrowing: Narrowing::of(attrs)? }))
}

impl Op for Cast {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, if self.to.is_some() { 1 } else { 2 })?;
        let like = || inputs[1].clone().expect("it is required");
        Ok(Kinds::from_iter([self.to.map_or_else(like, Kind::Tensor)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        cast_to(inputs.at(0)?, outputs.at(0)?, self.narrowing)
    }
}

/// Writes the elements of `x` in the type of `y`; what a small float does not hold becomes its greatest value.
pub(crate) fn convert(x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    cast_to(x, y, Narrowing::default())
}

fn cast_to(x: View<'_>, y: &mut ViewMut<'_>, narrowing: Narrowing) -> Result<(), OpError> {
    if x.dtype() == y.dtype() {
        y.data().copy_from(0, &x.data());
        return Ok(());
    }
    if !x.dtype().is_narrow() && !y.dtype().is_narrow() {
        return between_numbers(x, y);
    }
    // By way of f64, which holds every value of a small type, in pieces that stay in the cache.
    const PIECE: usize = 4096;
    let len = x.len();
    let mut wide = Buffer::new(DType::F64);
    wide.grow(len.min(PIECE));
    for start in (0..len).step_by(PIECE) {
        let shape = [PIECE.min(len - start)];
        let source = View::new(x.data().range(start..start + shape[0]), &shape);
        with_narrow!(x.dtype(), T => {
            let values = source.slice::<T>()?.iter().map(|v| Ok(v.widen()));
            fill(&mut wide.view_mut(&shape), values)?;
        }, else between_numbers(source, &mut wide.view_mut(&shape))?);
        let mut target = ViewMut::new(y.data().range_mut(start..start + shape[0]), &shape);
        let wide = View::new(wide.slice(shape[0]), &shape);
        if target.dtype().is_narrow() { narrow(wide, &mut target, narrowing)? } else { between_numbers(wide, &mut target)? }
    }
    Ok(())
}

/// Writes the f64 elements of `x` in the small type of `y`.
fn narrow(x: View<'_>, y: &mut ViewMut<'_>, narrowing: Narrowing) -> Result<(), OpError> {
    let Narrowing { saturate, rounding } = narrowing;
    let x = x.slice::<f64>()?.iter();
    match y.dtype() {
        DType::F8E4M3Fn => fill(y, x.map(|&v| Ok(F8E4M3Fn::from_f64(v, saturate)))),
        DType::F8E4M3Fnuz => fill(y, x.map(|&v| Ok(F8E4M3Fnuz::from_f64(v, saturate)))),
        DType::F8E5M2 => fill(y, x.map(|&v| Ok(F8E5M2::from_f64(v, saturate)))),
        DType::F8E5M2Fnuz => fill(y, x.map(|&v| Ok(F8E5M2Fnuz::from_f64(v, saturate)))),
        DType::F8E8M0 => fill(y, x.map(|&v| Ok(F8E8M0::from_f32(v as f32, saturate, rounding)))),
        to => with_narrow!(to, T => fill(y, x.map(|&v| Ok(T::narrow(v)))), else Err(OpError::wrong_type(DType::F32, to))),
    }
}

fn between_numbers(x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    if x.dtype() == y.dtype() {
        y.data().copy_from(0, &x.data());
        return Ok(());
    }
    let to = y.dtype();
    match (x.data(), to) {
        (Slice::String(texts), DType::Bool) => fill(y, texts.iter().map(|text| parse(text).map(|v| v != 0.0))),
        (Slice::String(texts), _) => with_number!(to, T => fill(y, texts.iter().map(|text| number::<T>(text))),
            else Err(OpError::wrong_type(DType::F32, to))),
        (Slice::Bool(bools), DType::String) => fill(y, bools.iter().map(|&v| Ok(if v { "True" } else { "False" }.to_owned()))),
        (Slice::Bool(bools), _) => with_number!(to, T => fill(y, bools.iter().map(|&v| Ok(if v { T::ONE } else { T::ZERO }))),
            else Err(OpError::wrong_type(DType::F32, to))),
        _ => with_number!(x.dtype(), F => {
            let x = x.slice::<F>()?.iter();
            match to {
                DType::Bool => fill(y, x.map(|v| Ok(*v != F::ZERO))),
                DType::String => fill(y, x.map(|v| Ok(text(*v)))),
                _ => with_number!(to, T => fill(y, x.map(|v| Ok(between::<F, T>(*v)))), else Err(OpError::wrong_type(DType::F32, to))),
            }
        }, else Err(OpError::wrong_type(DType::F32, x.dtype()))),
    }
}

fn fill<T: crate::engine::dtype::Element>(y: &mut ViewMut<'_>, values: impl Iterator<Item = Result<T, OpError>>) -> Result<(), OpError> {
    for (y, value) in y.slice::<T>()?.iter_mut().zip(values) {
        *y = value?;
    }
    Ok(())
}

fn between<F: Number, T: Number>(value: F) -> T {
    match (F::FLOAT, T::FLOAT) {
        (false, false) => T::from_i64(value.to_i64()),
        _ => T::from_f64(value.to_f64()),
    }
}

/// A number as numpy prints it: the shortest text that reads back as the same value.
fn text<T: Number>(value: T) -> String {
    if !T::FLOAT {
        return match T::DTYPE {
            DType::U64 => (value.to_i64() as u64).to_string(),
            _ => value.to_i64().to_string(),
        };
    }
    let wide = value.to_f64();
    if wide.is_nan() {
        return "NaN".to_owned();
    }
    if wide.is_infinite() {
        return if wide > 0.0 { "INF" } else { "-INF" }.to_owned();
    }
    match T::DTYPE {
        DType::F64 => plain(ryu::Buffer::new().format_finite(wide)),
        _ => plain(ryu::Buffer::new().format_finite(wide as f32)),
    }
}

/// Whole numbers without a fraction: `1` instead of `1.0`.
fn plain(text: &str) -> String {
    text.strip_suffix(".0").unwrap_or(text).to_owned()
}

fn parse(text: &str) -> Result<f64, OpError> {
    // Rust reads `inf`, `infinity` and `nan` in any case, as the standard wants.
    text.trim().parse().map_err(|_| OpError::value(format!("`{text}` is not a number")))
}

fn number<T: Number>(text: &str) -> Result<T, OpError> {
    match text.trim().parse::<i64>() {
        // Through f64 a large integer would lose digits.
        Ok(value) if !T::FLOAT => Ok(T::from_i64(value)),
        _ => Ok(T::from_f64(parse(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::{bf16, f16};

    fn to(x: &Tensor, dtype: DType) -> Tensor {
        op("Cast").attr("to", i64::from(dtype.onnx())).one(&[x])
    }

    #[test]
    fn numbers_to_numbers() {
        let x = tensor(&[6], &[1.9_f32, -1.9, 300.0, f32::NAN, f32::INFINITY, 0.0]);
        assert_eq!(to(&x, DType::I64), tensor(&[6], &[1, -1, 300, 0, i64::MAX, 0]));
        assert_eq!(to(&x, DType::U8), tensor(&[6], &[1_u8, 0, 255, 0, 255, 0]));
        assert_eq!(to(&x, DType::Bool), tensor(&[6], &[true, true, true, true, true, false]));
        let ints = tensor(&[3], &[300_i64, -1, i64::MIN]);
        assert_eq!(to(&ints, DType::U8), tensor(&[3], &[44_u8, 255, 0]));
        assert_eq!(to(&ints, DType::F64), tensor(&[3], &[300.0, -1.0, i64::MIN as f64]));
        assert_eq!(to(&tensor(&[1], &[1.5_f32]), DType::F16), tensor(&[1], &[f16::from_f32(1.5)]));
        assert_eq!(to(&tensor(&[1], &[f16::from_f32(1.5)]), DType::BF16), tensor(&[1], &[bf16::from_f32(1.5)]));
        assert_eq!(to(&tensor(&[1], &[u64::MAX]), DType::F64), tensor(&[1], &[u64::MAX as f64]));
        assert_eq!(to(&tensor(&[2], &[true, false]), DType::F32), tensor(&[2], &[1.0_f32, 0.0]));
        assert_eq!(to(&x, DType::F32).shape(), [6]);
    }

    #[test]
    fn every_pair_of_types_is_known() {
        // Complex numbers are no operand of the operator.
        let known = |dtype: &&DType| !matches!(dtype, DType::C64 | DType::C128);
        for &from in DType::ALL.iter().filter(known) {
            for &into in DType::ALL.iter().filter(known) {
                let mut x = Tensor::zeros(from, &[2, 1]);
                if from == DType::String {
                    x = tensor(&[2, 1], &["0", "0"].map(str::to_owned));
                }
                assert_eq!(to(&x, into).dtype(), into);
            }
        }
    }

    #[test]
    fn text_reads_back() {
        let words = to(&tensor(&[4], &[1.5_f32, -2.0, f32::NAN, f32::INFINITY]), DType::String);
        assert_eq!(words, tensor(&[4], &["1.5", "-2", "NaN", "INF"].map(str::to_owned)));
        assert_eq!(to(&words, DType::F64).slice::<f64>().unwrap()[..2], [1.5, -2.0]);
        let large = tensor(&[1], &[(i64::MAX - 1).to_string()]);
        assert_eq!(to(&large, DType::I64), tensor(&[1], &[i64::MAX - 1]));
        assert_eq!(to(&tensor(&[1], &[u64::MAX]), DType::String), tensor(&[1], &[u64::MAX.to_string()]));
        let bad = tensor(&[1], &["one".to_owned()]);
        assert!(matches!(op("Cast").attr("to", 1_i64).error(&[&bad]), OpError::Value(_)));
    }

    #[test]
    fn the_type_is_an_attribute_or_that_of_another_tensor() {
        let x = tensor(&[1], &[1_i32]);
        assert_eq!(op("CastLike").one(&[&x, &Tensor::scalar(0.5_f32)]), tensor(&[1], &[1.0_f32]));
        assert!(op("CastLike").run(&[&x]).is_err());
        assert!(matches!(op("Cast").error(&[&x]), OpError::Attribute(_)));
        // 14 is complex64; there is no 99.
        assert!(matches!(op("Cast").attr("to", 14_i64).error(&[&x]), OpError::Type(_)));
        assert!(matches!(op("Cast").attr("to", 99_i64).error(&[&x]), OpError::Unsupported(_)));
        assert_eq!(op("Cast").opset(19).attr("to", 1_i64).attr("saturate", 0_i64).one(&[&x]), tensor(&[1], &[1.0_f32]));
    }

    #[test]
    fn small_types() {
        let x = tensor(&[5], &[1.0_f32, -0.3, 1000.0, f32::INFINITY, f32::NAN]);
        let cast = |saturate: i64| {
            let eight = op("Cast").attr("to", i64::from(DType::F8E4M3Fn.onnx())).attr("saturate", saturate).one(&[&x]);
            to(&eight, DType::F32).slice::<f32>().unwrap()[..4].to_vec()
        };
        assert_eq!(cast(1), [1.0, -0.3125, 448.0, 448.0]);
        assert!(cast(0)[2..].iter().all(|v| v.is_nan()));
        assert_eq!(to(&to(&tensor(&[4], &[7_i32, 8, -9, 300]), DType::I4), DType::I64), tensor(&[4], &[7_i64, -8, 7, -4]));
        assert_eq!(to(&to(&tensor(&[2], &[1.5_f32, 5.0]), DType::F4E2M1), DType::F16), tensor(&[2], &[1.5, 4.0].map(f16::from_f32)));
        // More than one piece of the conversion.
        let long: Vec<i64> = (0..10_000).map(|i| i % 8).collect();
        assert_eq!(to(&to(&tensor(&[10_000], &long), DType::U4), DType::I64).slice::<i64>().unwrap(), long);
        assert!(matches!(op("Cast").attr("to", 24_i64).attr("round_mode", "sideways").error(&[&x]), OpError::Attribute(_)));
    }
}
