//! MatMul: products of matrices and batches of them, as numpy's `matmul` broadcasts them.
//!
//! A constant right matrix is packed once. A following Add of a constant row, one of a residual and an activation may be fused into
//! it (`optimize/fuse_activation.rs`); the added row is then input 2, the residual input 3.

pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::{Axes, offsets, same_type};
use super::broadcast;
use super::number::{Number, with_float};
use super::product::{Left, Right, flops, multiply};
use super::residual::{self, End, Residual};
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::{gemm, gemm_generic};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::weights::{Precision, Weights};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{View, ViewMut};

const TYPES: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U32, DType::U64];

pub(crate) const DEFS: &[OpDef] = &[OpDef {
    name: "MatMul",
    domain: "",
    opsets: 1..=ANY,
    types: TYPES,
    build: |_| Ok(Box::new(MatMul { activation: Activation::None, precision: Precision::F32 })),
}];

/// `activation(a · b + bias + residual)`; the bias, input 2, and the residual, input 3, exist only if they were fused.
#[derive(Clone, Debug)]
pub(crate) struct MatMul {
    pub(crate) activation: Activation,
    /// Of the product with a constant matrix.
    pub(crate) precision: Precision,
}

/// How two shapes multiply.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// Broadcast batch dimensions.
    pub(crate) batch: Axes,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// The output's shape.
    pub(crate) shape: Shape,
}

/// The product of shapes `a` and `b`.
pub(crate) fn sizes(a: &[usize], b: &[usize]) -> Result<Sizes, OpError> {
    let (Some((&k, a_rest)), Some(&b_last)) = (a.split_last(), b.last()) else {
        return Err(OpError::shape("a scalar is no matrix"));
    };
    // A vector is a row on the left and a column on the right; the dimension that this adds is not in the output.
    let (m, a_batch) = match a_rest.split_last() {
        Some((&m, batch)) => (Some(m), batch),
        None => (None, a_rest),
    };
    let (b_rows, n, b_batch) = match b {
        [column] => (*column, None, &b[..0]),
        _ => (b[b.len() - 2], Some(b_last), &b[..b.len() - 2]),
    };
    if k != b_rows {
        return Err(OpError::shape(format!("{a:?} times {b:?}: {k} columns on the left, {b_rows} rows on the right")));
    }
    let batch = broadcast::shape([a_batch, b_batch])?;
    let mut shape = batch.clone();
    shape.extend(m);
    shape.extend(n);
    Ok(Sizes { batch: batch.into_iter().collect(), m: m.unwrap_or(1), k, n: n.unwrap_or(1), shape })
}

/// The element at which each matrix of a batch begins.
pub(crate) fn starts(batch: &[usize], shape: &[usize], matrix: usize) -> Vec<usize> {
    let own = &shape[..shape.len().saturating_sub(2)];
    let mut strides: Vec<isize> = vec![0; batch.len()];
    let mut step = matrix as isize;
    for (d, &n) in (0..batch.len()).rev().zip(own.iter().rev()) {
        strides[d] = if n == 1 { 0 } else { step };
        step *= n as isize;
    }
    let mut starts = Vec::new();
    offsets(batch, &strides, 0, |at| starts.push(at as usize));
    starts
}

impl MatMul {
    /// The same with operands rounded to a precision, where one is constant.
    pub(crate) fn at(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    fn run_f32(&self, a: View<'_>, b: View<'_>, bias: Option<&[f32]>, end: End, y: &mut [f32], ctx: &mut Context<'_>) -> Result<(), OpError> {
        let Sizes { batch, m, k, n, .. } = sizes(a.shape(), b.shape())?;
        if y.is_empty() {
            return Ok(());
        }
        let (a_data, b_data) = (a.slice::<f32>()?, b.slice::<f32>()?);
        let bias = bias.map_or(Bias::None, Bias::PerColumn);
        let epilogue = Epilogue { bias, adds: end.adds, activation: end.activation, ..Epilogue::default() };
        if b.len() == k * n {
            // One matrix on the right (or none at all): all rows of the left batch form one matrix.
            let left = Left { data: a_data, transposed: false, m: y.len().checked_div(n).unwrap_or(0), k };
            multiply(left, Right::Plain { data: b_data, transposed: false, n }, &epilogue, y, ctx);
            return Ok(());
        }
        let (a_starts, b_starts) = (starts(&batch, a.shape(), m * k), starts(&batch, b.shape(), k * n));
        let count = a_starts.len();
        let parts = ctx.threads.parts(flops(m, k, n).saturating_mul(count as u64)).min(count.max(1));
        let pairs: Vec<(usize, usize)> = a_starts.into_iter().zip(b_starts).collect();
        let per_part = count.div_ceil(parts).max(1);
        let isa = ctx.isa;
        let work = |(pairs, y): (&[(usize, usize)], &mut [f32]), scratch: &mut Vec<f32>| {
            for (&(i, j), c) in pairs.iter().zip(y.chunks_exact_mut(m * n)) {
                gemm(isa, m, k, n, &a_data[i..i + m * k], false, &b_data[j..j + k * n], false, c, &epilogue, scratch);
            }
        };
        if parts == 1 {
            work((&pairs, y), &mut ctx.scratch.f32);
        } else {
            let items = pairs.chunks(per_part).zip(y.chunks_mut(per_part * m * n));
            ctx.threads.for_each(items, |item| work(item, &mut Vec::new()));
        }
        Ok(())
    }
}

impl MatMul {
    /// Input 3, or output 0 in its place.
    fn run_some(&self, residual: Residual<'_>, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b) = (inputs.at(0)?, inputs.at(1)?);
        let bias = inputs.get(2).map(|bias| bias.slice::<f32>()).transpose()?;
        let shape = sizes(a.shape(), b.shape())?.shape;
        residual::finish(residual, &shape, self.activation, outputs, ctx, |y, end, ctx| self.run_f32(a, b, bias, end, y, ctx))
    }
}

/// The shape of a product and of what is added to it.
fn with_residual(shape: Shape, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
    match inputs.get(3) {
        Some(_) => Ok(vec![broadcast::shape([&shape[..], inputs.shape(3)?])?]),
        None => Ok(vec![shape]),
    }
}

/// The product of types without a fast kernel, one matrix after the other.
fn run_generic<T>(a: View<'_>, b: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError>
where
    T: Number + crate::engine::kernels::gemm::Number,
{
    let Sizes { batch, m, k, n, .. } = sizes(a.shape(), b.shape())?;
    let y = y.slice::<T>()?;
    if y.is_empty() {
        return Ok(());
    }
    let (a_starts, b_starts) = (starts(&batch, a.shape(), m * k), starts(&batch, b.shape(), k * n));
    let (a, b) = (a.slice::<T>()?, b.slice::<T>()?);
    for ((i, j), c) in a_starts.into_iter().zip(b_starts).zip(y.chunks_exact_mut(m * n)) {
        gemm_generic::<T, T, T>(m, k, n, &a[i..i + m * k], &b[j..j + k * n], c);
    }
    Ok(())
}

/// A copy of a tensor of half-precision numbers as f32.
pub(crate) fn widened(view: View<'_>) -> Result<Vec<f32>, OpError> {
    with_float!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|v| v.to_f64() as f32).collect()),
        else Err(OpError::wrong_type(DType::F32, view.dtype())))
}

/// Writes f32 numbers, rounded to the type of `y`.
pub(crate) fn narrow(from: &[f32], y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let dtype = y.dtype();
    with_float!(dtype, T => {
        y.slice::<T>()?.iter_mut().zip(from).for_each(|(y, &v)| *y = T::from_f64(f64::from(v)));
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, dtype)))
}

impl Op for MatMul {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..inputs.len())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = sizes(inputs.shape(0)?, inputs.shape(1)?)?.shape;
        match inputs.get(2) {
            // Dimensions of size 1 in front of the bias may add to the rank, never to the elements.
            Some(_) => with_residual(broadcast::shape([&shape[..], inputs.shape(2)?])?, inputs),
            None => with_residual(shape, inputs),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        if inputs.at(0)?.dtype() == DType::F32 {
            return self.run_some(inputs.get(3).map_or(Residual::None, Residual::Given), inputs, outputs, ctx);
        }
        let (a, b, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        match a.dtype() {
            DType::F64 => run_generic::<f64>(a, b, y),
            DType::I32 => run_generic::<i32>(a, b, y),
            DType::I64 => run_generic::<i64>(a, b, y),
            DType::U32 => run_generic::<u32>(a, b, y),
            DType::U64 => run_generic::<u64>(a, b, y),
            _ => {
                let (wide_a, wide_b) = (Tensor::new(a.shape(), widened(a)?), Tensor::new(b.shape(), widened(b)?));
                let (Some(wide_a), Some(wide_b)) = (wide_a, wide_b) else { return Err(OpError::shape("the operands do not fit")) };
                let mut wide = vec![0.0; y.shape().iter().product()];
                let end = End { adds: false, activation: self.activation };
                self.run_f32(wide_a.view(), wide_b.view(), None, end, &mut wide, ctx)?;
                narrow(&wide, y)
            }
        }
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(Residual::InPlace, inputs, outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let b = constants.get(1).copied().flatten()?;
        let (&[k, n], values) = (b.shape(), b.source()?) else { return None };
        let mut consumed = smallvec![1];
        let bias = match constants.get(2).copied().flatten() {
            Some(bias) => {
                consumed.push(2);
                Some((bias.slice::<f32>()?.to_vec(), bias.shape().into()))
            }
            None => None,
        };
        let b = Weights::pack(self.precision, isa, &values, k, n, false);
        Some(Prepacked { op: Box::new(PackedMatMul { b, bias, activation: self.activation }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = inputs.shape(0).and_then(|a| sizes(a, inputs.shape(1)?));
        sizes.map_or(0, |s| flops(s.m, s.k, s.n).saturating_mul(s.batch.iter().product::<usize>() as u64))
    }
}

/// MatMul with a constant matrix on the right.
#[derive(Debug)]
struct PackedMatMul {
    b: Weights,
    bias: Option<(Vec<f32>, Shape)>,
    activation: Activation,
}

impl PackedMatMul {
    /// As [`MatMul::run_some`].
    fn run_some(&self, residual: Residual<'_>, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let a = inputs.at(0)?;
        let shape = sizes(a.shape(), &[self.b.k(), self.b.n()])?.shape;
        let a = a.slice::<f32>()?;
        residual::finish(residual, &shape, self.activation, outputs, ctx, |y, end, ctx| {
            let bias = self.bias.as_ref().map_or(Bias::None, |(bias, _)| Bias::PerColumn(bias));
            let epilogue = Epilogue { bias, adds: end.adds, activation: end.activation, ..Epilogue::default() };
            let m = y.len().checked_div(self.b.n()).unwrap_or(0);
            multiply(Left { data: a, transposed: false, m, k: self.b.k() }, Right::Packed(&self.b), &epilogue, y, ctx);
            Ok(())
        })
    }
}

impl Op for PackedMatMul {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = sizes(inputs.shape(0)?, &[self.b.k(), self.b.n()])?.shape;
        match &self.bias {
            Some((_, bias)) => with_residual(broadcast::shape([&shape[..], bias])?, inputs),
            None => with_residual(shape, inputs),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(inputs.get(3).map_or(Residual::None, Residual::Given), inputs, outputs, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(Residual::InPlace, inputs, outputs, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let rows = inputs.shape(0).map_or(0, |a| a[..a.len().saturating_sub(1)].iter().product());
        flops(rows, self.b.k(), self.b.n())
    }

    fn arithmetic(&self) -> Arithmetic {
        self.b.arithmetic()
    }

    fn packed_bytes(&self) -> usize {
        self.b.bytes() + self.bias.as_ref().map_or(0, |(bias, _)| size_of_val(bias.as_slice()))
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.shape(0).is_ok_and(|a| a.len() >= 2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use half::{bf16, f16};

    /// The definition, for one matrix each.
    fn naive(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
        let at = |i: usize| (0..k).map(|p| f64::from(a[i / n * k + p]) * f64::from(b[p * n + i % n])).sum::<f64>() as f32;
        (0..m * n).map(at).collect()
    }

    #[test]
    fn matrices_and_vectors() {
        let (a, b) = (noise(12, 1), noise(20, 2));
        let want = naive(&a, &b, (3, 4, 5));
        assert_close(&op("MatMul").one(&[&tensor(&[3, 4], &a), &tensor(&[4, 5], &b)]), &[3, 5], &want, 1e-5);
        assert_close(&op("MatMul").one(&[&tensor(&[4], &a[..4]), &tensor(&[4, 5], &b)]), &[5], &want[..5], 1e-5);
        let column: Vec<f32> = b.iter().step_by(5).copied().collect();
        let first: Vec<f32> = want.iter().step_by(5).copied().collect();
        assert_close(&op("MatMul").one(&[&tensor(&[3, 4], &a), &tensor(&[4], &column)]), &[3], &first, 1e-5);
        assert_close(&op("MatMul").one(&[&tensor(&[4], &a[..4]), &tensor(&[4], &column)]), &[], &first[..1], 1e-5);
    }

    #[test]
    fn batches_broadcast() {
        let (a, b) = (noise(2 * 3 * 4, 1), noise(2 * 4 * 5, 2));
        let each: Vec<Vec<f32>> =
            (0..4).map(|i| naive(&a[i / 2 * 12..][..12], &b[i % 2 * 20..][..20], (3, 4, 5))).collect();
        let y = op("MatMul").one(&[&tensor(&[2, 1, 3, 4], &a), &tensor(&[2, 4, 5], &b)]);
        assert_close(&y, &[2, 2, 3, 5], &each.concat(), 1e-5);
        let paired = op("MatMul").one(&[&tensor(&[2, 3, 4], &a), &tensor(&[2, 4, 5], &b)]);
        assert_close(&paired, &[2, 3, 5], &[each[0].clone(), each[3].clone()].concat(), 1e-5);
        let shared = op("MatMul").one(&[&tensor(&[2, 3, 4], &a), &tensor(&[4, 5], &b[..20])]);
        assert_close(&shared, &[2, 3, 5], &[each[0].clone(), each[2].clone()].concat(), 1e-5);
        let spread = op("MatMul").one(&[&tensor(&[3, 4], &a[..12]), &tensor(&[2, 4, 5], &b)]);
        assert_close(&spread, &[2, 3, 5], &[each[0].clone(), each[1].clone()].concat(), 1e-5);
        // Two matrices on the left share the one batch of the right.
        let wide = op("MatMul").one(&[&tensor(&[3, 4], &a[..12]), &tensor(&[1, 1, 4, 5], &b[..20])]);
        assert_close(&wide, &[1, 1, 3, 5], &each[0], 1e-5);
    }

    #[test]
    fn other_types() {
        let ints = op("MatMul").one(&[&tensor(&[1, 2], &[i64::MAX, 1]), &tensor(&[2, 1], &[2_i64, 3])]);
        assert_eq!(ints, tensor(&[1, 1], &[i64::MAX.wrapping_mul(2).wrapping_add(3)]));
        let wide = op("MatMul").one(&[&tensor(&[1, 2], &[0.5_f64, 2.0]), &tensor(&[2, 1], &[2.0_f64, 3.0])]);
        assert_eq!(wide, tensor(&[1, 1], &[7.0_f64]));
        let half = |v: &[f32]| v.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
        let y = op("MatMul").one(&[&tensor(&[1, 2], &half(&[0.5, 2.0])), &tensor(&[2, 1], &half(&[2.0, 3.0]))]);
        assert_eq!(y, tensor(&[1, 1], &half(&[7.0])));
        let b = [bf16::from_f32(3.0)];
        assert_eq!(op("MatMul").one(&[&tensor(&[1, 1], &b), &tensor(&[1, 1], &b)]), tensor(&[1, 1], &[bf16::from_f32(9.0)]));
    }

    #[test]
    fn sizes_of_zero() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert_eq!(op("MatMul").one(&[&zeros(&[0, 4]), &zeros(&[4, 5])]).shape(), [0, 5]);
        assert_eq!(op("MatMul").one(&[&zeros(&[3, 4]), &zeros(&[4, 0])]).shape(), [3, 0]);
        assert_close(&op("MatMul").one(&[&zeros(&[2, 0]), &zeros(&[0, 2])]), &[2, 2], &[0.0; 4], 0.0);
        assert_close(&op("MatMul").one(&[&zeros(&[2, 1, 0]), &zeros(&[2, 0, 2])]), &[2, 1, 2], &[0.0; 4], 0.0);
        assert_eq!(op("MatMul").one(&[&zeros(&[0, 3, 4]), &zeros(&[1, 4, 5])]).shape(), [0, 3, 5]);
        assert_close(&op("MatMul").one(&[&zeros(&[2, 3, 0]), &zeros(&[0, 1])]), &[2, 3, 1], &[0.0; 6], 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert!(matches!(op("MatMul").error(&[&zeros(&[3, 4]), &zeros(&[5, 4])]), OpError::Shape(_)));
        assert!(matches!(op("MatMul").error(&[&zeros(&[2, 3, 4]), &zeros(&[3, 4, 5])]), OpError::Shape(_)));
        assert!(matches!(op("MatMul").error(&[&zeros(&[]), &zeros(&[1])]), OpError::Shape(_)));
        assert!(matches!(op("MatMul").error(&[&zeros(&[1, 1]), &Tensor::zeros(DType::F64, &[1, 1])]), OpError::Type(_)));
        assert!(matches!(op("MatMul").error(&[&zeros(&[1, 1])]), OpError::Shape(_)));
    }

    #[test]
    fn large_products_are_the_same_on_two_threads() {
        // The harness compares; the sizes are such that the work is split.
        for (m, k, n) in [(1, 2048, 2048), (8, 1024, 700), (256, 128, 200)] {
            op("MatMul").one(&[&tensor(&[m, k], &noise(m * k, 1)), &tensor(&[k, n], &noise(k * n, 2))]);
        }
        op("MatMul").one(&[&tensor(&[5, 64, 64], &noise(5 * 64 * 64, 1)), &tensor(&[5, 64, 300], &noise(5 * 64 * 300, 2))]);
    }

    #[test]
    fn flops_are_two_per_product() {
        let a = Tensor::zeros(DType::F32, &[2, 3, 4]);
        let built = op("MatMul").build(&[Some(&a)]).unwrap();
        let facts = [a, Tensor::zeros(DType::F32, &[4, 5])].map(crate::engine::op::Fact::constant);
        assert_eq!(built.flops(&Facts(&[Some(&facts[0]), Some(&facts[1])])), 2 * 2 * 3 * 4 * 5);
    }
}
