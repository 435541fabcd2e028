//! The gradients of recurrent layers, by backpropagation through time.
//!
//! The forward pass is repeated, its gates kept; then the steps are walked back. Plain functions only: the ones of the standard
//! where a node names none.

use smallvec::SmallVec;

use super::cell::Cell;
use super::{B, INITIAL_C, INITIAL_H, LENGTHS, PEEPHOLES, R, Recurrent, Sizes, W, WeightSizes, X};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, ValueId, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, require, same_type};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Product, Scalar, with_scalar};
use crate::engine::tensor::Kind;

pub(crate) const RULES: &[Rule] = &[Rule::new("LSTM", layer), Rule::new("GRU", layer), Rule::new("RNN", layer)];

static GRADIENT: OpDef = own("RecurrentGradient");

/// The operands of the gradient: those of the layer up to the first states, then the gradients of its outputs.
const G_Y: usize = 7;
const G_H: usize = 8;
const G_C: usize = 9;
const COUNT: usize = 10;

fn layer(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let layer = concrete::<Recurrent>(op)?;
    let standard = layer.functions.iter().all(|functions| functions[..] == *layer.cell.functions());
    if !standard || layer.clip.is_some() || at.inputs.get(PEEPHOLES).is_some_and(Option::is_some) || layer.cell == (Cell::Lstm { input_forget: true }) {
        return Err(OpError::unsupported("a recurrent layer with other functions, clipping, peepholes or coupled gates has no gradient"));
    }
    let input = |i: usize| at.inputs.get(i).copied().flatten();
    let gradient = |i: usize| at.gradients.get(i).copied().flatten();
    let mut inputs: Vec<Option<ValueId>> = (0..G_Y).map(input).collect();
    inputs.extend((0..COUNT - G_Y).map(gradient));
    let found = emit.own(&GRADIENT, Box::new(RecurrentGradient(layer.clone())), &inputs, G_Y)?;
    at.each(|i| if i == LENGTHS { Err(OpError::unsupported("lengths have no gradient")) } else { Ok(found[i]) })
}

/// Outputs: the gradients of the layer's inputs in their order; the one at the place of the lengths means nothing.
#[derive(Debug)]
struct RecurrentGradient(Recurrent);

impl RecurrentGradient {
    fn sizes(&self, shape: &dyn Fn(usize) -> Result<Option<Shape>, OpError>) -> Result<Sizes, OpError> {
        let given = |i: usize| shape(i)?.ok_or_else(|| OpError::missing_input(i));
        let weights: WeightSizes = self.0.weights(&given(W)?, &given(R)?, shape(B)?.as_deref(), None)?;
        self.0.sizes(&given(X)?, weights, |i| if i < G_Y { shape(i) } else { Ok(None) })
    }

    fn output_shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = |i: usize| inputs.get(i).map(|_| inputs.shape(i).map(Shape::from)).transpose();
        let sizes = self.sizes(&shape)?;
        let (directions, rows) = (self.0.reverse.len(), self.0.cell.gates() * sizes.hidden);
        let state = Shape::from(&self.0.state_shape(&sizes)[..]);
        let given = |i: usize| inputs.shape(i).map(Shape::from);
        Ok(vec![given(X)?, given(W)?, given(R)?, Shape::from_slice(&[directions, 2 * rows]), Shape::from_slice(&[0]), state.clone(), state])
    }
}

impl Op for RecurrentGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        let kind = same_type(inputs, 3, [X, W, R])?.swap_remove(0);
        Ok(std::iter::repeat_n(kind, G_Y).collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.output_shapes(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        with_scalar!(inputs.at(X)?.dtype(), T => self.run_typed::<T>(inputs, outputs, ctx))
    }
}

/// One direction of a layer: its operands and where its gradients go.
struct Direction<'a, T> {
    layer: &'a Recurrent,
    sizes: Sizes,
    reverse: bool,
    lengths: &'a [usize],
    /// `[gates * hidden, input]`, `[gates * hidden, hidden]`.
    w: &'a [T],
    r: &'a [T],
    /// `[2 * gates * hidden]`.
    bias: Vec<T>,
}

/// What the forward pass keeps of every step, `[steps, batch, …]`.
struct Tape<T> {
    /// The gates behind their functions.
    gates: Vec<T>,
    /// States before each step, and cells before and behind it.
    h: Vec<T>,
    c: Vec<T>,
    /// Of a GRU: the state's product for the last gate, bias included.
    inner: Vec<T>,
}

fn sigmoid<T: Scalar>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

impl<T: Scalar> Direction<'_, T> {
    /// The element of sequence `b` that step `at` takes.
    fn time(&self, b: usize, at: usize) -> usize {
        if self.reverse { self.lengths[b] - 1 - at } else { at }
    }

    /// Where `[steps, batch]` or `[batch, steps]` have an element.
    fn row(&self, t: usize, b: usize) -> usize {
        if self.layer.batch_first { b * self.sizes.steps + t } else { t * self.sizes.batch + b }
    }

    /// Sums of products with weights, of one vector.
    fn times(weights: &[T], x: &[T], y: &mut [T]) {
        for (y, row) in y.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
            *y += row.iter().zip(x).map(|(&w, &x)| w * x).sum();
        }
    }

    /// The transpose of [`Direction::times`].
    fn back(weights: &[T], g: &[T], x: &mut [T]) {
        for (&g, row) in g.iter().zip(weights.chunks_exact(x.len().max(1))) {
            x.iter_mut().zip(row).for_each(|(x, &w)| *x += g * w);
        }
    }

    fn forward(&self, x: &[T], h0: &[T], c0: &[T]) -> Tape<T> {
        let Sizes { steps, batch, input, hidden } = self.sizes;
        let rows = self.layer.cell.gates() * hidden;
        let state = batch * hidden;
        let mut tape = Tape { gates: vec![T::zero(); steps * batch * rows], h: vec![T::zero(); (steps + 1) * state], c: Vec::new(), inner: Vec::new() };
        tape.h[..state].copy_from_slice(h0);
        if matches!(self.layer.cell, Cell::Lstm { .. }) {
            tape.c = vec![T::zero(); (steps + 1) * state];
            tape.c[..state].copy_from_slice(c0);
        }
        if matches!(self.layer.cell, Cell::Gru { .. }) {
            tape.inner = vec![T::zero(); steps * state];
        }
        for at in 0..steps {
            for b in 0..batch {
                let (old, new) = tape.h.split_at_mut((at + 1) * state);
                let (h, next) = (&old[at * state + b * hidden..][..hidden], &mut new[b * hidden..][..hidden]);
                next.copy_from_slice(h);
                let cells = (!tape.c.is_empty()).then(|| {
                    let (old, new) = tape.c.split_at_mut((at + 1) * state);
                    let (c, next) = (&old[at * state + b * hidden..][..hidden], &mut new[b * hidden..][..hidden]);
                    next.copy_from_slice(c);
                    (c, next)
                });
                if at >= self.lengths[b] {
                    continue;
                }
                let x = &x[self.row(self.time(b, at), b) * input..][..input];
                let gates = &mut tape.gates[(at * batch + b) * rows..][..rows];
                gates.copy_from_slice(&self.bias[..rows]);
                Self::times(self.w, x, gates);
                match self.layer.cell {
                    Cell::Rnn => self.rnn(gates, h, next),
                    Cell::Lstm { .. } => self.lstm(gates, h, next, cells),
                    Cell::Gru { linear_before_reset } => {
                        let inner = &mut tape.inner[(at * batch + b) * hidden..][..hidden];
                        self.gru(linear_before_reset, gates, h, next, inner);
                    }
                }
            }
        }
        tape
    }

    fn rnn(&self, gates: &mut [T], h: &[T], next: &mut [T]) {
        self.add_bias(gates, 0);
        Self::times(self.r, h, gates);
        gates.iter_mut().for_each(|v| *v = v.tanh());
        next.copy_from_slice(gates);
    }

    /// Adds the state's biases of gates, from the gate's first row on.
    fn add_bias(&self, gates: &mut [T], first: usize) {
        let rows = self.layer.cell.gates() * self.sizes.hidden;
        gates.iter_mut().zip(&self.bias[rows + first..]).for_each(|(g, &b)| *g += b);
    }

    /// Gates `[i, o, f, c]`.
    fn lstm(&self, gates: &mut [T], h: &[T], next: &mut [T], cells: Option<(&[T], &mut [T])>) {
        let hidden = self.sizes.hidden;
        self.add_bias(gates, 0);
        Self::times(self.r, h, gates);
        gates[..3 * hidden].iter_mut().for_each(|v| *v = sigmoid(*v));
        gates[3 * hidden..].iter_mut().for_each(|v| *v = v.tanh());
        let Some((old, new)) = cells else { return };
        for j in 0..hidden {
            new[j] = gates[2 * hidden + j] * old[j] + gates[j] * gates[3 * hidden + j];
            next[j] = gates[hidden + j] * new[j].tanh();
        }
    }

    /// Gates `[z, r, h]`.
    fn gru(&self, linear_before_reset: bool, gates: &mut [T], h: &[T], next: &mut [T], inner: &mut [T]) {
        let hidden = self.sizes.hidden;
        let (zr, last) = gates.split_at_mut(2 * hidden);
        self.add_bias(zr, 0);
        let (r_zr, r_last) = self.r.split_at(2 * hidden * hidden);
        Self::times(r_zr, h, zr);
        zr.iter_mut().for_each(|v| *v = sigmoid(*v));
        let reset = &zr[hidden..];
        inner.fill(T::zero());
        if linear_before_reset {
            self.add_bias(inner, 2 * hidden);
            Self::times(r_last, h, inner);
            last.iter_mut().zip(reset).zip(&*inner).for_each(|((v, &r), &inner)| *v += r * inner);
        } else {
            self.add_bias(last, 2 * hidden);
            let changed: Vec<T> = reset.iter().zip(h).map(|(&r, &h)| r * h).collect();
            Self::times(r_last, &changed, last);
        }
        last.iter_mut().for_each(|v| *v = v.tanh());
        for j in 0..hidden {
            next[j] = (T::one() - zr[j]) * last[j] + zr[j] * h[j];
        }
    }

    /// Walks one step of one sequence back: from the gradients of the next state and cell to those of the gates' sums, of the
    /// state and of the cell before, which replace them. `products` gets the gradients of what multiplies the recurrent weights.
    fn step_back(&self, tape: &Tape<T>, at: usize, b: usize, (dh, dc): (&mut [T], &mut [T]), sums: &mut [T], products: &mut [T]) {
        let Sizes { batch, hidden, .. } = self.sizes;
        let rows = self.layer.cell.gates() * hidden;
        let (one, state) = (T::one(), batch * hidden);
        let gates = &tape.gates[(at * batch + b) * rows..][..rows];
        let h = &tape.h[at * state + b * hidden..][..hidden];
        match self.layer.cell {
            Cell::Rnn => {
                sums.iter_mut().zip(gates).zip(&*dh).for_each(|((s, &y), &g)| *s = g * (one - y * y));
                products.copy_from_slice(sums);
                dh.fill(T::zero());
                Self::back(self.r, sums, dh);
            }
            Cell::Lstm { .. } => {
                let (old, new) = (&tape.c[at * state + b * hidden..][..hidden], &tape.c[(at + 1) * state + b * hidden..][..hidden]);
                for j in 0..hidden {
                    let [i, o, f, n] = [0, 1, 2, 3].map(|gate| gates[gate * hidden + j]);
                    let tanh = new[j].tanh();
                    let dcell = dc[j] + dh[j] * o * (one - tanh * tanh);
                    sums[j] = dcell * n * i * (one - i);
                    sums[hidden + j] = dh[j] * tanh * o * (one - o);
                    sums[2 * hidden + j] = dcell * old[j] * f * (one - f);
                    sums[3 * hidden + j] = dcell * i * (one - n * n);
                    dc[j] = dcell * f;
                }
                products.copy_from_slice(sums);
                dh.fill(T::zero());
                Self::back(self.r, sums, dh);
            }
            Cell::Gru { linear_before_reset } => {
                let inner = &tape.inner[(at * batch + b) * hidden..][..hidden];
                let (r_zr, r_last) = self.r.split_at(2 * hidden * hidden);
                for j in 0..hidden {
                    let (z, n) = (gates[j], gates[2 * hidden + j]);
                    sums[j] = dh[j] * (h[j] - n) * z * (one - z);
                    sums[2 * hidden + j] = dh[j] * (one - z) * (one - n * n);
                    dh[j] = dh[j] * z;
                }
                products.copy_from_slice(sums);
                if linear_before_reset {
                    for j in 0..hidden {
                        let (r, last) = (gates[hidden + j], sums[2 * hidden + j]);
                        sums[hidden + j] = last * inner[j] * r * (one - r);
                        products[2 * hidden + j] = last * r;
                    }
                    Self::back(r_last, &products[2 * hidden..], dh);
                } else {
                    let mut changed = vec![T::zero(); hidden];
                    Self::back(r_last, &sums[2 * hidden..], &mut changed);
                    for j in 0..hidden {
                        let r = gates[hidden + j];
                        sums[hidden + j] = changed[j] * h[j] * r * (one - r);
                        dh[j] += changed[j] * r;
                    }
                }
                products[hidden..2 * hidden].copy_from_slice(&sums[hidden..2 * hidden]);
                Self::back(r_zr, &sums[..2 * hidden], dh);
            }
        }
    }
}

/// Where the gradients of one direction go: of the weights, and of the input, to which both directions add.
struct Found<'a, T> {
    x: &'a mut [T],
    w: &'a mut [T],
    r: &'a mut [T],
    bias: &'a mut [T],
    h: &'a mut [T],
    c: &'a mut [T],
}

impl<T: Scalar> Direction<'_, T> {
    /// `of_y(t, b)` is the gradient of the output at an element, if there is one; `found.h` and `found.c` hold the gradients of the
    /// last states and get those of the first ones.
    fn backward(&self, x: &[T], tape: &Tape<T>, of_y: &dyn Fn(usize, usize) -> Option<Vec<T>>, found: &mut Found<'_, T>, ctx: &mut Context<'_>) {
        let Sizes { steps, batch, input, hidden } = self.sizes;
        let rows = self.layer.cell.gates() * hidden;
        let state = batch * hidden;
        // The gradients of all sums, in the order of the input's elements, for products of matrices behind the loop.
        let mut sums = vec![T::zero(); steps * batch * rows];
        let mut products = vec![T::zero(); steps * batch * rows];
        let mut states = vec![T::zero(); steps * batch * hidden];
        let mut resets = vec![T::zero(); if self.resets_first() { states.len() } else { 0 }];
        for at in (0..steps).rev() {
            for b in (0..batch).filter(|&b| at < self.lengths[b]) {
                let (dh, dc) = (&mut found.h[b * hidden..][..hidden], found.c.get_mut(b * hidden..(b + 1) * hidden).unwrap_or_default());
                if let Some(g) = of_y(self.time(b, at), b) {
                    dh.iter_mut().zip(g).for_each(|(d, g)| *d += g);
                }
                let row = self.row(self.time(b, at), b);
                let (own, product) = (&mut sums[row * rows..][..rows], &mut products[row * rows..][..rows]);
                self.step_back(tape, at, b, (dh, dc), own, product);
                let h = &tape.h[at * state + b * hidden..][..hidden];
                states[row * hidden..][..hidden].copy_from_slice(h);
                if let Some(changed) = resets.get_mut(row * hidden..(row + 1) * hidden) {
                    let r = &tape.gates[(at * batch + b) * rows + hidden..][..hidden];
                    changed.iter_mut().zip(r).zip(h).for_each(|((to, &r), &h)| *to = r * h);
                }
            }
        }
        // A sequence without elements ends in zeros, whatever it began with.
        for b in (0..batch).filter(|&b| self.lengths[b] == 0) {
            found.h[b * hidden..][..hidden].fill(T::zero());
            found.c.get_mut(b * hidden..(b + 1) * hidden).unwrap_or_default().fill(T::zero());
        }
        let count = steps * batch;
        let product = |m, k, n, left, left_transposed, right| Product { m, k, n, left, left_transposed, right, right_transposed: false };
        T::product(product(rows, count, input, &sums, true, x), found.w, ctx);
        let mut of_x = vec![T::zero(); x.len()];
        T::product(product(count, rows, input, &sums, false, self.w), &mut of_x, ctx);
        found.x.iter_mut().zip(&of_x).for_each(|(x, &g)| *x += g);
        T::product(product(rows, count, hidden, &products, true, &states), found.r, ctx);
        if !resets.is_empty() {
            let last: Vec<T> = products.chunks_exact(rows.max(1)).flat_map(|row| &row[2 * hidden..]).copied().collect();
            T::product(product(hidden, count, hidden, &last, true, &resets), &mut found.r[2 * hidden * hidden..], ctx);
        }
        let (own, of_state) = found.bias.split_at_mut(rows);
        own.fill(T::zero());
        of_state.fill(T::zero());
        for (sums, products) in sums.chunks_exact(rows.max(1)).zip(products.chunks_exact(rows.max(1))) {
            own.iter_mut().zip(sums).for_each(|(b, &s)| *b += s);
            of_state.iter_mut().zip(products).for_each(|(b, &s)| *b += s);
        }
    }

    /// Whether the reset gate acts on the state before it is multiplied.
    fn resets_first(&self) -> bool {
        self.layer.cell == (Cell::Gru { linear_before_reset: false })
    }
}

impl RecurrentGradient {
    fn run_typed<T: Scalar>(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let shape = |i: usize| Ok(inputs.get(i).map(|view| Shape::from(view.shape())));
        let sizes = self.sizes(&shape)?;
        let Sizes { steps, batch, input, hidden } = sizes;
        let (rows, directions) = (self.0.cell.gates() * hidden, self.0.reverse.len());
        let some = |i: usize| inputs.get(i).map(|view| view.slice::<T>()).transpose();
        let (x, w, r, bias) = (inputs.at(X)?.slice::<T>()?, inputs.at(W)?.slice::<T>()?, inputs.at(R)?.slice::<T>()?, some(B)?);
        let lengths: Vec<usize> = match inputs.get(LENGTHS) {
            Some(lengths) => ints(lengths)?.iter().map(|&n| usize::try_from(n).unwrap_or(0).min(steps)).collect(),
            None => vec![steps; batch],
        };
        let by_direction = |values: Option<&[T]>, d: usize| -> Vec<T> { self.states(values, &sizes, d) };
        let (g_y, g_h, g_c) = (some(G_Y)?, some(G_H)?, some(G_C)?);
        let (h0, c0) = (some(INITIAL_H)?, some(INITIAL_C)?);
        let mut of_x = vec![T::zero(); x.len()];
        let (mut of_w, mut of_r, mut of_b) = (vec![T::zero(); w.len()], vec![T::zero(); r.len()], vec![T::zero(); directions * 2 * rows]);
        let mut of_states = [vec![T::zero(); directions * batch * hidden], vec![T::zero(); directions * batch * hidden]];
        for (d, &reverse) in self.0.reverse.iter().enumerate() {
            let own_bias = bias.map_or_else(|| vec![T::zero(); 2 * rows], |bias| bias[d * 2 * rows..][..2 * rows].to_vec());
            let (w, r) = (&w[d * rows * input..][..rows * input], &r[d * rows * hidden..][..rows * hidden]);
            let direction = Direction { layer: &self.0, sizes, reverse, lengths: &lengths, w, r, bias: own_bias };
            let tape = direction.forward(x, &by_direction(h0, d), &by_direction(c0, d));
            let (mut h, mut c) = (by_direction(g_h, d), by_direction(g_c, d));
            let of_y = |t: usize, b: usize| {
                let row = if self.0.batch_first { (b * steps + t) * directions + d } else { (t * directions + d) * batch + b };
                g_y.map(|g| g[row * hidden..][..hidden].to_vec())
            };
            let (w, r) = (&mut of_w[d * rows * input..][..rows * input], &mut of_r[d * rows * hidden..][..rows * hidden]);
            let bias = &mut of_b[d * 2 * rows..][..2 * rows];
            direction.backward(x, &tape, &of_y, &mut Found { x: &mut of_x, w, r, bias, h: &mut h, c: &mut c }, ctx);
            self.place(&h, &sizes, d, &mut of_states[0]);
            self.place(&c, &sizes, d, &mut of_states[1]);
        }
        let [of_h, of_c] = of_states;
        let all: SmallVec<[(usize, Vec<T>); 6]> = [(X, of_x), (W, of_w), (R, of_r), (B, of_b), (INITIAL_H, of_h), (INITIAL_C, of_c)].into_iter().collect();
        for (index, values) in all {
            if let Some(y) = outputs.get(index) {
                y.slice::<T>()?.copy_from_slice(&values);
            }
        }
        Ok(())
    }

    /// The states of one direction, `[batch, hidden]`; zeros where there are none.
    fn states<T: Scalar>(&self, values: Option<&[T]>, sizes: &Sizes, d: usize) -> Vec<T> {
        let Sizes { batch, hidden, .. } = *sizes;
        let Some(values) = values else { return vec![T::zero(); batch * hidden] };
        (0..batch).flat_map(|b| values[self.state(sizes, d, b)..][..hidden].to_vec()).collect()
    }

    fn place<T: Scalar>(&self, values: &[T], sizes: &Sizes, d: usize, to: &mut [T]) {
        for (b, values) in values.chunks_exact(sizes.hidden.max(1)).enumerate() {
            to[self.state(sizes, d, b)..][..sizes.hidden].copy_from_slice(values);
        }
    }

    /// Where the state of a sequence begins.
    fn state(&self, sizes: &Sizes, d: usize, b: usize) -> usize {
        let row = if self.0.batch_first { b * self.0.reverse.len() + d } else { d * sizes.batch + b };
        row * sizes.hidden
    }
}
