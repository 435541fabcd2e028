//! DynamicQuantizeLinear: to uint8, with the scale and the zero point that the tensor itself asks for.

use smallvec::smallvec;

use super::ANY;
use super::axes::require;
use crate::engine::dtype::DType;
use crate::engine::kernels::int8::quantize;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;

pub(crate) const DEFS: &[OpDef] = &[OpDef {
    name: "DynamicQuantizeLinear",
    domain: "",
    opsets: 11..=ANY,
    types: &[DType::F32],
    build: |_| Ok(Box::new(DynamicQuantizeLinear)),
}];

/// Scale and zero point of a tensor in uint8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range8 {
    pub(crate) scale: f32,
    pub(crate) zero: u8,
}

impl Range8 {
    /// The scale of a tensor of zeros as onnxruntime has it; ONNX itself takes 1 / 255.
    pub(crate) const NOTHING: f32 = 1.0;

    /// What takes the smallest and the greatest of the values and zero to 0 and 255. NaN is passed over.
    pub(crate) fn of(values: &[f32], scale_of_zeros: f32) -> Self {
        let (least, greatest) = quantize::range(Isa::best(), values);
        if least == greatest {
            return Self { scale: scale_of_zeros, zero: 0 };
        }
        let scale = (greatest - least) / 255.0;
        let zero = (0.0 - least / scale).clamp(0.0, 255.0).round_ties_even() as u8;
        Self { scale, zero }
    }
}

/// To divide and round a value, in floating-point operations of a product.
const OPERATIONS_PER_ELEMENT: u64 = 16;

/// Writes the code of every value.
pub(crate) fn quantize_dynamically(values: &[f32], range: Range8, codes: &mut [u8]) {
    quantize::quantize(Isa::best(), values, range.scale, i32::from(range.zero), 0, codes);
}

#[derive(Debug)]
struct DynamicQuantizeLinear;

impl Op for DynamicQuantizeLinear {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(DType::U8), Kind::Tensor(DType::F32), Kind::Tensor(DType::U8)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into(), Shape::new(), Shape::new()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?.slice::<f32>()?;
        let range = Range8::of(x, 1.0 / 255.0);
        if let Some(y) = outputs.get(0) {
            let part = x.len().div_ceil(ctx.threads.parts(OPERATIONS_PER_ELEMENT * x.len() as u64)).max(1);
            ctx.threads.for_each(x.chunks(part).zip(y.slice()?.chunks_mut(part)), |(x, y)| quantize_dynamically(x, range, y));
        }
        if let Some(scale) = outputs.get(1) {
            scale.slice()?.fill(range.scale);
        }
        if let Some(zero) = outputs.get(2) {
            zero.slice()?.fill(range.zero);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use crate::engine::tensor::Tensor;

    #[test]
    fn the_range_includes_zero() {
        let run = |x: &[f32]| op("DynamicQuantizeLinear").outputs(3).run(&[&tensor(&[x.len()], x)]).unwrap();
        let found = run(&[0.0, 2.0, -3.0, -2.5, 1.34, 0.5]);
        assert_eq!(found, [tensor(&[6], &[153_u8, 255, 0, 26, 221, 179]), Tensor::scalar(5.0_f32 / 255.0), Tensor::scalar(153_u8)]);
        assert_eq!(run(&[1.0, 4.0])[0], tensor(&[2], &[64_u8, 255]));
        assert_eq!(run(&[-1.0, -4.0])[2], Tensor::scalar(255_u8));
        assert_eq!(run(&[0.0]), [tensor(&[1], &[0_u8]), Tensor::scalar(1.0_f32 / 255.0), Tensor::scalar(0_u8)]);
        assert_eq!(run(&[]).len(), 3);
        assert_eq!(run(&[f32::NAN, 255.0])[1], Tensor::scalar(1.0_f32));
    }
}
