//! DynamicQuantizeLSTM of com.microsoft: an LSTM whose weights are 8-bit codes.
//!
//! The inputs of all steps, and at each step the states of all sequences, are quantised as DynamicQuantizeLinear does it. The
//! products are sums of whole numbers, exact up to 2^24, and are scaled in f32, as in onnxruntime.

use smallvec::smallvec;

use super::{ANY, B, Cell, INITIAL_C, INITIAL_H, LENGTHS, PEEPHOLES, Packed, R, Recurrent, W, WeightSizes, Weights, X, recurrent, weights_sizes};
use crate::engine::kernels::weights::Precision;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::ops::axes::require;
use crate::engine::ops::real::{widen, widen_some};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{Slice, View};

pub(super) const DEF: OpDef = OpDef { name: "DynamicQuantizeLSTM", domain: "com.microsoft", opsets: 1..=ANY, types: &[DType::F32], build };

/// The scale of the inputs' weights, then that of the state's; the zero point follows each.
const SCALES: [usize; 2] = [8, 10];

#[derive(Debug)]
struct Quantized {
    op: Recurrent,
    /// Whether each zero point is given.
    zeros: [bool; 2],
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let op = recurrent(attrs, Cell::Lstm { input_forget: attrs.bool_or("input_forget", false)? })?;
    let zeros = SCALES.map(|scale| attrs.inputs.get(scale + 1).copied().unwrap_or(false));
    // It is of the first LSTM's time, and has had neither of these.
    Ok(Box::new(Quantized { op: Recurrent { batch_first: false, ..op }, zeros }))
}

/// The codes as the numbers of steps from their zero points, each row one output: `[rows, depth]` of `[depth, rows]`.
fn turned(codes: View<'_>, zero: &[i16], direction: usize, (depth, rows): (usize, usize)) -> Result<Vec<f32>, OpError> {
    let all: Vec<i16> = wide(codes)?;
    let codes = &all[direction * depth * rows..][..depth * rows];
    let zero = |row: usize| zero[if zero.len() == 1 { 0 } else { row }];
    Ok((0..rows).flat_map(|row| (0..depth).map(move |at| (row, at))).map(|(row, at)| f32::from(codes[at * rows + row] - zero(row))).collect())
}

fn wide(view: View<'_>) -> Result<Vec<i16>, OpError> {
    match view.data() {
        Slice::U8(codes) => Ok(codes.iter().map(|&c| c.into()).collect()),
        Slice::I8(codes) => Ok(codes.iter().map(|&c| c.into()).collect()),
        _ => Err(OpError::wrong_type(DType::U8, view.dtype())),
    }
}

impl Quantized {
    fn weights(&self, w: &[usize], r: &[usize], b: Option<&[usize]>, p: Option<&[usize]>) -> Result<WeightSizes, OpError> {
        let turned = |shape: &[usize]| match *shape {
            [directions, depth, rows] => Ok([directions, rows, depth]),
            _ => Err(OpError::shape(format!("weights of shape {shape:?} have no three dimensions"))),
        };
        self.op.weights(&turned(w)?, &turned(r)?, b, p)
    }

    /// One part of a scale or zero point for each direction: a single element, or one for each of `rows`.
    fn parts<T: Clone>(&self, what: &str, shape: &[usize], values: &[T], rows: usize) -> Result<Vec<Vec<T>>, OpError> {
        let directions = self.op.reverse.len();
        if shape != [directions] && shape != [directions, rows] && shape != [directions, 1] {
            return Err(OpError::shape(format!("{what} of shape {shape:?} is neither [{directions}] nor [{directions}, {rows}]")));
        }
        let len = values.len() / directions;
        Ok((0..directions).map(|d| values[d * len..][..len].to_vec()).collect())
    }

    fn pack<'v>(&self, input: impl Fn(usize) -> Option<View<'v>>, isa: Isa) -> Result<Vec<Weights<f32>>, OpError> {
        let needed = |index: usize| input(index).ok_or_else(|| OpError::missing_input(index));
        let (w, r, b, p) = (needed(W)?, needed(R)?, input(B), input(PEEPHOLES));
        let sizes = self.weights(w.shape(), r.shape(), b.map(|b| b.shape()), p.map(|p| p.shape()))?;
        let rows = 4 * sizes.hidden;
        let (b, p) = (widen_some::<f32>(b)?, widen_some::<f32>(p)?);
        let mut scales = Vec::new();
        let mut zeros = Vec::new();
        for (index, codes) in SCALES.into_iter().zip([w, r]) {
            let scale = needed(index)?;
            scales.push(self.parts("a scale", scale.shape(), &widen::<f32>(scale)?, rows)?);
            zeros.push(match input(index + 1) {
                None => vec![vec![0]; self.op.reverse.len()],
                Some(zero) if zero.dtype() == codes.dtype() => self.parts("a zero point", zero.shape(), &wide(zero)?, rows)?,
                Some(zero) => return Err(OpError::wrong_type(codes.dtype(), zero.dtype())),
            });
        }
        let one = |d: usize| {
            let part = |all: &[f32], len: usize| all[d * len..][..len].to_vec();
            let (w, r) = (turned(w, &zeros[0][d], d, (sizes.input, rows))?, turned(r, &zeros[1][d], d, (sizes.hidden, rows))?);
            let (bias, peepholes) = (b.as_deref().map(|b| part(b, 2 * rows)), p.as_deref().map(|p| part(p, 3 * sizes.hidden)));
            let each = |scale: &Vec<f32>| if scale.len() == 1 { vec![scale[0]; rows] } else { scale.clone() };
            let weights = Weights::new(self.op.cell, (sizes.input, sizes.hidden), &w, &r, [bias, peepholes], (Precision::F32, isa));
            Ok(weights.in_steps([each(&scales[0][d]), each(&scales[1][d])]))
        };
        (0..self.op.reverse.len()).map(one).collect()
    }
}

impl Op for Quantized {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        let expect = |index: usize, types: &[DType]| match inputs.get(index).and_then(Option::as_ref).and_then(Kind::dtype) {
            Some(dtype) if !types.contains(&dtype) => Err(OpError::wrong_type(types[0], dtype)),
            _ => Ok(()),
        };
        for index in [X, B, INITIAL_H, INITIAL_C, PEEPHOLES, SCALES[0], SCALES[1]] {
            expect(index, &[DType::F32])?;
        }
        for index in [W, R, SCALES[0] + 1, SCALES[1] + 1] {
            expect(index, &[DType::U8, DType::I8])?;
        }
        expect(LENGTHS, &[DType::I32])?;
        if let Some(index) = SCALES.into_iter().find(|&index| inputs.get(index).is_none_or(Option::is_none)) {
            return Err(OpError::missing_input(index));
        }
        Ok(Kinds::from_elem(Kind::Tensor(DType::F32), 3))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let weights = self.weights(inputs.shape(W)?, inputs.shape(R)?, some(B)?, some(PEEPHOLES)?)?;
        Ok(self.op.output_shapes(&self.op.sizes(inputs.shape(X)?, weights, |index| Ok(some(index)?.map(Shape::from)))?))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let weights = self.pack(|index| inputs.get(index), ctx.isa)?;
        let shape = |index: usize| Ok(inputs.get(index).map(|view| view.shape().into()));
        let sizes = self.op.sizes(inputs.at(X)?.shape(), weights_sizes(&weights), shape)?;
        self.op.body::<f32>(&weights, &sizes, inputs, outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let constant = |index: usize| constants.get(index).copied().flatten().map(Tensor::view);
        let given = [B, PEEPHOLES].into_iter().zip(self.op.given).chain(SCALES.map(|scale| scale + 1).into_iter().zip(self.zeros));
        if given.into_iter().any(|(index, given)| given != constant(index).is_some()) {
            return None;
        }
        let weights = self.pack(constant, isa).ok()?;
        let mut consumed = smallvec![W, R, SCALES[0], SCALES[1]];
        consumed.extend([B, PEEPHOLES, SCALES[0] + 1, SCALES[1] + 1].into_iter().filter(|&index| constant(index).is_some()));
        Some(Prepacked { op: Box::new(Packed { op: self.op.clone(), weights }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let sizes = || {
            let weights = self.weights(inputs.shape(W)?, inputs.shape(R)?, some(B)?, some(PEEPHOLES)?)?;
            self.op.sizes(inputs.shape(X)?, weights, |index| Ok(some(index)?.map(Shape::from)))
        };
        sizes().map_or(0, |sizes| self.op.work(&sizes))
    }
}
