//! DequantizeLinear, of ai.onnx and of com.microsoft: `(x - zero point) · scale`, rounded once.

use super::ANY;
use super::axes::require;
use super::integer_product::{flip_of, shift_of};
use super::number::{Number as _, with_float};
use super::qlinear::{Run, Sharing, expect_same, expect_type};
use super::quantize::{block_size, dtype_of, exact, same_shape, zero_points};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_narrow};
use crate::engine::kernels::int8::quantize::dequantize;
use crate::engine::narrow::Narrow as _;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(opsets: std::ops::RangeInclusive<u16>, types: &'static [DType]) -> OpDef {
    OpDef { name: "DequantizeLinear", domain: "", opsets, types, build }
}

const TYPES: &[DType] = &[
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::I32,
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

pub(crate) const DEFS: &[OpDef] = &[
    def(10..=ANY, TYPES),
    OpDef { domain: "com.microsoft", ..def(1..=ANY, &[DType::U8, DType::I8, DType::U16, DType::I16, DType::I32, DType::U4, DType::I4]) },
];

#[derive(Debug)]
struct DequantizeLinear {
    axis: i64,
    block: usize,
    output: Option<DType>,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let output = dtype_of(attrs, "output_dtype")?;
    if let Some(output) = output.filter(|o| !matches!(o, DType::F32 | DType::F16 | DType::BF16)) {
        return Err(OpError::Attribute(format!("attribute `output_dtype` is {output}, not a float of 16 or 32 bits")));
    }
    Ok(Box::new(DequantizeLinear { axis: attrs.int_or("axis", 1)?, block: block_size(attrs)?, output }))
}

/// Calls `value` with every element's number and that of its scale, and writes what it says.
fn fill(y: &mut ViewMut<'_>, sharing: &Sharing, value: impl Fn(usize, usize) -> f32) -> Result<(), OpError> {
    with_float!(y.dtype(), T => {
        let y = y.slice::<T>()?;
        sharing.for_each(|Run { start, len, scale, moves }| {
            let y = y[start..start + len].iter_mut().enumerate();
            if moves {
                y.for_each(|(i, y)| *y = T::from_f64(f64::from(value(start + i, scale + i))));
            } else {
                y.for_each(|(i, y)| *y = T::from_f64(f64::from(value(start + i, scale))));
            }
        });
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, y.dtype())))
}

/// Dequantises codes whose numbers `get` gives.
fn codes<T: Copy>(x: &[T], get: impl Fn(T) -> f32, zeros: &[f32], scale: &[f32], sharing: &Sharing, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    if zeros.is_empty() {
        return fill(y, sharing, |i, s| get(x[i]) * scale[s]);
    }
    fill(y, sharing, |i, s| (get(x[i]) - zeros[s]) * scale[s])
}

impl Op for DequantizeLinear {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        expect_type(inputs, 1, &[DType::F32, DType::F16, DType::BF16, DType::F8E8M0])?;
        expect_same(inputs, 0, 2)?;
        let scale = inputs[1].as_ref().and_then(Kind::dtype).unwrap_or(DType::F32);
        match self.output.unwrap_or(scale) {
            DType::F8E8M0 => Err(OpError::Type("scales of type float8e8m0 need attribute `output_dtype`".into())),
            output => Ok(Kinds::from_iter([Kind::Tensor(output)])),
        }
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
        let (x, scale, y): (View<'_>, _, _) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let sharing = Sharing::new(x.shape(), scale.shape(), self.axis, self.block)?;
        let scale: Vec<f32> = exact(scale)?.into_iter().map(|v| v as f32).collect();
        if let Ok(x) = x.slice::<i32>() {
            let zeros = inputs.get(2).map(|zero| zero.slice::<i32>()).transpose()?;
            // The difference may need 33 bits.
            return fill(y, &sharing, |i, s| (i64::from(x[i]) - zeros.map_or(0, |z| i64::from(z[s]))) as f32 * scale[s]);
        }
        let zeros = zero_points(inputs.get(2))?;
        if let ([scale], true, DType::F32) = (&scale[..], matches!(x.dtype(), DType::U8 | DType::I8), y.dtype()) {
            let (zero, dtype) = (zeros.first().map_or(0, |&zero| zero as i32), x.dtype());
            dequantize(ctx.isa, x.bits().slice()?, zero + shift_of(dtype), flip_of(dtype), *scale, y.slice()?);
            return Ok(());
        }
        match x.dtype() {
            DType::U8 => codes(x.slice::<u8>()?, f32::from, &zeros, &scale, &sharing, y),
            DType::I8 => codes(x.slice::<i8>()?, f32::from, &zeros, &scale, &sharing, y),
            DType::U16 => codes(x.slice::<u16>()?, f32::from, &zeros, &scale, &sharing, y),
            DType::I16 => codes(x.slice::<i16>()?, f32::from, &zeros, &scale, &sharing, y),
            dtype => with_narrow!(dtype, T => codes(x.slice::<T>()?, |v| v.widen() as f32, &zeros, &scale, &sharing, y),
                else Err(OpError::wrong_type(DType::U8, dtype))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::narrow::{F8E4M3Fn, F8E8M0, U2};
    use crate::engine::tensor::Tensor;
    use half::f16;

    #[test]
    fn codes_become_numbers() {
        let case = || op("DequantizeLinear");
        let x = tensor(&[2, 2], &[0_u8, 3, 128, 255]);
        let y = case().attr("axis", 0_i64).one(&[&x, &tensor(&[2], &[2.0_f32, 0.5]), &tensor(&[2], &[1_u8, 128])]);
        assert_eq!(y, tensor(&[2, 2], &[-2.0_f32, 4.0, 0.0, 63.5]));
        let blocks = case().attr("block_size", 2_i64).one(&[&x, &tensor(&[2, 1], &[1.0_f32, 2.0])]);
        assert_eq!(blocks, tensor(&[2, 2], &[0.0_f32, 3.0, 256.0, 510.0]));
        // 2^24 + 1 is no f32: the difference is taken before.
        let (large, zero) = (tensor(&[1], &[(1 << 24) + 1]), Tensor::scalar(1 << 24));
        assert_eq!(case().one(&[&large, &Tensor::scalar(1.0_f32), &zero]), tensor(&[1], &[1.0_f32]));
        let extremes = case().one(&[&tensor(&[1], &[i32::MIN]), &Tensor::scalar(1.0_f32), &Tensor::scalar(i32::MAX)]);
        assert_eq!(extremes, tensor(&[1], &[-4_294_967_295.0_f32]));
    }

    #[test]
    fn small_types_and_scales() {
        let x = tensor(&[2], &[F8E4M3Fn::from_f64(1.5, true), F8E4M3Fn::from_f64(-448.0, true)]);
        let half = op("DequantizeLinear").one(&[&x, &Tensor::scalar(f16::from_f32(2.0))]);
        assert_eq!(half, tensor(&[2], &[3.0, -896.0].map(f16::from_f32)));
        let two = Tensor::scalar(F8E8M0::from_bits(128));
        let case = || op("DequantizeLinear").opset(25);
        assert_eq!(case().attr("output_dtype", 1_i64).one(&[&x, &two]), tensor(&[2], &[3.0_f32, -896.0]));
        assert!(matches!(case().error(&[&x, &two]), OpError::Type(_)));
        let bits = tensor(&[4], &[0, 1, 2, 3].map(U2::wrap));
        let zero = Tensor::scalar(U2::wrap(3));
        assert_eq!(case().one(&[&bits, &Tensor::scalar(0.5_f32), &zero]), tensor(&[4], &[-1.5_f32, -1.0, -0.5, 0.0]));
        assert!(matches!(case().error(&[&bits, &Tensor::scalar(0.5_f32), &Tensor::scalar(3_u8)]), OpError::Type(_)));
        assert!(matches!(case().attr("output_dtype", 7_i64).error(&[&bits, &Tensor::scalar(0.5_f32)]), OpError::Attribute(_)));
    }
}
