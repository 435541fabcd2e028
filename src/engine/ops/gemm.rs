//! Gemm: `alpha * a · b + beta * c` of matrices, either of which may be given transposed.
//!
//! `c` broadcasts to the output. The sum `alpha * x + beta * c` is rounded in one way whatever the shape of `c`, so that a
//! row's bits do not depend on how many rows there are.

pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::same_type;
use super::broadcast::{self, Broadcast, map};
use super::matmul::{narrow, widened};
use super::number::Number;
use super::product::{Left, Right, flops, multiply, transpose};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::gemm_generic;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::weights::{Precision, Weights};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{View, ViewMut};

const TYPES: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U32, DType::U64];

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Gemm", domain: "", opsets: 1..=6, types: TYPES, build: |a| {
        // It says whether input C may be smaller than the product; taking it then is harmless.
        a.ignore(&["broadcast"]);
        build(a)
    } },
    OpDef { name: "Gemm", domain: "", opsets: 7..=ANY, types: TYPES, build },
];

/// `activation(alpha * a · b + beta * c)`.
#[derive(Clone, Debug)]
pub(crate) struct Gemm {
    alpha: f32,
    beta: f32,
    trans_a: bool,
    pub(crate) trans_b: bool,
    pub(crate) activation: Activation,
    /// Of the product with a constant matrix.
    precision: Precision,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Gemm {
        alpha: attrs.float_or("alpha", 1.0)?,
        beta: attrs.float_or("beta", 1.0)?,
        trans_a: attrs.bool_or("transA", false)?,
        trans_b: attrs.bool_or("transB", false)?,
        activation: Activation::None,
        precision: Precision::F32,
    }))
}

/// Rows and columns of an operand as it takes part in the product.
fn matrix(shape: &[usize], transposed: bool) -> Result<(usize, usize), OpError> {
    match (shape, transposed) {
        (&[rows, columns], false) | (&[columns, rows], true) => Ok((rows, columns)),
        _ => Err(OpError::shape(format!("{shape:?} is no matrix"))),
    }
}

/// The sizes m, k and n of a product whose right operand is `(k, n)`.
fn sizes(a: &[usize], trans_a: bool, (k, n): (usize, usize)) -> Result<(usize, usize, usize), OpError> {
    let (m, a_columns) = matrix(a, trans_a)?;
    if a_columns != k {
        return Err(OpError::shape(format!("{a_columns} columns on the left, {k} rows on the right")));
    }
    Ok((m, k, n))
}

fn check_bias(c: Option<&[usize]>, m: usize, n: usize) -> Result<(), OpError> {
    match c {
        Some(c) if broadcast::shape([c, &[m, n]])?.as_slice() != [m, n] => {
            Err(OpError::shape(format!("input C of shape {c:?} does not broadcast to {:?}", [m, n])))
        }
        _ => Ok(()),
    }
}

impl Gemm {
    /// The same with operands rounded to a precision, where one is constant.
    pub(crate) fn at(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The factor on the product.
    pub(crate) fn is_plain(&self) -> bool {
        self.alpha == 1.0 && self.beta == 1.0
    }

    fn run_f32(&self, a: View<'_>, right: Right<'_>, c: Option<(&[usize], &[f32])>, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let &[m, n] = y.shape() else { return Err(OpError::shape("the output is no matrix")) };
        let k = if self.trans_a { a.shape()[0] } else { a.shape()[1] };
        let left = Left { data: a.slice()?, transposed: self.trans_a, m, k };
        let y = y.slice::<f32>()?;
        if y.is_empty() {
            return Ok(());
        }
        let Some((c_shape, c)) = c.filter(|_| self.beta != 0.0) else {
            multiply(left, right, &self.epilogue(Bias::None), y, ctx);
            return Ok(());
        };
        let scaled: Vec<f32>;
        let c = if self.beta == 1.0 {
            c
        } else {
            scaled = c.iter().map(|c| self.beta * c).collect();
            &scaled
        };
        match *c_shape {
            [] | [1] | [1, 1] => multiply(left, right, &self.epilogue(Bias::PerColumn(&vec![c[0]; n])), y, ctx),
            [_] | [1, _] => multiply(left, right, &self.epilogue(Bias::PerColumn(c)), y, ctx),
            [_, 1] => multiply(left, right, &self.epilogue(Bias::PerRow(c)), y, ctx),
            // A row of c for each row: one product per row keeps the rounding of the fused sum.
            _ => self.rows(left, right, c, y, ctx),
        }
        Ok(())
    }

    fn rows(&self, left: Left<'_>, right: Right<'_>, c: &[f32], y: &mut [f32], ctx: &mut Context<'_>) {
        let Left { m, k, .. } = left;
        let (packed, mut across) = (&mut None, Vec::new());
        let b = match right {
            Right::Packed(b) => b,
            Right::Plain { data, transposed, n } => &*packed.insert(Weights::pack(Precision::F32, ctx.isa, data, k, n, transposed)),
        };
        let a = if left.transposed {
            transpose(left.data, k, m, &mut across);
            &across
        } else {
            left.data
        };
        if b.n() == 0 {
            return;
        }
        for (row, (y, c)) in y.chunks_exact_mut(b.n()).zip(c.chunks_exact(b.n())).enumerate() {
            let left = Left { data: &a[row * k..][..k], transposed: false, m: 1, k };
            multiply(left, Right::Packed(b), &self.epilogue(Bias::PerColumn(c)), y, ctx);
        }
    }

    fn epilogue<'a>(&self, bias: Bias<'a>) -> Epilogue<'a> {
        Epilogue { alpha: self.alpha, bias, activation: self.activation, ..Epilogue::default() }
    }

    /// The types without a fast kernel.
    fn run_generic<T>(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError>
    where
        T: Number + crate::engine::kernels::gemm::Number,
    {
        fn plain<'a, T: Copy + Default>(x: &'a [T], shape: &[usize], transposed: bool, store: &'a mut Vec<T>) -> &'a [T] {
            if !transposed {
                return x;
            }
            transpose(x, shape[0], shape[1], store);
            store
        }
        let (a, b, shape) = (inputs.at(0)?, inputs.at(1)?, y.shape());
        let (m, k, n) = sizes(a.shape(), self.trans_a, matrix(b.shape(), self.trans_b)?)?;
        let (mut a_store, mut b_store) = (Vec::new(), Vec::new());
        let y = y.slice::<T>()?;
        if y.is_empty() {
            return Ok(());
        }
        let left = plain(a.slice::<T>()?, a.shape(), self.trans_a, &mut a_store);
        let right = plain(b.slice::<T>()?, b.shape(), self.trans_b, &mut b_store);
        gemm_generic::<T, T, T>(m, k, n, left, right, y);
        let scale = |x: T, by: f32| if by == 1.0 { x } else { T::from_f64(x.to_f64() * f64::from(by)) };
        if self.alpha != 1.0 {
            y.iter_mut().for_each(|y| *y = scale(*y, self.alpha));
        }
        if let Some(c) = inputs.get(2).filter(|_| self.beta != 0.0) {
            let plan = Broadcast::new(shape, [c.shape()]);
            map(&plan, c.slice::<T>()?, y, |&c, y| *y = Number::add(*y, scale(c, self.beta)));
        }
        Ok(())
    }

    fn run_half(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b) = (inputs.at(0)?, inputs.at(1)?);
        let (_, n) = matrix(b.shape(), self.trans_b)?;
        let wide_a = Tensor::new(a.shape(), widened(a)?).ok_or_else(|| OpError::shape("the operands do not fit"))?;
        let wide_b = widened(b)?;
        let wide_c = inputs.get(2).map(|c| Ok((c.shape(), widened(c)?))).transpose()?;
        let mut wide = crate::engine::tensor::Buffer::new(DType::F32);
        wide.grow(y.shape().iter().product());
        let right = Right::Plain { data: &wide_b, transposed: self.trans_b, n };
        let c = wide_c.as_ref().map(|(shape, values)| (*shape, values.as_slice()));
        let shape = y.shape();
        let mut view = wide.view_mut(shape);
        self.run_f32(wide_a.view(), right, c, &mut view, ctx)?;
        narrow(view.slice()?, y)
    }
}

impl Op for Gemm {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (m, _, n) = sizes(inputs.shape(0)?, self.trans_a, matrix(inputs.shape(1)?, self.trans_b)?)?;
        check_bias(inputs.get(2).map(|_| inputs.shape(2)).transpose()?, m, n)?;
        Ok(vec![smallvec![m, n]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        match a.dtype() {
            DType::F32 => {
                let (_, n) = matrix(b.shape(), self.trans_b)?;
                let c = inputs.get(2).map(|c| Ok::<_, OpError>((c.shape(), c.slice::<f32>()?))).transpose()?;
                self.run_f32(a, Right::Plain { data: b.slice()?, transposed: self.trans_b, n }, c, y, ctx)
            }
            DType::F64 => self.run_generic::<f64>(inputs, y),
            DType::I32 => self.run_generic::<i32>(inputs, y),
            DType::I64 => self.run_generic::<i64>(inputs, y),
            DType::U32 => self.run_generic::<u32>(inputs, y),
            DType::U64 => self.run_generic::<u64>(inputs, y),
            _ => self.run_half(inputs, y, ctx),
        }
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let b = constants.get(1).copied().flatten()?;
        let (k, n) = matrix(b.shape(), self.trans_b).ok()?;
        if k == 0 {
            return None;
        }
        let packed = Weights::pack(self.precision, isa, &b.source()?, k, n, self.trans_b);
        let mut consumed = smallvec![1];
        let mut gemm = self.clone();
        // A constant row is scaled and built in; another shape of c stays an operand.
        let bias = constants.get(2).copied().flatten().and_then(|c| {
            let values = c.slice::<f32>()?;
            let values = match c.shape() {
                [] | [1] | [1, 1] => vec![values[0]; n],
                [len] | [1, len] if *len == n => values.to_vec(),
                _ => return None,
            };
            consumed.push(2);
            Some(values)
        });
        let bias = bias.map(|values| {
            let beta = std::mem::replace(&mut gemm.beta, 1.0);
            (beta != 0.0).then(|| if beta == 1.0 { values } else { values.iter().map(|c| beta * c).collect() })
        });
        Some(Prepacked { op: Box::new(PackedGemm { gemm, b: packed, bias: bias.flatten() }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = inputs.shape(0).and_then(|a| sizes(a, self.trans_a, matrix(inputs.shape(1)?, self.trans_b)?));
        sizes.map_or(0, |(m, k, n)| flops(m, k, n))
    }
}

/// Gemm with a constant matrix on the right.
#[derive(Debug)]
struct PackedGemm {
    gemm: Gemm,
    b: Weights,
    /// The row to add, already scaled; if none, input 2 is added, if it is given.
    bias: Option<Vec<f32>>,
}

impl Op for PackedGemm {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (m, _, n) = sizes(inputs.shape(0)?, self.gemm.trans_a, (self.b.k(), self.b.n()))?;
        check_bias(inputs.get(2).map(|_| inputs.shape(2)).transpose()?, m, n)?;
        Ok(vec![smallvec![m, n]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let c = match (&self.bias, inputs.get(2)) {
            (Some(bias), _) => Some((&[self.b.n()][..], bias.as_slice())),
            (None, Some(c)) => Some((c.shape(), c.slice::<f32>()?)),
            (None, None) => None,
        };
        self.gemm.run_f32(inputs.at(0)?, Right::Packed(&self.b), c, outputs.at(0)?, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = inputs.shape(0).and_then(|a| sizes(a, self.gemm.trans_a, (self.b.k(), self.b.n())));
        sizes.map_or(0, |(m, k, n)| flops(m, k, n))
    }

    fn arithmetic(&self) -> Arithmetic {
        self.b.arithmetic()
    }

    fn packed_bytes(&self) -> usize {
        self.b.bytes() + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        !self.gemm.trans_a
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use half::f16;

    const A: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    const B: [f32; 6] = [1.0, 0.0, -1.0, 2.0, 1.0, 0.5];
    /// A[2, 3] · B[3, 2].
    const AB: [f32; 4] = [2.0, 5.5, 5.0, 13.0];

    #[test]
    fn operands_may_be_transposed() {
        let (a, b) = (tensor(&[2, 3], &A), tensor(&[3, 2], &B));
        let (at, bt) = (op("Transpose").one(&[&a]), op("Transpose").one(&[&b]));
        for (trans_a, trans_b) in [(0_i64, 0_i64), (0, 1), (1, 0), (1, 1)] {
            let gemm = op("Gemm").attr("transA", trans_a).attr("transB", trans_b);
            let y = gemm.one(&[if trans_a == 1 { &at } else { &a }, if trans_b == 1 { &bt } else { &b }]);
            assert_close(&y, &[2, 2], &AB, 1e-6);
        }
    }

    #[test]
    fn the_bias_takes_any_shape_that_broadcasts() {
        let (a, b) = (tensor(&[2, 3], &A), tensor(&[3, 2], &B));
        let cases: &[(&[usize], &[f32], [f32; 4])] = &[
            (&[], &[1.0], [1.0; 4]),
            (&[1], &[1.0], [1.0; 4]),
            (&[1, 1], &[1.0], [1.0; 4]),
            (&[2], &[1.0, 2.0], [1.0, 2.0, 1.0, 2.0]),
            (&[1, 2], &[1.0, 2.0], [1.0, 2.0, 1.0, 2.0]),
            (&[2, 1], &[1.0, 2.0], [1.0, 1.0, 2.0, 2.0]),
            (&[2, 2], &[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        ];
        for (shape, c, added) in cases {
            let want: Vec<f32> = AB.iter().zip(added).map(|(x, c)| 0.5 * x + 2.0 * c).collect();
            let gemm = op("Gemm").attr("alpha", 0.5_f32).attr("beta", 2.0_f32);
            assert_close(&gemm.one(&[&a, &b, &tensor(shape, c)]), &[2, 2], &want, 1e-6);
            let ignored = op("Gemm").attr("beta", 0.0_f32).one(&[&a, &b, &tensor(shape, c)]);
            assert_close(&ignored, &[2, 2], &AB, 1e-6);
        }
        for shape in [&[3][..], &[2, 3], &[1, 2, 2]] {
            assert!(matches!(op("Gemm").error(&[&a, &b, &Tensor::zeros(DType::F32, shape)]), OpError::Shape(_)), "{shape:?}");
        }
    }

    #[test]
    fn old_opsets_say_that_the_bias_broadcasts() {
        let (a, b) = (tensor(&[2, 3], &A), tensor(&[3, 2], &B));
        let y = op("Gemm").opset(6).attr("broadcast", 1_i64).one(&[&a, &b, &tensor(&[2], &[1.0_f32, 0.0])]);
        assert_close(&y, &[2, 2], &[AB[0] + 1.0, AB[1], AB[2] + 1.0, AB[3]], 1e-6);
        assert!(matches!(op("Gemm").opset(7).attr("broadcast", 1_i64).error(&[&a, &b]), OpError::Attribute(_)));
    }

    #[test]
    fn a_row_of_bias_each_gives_the_bits_of_the_row_alone() {
        let (m, k, n) = (3, 50, 37);
        let (a, b, c) = (tensor(&[m, k], &noise(m * k, 1)), tensor(&[k, n], &noise(k * n, 2)), tensor(&[m, n], &noise(m * n, 3)));
        let gemm = op("Gemm").attr("alpha", 0.3_f32).attr("beta", 0.7_f32);
        let all = gemm.one(&[&a, &b, &c]);
        for row in 0..m {
            let alone = gemm.one(&[&a.rows(row..row + 1), &b, &c.rows(row..row + 1)]);
            assert_eq!(alone, all.rows(row..row + 1));
        }
    }

    #[test]
    fn other_types() {
        let ints = |v: [f32; 6]| v.map(|v| v as i32);
        let y = op("Gemm").attr("alpha", 2.0_f32).one(&[
            &tensor(&[2, 3], &ints(A)),
            &tensor(&[3, 2], &ints(B)),
            &Tensor::scalar(1_i32),
        ]);
        assert_eq!(y, tensor(&[2, 2], &[5, 9, 11, 21]));
        let y = op("Gemm").attr("transB", 1_i64).one(&[&tensor(&[2, 3], &A.map(f64::from)), &tensor(&[2, 3], &A.map(f64::from))]);
        assert_eq!(y, tensor(&[2, 2], &[14.0_f64, 32.0, 32.0, 77.0]));
        let y = op("Gemm").one(&[&tensor(&[2, 3], &A.map(f16::from_f32)), &tensor(&[3, 2], &B.map(f16::from_f32))]);
        assert_eq!(y, tensor(&[2, 2], &AB.map(f16::from_f32)));
    }

    #[test]
    fn sizes_of_zero_and_what_does_not_fit() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert_eq!(op("Gemm").one(&[&zeros(&[0, 3]), &zeros(&[3, 2]), &zeros(&[2])]).shape(), [0, 2]);
        assert_eq!(op("Gemm").one(&[&zeros(&[2, 3]), &zeros(&[3, 0])]).shape(), [2, 0]);
        let bias = tensor(&[2], &[1.0_f32, 2.0]);
        assert_close(&op("Gemm").one(&[&zeros(&[2, 0]), &zeros(&[0, 2]), &bias]), &[2, 2], &[1.0, 2.0, 1.0, 2.0], 0.0);
        assert!(matches!(op("Gemm").error(&[&zeros(&[2, 3]), &zeros(&[2, 3])]), OpError::Shape(_)));
        assert!(matches!(op("Gemm").error(&[&zeros(&[2, 3, 1]), &zeros(&[3, 2])]), OpError::Shape(_)));
        assert!(matches!(op("Gemm").error(&[&zeros(&[2, 3])]), OpError::Shape(_)));
        assert!(matches!(op("Gemm").error(&[&zeros(&[2, 3]), &Tensor::zeros(DType::I32, &[3, 2])]), OpError::Type(_)));
    }

    #[test]
    fn large_products_are_the_same_on_two_threads() {
        let (m, k, n) = (8, 1024, 700);
        let (a, b) = (tensor(&[m, k], &noise(m * k, 1)), tensor(&[n, k], &noise(k * n, 2)));
        op("Gemm").attr("transB", 1_i64).one(&[&a, &b, &tensor(&[n], &noise(n, 3))]);
    }
}
