//! Softmax, LogSoftmax and Hardmax along an axis; before opset 13 over everything from the axis on.

pub(crate) mod gradient;

use super::ANY;
use super::axes::{Axes, around, axis, same_type};
use super::number::{Number, through_f32, with_float};
use super::real::{Rounding, softmax};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::ViewMut;

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: 1..=ANY, types: types::FLOATS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Softmax", |a| build(a, Function::Softmax)),
    def("LogSoftmax", |a| build(a, Function::LogSoftmax)),
    def("Hardmax", |a| build(a, Function::Hardmax)),
];

#[derive(Clone, Copy, Debug)]
enum Function {
    Softmax,
    LogSoftmax,
    Hardmax,
}

#[derive(Debug)]
pub(crate) struct Softmax {
    function: Function,
    axis: i64,
    /// Whether all dimensions from the axis on form one row.
    flattens: bool,
}

fn build(attrs: &Attrs, function: Function) -> Result<Box<dyn Op>, OpError> {
    let flattens = attrs.opset < 13;
    let axis = attrs.int_or("axis", if flattens { 1 } else { -1 })?;
    Ok(Box::new(Softmax { function, axis, flattens }))
}

impl Function {
    fn row_f32(self, isa: Isa, x: &mut [f32]) {
        match self {
            Self::Softmax => vector::softmax_row_in_place(isa, x),
            Self::LogSoftmax => {
                let greatest = vector::max(isa, x);
                x.iter_mut().for_each(|x| *x -= greatest);
                let mut sum = 0.0;
                let mut block = [0.0; 256];
                for chunk in x.chunks(block.len()) {
                    let block = &mut block[..chunk.len()];
                    vector::exp(isa, chunk, block);
                    sum += vector::sum(isa, block);
                }
                let log = sum.ln();
                x.iter_mut().for_each(|x| *x -= log);
            }
            Self::Hardmax => hardmax(x),
        }
    }

    /// Softmax rounds after every step, as the reference does, so that its expansions into basic operators agree.
    fn row_half(self, isa: Isa, rounding: Rounding, x: &mut [f32]) {
        match self {
            Self::Softmax if vector::max(isa, x) > f32::NEG_INFINITY => softmax(isa, rounding, x, None),
            other => other.row_f32(isa, x),
        }
    }

    fn row_f64(self, x: &mut [f64]) {
        let greatest = x.iter().copied().fold(f64::NEG_INFINITY, Number::greater);
        let sum = x.iter().map(|x| (x - greatest).exp()).sum::<f64>();
        match self {
            Self::Softmax => x.iter_mut().for_each(|x| *x = (*x - greatest).exp() / sum),
            Self::LogSoftmax => x.iter_mut().for_each(|x| *x = *x - greatest - sum.ln()),
            Self::Hardmax => hardmax(x),
        }
    }
}

/// 1 at the first greatest element, 0 elsewhere; a NaN counts as greatest.
fn hardmax<T: Number>(x: &mut [T]) {
    let mut best = 0;
    for i in 1..x.len() {
        if !x[best].nan() && (x[i] > x[best] || x[i].nan()) {
            best = i;
        }
    }
    for (i, x) in x.iter_mut().enumerate() {
        *x = if i == best { T::ONE } else { T::ZERO };
    }
}

impl Softmax {
    /// Whether it is the softmax of the rows of a tensor of this rank.
    pub(crate) fn is_over_last(&self, rank: i64) -> bool {
        matches!(self.function, Function::Softmax) && (self.axis == -1 || self.axis == rank - 1)
    }

    fn apply(&self, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let isa = ctx.isa;
        let shape: Axes = y.shape().into();
        let (outer, size, inner) = self.around(&shape)?;
        let dtype = y.dtype();
        match dtype {
            DType::F32 => rows_f32(y.slice::<f32>()?, (outer, size, inner), ctx, |row| self.function.row_f32(isa, row)),
            DType::F64 => rows(y.slice::<f64>()?, (outer, size, inner), |row| self.function.row_f64(row)),
            _ => with_float!(dtype, T => {
                let mut wide: Vec<f32> = y.slice::<T>()?.iter().map(|v| v.to_f64() as f32).collect();
                rows(&mut wide, (outer, size, inner), |row| self.function.row_half(isa, Rounding::of(dtype), row));
                let mut at = 0;
                through_f32(y.slice::<T>()?, |block| {
                    let len = block.len();
                    block.copy_from_slice(&wide[at..at + len]);
                    at += len;
                });
            }, else return Err(OpError::wrong_type(DType::F32, dtype))),
        }
        Ok(())
    }

    fn around(&self, shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
        if !self.flattens {
            // A scalar is a row of one element.
            return if shape.is_empty() { Ok((1, 1, 1)) } else { Ok(around(shape, axis(self.axis, shape.len())?)) };
        }
        let axis = if self.axis == shape.len() as i64 { shape.len() } else { axis(self.axis, shape.len())? };
        Ok((shape[..axis].iter().product(), shape[axis..].iter().product(), 1))
    }
}

/// As [`rows`], on as many threads as it is worth.
fn rows_f32(x: &mut [f32], (outer, size, inner): (usize, usize, usize), ctx: &mut Context<'_>, f: impl Fn(&mut [f32]) + Send + Sync) {
    /// Floating-point operations in the time of an element.
    const COST: u64 = 64;
    /// Rows that are turned together: their elements fill lines of memory.
    const TOGETHER: usize = 64;
    if outer * size * inner == 0 {
        return;
    }
    let parts = |elements: usize| ctx.threads.parts(COST.saturating_mul(elements as u64));
    if inner == 1 {
        let rows = outer.div_ceil(parts(x.len()));
        ctx.threads.for_each(x.chunks_mut(rows * size), |part| part.chunks_exact_mut(size).for_each(&f));
        return;
    }
    let parts = parts(size * inner);
    let (rows, lines) = (inner.div_ceil(parts), size.div_ceil(parts));
    let memory = &mut ctx.scratch.f32;
    memory.resize(memory.len().max(size * inner), 0.0);
    for block in x.chunks_exact_mut(size * inner) {
        let (given, turned) = (&*block, &mut memory[..size * inner]);
        ctx.threads.for_each(turned.chunks_mut(rows * size).enumerate(), |(part, turned)| {
            for (turned, first) in turned.chunks_mut(TOGETHER * size).zip((part * rows..).step_by(TOGETHER)) {
                let count = turned.len() / size;
                for at in 0..size {
                    let line = &given[at * inner + first..][..count];
                    turned[at..].iter_mut().step_by(size).zip(line).for_each(|(to, from)| *to = *from);
                }
                turned.chunks_exact_mut(size).for_each(&f);
            }
        });
        let turned = &memory[..size * inner];
        ctx.threads.for_each(block.chunks_mut(lines * inner).enumerate(), |(part, block)| {
            for (turned, first) in turned.chunks(TOGETHER * size).zip((0..).step_by(TOGETHER)) {
                for (line, at) in block.chunks_exact_mut(inner).zip(part * lines..) {
                    let line = &mut line[first..][..turned.len() / size];
                    line.iter_mut().zip(turned[at..].iter().step_by(size)).for_each(|(to, from)| *to = *from);
                }
            }
        });
    }
}

/// Calls `f` with every row along the middle of three sizes, contiguous.
fn rows<T: Copy>(x: &mut [T], (outer, size, inner): (usize, usize, usize), mut f: impl FnMut(&mut [T])) {
    if outer * size * inner == 0 {
        return;
    }
    if inner == 1 {
        x.chunks_exact_mut(size).for_each(f);
        return;
    }
    let mut row = Vec::with_capacity(size);
    for block in x.chunks_exact_mut(size * inner) {
        for i in 0..inner {
            row.clear();
            row.extend(block[i..].iter().step_by(inner).copied());
            f(&mut row);
            block[i..].iter_mut().step_by(inner).zip(&row).for_each(|(x, &y)| *x = y);
        }
    }
}

impl Op for Softmax {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        self.around(shape)?;
        Ok(vec![shape.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        y.data().copy_from(0, &inputs.at(0)?.data());
        self.apply(y, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.apply(outputs.at(0)?, ctx)
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.shape(0).is_ok_and(|x| axis(self.axis, x.len()).is_ok_and(|axis| axis > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use half::f16;

    #[test]
    fn rows_that_are_turned_have_the_bits_of_rows_that_lie_so() {
        // Enough for two threads, on which the harness runs it again; neither blocks nor parts come out even.
        let (outer, size, inner) = (2, 19, 8300);
        let x = noise(outer * size * inner, 4);
        let at = |o: usize, s: usize, i: usize| (o * size + s) * inner + i;
        let rows = (0..outer).flat_map(|o| (0..inner).flat_map(move |i| (0..size).map(move |s| at(o, s, i))));
        let rows: Vec<f32> = rows.map(|at| x[at]).collect();
        for name in ["Softmax", "LogSoftmax"] {
            let turned = op(name).attr("axis", 1_i64).one(&[&tensor(&[outer, size, inner], &x)]);
            let straight = op(name).attr("axis", -1_i64).one(&[&tensor(&[outer, inner, size], &rows)]);
            let (turned, straight) = (turned.slice::<f32>().unwrap(), straight.slice::<f32>().unwrap());
            for (index, value) in straight.iter().enumerate() {
                let (o, i, s) = (index / size / inner, index / size % inner, index % size);
                assert_eq!(turned[at(o, s, i)].to_bits(), value.to_bits(), "{name}: {o} {s} {i}");
            }
        }
    }

    #[test]
    fn rows_sum_to_one_along_any_axis() {
        let x = tensor(&[2, 3, 2], &noise(12, 3));
        for axis in [0, 1, 2, -1] {
            let y = op("Softmax").attr("axis", axis).one(&[&x]);
            let sums = y.view().array::<f32>().unwrap().sum_axis(ndarray::Axis(axis.rem_euclid(3) as usize));
            assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-6), "axis {axis}: {sums}");
            let log = op("LogSoftmax").attr("axis", axis).one(&[&x]);
            let want: Vec<f32> = y.slice::<f32>().unwrap().iter().map(|v| v.ln()).collect();
            assert_close(&log, &[2, 3, 2], &want, 1e-6);
        }
        assert!(op("Softmax").attr("axis", 3_i64).run(&[&x]).is_err());
    }

    #[test]
    fn before_opset_13_all_dimensions_from_the_axis_on_are_one_row() {
        let x = tensor(&[2, 3, 2], &noise(12, 4));
        let flat = op("Softmax").one(&[&x.reshape(&[2, 6]).unwrap()]).reshape(&[2, 3, 2]).unwrap();
        assert_eq!(op("Softmax").opset(11).one(&[&x]), flat);
        let all = op("Softmax").opset(11).attr("axis", 0_i64).one(&[&x]);
        assert!((all.slice::<f32>().unwrap().iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn known_values_in_every_type() {
        let x = [1.0_f32, 2.0, 3.0];
        let want = [0.090_030_57, 0.244_728_48, 0.665_240_94];
        assert_close(&op("Softmax").one(&[&tensor(&[1, 3], &x)]), &[1, 3], &want, 1e-6);
        let wide = op("Softmax").one(&[&tensor(&[3], &x.map(f64::from))]);
        assert!((wide.slice::<f64>().unwrap()[2] - 0.665_240_955_774_821_6).abs() < 1e-15);
        let half = op("Softmax").one(&[&tensor(&[3], &x.map(f16::from_f32))]);
        assert!((half.slice::<f16>().unwrap()[2].to_f32() - want[2]).abs() < 1e-3);
        assert_eq!(op("Hardmax").one(&[&tensor(&[1, 4], &[1.0_f32, 3.0, 3.0, 2.0])]), tensor(&[1, 4], &[0.0_f32, 1.0, 0.0, 0.0]));
        assert!(op("Softmax").run(&[&tensor(&[1], &[1_i64])]).is_err());
    }

    #[test]
    fn large_values_nan_and_empty_rows() {
        let y = op("Softmax").one(&[&tensor(&[2], &[1000.0_f32, 1000.0])]);
        assert_close(&y, &[2], &[0.5, 0.5], 1e-7);
        let nan = op("Softmax").one(&[&tensor(&[2, 2], &[f32::NAN, 1.0, 1.0, 1.0])]);
        assert_close(&nan, &[2, 2], &[f32::NAN, f32::NAN, 0.5, 0.5], 1e-7);
        for shape in [[0, 3], [3, 0]] {
            assert_eq!(op("Softmax").one(&[&tensor::<f32>(&shape, &[])]).shape(), shape);
        }
    }
}
