//! Products of matrices of 8-bit codes: MatMulInteger, QLinearMatMul, and of com.microsoft MatMulIntegerToFloat,
//! DynamicQuantizeMatMul and QGemm.
//!
//! The sums are exact integers, so that their order does not matter. They are scaled in f32, as onnxruntime does it. A
//! constant right matrix is packed once for the kernel, which also scales and rounds the sums where each operand has one scale, or
//! one per row or column.

use std::ops::Range;
use std::sync::Arc;

use smallvec::smallvec;

use super::ANY;
use super::axes::require;
use super::cast::convert;
use super::integer_product::{Operands, ToFloats};
use super::matmul::{Sizes, narrow, sizes, starts};
use super::product::flops;
use super::qlinear::{CODES, Levels, Rows, encode, expect_same, expect_type, multiply, scale, with_code, zero_levels, zero_point};
use super::qlinear_scaling::{Bias, Block, Scales, Scaling, wide, wide_levels};
use super::quantize_dynamic::{Range8, quantize_dynamically};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::{Activation, Epilogue};
use crate::engine::kernels::gemm::gemm;
use crate::engine::kernels::int8::{PackedInt8, RightCodes};
use crate::engine::kernels::integer::padded;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{Slice, SliceMut, View, ViewMut};

const FLOATS8: &[DType] = &[DType::U8, DType::I8, DType::F8E4M3Fn, DType::F8E4M3Fnuz, DType::F8E5M2, DType::F8E5M2Fnuz];

const fn ms(name: &'static str, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { domain: "", opsets: 10..=ANY, ..ms("MatMulInteger", CODES, |a| build(a, Form::Integer)) },
    OpDef { domain: "", opsets: 10..=20, ..ms("QLinearMatMul", CODES, |a| build(a, Form::Linear)) },
    OpDef { domain: "", opsets: 21..=ANY, ..ms("QLinearMatMul", FLOATS8, |a| build(a, Form::Linear)) },
    ms("MatMulIntegerToFloat", CODES, |a| build(a, Form::ToFloat)),
    ms("DynamicQuantizeMatMul", &[DType::F32], |a| build(a, Form::Dynamic)),
    ms("QGemm", CODES, |a| {
        let form = Gemm { alpha: a.float_or("alpha", 1.0)?, a_across: a.bool_or("transA", false)?, b_across: a.bool_or("transB", false)? };
        build(a, Form::Gemm(form))
    }),
];

#[derive(Clone, Copy, Debug)]
struct Gemm {
    alpha: f32,
    a_across: bool,
    b_across: bool,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    /// The sums.
    Integer,
    /// Quantised.
    Linear,
    /// Scaled, with a bias.
    ToFloat,
    /// The same, of a left operand that is quantised here.
    Dynamic,
    /// Two matrices, one result.
    Gemm(Gemm),
}

/// Which input is what.
struct Places {
    b: usize,
    a_zero: Option<usize>,
    b_zero: usize,
    a_scale: Option<usize>,
    b_scale: Option<usize>,
    bias: Option<usize>,
    y_scale: Option<usize>,
    y_zero: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct QMatMul {
    form: Form,
    given: Vec<bool>,
    /// The right matrix with its zero points, if it is constant.
    packed: Option<Arc<PackedInt8>>,
    /// What follows a result of floats.
    pub(crate) activation: Activation,
}

fn build(attrs: &Attrs, form: Form) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(QMatMul { form, given: attrs.inputs.clone(), packed: None, activation: Activation::None }))
}

/// Sums of the result that are held at once.
const BLOCK: usize = 1 << 20;

impl QMatMul {
    fn places(&self) -> Places {
        let none = Places { b: 1, a_zero: None, b_zero: 3, a_scale: None, b_scale: None, bias: None, y_scale: None, y_zero: None };
        match self.form {
            Form::Integer => Places { a_zero: Some(2), ..none },
            Form::ToFloat => Places { a_scale: Some(2), b_scale: Some(3), a_zero: Some(4), b_zero: 5, bias: Some(6), ..none },
            Form::Dynamic => Places { b_scale: Some(2), b_zero: 3, bias: Some(4), ..none },
            Form::Linear => {
                let (a_scale, a_zero, b, b_scale, b_zero) = (Some(1), Some(2), 3, Some(4), 5);
                Places { b, a_zero, b_zero, a_scale, b_scale, bias: None, y_scale: Some(6), y_zero: Some(7) }
            }
            Form::Gemm(_) => {
                let (a_scale, a_zero, b, b_scale, b_zero) = (Some(1), Some(2), 3, Some(4), 5);
                Places { b, a_zero, b_zero, a_scale, b_scale, bias: Some(6), y_scale: Some(7), y_zero: Some(8) }
            }
        }
    }

    /// The sizes for operands of these shapes, `b` as given or as packed.
    fn sizes(&self, a: &[usize], b: Option<&[usize]>) -> Result<Sizes, OpError> {
        let packed = self.packed.as_ref().map(|packed| [packed.k(), packed.n()]);
        let Form::Gemm(gemm) = self.form else {
            let b = packed.as_ref().map(|b| &b[..]).or(b).ok_or_else(|| OpError::missing_input(self.places().b))?;
            return sizes(a, b);
        };
        let matrix = |shape: &[usize], across: bool| match *shape {
            [rows, columns] if across => Ok([columns, rows]),
            [rows, columns] => Ok([rows, columns]),
            _ => Err(OpError::shape(format!("a matrix is needed where the shape is {shape:?}"))),
        };
        let b = match (packed, b) {
            (Some(b), _) => b,
            (None, Some(b)) => matrix(b, gemm.b_across)?,
            (None, None) => return Err(OpError::missing_input(self.places().b)),
        };
        sizes(&matrix(a, gemm.a_across)?, &b)
    }

    /// Calls `finish` with all blocks of sums of `a`, whose zero points are `zeros`, times `b`.
    fn blocks(
        &self,
        a: View<'_>,
        zeros: &Levels<i32>,
        (b, b_zero): (Option<View<'_>>, Option<View<'_>>),
        ctx: &Context<'_>,
        mut finish: impl FnMut(&Block<'_>) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        let Sizes { batch, m, k, n, .. } = self.sizes(a.shape(), b.map(|b| b.shape()))?;
        let (a_across, b_across) = match self.form {
            Form::Gemm(gemm) => (gemm.a_across, gemm.b_across),
            _ => (false, false),
        };
        let (shape, matrices) = (b.map(|b| b.shape()), b.map_or(1, |b| b.len().checked_div(k * n).unwrap_or(0)));
        let one = self.packed.is_some() || (matrices == 1 && b_zero.is_none_or(|zero| zero.len() == 1 || zero.len() == n));
        // One matrix on the right: all rows on the left form one matrix.
        let pairs: Vec<(usize, usize)> = match shape {
            Some(shape) if !one => starts(&batch, a.shape(), 1).into_iter().zip(starts(&batch, shape, 1)).collect(),
            _ => vec![(0, 0)],
        };
        let rows = if one { batch.iter().product::<usize>() * m } else { m };
        if rows == 0 || n == 0 || batch.contains(&0) {
            return Ok(());
        }
        let b_zeros = zero_levels(b_zero, &if b_across { vec![k, n] } else { shape.unwrap_or(&[k, n]).to_vec() }, 1)?;
        if let Some(packed) = &self.packed {
            let operands = Operands::new(a, a_across, packed, zeros, m, ctx.threads)?;
            let mut sums = vec![0; rows * n];
            operands.to_sums(&mut sums);
            return finish(&Block { a: 0, b: 0, rows: 0..rows, columns: 0..n, start: 0, sums: &sums });
        }
        let width = n.min(BLOCK);
        let height = (BLOCK / width.max(padded(k))).clamp(1, rows).next_multiple_of(4).min(rows);
        for (i, (a_matrix, b_matrix)) in pairs.into_iter().enumerate() {
            for first in (0..n).step_by(width) {
                let columns = first..n.min(first + width);
                let Some(b) = b else { return Err(OpError::missing_input(self.places().b)) };
                let right = right(b, b_matrix, (k, n), b_across, columns.clone(), |j| b_zeros.at(b_matrix, j))?;
                for start in (0..rows).step_by(height) {
                    let range = start..rows.min(start + height);
                    let zero = |r: usize| zeros.at(a_matrix + (start + r) / m, (start + r) % m);
                    let left = left(a, a_matrix, (m, k), a_across, range.clone(), zero)?;
                    let sums = multiply(&left, &right, ctx);
                    finish(&Block { a: a_matrix, b: b_matrix, rows: range, columns: columns.clone(), start: i * rows * n, sums: &sums })?;
                }
            }
        }
        Ok(())
    }

    fn run_integer(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
        let (a, places) = (inputs.at(0)?, self.places());
        let n = y_columns(self, inputs)?;
        let zeros = zero_levels(inputs.get(2), a.shape(), 2)?;
        let y = y.slice::<i32>()?;
        if let Some(packed) = &self.packed {
            let m = self.sizes(a.shape(), None)?.m;
            Operands::new(a, false, packed, &zeros, m, ctx.threads)?.to_sums(y);
            return Ok(());
        }
        self.blocks(a, &zeros, (inputs.get(places.b), inputs.get(places.b_zero)), ctx, |block| {
            block.write(n, y, |_, sums, y| y.copy_from_slice(sums));
            Ok(())
        })
    }

    /// The scaled sums, to floats or codes.
    fn run_scaled(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
        let (x, places) = (inputs.at(0)?, self.places());
        let b_shape = inputs.get(places.b).map(|b| b.shape());
        let Sizes { m, k, n, .. } = self.sizes(x.shape(), b_shape)?;
        let of = |shape: &[usize]| if let Form::Gemm(_) = self.form { vec![m, k] } else { shape.to_vec() };
        let mut dynamic = vec![];
        let (a, zeros, a_scale) = if let Form::Dynamic = self.form {
            let values = x.slice::<f32>()?;
            let range = Range8::of(values, Range8::NOTHING);
            dynamic.resize(values.len(), 0);
            quantize_dynamically(values, range, &mut dynamic);
            (View::new(Slice::U8(&dynamic), x.shape()), Levels::one(i32::from(range.zero)), Scales::one(range.scale))
        } else {
            let zeros = zero_levels(places.a_zero.and_then(|i| inputs.get(i)), &of(x.shape()), 2)?;
            let scale = inputs.at(places.a_scale.unwrap_or(1))?;
            (x, zeros, Scales::new(scale, &of(x.shape()), 2)?)
        };
        let b_of = match (self.form, b_shape) {
            (Form::Gemm(_), _) | (_, None) => vec![k, n],
            (_, Some(shape)) => shape.to_vec(),
        };
        let b_scale = Scales::new(inputs.at(places.b_scale.unwrap_or(2))?, &b_of, 1)?;
        let y_scale = places.y_scale.and_then(|i| inputs.get(i)).map(|s| Scales::new(s, &[], 1)).transpose()?;
        let y_zero = places.y_zero.and_then(|i| inputs.get(i));
        let bias = places.bias.and_then(|i| inputs.get(i));
        let alpha = if let Form::Gemm(gemm) = self.form { gemm.alpha } else { 1.0 };
        let scaling = Scaling { alpha, a: a_scale, b: b_scale, y: y_scale };
        if let Some(packed) = &self.packed
            && self.run_fused(Operands::new(a, self.across(), packed, &zeros, m, ctx.threads)?, &scaling, bias, y_zero, (m, y))?
        {
            return Ok(());
        }
        let operands = (inputs.get(places.b), inputs.get(places.b_zero));
        if y.dtype().is_float() {
            let bias = Bias::of(bias, m, n)?;
            let mut wide = if y.dtype() == DType::F32 { vec![] } else { vec![0.0; y.shape().iter().product()] };
            let out = if wide.is_empty() && y.dtype() == DType::F32 { y.slice::<f32>()? } else { &mut wide[..] };
            let mut factors = vec![];
            self.blocks(a, &zeros, operands, ctx, |block| {
                block.write(n, out, |row, sums, y| {
                    scaling.factors(block, row, m, &mut factors);
                    bias.scaled(sums, &factors, (row, block.columns.start), y);
                });
                Ok(())
            })?;
            crate::engine::kernels::vector::activation_in_place(ctx.isa, self.activation, out);
            return if wide.is_empty() { Ok(()) } else { narrow(&wide, y) };
        }
        let zero = zero_point(y_zero)?;
        let bias = Bias::of(bias, m, n)?;
        with_code!(y.dtype(), T => {
            let y = y.slice::<T>()?;
            let mut factors = vec![];
            self.blocks(a, &zeros, operands, ctx, |block| {
                block.write(n, y, |row, sums, y| {
                    scaling.factors(block, row, m, &mut factors);
                    let at = bias.integers((row, block.columns.start));
                    for (j, ((y, &sum), &factor)) in y.iter_mut().zip(sums).zip(&factors).enumerate() {
                        *y = encode::<T>(sum.wrapping_add(at(j)) as f32 * factor, zero);
                    }
                });
                Ok(())
            })
        })
    }

    /// Whether the result is of floats.
    pub(crate) fn gives_floats(&self) -> bool {
        match self.form {
            Form::ToFloat | Form::Dynamic => true,
            Form::Gemm(_) => self.given.get(7) != Some(&true),
            Form::Integer | Form::Linear => false,
        }
    }

    /// Whether the left operand is transposed.
    fn across(&self) -> bool {
        matches!(self.form, Form::Gemm(gemm) if gemm.a_across)
    }

    /// Lets the kernel scale the sums. False if it has no form for the scales or the bias.
    fn run_fused(
        &self,
        operands: Operands<'_>,
        scaling: &Scaling,
        bias: Option<View<'_>>,
        y_zero: Option<View<'_>>,
        (m, y): (usize, &mut ViewMut<'_>),
    ) -> Result<bool, OpError> {
        let n = operands.columns();
        let wide = [Some(&scaling.a), Some(&scaling.b), scaling.y.as_ref()].into_iter().flatten().all(|s| s.dtype == DType::F32);
        if !wide || !scaling.b.values.shared() || !scaling.a.values.shared() {
            return Ok(false);
        }
        let (integers, floats) = match Bias::of(bias, m, n)? {
            Bias::None => (None, None),
            Bias::Floats(values) => (None, Some(values)),
            Bias::Integers { values, row: 0, column } => (Some((0..n).map(|j| values[j * column]).collect::<Vec<_>>()), None),
            Bias::Integers { .. } => return Ok(false),
        };
        let block = Block { a: 0, b: 0, rows: 0..m, columns: 0..n, start: 0, sums: &[] };
        let mut factors = vec![];
        let dtype = y.dtype();
        if dtype == DType::F32 {
            let of_rows = if scaling.a.uniform { None } else { Some((0..operands.rows()).map(|r| scaling.alpha * scaling.a.values.at(0, r % m.max(1))).collect::<Vec<_>>()) };
            match of_rows {
                None => scaling.factors(&block, 0, m, &mut factors),
                Some(_) => factors.extend((0..n).map(|j| scaling.b.values.at(0, j))),
            }
            let with = ToFloats {
                bias: integers.as_deref(),
                scales: of_rows.as_deref(),
                factors: &factors,
                added: floats.as_deref(),
                activation: self.activation,
            };
            operands.to_floats(y.slice()?, &with);
            return Ok(true);
        }
        if !scaling.a.uniform || floats.is_some() {
            return Ok(false);
        }
        scaling.factors(&block, 0, m, &mut factors);
        let level = (dtype, zero_point(y_zero)?);
        match dtype {
            DType::U8 | DType::I8 => operands.to_codes(y.bits().slice()?, integers.as_deref(), &factors, level),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// QLinearMatMul with floats of 8 bits among the operands: the product of what the codes stand for.
    fn run_floats(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b) = (inputs.at(0)?, inputs.at(3)?);
        let Sizes { batch, m, k, n, .. } = sizes(a.shape(), b.shape())?;
        let (a_scale, b_scale) = (Scales::new(inputs.at(1)?, a.shape(), 2)?, Scales::new(inputs.at(4)?, b.shape(), 1)?);
        let (a_zero, b_zero) = (wide_levels(inputs.get(2), a.shape(), 2)?, wide_levels(inputs.get(5), b.shape(), 1)?);
        let y_scale = Scales::new(inputs.at(6)?, &[], 1)?;
        let scaling = Scaling { alpha: 1.0, a: a_scale, b: b_scale, y: Some(y_scale) };
        let zero = wide_levels(inputs.get(7), &[], 1)?.at(0, 0);
        let (a_wide, b_wide) = (wide(a)?, wide(b)?);
        let mut factors = vec![];
        let mut result = vec![0.0_f32; m * n];
        let mut codes = vec![];
        for (i, (a_matrix, b_matrix)) in starts(&batch, a.shape(), 1).into_iter().zip(starts(&batch, b.shape(), 1)).enumerate() {
            let mut left = a_wide[a_matrix * m * k..(a_matrix + 1) * m * k].to_vec();
            let mut right = b_wide[b_matrix * k * n..(b_matrix + 1) * k * n].to_vec();
            for (r, row) in left.chunks_exact_mut(k.max(1)).enumerate() {
                row.iter_mut().for_each(|v| *v -= a_zero.at(a_matrix, r));
            }
            for row in right.chunks_exact_mut(n.max(1)) {
                row.iter_mut().enumerate().for_each(|(j, v)| *v -= b_zero.at(b_matrix, j));
            }
            gemm(ctx.isa, m, k, n, &left, false, &right, false, &mut result, &Epilogue::default(), &mut ctx.scratch.f32);
            for (r, row) in result.chunks_exact_mut(n.max(1)).enumerate() {
                let block = Block { a: a_matrix, b: b_matrix, rows: r..r + 1, columns: 0..n, start: 0, sums: &[] };
                scaling.factors(&block, r, m, &mut factors);
                row.iter_mut().zip(&factors).for_each(|(v, f)| *v *= f);
            }
            let integer = matches!(y.dtype(), DType::U8 | DType::I8);
            codes.clear();
            codes.extend(result.iter().map(|&v| f64::from(if integer { v.round_ties_even() } else { v } + zero)));
            let range = i * m * n..(i + 1) * m * n;
            let mut part: SliceMut<'_> = y.data().range_mut(range);
            if integer {
                let shape = [m * n];
                let mut part = ViewMut::new(part, &shape);
                with_code!(part.dtype(), T => {
                    part.slice::<T>()?.iter_mut().zip(&codes).for_each(|(y, &v)| *y = encode::<T>(v as f32, 0));
                    Ok(())
                })?;
            } else {
                let shape = [m * n];
                let dtype = part.dtype();
                let source = Tensor::new(&shape, std::mem::take(&mut codes)).ok_or_else(|| OpError::shape("sizes changed"))?;
                debug_assert!(dtype.is_narrow());
                convert(source.view(), &mut ViewMut::new(part.range_mut(0..m * n), &shape))?;
            }
        }
        Ok(())
    }
}

fn y_columns(op: &QMatMul, inputs: &Inputs<'_>) -> Result<usize, OpError> {
    Ok(op.sizes(inputs.at(0)?.shape(), inputs.get(op.places().b).map(|b| b.shape()))?.n)
}

/// Rows of the left operand.
fn left(a: View<'_>, matrix: usize, (m, k): (usize, usize), across: bool, rows: Range<usize>, zero: impl Fn(usize) -> i32) -> Result<Rows, OpError> {
    if !across {
        let from = (matrix * m + rows.start) * k;
        return Rows::left(a, from..from + rows.len() * k, (rows.len(), k), zero);
    }
    // Few models transpose the left operand: all of it once per block.
    let first = rows.start;
    let all = Rows::right(a, 0..a.len(), (k, m), |r| if rows.contains(&r) { zero(r - first) } else { 0 })?;
    let len = all.data.len().checked_div(m).unwrap_or(0);
    Ok(Rows { count: rows.len(), k, data: all.data[rows.start * len..rows.end * len].to_vec() })
}

/// Columns of the right operand.
fn right(b: View<'_>, matrix: usize, (k, n): (usize, usize), across: bool, columns: Range<usize>, zero: impl Fn(usize) -> i32) -> Result<Rows, OpError> {
    if across {
        let zero = |j: usize| zero(columns.start + j);
        return Rows::left(b, columns.start * k..columns.end * k, (columns.len(), k), zero);
    }
    let from = matrix * k * n;
    if columns.len() == n {
        return Rows::right(b, from..from + k * n, (k, n), zero);
    }
    with_code!(b.dtype(), T => {
        let rows = b.slice::<T>()?[from..from + k * n].chunks_exact(n);
        let part: Vec<T> = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
        Ok(Rows::of_columns(&part, (k, columns.len()), |j| zero(columns.start + j)))
    })
}

impl Op for QMatMul {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let places = self.places();
        let needed = match self.form {
            Form::Integer => 2,
            Form::Linear => 8,
            Form::ToFloat => 4,
            Form::Dynamic => 3,
            Form::Gemm(_) => 6,
        };
        require(inputs, needed)?;
        let a_types = if let Form::Dynamic = self.form { &[DType::F32] } else { FLOATS8 };
        expect_type(inputs, 0, a_types)?;
        expect_type(inputs, places.b, if let Form::Linear = self.form { FLOATS8 } else { CODES })?;
        expect_same(inputs, places.b, places.b_zero)?;
        if let Some(zero) = places.a_zero {
            expect_same(inputs, 0, zero)?;
        }
        for scale in [places.a_scale, places.b_scale, places.y_scale].into_iter().flatten() {
            expect_same(inputs, places.b_scale.unwrap_or(scale), scale)?;
            expect_type(inputs, scale, &[DType::F32, DType::F16, DType::BF16])?;
        }
        let dtype = |i: usize| inputs.get(i).and_then(Option::as_ref).and_then(Kind::dtype);
        let output = match self.form {
            Form::Integer => DType::I32,
            Form::ToFloat | Form::Dynamic => dtype(places.b_scale.unwrap_or(2)).unwrap_or(DType::F32),
            Form::Linear => dtype(7).unwrap_or(DType::U8),
            Form::Gemm(_) => {
                expect_type(inputs, 6, &[DType::I32])?;
                expect_type(inputs, 8, CODES)?;
                match (dtype(7), dtype(8)) {
                    (Some(_), Some(zero)) => zero,
                    (None, None) => DType::F32,
                    _ => return Err(OpError::shape("the output's scale and zero point come together or not at all")),
                }
            }
        };
        if let Form::Linear = self.form {
            expect_type(inputs, 7, FLOATS8)?;
        }
        if matches!(self.form, Form::ToFloat | Form::Dynamic)
            && let Some(bias) = places.bias
        {
            expect_same(inputs, bias, places.b_scale.unwrap_or(2))?;
        }
        Ok(Kinds::from_iter([Kind::Tensor(output)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let b = if self.packed.is_some() { None } else { Some(inputs.shape(self.places().b)?) };
        Ok(vec![self.sizes(inputs.shape(0)?, b)?.shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        if y.shape().contains(&0) {
            return Ok(());
        }
        if let Form::Integer = self.form {
            return self.run_integer(inputs, y, ctx);
        }
        let places = self.places();
        let narrow = |i: usize| inputs.get(i).is_some_and(|v| v.dtype().is_narrow());
        if narrow(0) || narrow(places.b) || y.dtype().is_narrow() {
            return self.run_floats(inputs, y, ctx);
        }
        if let Some(y_scale) = places.y_scale.and_then(|i| inputs.get(i)).filter(|s| s.dtype() == DType::F32) {
            scale(y_scale)?;
        }
        self.run_scaled(inputs, y, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let places = self.places();
        let constant = |i: usize| constants.get(i).copied().flatten();
        let b = constant(places.b).filter(|b| CODES.contains(&b.dtype()))?;
        let zero = constant(places.b_zero);
        let across = matches!(self.form, Form::Gemm(gemm) if gemm.b_across);
        let (k, n) = match *b.shape() {
            [n, k] if across => (k, n),
            [k, n] => (k, n),
            _ => return None,
        };
        // Short rows are padded to many times their length: not worth packing.
        const SHORT: usize = 16;
        if self.packed.is_some() || k < SHORT || n == 0 || (zero.is_none() && self.given.get(places.b_zero) == Some(&true)) {
            return None;
        }
        let zeros = zero_levels(zero.map(Tensor::view), &[k, n], 1).ok().filter(Levels::shared)?;
        let codes = match (b.slice::<i8>(), b.slice::<u8>()) {
            (Some(codes), _) => RightCodes::Signed(codes),
            (_, Some(codes)) => RightCodes::Unsigned(codes),
            _ => return None,
        };
        let each: Vec<i32> = (0..n).map(|j| zeros.at(0, j)).collect();
        let packed = Arc::new(PackedInt8::pack(isa, codes, (k, n), across, &each));
        let mut consumed = smallvec![places.b];
        consumed.extend(zero.map(|_| places.b_zero));
        // Floats of 8 bits on the left are multiplied as floats, for which the right operand stays as it is.
        if matches!(self.form, Form::Linear) && constant(2).is_none_or(|zero| !CODES.contains(&zero.dtype())) {
            return None;
        }
        if matches!(self.form, Form::Linear) && constant(7).is_none_or(|zero| !CODES.contains(&zero.dtype())) {
            return None;
        }
        Some(Prepacked { op: Box::new(Self { packed: Some(packed), ..self.clone() }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let b = inputs.shape(self.places().b).ok();
        let sizes = inputs.shape(0).and_then(|a| self.sizes(a, b));
        sizes.map_or(0, |s| flops(s.m, s.k, s.n).saturating_mul(s.batch.iter().product::<usize>() as u64))
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Int8
    }

    fn packed_bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, |packed| packed.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, op, tensor};
    use super::*;
    use crate::engine::narrow::F8E4M3Fn;
    use half::f16;

    fn ms(name: &'static str) -> Case {
        op(name).domain("com.microsoft")
    }

    fn codes(shape: &[usize], step: usize) -> Tensor {
        tensor(shape, &(0..shape.iter().product()).map(|i| (i * step % 256) as u8).collect::<Vec<_>>())
    }

    fn signed(t: &Tensor) -> Tensor {
        tensor(t.shape(), &t.slice::<u8>().unwrap().iter().map(|&v| v as i8).collect::<Vec<_>>())
    }

    /// The definition: zero points per row and per column.
    fn sums(a: &[u8], b: &[i8], a_zeros: &[i32], b_zeros: &[i32], (m, k, n): (usize, usize, usize)) -> Vec<i32> {
        let left = |i: usize, p: usize| i32::from(a[i * k + p]) - a_zeros[i % a_zeros.len()];
        let right = |p: usize, j: usize| i32::from(b[p * n + j]) - b_zeros[j % b_zeros.len()];
        (0..m * n).map(|at| (0..k).map(|p| left(at / n, p) * right(p, at % n)).sum()).collect()
    }

    #[test]
    fn zero_points_per_row_and_per_column() {
        let (m, k, n) = (5, 70, 9);
        let (a, b) = (codes(&[m, k], 37), signed(&codes(&[k, n], 91)));
        let (rows, columns) = (codes(&[m], 60), signed(&codes(&[n], 50)));
        let wide = |t: &Tensor| super::super::qlinear::codes(t.view()).unwrap();
        let want = sums(a.slice().unwrap(), b.slice().unwrap(), &wide(&rows), &wide(&columns), (m, k, n));
        assert_eq!(op("MatMulInteger").one(&[&a, &b, &rows, &columns]), tensor(&[m, n], &want));
        let (upright, flat) = (rows.reshape(&[m, 1]).unwrap(), columns.reshape(&[1, n]).unwrap());
        assert_eq!(op("MatMulInteger").one(&[&a, &b, &upright, &flat]), tensor(&[m, n], &want));
        assert!(matches!(op("MatMulInteger").error(&[&a, &b, &columns]), OpError::Type(_)));
        assert!(matches!(op("MatMulInteger").error(&[&a, &b, &codes(&[n], 1)]), OpError::Shape(_)));
        let vector = op("MatMulInteger").one(&[&codes(&[3], 1), &codes(&[3], 2)]);
        assert_eq!(vector, tensor(&[], &[10]));
    }

    #[test]
    fn batches_have_matrices_of_their_own() {
        let (a, b) = (codes(&[2, 3, 4], 37), codes(&[2, 4, 5], 91));
        let zeros = codes(&[2, 1, 5], 20);
        let y = op("MatMulInteger").one(&[&a, &b, &Tensor::scalar(3_u8), &zeros]);
        for i in 0..2 {
            let row = |t: &Tensor| t.rows(i..i + 1);
            let alone = op("MatMulInteger").one(&[&row(&a), &row(&b), &Tensor::scalar(3_u8), &row(&zeros)]);
            assert_eq!(alone, y.rows(i..i + 1));
        }
        let shared = op("MatMulInteger").one(&[&a, &b.rows(0..1)]);
        assert_eq!(shared.rows(1..2), op("MatMulInteger").one(&[&a.rows(1..2), &b.rows(0..1)]));
        for (m, k, n) in [(0, 3, 2), (2, 0, 3), (2, 3, 0)] {
            let y = op("MatMulInteger").one(&[&Tensor::zeros(DType::U8, &[m, k]), &Tensor::zeros(DType::U8, &[k, n])]);
            assert_eq!(y, Tensor::zeros(DType::I32, &[m, n]));
        }
    }

    #[test]
    fn large_products_are_the_same_on_two_threads() {
        // The harness compares; the sizes are such that rows are split, and columns.
        for (m, k, n) in [(64, 256, 200), (1, 2048, 3000), (3, 900, 1700)] {
            let y = op("MatMulInteger").one(&[&codes(&[m, k], 37), &signed(&codes(&[k, n], 91)), &Tensor::scalar(7_u8)]);
            assert_eq!(y.shape(), [m, n]);
        }
    }

    #[test]
    fn results_are_quantised() {
        let (a, b) = (tensor(&[1, 2], &[1_u8, 3]), tensor(&[2, 2], &[1_i8, -100, 1, 100]));
        let (half, one) = (Tensor::scalar(0.5_f32), Tensor::scalar(1.0_f32));
        let (zero, none) = (Tensor::scalar(0_u8), Tensor::scalar(0_i8));
        // 4 / 2 = 2 and 200 / 2, less 3.
        let y = op("QLinearMatMul").one(&[&a, &half, &zero, &b, &one, &none, &one, &Tensor::scalar(-3_i8)]);
        assert_eq!(y, tensor(&[1, 2], &[-1_i8, 97]));
        let scales = tensor(&[2], &[1.0_f32, 10.0]);
        let y = op("QLinearMatMul").one(&[&a, &half, &zero, &b, &scales, &none, &one, &Tensor::scalar(1_u8)]);
        assert_eq!(y, tensor(&[1, 2], &[3_u8, 255]));
        let f16s = [0.5, 1.0].map(|v| Tensor::scalar(f16::from_f32(v)));
        let y = op("QLinearMatMul").one(&[&a, &f16s[0], &zero, &b, &f16s[1], &none, &f16s[1], &zero]);
        assert_eq!(y, tensor(&[1, 2], &[2_u8, 100]));
        let mixed = op("QLinearMatMul").error(&[&a, &half, &zero, &b, &f16s[1], &none, &one, &zero]);
        assert!(matches!(mixed, OpError::Type(_)));
        let two = tensor(&[2], &[1.0_f32; 2]);
        assert!(matches!(op("QLinearMatMul").error(&[&a, &half, &zero, &b, &one, &none, &two, &zero]), OpError::Shape(_)));
    }

    #[test]
    fn floats_of_eight_bits() {
        let float = |v: f64| F8E4M3Fn::from_f64(v, true);
        let (a, b) = (tensor(&[1, 2], &[float(1.5), float(-2.0)]), tensor(&[2, 1], &[3_u8, 5]));
        let (one, two) = (Tensor::scalar(1.0_f32), Tensor::scalar(2.0_f32));
        let (zero, plain) = (Tensor::scalar(float(0.0)), Tensor::scalar(1_u8));
        // (1.5 · 2 - 2 · 4) · 2
        let y = op("QLinearMatMul").one(&[&a, &two, &zero, &b, &one, &plain, &one, &zero]);
        assert_eq!(y, tensor(&[1, 1], &[float(-10.0)]));
        let y = op("QLinearMatMul").one(&[&a, &two, &zero, &b, &one, &plain, &one, &Tensor::scalar(20_u8)]);
        assert_eq!(y, tensor(&[1, 1], &[10_u8]));
        assert!(matches!(op("QLinearMatMul").opset(20).error(&[&a, &two, &zero, &b, &one, &plain, &one, &zero]), OpError::Type(_)));
    }

    #[test]
    fn floats_with_a_bias() {
        let (a, b) = (tensor(&[1, 2], &[1_u8, 3]), tensor(&[2, 2], &[1_i8, -1, 1, 1]));
        let (half, scales, bias) = (Tensor::scalar(0.5_f32), tensor(&[2], &[1.0_f32, 10.0]), tensor(&[2], &[0.25_f32, 0.5]));
        let case = ms("MatMulIntegerToFloat");
        let y = case.run_some(&[Some(&a), Some(&b), Some(&half), Some(&scales), None, None, Some(&bias)]).unwrap().remove(0);
        assert_close(&y, &[1, 2], &[2.25, 10.5], 0.0);
        // -51 .. 204 in steps of 1: exact.
        let x = tensor(&[1, 2], &[-51.0_f32, 204.0]);
        let y = ms("DynamicQuantizeMatMul").run_some(&[Some(&x), Some(&b), Some(&scales), None, Some(&bias)]).unwrap().remove(0);
        assert_close(&y, &[1, 2], &[153.25, 2550.5], 1e-6);
        assert!(ms("DynamicQuantizeMatMul").run_some(&[Some(&x), Some(&b), Some(&scales), None, Some(&half)]).is_err());
    }

    #[test]
    fn gemm_transposes_and_adds_integers() {
        let (a, b) = (codes(&[4, 20], 37), codes(&[20, 3], 91));
        let across = |t: &Tensor| op("Transpose").one(&[t]);
        let (one, zero) = (Tensor::scalar(1.0_f32), Tensor::scalar(5_u8));
        let bias = tensor(&[4, 1], &[1, 2, 3, 4]);
        let run = |case: Case, a: &Tensor, b: &Tensor| {
            case.run_some(&[Some(a), Some(&one), Some(&zero), Some(b), Some(&one), Some(&zero), Some(&bias)]).unwrap().remove(0)
        };
        let want = run(ms("QGemm"), &a, &b);
        let plain = op("MatMulInteger").one(&[&a, &b, &zero, &zero]);
        let shifted: Vec<f32> = plain.slice::<i32>().unwrap().iter().enumerate().map(|(i, &v)| (v + 1 + i as i32 / 3) as f32).collect();
        assert_eq!(want, tensor(&[4, 3], &shifted));
        assert_eq!(run(ms("QGemm").attr("transA", 1_i64), &across(&a), &b), want);
        assert_eq!(run(ms("QGemm").attr("transB", 1_i64), &a, &across(&b)), want);
        let scale = Tensor::scalar(1000.0_f32);
        let coded = ms("QGemm").attr("alpha", 2.0_f32);
        let y = coded.run(&[&a, &one, &zero, &b, &one, &zero, &bias, &scale, &zero]).unwrap().remove(0);
        let want: Vec<u8> = shifted.iter().map(|v| ((v / 500.0).round_ties_even() + 5.0).clamp(0.0, 255.0) as u8).collect();
        assert_eq!(y, tensor(&[4, 3], &want));
        assert!(matches!(ms("QGemm").error(&[&codes(&[2, 2, 2], 1), &one, &zero, &b, &one, &zero]), OpError::Shape(_)));
    }
}
