//! QuantizeLinear, of ai.onnx and of com.microsoft: per tensor, per index of an axis, or per block along an axis.
//!
//! The quotient is rounded to the type that divides before it is rounded to an integer, ties to even both times.

use super::ANY;
use super::axes::require;
use super::number::{Number, with_float};
use super::integer_product::{flip_of, shift_of};
use super::qlinear::{Run, Sharing, codes, expect_type};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::kernels::int8::quantize::quantize;
use crate::engine::narrow::{F4E2M1, F6E2M3, F6E3M2, F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, I2, I4, Narrow as _, U2, U4};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(opsets: std::ops::RangeInclusive<u16>, types: &'static [DType]) -> OpDef {
    OpDef { name: "QuantizeLinear", domain: "", opsets, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def(10..=18, &[DType::F32, DType::I32]),
    def(19..=ANY, &[DType::F32, DType::F16, DType::BF16, DType::I32]),
    OpDef { domain: "com.microsoft", build: |a| build_in(a, Some(DType::F32)), ..def(1..=ANY, &[DType::F32, DType::F16]) },
];

/// What a tensor is quantised to.
const TARGETS: &[DType] = &[
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::U4,
    DType::I4,
    DType::U2,
    DType::I2,
    DType::F8E4M3Fn,
    DType::F8E4M3Fnuz,
    DType::F8E5M2,
    DType::F8E5M2Fnuz,
    DType::F4E2M1,
    DType::F6E2M3,
    DType::F6E3M2,
];

/// The attribute `block_size`.
pub(super) fn block_size(attrs: &Attrs) -> Result<usize, OpError> {
    let size = attrs.int_or("block_size", 0)?;
    usize::try_from(size).map_err(|_| OpError::Attribute(format!("attribute `block_size` is {size}")))
}

/// An attribute that names an element type; 0 is none.
pub(super) fn dtype_of(attrs: &Attrs, name: &str) -> Result<Option<DType>, OpError> {
    match attrs.int_or(name, 0)? {
        0 => Ok(None),
        number => match i32::try_from(number).ok().and_then(DType::from_onnx) {
            Some(dtype) => Ok(Some(dtype)),
            None => Err(OpError::unsupported(format!("element type {number} of attribute `{name}` is not supported"))),
        },
    }
}

#[derive(Debug)]
struct QuantizeLinear {
    axis: i64,
    block: usize,
    saturate: bool,
    output: Option<DType>,
    precision: Option<DType>,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    build_in(attrs, None)
}

/// With the type in which numbers are divided unless the attribute says another.
fn build_in(attrs: &Attrs, precision: Option<DType>) -> Result<Box<dyn Op>, OpError> {
    let precision = dtype_of(attrs, "precision")?.or(precision);
    if let Some(precision) = precision.filter(|p| !matches!(p, DType::F32 | DType::F16 | DType::BF16)) {
        return Err(OpError::Attribute(format!("attribute `precision` is {precision}, no type to divide in")));
    }
    Ok(Box::new(QuantizeLinear {
        axis: attrs.int_or("axis", 1)?,
        block: block_size(attrs)?,
        saturate: attrs.bool_or("saturate", true)?,
        output: dtype_of(attrs, "output_dtype")?,
        precision,
    }))
}

impl QuantizeLinear {
    /// The type in which a number of type `x` is divided by a scale of type `scale`.
    fn divides(&self, x: DType, scale: DType) -> DType {
        let float = |dtype: DType| dtype.is_float().then_some(dtype);
        let own = if x == DType::I32 { DType::F64 } else { x };
        // An int32 and its scale fit no float of 32 bits.
        let by_scale = if x == DType::I32 { None } else { float(scale) };
        self.precision.or(by_scale).unwrap_or(own)
    }
}

/// The elements of a tensor as f64, which holds all of them.
pub(super) fn exact(view: View<'_>) -> Result<Vec<f64>, OpError> {
    if let Ok(values) = view.slice::<i32>() {
        return Ok(values.iter().map(|&v| f64::from(v)).collect());
    }
    if view.dtype() == DType::F8E8M0 {
        return Ok(view.slice::<crate::engine::narrow::F8E8M0>()?.iter().map(|v| v.widen()).collect());
    }
    with_float!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|v| v.to_f64()).collect()),
        else Err(OpError::wrong_type(DType::F32, view.dtype())))
}

/// A type that numbers are quantised to, by way of the number divided by the scale.
trait Target: Element + Copy {
    fn code(quotient: f32, zero: f32, saturate: bool) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Target for $t {
            #[inline(always)]
            fn code(quotient: f32, zero: f32, _: bool) -> Self {
                super::qlinear::encode(quotient, zero as i32)
            }
        }
    )*};
}
integers!(u8, i8, u16, i16);

macro_rules! small_integers {
    ($($t:ty),*) => {$(
        impl Target for $t {
            fn code(quotient: f32, zero: f32, _: bool) -> Self {
                Self::saturate(i64::from(super::qlinear::nearest(quotient)) + zero as i64)
            }
        }
    )*};
}
small_integers!(U4, I4, U2, I2);

macro_rules! floats {
    ($($t:ty => $saturates:expr;)*) => {$(
        impl Target for $t {
            fn code(quotient: f32, zero: f32, saturate: bool) -> Self {
                Self::from_f64(f64::from(quotient + zero), saturate || $saturates)
            }
        }
    )*};
}
floats! {
    F8E4M3Fn => false;
    F8E4M3Fnuz => false;
    F8E5M2 => false;
    F8E5M2Fnuz => false;
    F4E2M1 => true;
    F6E2M3 => true;
    F6E3M2 => true;
}

/// Runs `$body` with the alias `$t` bound to a type that tensors are quantised to.
macro_rules! with_target {
    ($dtype:expr, $t:ident => $body:expr, $($variant:ident: $ty:ty),*) => {
        match $dtype {
            $(DType::$variant => {
                type $t = $ty;
                $body
            })*
            other => Err(OpError::Type(format!("{other} is no type to quantise to"))),
        }
    };
    ($dtype:expr, $t:ident => $body:expr) => {
        with_target!($dtype, $t => $body, U8: u8, I8: i8, U16: u16, I16: i16, U4: U4, I4: I4, U2: U2, I2: I2, F8E4M3Fn: F8E4M3Fn,
            F8E4M3Fnuz: F8E4M3Fnuz, F8E5M2: F8E5M2, F8E5M2Fnuz: F8E5M2Fnuz, F4E2M1: F4E2M1, F6E2M3: F6E2M3, F6E3M2: F6E3M2)
    };
}

/// The values of zero points, which a float of 8 bits does not have.
pub(super) fn zero_points(view: Option<View<'_>>) -> Result<Vec<f32>, OpError> {
    let Some(view) = view else { return Ok(vec![]) };
    match view.dtype() {
        DType::U8 | DType::I8 => Ok(codes(view)?.into_iter().map(|v| v as f32).collect()),
        DType::U16 => Ok(view.slice::<u16>()?.iter().map(|&v| f32::from(v)).collect()),
        DType::I16 => Ok(view.slice::<i16>()?.iter().map(|&v| f32::from(v)).collect()),
        DType::F8E4M3Fn | DType::F8E4M3Fnuz | DType::F8E5M2 | DType::F8E5M2Fnuz => Ok(vec![]),
        dtype => crate::engine::dtype::with_narrow!(dtype, T => Ok(view.slice::<T>()?.iter().map(|v| v.widen() as f32).collect()),
            else Err(OpError::Type(format!("{dtype} is no type to quantise to")))),
    }
}

/// Checks that zero points have the shape of the scales.
pub(super) fn same_shape(scale: &[usize], zero: &[usize]) -> Result<(), OpError> {
    let single = |shape: &[usize]| shape.len() <= 1 && shape.iter().product::<usize>() == 1;
    if scale == zero || (single(scale) && single(zero)) {
        return Ok(());
    }
    Err(OpError::shape(format!("scales of shape {scale:?} and zero points of shape {zero:?}")))
}

/// One number of `values`, or zero if there are none.
fn at(values: &[f32], index: usize) -> f32 {
    values.get(index).copied().unwrap_or(0.0)
}

fn fill<T: Target>(sharing: &Sharing, y: &mut [T], zeros: &[f32], saturate: bool, quotient: impl Fn(usize, usize) -> f32) {
    sharing.for_each(|Run { start, len, scale, moves }| {
        let y = &mut y[start..start + len];
        if moves {
            y.iter_mut().enumerate().for_each(|(i, y)| *y = T::code(quotient(start + i, scale + i), at(zeros, scale + i), saturate));
        } else {
            let zero = at(zeros, scale);
            y.iter_mut().enumerate().for_each(|(i, y)| *y = T::code(quotient(start + i, scale), zero, saturate));
        }
    });
}

impl Op for QuantizeLinear {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        expect_type(inputs, 1, &[DType::F32, DType::F16, DType::BF16, DType::I32, DType::F8E8M0])?;
        let zero = inputs.get(2).and_then(Option::as_ref).and_then(Kind::dtype);
        if let (Some(zero), Some(output)) = (zero, self.output)
            && zero != output
        {
            return Err(OpError::Type(format!("the zero point is {zero}, attribute `output_dtype` says {output}")));
        }
        let output = zero.or(self.output).unwrap_or(DType::U8);
        if !TARGETS.contains(&output) {
            return Err(OpError::Type(format!("{output} is no type to quantise to")));
        }
        Ok(Kinds::from_iter([Kind::Tensor(output)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, scale) = (inputs.shape(0)?, inputs.shape(1)?);
        Sharing::new(x, scale, self.axis, self.block)?;
        if inputs.get(2).is_some() {
            same_shape(scale, inputs.shape(2)?)?;
        }
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, scale, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let sharing = Sharing::new(x.shape(), scale.shape(), self.axis, self.block)?;
        let zeros = zero_points(inputs.get(2))?;
        let divides = self.divides(x.dtype(), scale.dtype());
        if (x.dtype(), scale.dtype(), divides) == (DType::F32, DType::F32, DType::F32) {
            let (x, scale) = (x.slice::<f32>()?, scale.slice::<f32>()?);
            if let ([scale], true) = (scale, matches!(y.dtype(), DType::U8 | DType::I8)) {
                let (zero, dtype) = (at(&zeros, 0) as i32, y.dtype());
                quantize(ctx.isa, x, *scale, zero + shift_of(dtype), flip_of(dtype), y.bits().slice()?);
                return Ok(());
            }
            return self.write(y, &sharing, &zeros, |i, s| x[i] / scale[s]);
        }
        let (x, scale) = (exact(x)?, exact(scale)?);
        let divided = |i: usize, s: usize| with_float!(divides, T => {
            let quotient = T::from_f64(x[i]).to_f64() / T::from_f64(scale[s]).to_f64();
            T::from_f64(quotient).to_f64() as f32
        }, else f32::NAN);
        self.write(y, &sharing, &zeros, divided)
    }
}

impl QuantizeLinear {
    fn write(&self, y: &mut ViewMut<'_>, sharing: &Sharing, zeros: &[f32], quotient: impl Fn(usize, usize) -> f32) -> Result<(), OpError> {
        with_target!(y.dtype(), T => {
            fill::<T>(sharing, y.slice::<T>()?, zeros, self.saturate, quotient);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    #[test]
    fn ties_go_to_even_before_the_zero_point_is_added() {
        let x = tensor(&[8], &[1.0_f32, 3.0, 5.0, -1.0, 1e30, f32::NEG_INFINITY, f32::NAN, 600.0]);
        let run = |zero: &Tensor| op("QuantizeLinear").one(&[&x, &Tensor::scalar(2.0_f32), zero]);
        assert_eq!(run(&Tensor::scalar(1_u8)), tensor(&[8], &[1_u8, 3, 3, 1, 255, 0, 0, 255]));
        assert_eq!(run(&Tensor::scalar(-1_i8)), tensor(&[8], &[-1_i8, 1, 1, -1, 127, -128, -128, 127]));
        assert_eq!(run(&Tensor::scalar(5_i16)), tensor(&[8], &[5_i16, 7, 7, 5, i16::MAX, i16::MIN, i16::MIN, 305]));
        assert_eq!(run(&Tensor::scalar(I4::wrap(0))), tensor(&[8], &[0, 2, 2, 0, 7, -8, -8, 7].map(I4::wrap)));
    }

    #[test]
    fn one_scale_per_tensor_axis_or_block() {
        let x = tensor(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let case = |axis: i64| op("QuantizeLinear").attr("axis", axis);
        let columns = case(-1).one(&[&x, &tensor(&[3], &[1.0_f32, 0.5, 0.25]), &tensor(&[3], &[0_u8, 1, 2])]);
        assert_eq!(columns, tensor(&[2, 3], &[1_u8, 5, 14, 4, 11, 26]));
        assert_eq!(case(0).one(&[&x, &tensor(&[2], &[1.0_f32, 0.5])]), tensor(&[2, 3], &[1_u8, 2, 3, 8, 10, 12]));
        let blocks = case(1).attr("block_size", 2_i64);
        let scale = tensor(&[2, 2], &[1.0_f32, 0.5, 0.25, 0.125]);
        assert_eq!(blocks.one(&[&x, &scale]), tensor(&[2, 3], &[1_u8, 2, 6, 16, 20, 48]));
        let down = case(0).attr("block_size", 2_i64).one(&[&x, &tensor(&[1, 3], &[1.0_f32, 0.5, 0.25])]);
        assert_eq!(down, tensor(&[2, 3], &[1_u8, 4, 12, 4, 10, 24]));
        assert!(matches!(blocks.error(&[&x, &tensor(&[2, 1], &[1.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(case(i64::MIN).error(&[&x, &tensor(&[2], &[1.0_f32; 2])]), OpError::Value(_)));
        assert!(matches!(case(1).error(&[&x, &tensor(&[2], &[1.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(case(0).error(&[&x, &tensor(&[2], &[1.0_f32; 2]), &Tensor::scalar(0_u8)]), OpError::Shape(_)));
        assert!(matches!(case(0).attr("block_size", -1_i64).error(&[&x, &scale]), OpError::Attribute(_)));
        let empty = Tensor::zeros(DType::F32, &[0, 3]);
        assert_eq!(case(1).one(&[&empty, &tensor(&[3], &[1.0_f32; 3])]).shape(), [0, 3]);
    }

    #[test]
    fn the_type_that_divides_rounds_first() {
        // 10.5 + 2^-8 in f32, 10.5 in f16, which then goes to the even 10.
        let (x, scale) = (f16::from_f32(0.5002), f16::from_f32(0.047_63));
        let exact = x.to_f32() / scale.to_f32();
        let rounded = f16::from_f32(exact).to_f32();
        let run = |domain: &'static str| op("QuantizeLinear").domain(domain).one(&[&tensor(&[1], &[x]), &Tensor::scalar(scale)]);
        assert_eq!(run(""), tensor(&[1], &[rounded.round_ties_even() as u8]));
        assert_eq!(run("com.microsoft"), tensor(&[1], &[exact.round_ties_even() as u8]));
        let ints = op("QuantizeLinear").opset(13).one(&[&tensor(&[2], &[7_i32, i32::MAX]), &Tensor::scalar(2.0_f32)]);
        assert_eq!(ints, tensor(&[2], &[4_u8, 255]));
    }

    #[test]
    fn small_floats_saturate_or_not() {
        let x = tensor(&[3], &[1000.0_f32, -1000.0, 3.0]);
        let run = |saturate: i64| {
            let case = op("QuantizeLinear").attr("saturate", saturate).attr("output_dtype", i64::from(DType::F8E4M3Fn.onnx()));
            case.one(&[&x, &Tensor::scalar(1.0_f32)]).slice::<F8E4M3Fn>().unwrap().iter().map(|v| v.to_f32()).collect::<Vec<f32>>()
        };
        assert_eq!(run(1), [448.0, -448.0, 3.0]);
        assert!(run(0)[0].is_nan());
        let zero = tensor(&[], &[0_u8]);
        let other = op("QuantizeLinear").attr("output_dtype", i64::from(DType::I8.onnx()));
        assert!(matches!(other.error(&[&x, &Tensor::scalar(1.0_f32), &zero]), OpError::Type(_)));
        let wrong = op("QuantizeLinear").attr("output_dtype", i64::from(DType::I64.onnx()));
        assert!(matches!(wrong.error(&[&x, &Tensor::scalar(1.0_f32)]), OpError::Type(_)));
    }
}
