//! The bits of numbers: BitwiseNot, BitShift, BitCast. (BitwiseAnd and its like are logic, in `compare.rs`.)

use super::ANY;
use super::axes::same_type;
use super::broadcast::{self, Broadcast, zip};
use super::compare::INTEGERS;
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_narrow};
use crate::engine::narrow::Narrow as _;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{Slice, SliceMut, View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "BitwiseNot", domain: "", opsets: 18..=ANY, types: INTEGERS, build: |_| Ok(Box::new(BitwiseNot)) },
    // Signed integers came with opset 28; before they had no meaning.
    OpDef { name: "BitShift", domain: "", opsets: 11..=ANY, types: INTEGERS, build: bit_shift },
    OpDef { name: "BitCast", domain: "", opsets: 26..=ANY, types: types::ALL, build: bit_cast },
];

/// An integer whose bits can be moved; moving by a number that is not within the width leaves the sign only.
trait Integer: Number {
    fn not(self) -> Self;
    fn left(self, by: Self) -> Self;
    fn right(self, by: Self) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Integer for $t {
            fn not(self) -> Self { !self }
            fn left(self, by: Self) -> Self {
                u32::try_from(by).ok().and_then(|by| self.checked_shl(by)).unwrap_or(0)
            }
            fn right(self, by: Self) -> Self {
                let sign = if self < Self::ZERO { !0 } else { 0 };
                u32::try_from(by).ok().and_then(|by| self.checked_shr(by)).unwrap_or(sign)
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Runs `$body` with the alias `$t` bound to an integer type.
macro_rules! with_integer {
    ($dtype:expr, $t:ident => $body:expr) => {{
        match $dtype {
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            other => Err(OpError::wrong_type(DType::I64, other)),
        }
    }};
}

/// Every bit the other way round.
#[derive(Debug)]
struct BitwiseNot;

fn flip<T: Integer>(y: &mut ViewMut<'_>) -> Result<(), OpError> {
    y.slice::<T>()?.iter_mut().for_each(|y| *y = Integer::not(*y));
    Ok(())
}

impl Op for BitwiseNot {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.data().copy_from(0, &inputs.at(0)?.data());
        self.run_in_place(0, inputs, outputs, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        with_integer!(y.dtype(), T => flip::<T>(y))
    }
}

/// Bits moved by the number that the second operand gives.
#[derive(Debug)]
struct BitShift {
    left: bool,
}

fn bit_shift(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    match attrs.required("direction", attrs.string("direction")?)?.as_str() {
        "LEFT" => Ok(Box::new(BitShift { left: true })),
        "RIGHT" => Ok(Box::new(BitShift { left: false })),
        other => Err(OpError::Attribute(format!("attribute `direction` is `{other}`, not `LEFT` or `RIGHT`"))),
    }
}

impl BitShift {
    fn run_typed<T: Integer>(&self, x: View<'_>, by: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let plan = Broadcast::new(y.shape(), [x.shape(), by.shape()]);
        let shift = if self.left { T::left } else { T::right };
        zip(&plan, x.slice::<T>()?, by.slice::<T>()?, y.slice::<T>()?, |&x, &by| shift(x, by));
        Ok(())
    }
}

impl Op for BitShift {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, by, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        with_integer!(x.dtype(), T => self.run_typed::<T>(x, by, y))
    }
}

/// The same bits as another type of the same width.
#[derive(Debug)]
struct BitCast {
    to: DType,
}

fn bit_cast(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let number = attrs.required("to", attrs.int("to")?)?;
    match i32::try_from(number).ok().and_then(DType::from_onnx) {
        Some(to) if to != DType::String => Ok(Box::new(BitCast { to })),
        _ => Err(OpError::unsupported(format!("element type {number} is not supported"))),
    }
}

/// Writes the bits of `x` as elements of the type of `y`, which has as many.
fn recast(x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let wrong = OpError::wrong_type(y.dtype(), x.dtype());
    match (x.bits().data(), y.bits().data()) {
        (Slice::U8(x), SliceMut::Bool(y)) => y.iter_mut().zip(x).for_each(|(y, x)| *y = *x != 0),
        (Slice::Bool(x), SliceMut::U8(y)) => y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x).into()),
        (x, y) if x.dtype() == y.dtype() => y.copy_from(0, &x),
        _ => return Err(wrong),
    }
    // A type below 8 bits keeps its sign, or zeros, in the rest of the byte.
    with_narrow!(y.dtype(), T => y.slice::<T>()?.iter_mut().for_each(|y| *y = T::from_raw(y.to_raw())), else {});
    Ok(())
}

impl Op for BitCast {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kinds = same_type(inputs, 1, [0])?;
        match kinds[0].dtype() {
            Some(from) if from != DType::String && from.bits() == self.to.bits() => Ok(Kinds::from_iter([Kind::Tensor(self.to)])),
            _ => Err(OpError::Type(format!("the bits of {} are not as many as those of {}", kinds[0], self.to))),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        recast(x, y)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::{bf16, f16};
    use num_complex::Complex;

    #[test]
    fn shifts_beyond_the_width_leave_the_sign() {
        let shift = |direction: &str| op("BitShift").opset(28).attr("direction", direction);
        let by = tensor(&[5], &[0_i8, 1, 7, 8, -1]);
        for (x, left, right) in [(-3_i8, [-3_i8, -6, -128, 0, 0], [-3_i8, -2, -1, -1, -1]), (5, [5, 10, -128, 0, 0], [5, 2, 0, 0, 0])] {
            assert_eq!(shift("LEFT").one(&[&Tensor::scalar(x), &by]), tensor(&[5], &left));
            assert_eq!(shift("RIGHT").one(&[&Tensor::scalar(x), &by]), tensor(&[5], &right));
        }
        let wide = op("BitShift").opset(11).attr("direction", "RIGHT").one(&[&tensor(&[3], &[u64::MAX; 3]), &tensor(&[3], &[63, 64, u64::MAX])]);
        assert_eq!(wide, tensor(&[3], &[1_u64, 0, 0]));
        assert!(matches!(op("BitShift").error(&[&by, &by]), OpError::Attribute(_)));
        assert!(matches!(shift("left").error(&[&by, &by]), OpError::Attribute(_)));
        assert!(matches!(shift("LEFT").error(&[&by, &tensor(&[2], &[0_i8; 2])]), OpError::Shape(_)));
        assert!(matches!(shift("LEFT").error(&[&by, &Tensor::scalar(0_i16)]), OpError::Type(_)));
    }

    #[test]
    fn bits_flip() {
        assert_eq!(op("BitwiseNot").one(&[&tensor(&[2, 1], &[0_u16, 5])]), tensor(&[2, 1], &[0xffff_u16, 0xfffa]));
        assert_eq!(op("BitwiseNot").one(&[&tensor(&[2], &[i64::MIN, -1])]), tensor(&[2], &[i64::MAX, 0]));
    }

    #[test]
    fn bits_stay_what_they_are() {
        let cast = |to: DType, x: &Tensor| op("BitCast").opset(26).attr("to", i64::from(to.onnx())).run(&[x]);
        let x = tensor(&[2], &[-0.0_f32, f32::from_bits(0x7fc0_0001)]);
        let bits = cast(DType::U32, &x).unwrap().swap_remove(0);
        assert_eq!(bits, tensor(&[2], &[0x8000_0000_u32, 0x7fc0_0001]));
        assert_eq!(cast(DType::U32, &cast(DType::F32, &bits).unwrap()[0]).unwrap()[0], bits);
        assert_eq!(cast(DType::Bool, &tensor(&[2], &[0_i8, -1])).unwrap()[0], tensor(&[2], &[false, true]));
        assert_eq!(cast(DType::BF16, &tensor(&[1], &[f16::ONE])).unwrap()[0], tensor(&[1], &[bf16::from_bits(0x3c00)]));
        assert_eq!(cast(DType::I64, &tensor(&[1], &[-1.0_f64])).unwrap()[0], tensor(&[1], &[0xbff0_0000_0000_0000_u64 as i64]));
        let complex = tensor(&[1], &[Complex::new(1.0_f32, -2.0)]);
        let both = cast(DType::U64, &complex).unwrap().swap_remove(0);
        assert_eq!(both, tensor(&[1], &[0xc000_0000_3f80_0000_u64]));
        assert_eq!(cast(DType::C64, &both).unwrap()[0], complex);
        let wide = tensor(&[1], &[Complex::new(1.0_f64, -2.0)]);
        assert_eq!(cast(DType::C128, &wide).unwrap()[0], wide);
        let nibbles = cast(DType::U4, &op("Cast").attr("to", 22_i64).one(&[&tensor(&[2], &[-1_i8, 3])])).unwrap();
        assert_eq!(op("Cast").attr("to", 7_i64).one(&[&nibbles[0]]), tensor(&[2], &[15_i64, 3]));
        assert!(matches!(cast(DType::U8, &nibbles[0]), Err(OpError::Type(_))));
        assert!(matches!(cast(DType::F64, &x), Err(OpError::Type(_))));
        assert!(matches!(cast(DType::String, &x), Err(OpError::Unsupported(_))));
        assert!(matches!(op("BitCast").opset(26).error(&[&x]), OpError::Attribute(_)));
    }
}
