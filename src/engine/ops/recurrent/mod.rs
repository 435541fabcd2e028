//! Recurrent layers: RNN, GRU and LSTM in one or two directions.
//!
//! The inputs of all steps are multiplied with their weights at once; then every step multiplies the states of all sequences. The
//! directions, and parts of the batch, run side by side. f16 and bf16 compute in f32 and round the outputs.

mod cell;
mod function;
pub(crate) mod gradient;
mod layer;
mod quantized;

use smallvec::{SmallVec, smallvec};

use self::cell::Cell;
use self::function::Function;
use self::layer::{Layer, Weights};
use super::ANY;
use super::axes::{ints, require, same_type};
use super::product::flops;
use super::real::{Real, buffer, store, widen, widen_some, with_real};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::weights::Precision;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape, types};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::View;

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: 1..=ANY, types: types::FLOATS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("RNN", |a| build(a, Cell::Rnn)),
    def("GRU", |a| {
        let linear_before_reset = a.opset >= 3 && a.bool_or("linear_before_reset", false)?;
        build(a, Cell::Gru { linear_before_reset })
    }),
    def("LSTM", |a| build(a, Cell::Lstm { input_forget: a.bool_or("input_forget", false)? })),
    quantized::DEF,
];

/// The inputs.
const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const B: usize = 3;
const LENGTHS: usize = 4;
const INITIAL_H: usize = 5;
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;

/// A layer's attributes.
#[derive(Clone, Debug)]
pub(crate) struct Recurrent {
    cell: Cell,
    /// Whether each direction walks from the last element to the first.
    reverse: SmallVec<[bool; 2]>,
    functions: Vec<Vec<Function>>,
    clip: Option<f32>,
    hidden_size: Option<i64>,
    /// Whether the batch is the first dimension.
    batch_first: bool,
    /// Whether biases and peepholes are given.
    given: [bool; 2],
    /// Of products with constant weights.
    precision: Precision,
}

fn build(attrs: &Attrs, cell: Cell) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(recurrent(attrs, cell)?))
}

fn recurrent(attrs: &Attrs, cell: Cell) -> Result<Recurrent, OpError> {
    let reverse: SmallVec<[bool; 2]> = match attrs.string_or("direction", "forward")?.as_str() {
        "forward" => smallvec![false],
        "reverse" => smallvec![true],
        "bidirectional" => smallvec![false, true],
        other => return Err(OpError::Attribute(format!("attribute `direction` is `{other}`, not `forward`, `reverse` or `bidirectional`"))),
    };
    if attrs.opset < 7 {
        // It says whether output 0 is wanted, which the node's outputs say too.
        attrs.ignore(&["output_sequence"]);
    }
    let clip = attrs.float("clip")?;
    if let Some(clip) = clip.filter(|clip| clip.is_nan() || *clip < 0.0) {
        return Err(OpError::Attribute(format!("attribute `clip` is {clip}, not a bound")));
    }
    Ok(Recurrent {
        cell,
        functions: function::functions(attrs, cell.functions(), reverse.len())?,
        reverse,
        clip,
        hidden_size: attrs.int("hidden_size")?,
        batch_first: attrs.opset >= 14 && attrs.bool_or("layout", false)?,
        given: [B, PEEPHOLES].map(|index| attrs.inputs.get(index).copied().unwrap_or(false)),
        precision: Precision::F32,
    })
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
}

/// The sizes that the weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WeightSizes {
    input: usize,
    hidden: usize,
}

impl Recurrent {
    /// The same with what its products round at a precision; at `int8` that is nothing, for states are too small for rows of 8-bit
    /// integers.
    pub(crate) fn at(self, precision: Precision) -> Self {
        Self { precision: if precision == Precision::Int8 { Precision::F32 } else { precision }, ..self }
    }

    /// Checks the shapes of the weights.
    fn weights(&self, w: &[usize], r: &[usize], b: Option<&[usize]>, p: Option<&[usize]>) -> Result<WeightSizes, OpError> {
        let (directions, gates) = (self.reverse.len(), self.cell.gates());
        let unfit = |what: &str, shape: &[usize]| OpError::shape(format!("{what} of shape {shape:?} do not fit {directions} directions with {gates} gates"));
        let &[_, _, input] = w else { return Err(unfit("input weights", w)) };
        let &[_, _, hidden] = r else { return Err(unfit("recurrence weights", r)) };
        let rows = hidden.checked_mul(8).ok_or_else(|| unfit("recurrence weights", r))? / 8 * gates;
        if input == 0 || w != [directions, rows, input] {
            return Err(unfit("input weights", w));
        }
        if r != [directions, rows, hidden] {
            return Err(unfit("recurrence weights", r));
        }
        if self.hidden_size.is_some_and(|size| usize::try_from(size) != Ok(hidden)) {
            return Err(OpError::shape(format!("attribute `hidden_size` is {:?}, but the weights are for {hidden}", self.hidden_size)));
        }
        if let Some(b) = b.filter(|b| *b != [directions, 2 * rows]) {
            return Err(unfit("biases", b));
        }
        match p.filter(|p| *p != [directions, 3 * hidden]) {
            Some(p) => Err(unfit("peepholes", p)),
            None => Ok(WeightSizes { input, hidden }),
        }
    }

    /// Checks the shapes of the other inputs.
    fn sizes(&self, x: &[usize], weights: WeightSizes, shape: impl Fn(usize) -> Result<Option<Shape>, OpError>) -> Result<Sizes, OpError> {
        let &[first, second, input] = x else { return Err(OpError::shape(format!("the input has three dimensions, not {x:?}"))) };
        if input != weights.input {
            return Err(OpError::shape(format!("the input of shape {x:?} does not fit weights for {} elements", weights.input)));
        }
        let (steps, batch) = if self.batch_first { (second, first) } else { (first, second) };
        if let Some(lengths) = shape(LENGTHS)?.filter(|lengths| lengths[..] != [batch]) {
            return Err(OpError::shape(format!("there are {batch} sequences, but lengths of shape {lengths:?}")));
        }
        let sizes = Sizes { steps, batch, input, hidden: weights.hidden };
        for index in [INITIAL_H, INITIAL_C] {
            if let Some(initial) = shape(index)?.filter(|initial| *initial != self.state_shape(&sizes)) {
                return Err(OpError::shape(format!("an initial state of shape {initial:?} is not {:?}", self.state_shape(&sizes))));
            }
        }
        Ok(sizes)
    }

    fn state_shape(&self, sizes: &Sizes) -> Shape {
        let directions = self.reverse.len();
        if self.batch_first { smallvec![sizes.batch, directions, sizes.hidden] } else { smallvec![directions, sizes.batch, sizes.hidden] }
    }

    fn output_shapes(&self, sizes: &Sizes) -> Vec<Shape> {
        let Sizes { steps, batch, hidden, .. } = *sizes;
        let directions = self.reverse.len();
        let y: Shape = if self.batch_first { smallvec![batch, steps, directions, hidden] } else { smallvec![steps, directions, batch, hidden] };
        let mut shapes = vec![y, self.state_shape(sizes), self.state_shape(sizes)];
        shapes.truncate(if self.has_cell() { 3 } else { 2 });
        shapes
    }

    fn has_cell(&self) -> bool {
        matches!(self.cell, Cell::Lstm { .. })
    }

    /// The weights of all directions, laid out.
    fn pack<T: Real>(&self, w: View<'_>, r: View<'_>, b: Option<View<'_>>, p: Option<View<'_>>, isa: Isa) -> Result<Vec<Weights<T>>, OpError> {
        let WeightSizes { input, hidden } = self.weights(w.shape(), r.shape(), b.map(|b| b.shape()), p.map(|p| p.shape()))?;
        let (w, r, b, p) = (widen::<T>(w)?, widen::<T>(r)?, widen_some::<T>(b)?, widen_some::<T>(p)?);
        let rows = self.cell.gates() * hidden;
        let one = |d: usize| {
            let part = |all: &[T], len: usize| all[d * len..][..len].to_vec();
            let bias = b.as_deref().map(|b| part(b, 2 * rows));
            let peepholes = p.as_deref().map(|p| part(p, 3 * hidden));
            Weights::new(self.cell, (input, hidden), &w[d * rows * input..][..rows * input], &r[d * rows * hidden..][..rows * hidden], [bias, peepholes], (self.precision, isa))
        };
        Ok((0..self.reverse.len()).map(one).collect())
    }

    /// Runs all directions.
    fn body<T: Real>(&self, weights: &[Weights<T>], sizes: &Sizes, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let Sizes { steps, batch, hidden, .. } = *sizes;
        let directions = self.reverse.len();
        let state = |index: usize| -> Result<Vec<T>, OpError> {
            // The order of directions and sequences does not matter to zeros.
            let Some(view) = inputs.get(index) else { return buffer(&[directions, batch, hidden]) };
            let given = widen::<T>(view)?.into_owned();
            Ok(if self.batch_first { exchange(&given, (batch, directions, hidden)) } else { given })
        };
        let (mut h, mut c) = (state(INITIAL_H)?, if self.has_cell() { state(INITIAL_C)? } else { Vec::new() });
        let x = widen::<T>(inputs.at(X)?)?;
        let lengths = lengths(inputs.get(LENGTHS), steps, batch)?;
        let layer = Layer { op: self, sizes, x: &x, lengths: &lengths };
        let mut y = match outputs.get(0) {
            Some(_) => Some(buffer::<T>(&[steps, directions, batch, hidden])?),
            None => None,
        };
        layer.run(weights, &mut h, &mut c, y.as_deref_mut(), ctx)?;
        if let (Some(y), Some(to)) = (y, outputs.get(0)) {
            store(&y, to)?;
        }
        for (index, state) in [(1, h), (2, c)] {
            if let Some(to) = outputs.get(index) {
                if self.batch_first {
                    store(&exchange(&state, (directions, batch, hidden)), to)?;
                } else {
                    store(&state, to)?;
                }
            }
        }
        Ok(())
    }

    /// Floating-point operations of a run.
    fn work(&self, sizes: &Sizes) -> u64 {
        let rows = sizes.steps.saturating_mul(sizes.batch).saturating_mul(self.reverse.len());
        flops(rows, sizes.input.saturating_add(sizes.hidden), sizes.hidden.saturating_mul(self.cell.gates()))
    }
}

/// The elements of each sequence that count.
fn lengths(view: Option<View<'_>>, steps: usize, batch: usize) -> Result<Vec<usize>, OpError> {
    let mut lengths = Vec::new();
    lengths.try_reserve_exact(batch).map_err(|_| OpError::shape(format!("there is no room for {batch} sequences")))?;
    let Some(view) = view else {
        lengths.resize(batch, steps);
        return Ok(lengths);
    };
    for n in ints(view)? {
        let length = usize::try_from(n).ok().filter(|&n| n <= steps);
        lengths.push(length.ok_or_else(|| OpError::value(format!("a sequence of {n} elements does not fit {steps} steps")))?);
    }
    Ok(lengths)
}

/// `[one, two, size]` as `[two, one, size]`.
fn exchange<T: Real>(x: &[T], (one, two, size): (usize, usize, usize)) -> Vec<T> {
    let mut y = vec![T::ZERO; x.len()];
    if !x.is_empty() {
        for (at, from) in x.chunks_exact(size).enumerate() {
            y[(at % two * one + at / two) * size..][..size].copy_from_slice(from);
        }
    }
    y
}

impl Op for Recurrent {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        if let Some(Some(kind)) = inputs.get(LENGTHS)
            && *kind != Kind::Tensor(DType::I32)
        {
            return Err(OpError::Type(format!("lengths of sequences are int32, not {kind}")));
        }
        let kind = same_type(inputs, 3, [X, W, R, B, INITIAL_H, INITIAL_C, PEEPHOLES])?[0].clone();
        Ok(Kinds::from_elem(kind, if self.has_cell() { 3 } else { 2 }))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let weights = self.weights(inputs.shape(W)?, inputs.shape(R)?, some(B)?, some(PEEPHOLES)?)?;
        Ok(self.output_shapes(&self.sizes(inputs.shape(X)?, weights, |index| Ok(some(index)?.map(Shape::from)))?))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, w, r) = (inputs.at(X)?, inputs.at(W)?, inputs.at(R)?);
        with_real!(x.dtype(), T => {
            let weights = self.pack::<T>(w, r, inputs.get(B), inputs.get(PEEPHOLES), ctx.isa)?;
            let sizes = self.sizes(x.shape(), weights_sizes(&weights), |index| Ok(inputs.get(index).map(|view| view.shape().into())))?;
            self.body::<T>(&weights, &sizes, inputs, outputs, ctx)
        })
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let constant = |index: usize| constants.get(index).copied().flatten().map(Tensor::view);
        let (w, r) = (constant(W)?, constant(R)?);
        let all = [B, PEEPHOLES].iter().zip(self.given).all(|(&index, given)| given == constant(index).is_some());
        if w.dtype() != DType::F32 || !all {
            return None;
        }
        let weights = self.pack::<f32>(w, r, constant(B), constant(PEEPHOLES), isa).ok()?;
        let mut consumed = smallvec![W, R];
        consumed.extend([B, PEEPHOLES].into_iter().filter(|&index| constant(index).is_some()));
        Some(Prepacked { op: Box::new(Packed { op: self.clone(), weights }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let sizes = || {
            let weights = self.weights(inputs.shape(W)?, inputs.shape(R)?, some(B)?, some(PEEPHOLES)?)?;
            self.sizes(inputs.shape(X)?, weights, |index| Ok(some(index)?.map(Shape::from)))
        };
        sizes().map_or(0, |sizes| self.work(&sizes))
    }
}

fn weights_sizes<T: Real>(weights: &[Weights<T>]) -> WeightSizes {
    weights.first().map_or(WeightSizes { input: 0, hidden: 0 }, |weights| WeightSizes { input: weights.input, hidden: weights.hidden })
}

/// A layer with constant weights.
#[derive(Debug)]
struct Packed {
    op: Recurrent,
    weights: Vec<Weights<f32>>,
}

impl Op for Packed {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index).map(Shape::from)).transpose();
        Ok(self.op.output_shapes(&self.op.sizes(inputs.shape(X)?, weights_sizes(&self.weights), some)?))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let some = |index: usize| Ok(inputs.get(index).map(|view| view.shape().into()));
        let sizes = self.op.sizes(inputs.at(X)?.shape(), weights_sizes(&self.weights), some)?;
        self.op.body::<f32>(&self.weights, &sizes, inputs, outputs, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index).map(Shape::from)).transpose();
        let sizes = inputs.shape(X).and_then(|x| self.op.sizes(x, weights_sizes(&self.weights), some));
        sizes.map_or(0, |sizes| self.op.work(&sizes))
    }

    fn arithmetic(&self) -> Arithmetic {
        self.weights.first().map_or(Arithmetic::F32, Weights::arithmetic)
    }

    fn packed_bytes(&self) -> usize {
        self.weights.iter().map(Weights::bytes).sum()
    }
}

#[cfg(test)]
mod tests;
