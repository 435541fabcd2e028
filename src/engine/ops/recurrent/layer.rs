//! A layer at work: the products over all steps at once, then step by step.

use super::cell::{Cell, Step};
use super::{Recurrent, Sizes};
use crate::engine::kernels::cache::caches;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::weights::Precision;
use crate::engine::op::{Context, OpError};
use crate::engine::ops::quantize_dynamic::{Range8, quantize_dynamically};
use crate::engine::ops::real::{Real, buffer};
use crate::engine::threads::Threads;

/// Sequences that are worth reading all weights for: of fewer, memory delivers them more slowly than they are multiplied.
const SEQUENCES_OF_A_PART: usize = 32;

/// The weights of one direction, laid out for products.
#[derive(Debug)]
pub(super) struct Weights<R: Real> {
    pub(super) input: usize,
    pub(super) hidden: usize,
    /// `[input, gates * hidden]`.
    w: R::Packed,
    /// `[hidden, gates * hidden]`, in the parts that [`Cell::products`] names.
    r: Vec<R::Packed>,
    /// What is added to the inputs' products.
    bias: Vec<R>,
    /// What is added to the state's product of a GRU's last gate before its reset gate acts.
    hidden_bias: Vec<R>,
    peepholes: Option<Vec<R>>,
    /// If the weights are whole numbers: what one stands for in each column, of the inputs' and of the state's weights.
    scales: Option<[Vec<R>; 2]>,
}

/// The numbers in whole steps of a scale, and the scale: that of DynamicQuantizeLinear for the first `counting` of them.
fn steps<R: Real>(x: &[R], counting: usize) -> (Vec<R>, R) {
    let x: Vec<f32> = x.iter().map(|v| v.to_f64() as f32).collect();
    let range = Range8::of(&x[..counting.min(x.len())], Range8::NOTHING);
    let mut codes = vec![0; x.len()];
    quantize_dynamically(&x, range, &mut codes);
    let whole = |&code: &u8| R::from_f64(f64::from(i16::from(code) - i16::from(range.zero)));
    (codes.iter().map(whole).collect(), R::from_f64(f64::from(range.scale)))
}

impl<R: Real> Weights<R> {
    /// The same weights as numbers of steps of these sizes.
    pub(super) fn in_steps(self, scales: [Vec<R>; 2]) -> Self {
        Self { scales: Some(scales), ..self }
    }

    /// The products of `rows` inputs, of which the first `counting` elements say how they are quantised, with the bias.
    fn project(&self, x: &[R], rows: usize, counting: usize, products: &mut [R], threads: &Threads) {
        let Some([scales, _]) = &self.scales else {
            R::project(x, rows, &self.w, Some(&self.bias), products, threads);
            return;
        };
        let (whole, scale) = steps(x, counting);
        R::project(&whole, rows, &self.w, Some(&vec![R::ZERO; self.bias.len()]), products, threads);
        for row in products.chunks_exact_mut(self.bias.len().max(1)) {
            row.iter_mut().zip(scales).zip(&self.bias).for_each(|((p, &s), &b)| *p = p.mul(scale.mul(s)).add(b));
        }
    }

    /// The products of the states of `count` sequences. Where numbers are quantised, the states that are over do not count: as in
    /// onnxruntime, a sequence's last state still does at the step behind its end.
    fn multiply(&self, h: &[R], count: usize, over: impl Fn(usize) -> bool, products: &mut [R], threads: &Threads) {
        let Some([_, scales]) = &self.scales else {
            R::project(h, count, &self.r[0], None, products, threads);
            return;
        };
        let mut h = h.to_vec();
        for (_, state) in h.chunks_exact_mut(self.hidden.max(1)).enumerate().filter(|(b, _)| over(*b)) {
            state.fill(R::ZERO);
        }
        let (whole, scale) = steps(&h, usize::MAX);
        R::project(&whole, count, &self.r[0], None, products, threads);
        for row in products.chunks_exact_mut(scales.len().max(1)) {
            row.iter_mut().zip(scales).for_each(|(p, &s)| *p = p.mul(scale.mul(s)));
        }
    }

    /// `w` is `[gates * hidden, input]`, `r` `[gates * hidden, hidden]`, the bias that of the inputs and that of the state.
    pub(super) fn new(cell: Cell, (input, hidden): (usize, usize), w: &[R], r: &[R], [bias, peepholes]: [Option<Vec<R>>; 2], (precision, isa): (Precision, Isa)) -> Self {
        let rows = cell.gates() * hidden;
        let both = bias.unwrap_or_else(|| vec![R::ZERO; 2 * rows]);
        let (own, of_state) = both.split_at(rows);
        let mut bias: Vec<R> = own.iter().zip(of_state).map(|(&a, &b)| a.add(b)).collect();
        let mut hidden_bias = Vec::new();
        if cell == (Cell::Gru { linear_before_reset: true }) {
            bias[2 * hidden..].copy_from_slice(&own[2 * hidden..]);
            hidden_bias = of_state[2 * hidden..].to_vec();
        }
        let mut first = 0;
        let part = |&gates: &usize| {
            let part = &r[first * hidden * hidden..][..gates * hidden * hidden];
            first += gates;
            R::pack(precision, isa, part, hidden, gates * hidden, true)
        };
        let r = cell.products().iter().map(part).collect();
        Self { input, hidden, w: R::pack(precision, isa, w, input, rows, true), r, bias, hidden_bias, peepholes, scales: None }
    }

    pub(super) fn bytes(&self) -> usize {
        let plain = self.bias.len() + self.hidden_bias.len() + self.peepholes.as_ref().map_or(0, Vec::len) + self.scales.iter().flatten().map(Vec::len).sum::<usize>();
        R::packed_bytes(&self.w) + self.r.iter().map(R::packed_bytes).sum::<usize>() + plain * size_of::<R>()
    }
}

impl Weights<f32> {
    /// What the factors of both products are.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.w.arithmetic()
    }
}

/// A layer and its operands.
pub(super) struct Layer<'a, R: Real> {
    pub(super) op: &'a Recurrent,
    pub(super) sizes: &'a Sizes,
    pub(super) x: &'a [R],
    /// The elements of each sequence that count.
    pub(super) lengths: &'a [usize],
}

/// One thread's share: some sequences in one direction.
struct Unit<'u, R: Real> {
    direction: usize,
    weights: &'u Weights<R>,
    /// The inputs' products, `[steps * batch, gates * hidden]` in the order of the inputs.
    products: &'u [R],
    first: usize,
    /// The sequences' states.
    h: &'u mut [R],
    c: &'u mut [R],
    /// Their outputs, `[steps, sequences, hidden]`, if wanted.
    y: Vec<R>,
    /// For the products of a step.
    threads: &'u Threads,
}

impl<R: Real> Layer<'_, R> {
    /// Runs all directions. `h` and `c`, `[directions, batch, hidden]`, hold the first states and then the last ones; `y` has the
    /// operator's own layout.
    pub(super) fn run(&self, weights: &[Weights<R>], h: &mut [R], c: &mut [R], mut y: Option<&mut [R]>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let Sizes { steps, batch, hidden, .. } = *self.sizes;
        let columns = self.op.cell.gates() * hidden;
        if batch == 0 || hidden == 0 {
            return Ok(());
        }
        let mut products = Vec::new();
        for weights in weights {
            let mut product = buffer::<R>(&[steps, batch, columns])?;
            // What lies behind the end of the longest sequence does not count.
            let longest = self.lengths.iter().copied().max().unwrap_or(0);
            weights.project(self.x, steps * batch, longest * batch * self.sizes.input, &mut product, ctx.threads);
            products.push(product);
        }
        // States that are quantised are so together. Where weights come from memory in each step, threads that have a few sequences each
        // would all read all of them: they have a part of the columns instead.
        let quantised = weights.iter().any(|weights| weights.scales.is_some());
        let few = batch < SEQUENCES_OF_A_PART * ctx.threads.count() && columns * hidden * size_of::<R>() > caches().second;
        let worth = ctx.threads.parts(self.op.work(self.sizes));
        let parts = if quantised || few { 1 } else { worth.div_ceil(weights.len()) };
        let count = batch.div_ceil(parts);
        let one_by_one = weights.len() * batch.div_ceil(count) == 1 || worth == 1;
        let alone = Threads::single();
        let threads = if one_by_one { ctx.threads } else { &alone };
        let mut units: Vec<Unit<'_, R>> = Vec::new();
        let mut cells = if c.is_empty() { Vec::new() } else { c.chunks_mut(batch * hidden).collect() };
        cells.reverse();
        for (direction, h) in h.chunks_exact_mut(batch * hidden).enumerate() {
            let mut cells = cells.pop().map(|c| c.chunks_mut(count * hidden));
            for (part, h) in h.chunks_mut(count * hidden).enumerate() {
                let y = buffer(&[if y.is_some() { steps } else { 0 }, h.len()])?;
                let c = cells.as_mut().and_then(Iterator::next).unwrap_or_default();
                units.push(Unit { direction, weights: &weights[direction], products: &products[direction], first: part * count, h, c, y, threads });
            }
        }
        if one_by_one {
            units.iter_mut().for_each(|unit| self.unit(unit, ctx.isa));
        } else {
            ctx.threads.for_each(units.iter_mut(), |unit| self.unit(unit, ctx.isa));
        }
        if let Some(y) = &mut y {
            units.iter().for_each(|unit| self.place(unit, y));
        }
        Ok(())
    }

    /// Copies a share's outputs to their places.
    fn place(&self, unit: &Unit<'_, R>, y: &mut [R]) {
        let Sizes { steps, batch, hidden, .. } = *self.sizes;
        let directions = self.op.reverse.len();
        let count = unit.h.len() / hidden;
        for (at, from) in unit.y.chunks_exact(hidden).enumerate() {
            let (t, b) = (at / count, unit.first + at % count);
            let row = if self.op.batch_first { (b * steps + t) * directions + unit.direction } else { (t * directions + unit.direction) * batch + b };
            y[row * hidden..][..hidden].copy_from_slice(from);
        }
    }

    fn unit(&self, unit: &mut Unit<'_, R>, isa: Isa) {
        let hidden = self.sizes.hidden;
        let count = unit.h.len() / hidden;
        let lengths = &self.lengths[unit.first..][..count];
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut gates = vec![R::ZERO; count * self.op.cell.gates() * hidden];
        let step = Step { functions: &self.op.functions[unit.direction], clip: self.op.clip.map(|clip| R::from_f64(f64::from(clip))), isa };
        // The state that a GRU's reset gate has changed.
        let mut changed = vec![R::ZERO; if unit.weights.r.len() == 2 { unit.h.len() } else { 0 }];
        for at in 0..longest {
            let active = |b: &usize| lengths[*b] > at;
            if unit.weights.r.len() == 2 {
                self.gru_step(unit, &step, at, (0..count).filter(active), &mut gates, &mut changed);
            } else {
                self.step(unit, &step, at, (0..count).filter(active), &mut gates);
            }
            if !unit.y.is_empty() {
                for b in (0..count).filter(active) {
                    let row = self.time(unit, b, at) * count + b;
                    unit.y[row * hidden..][..hidden].copy_from_slice(&unit.h[b * hidden..][..hidden]);
                }
            }
        }
        // There is no last output of a sequence without elements.
        for b in (0..count).filter(|&b| lengths[b] == 0) {
            unit.h[b * hidden..][..hidden].fill(R::ZERO);
            if !unit.c.is_empty() {
                unit.c[b * hidden..][..hidden].fill(R::ZERO);
            }
        }
    }

    /// The element of sequence `b` that step `at` takes.
    fn time(&self, unit: &Unit<'_, R>, b: usize, at: usize) -> usize {
        if self.op.reverse[unit.direction] { self.lengths[unit.first + b] - 1 - at } else { at }
    }

    /// The inputs' products for sequence `b` at step `at`.
    fn products<'u>(&self, unit: &Unit<'u, R>, b: usize, at: usize) -> &'u [R] {
        let Sizes { steps, batch, hidden, .. } = *self.sizes;
        let (t, b, columns) = (self.time(unit, b, at), unit.first + b, self.op.cell.gates() * hidden);
        let row = if self.op.batch_first { b * steps + t } else { t * batch + b };
        &unit.products[row * columns..][..columns]
    }

    /// A step of a layer whose gates all multiply the same state.
    fn step(&self, unit: &mut Unit<'_, R>, step: &Step<'_, R>, at: usize, active: impl Iterator<Item = usize>, gates: &mut [R]) {
        let hidden = self.sizes.hidden;
        let columns = self.op.cell.gates() * hidden;
        unit.weights.multiply(unit.h, unit.h.len() / hidden, |b| self.lengths[unit.first + b] < at, gates, unit.threads);
        for b in active {
            let products = self.products(unit, b, at);
            let gates = &mut gates[b * columns..][..columns];
            let h = &mut unit.h[b * hidden..][..hidden];
            match self.op.cell {
                Cell::Rnn => {
                    add(gates, products);
                    step.rnn(gates, h);
                }
                Cell::Gru { .. } => {
                    let (zr, last) = gates.split_at_mut(2 * hidden);
                    add(zr, &products[..2 * hidden]);
                    step.gru_gates(zr);
                    add(last, &unit.weights.hidden_bias);
                    last.iter_mut().zip(&zr[hidden..]).for_each(|(x, &r)| *x = r.mul(*x));
                    add(last, &products[2 * hidden..]);
                    step.gru(&zr[..hidden], last, h);
                }
                Cell::Lstm { input_forget } => {
                    add(gates, products);
                    step.lstm(gates, unit.weights.peepholes.as_deref(), input_forget, h, &mut unit.c[b * hidden..][..hidden]);
                }
            }
        }
    }

    /// A step of a GRU whose last gate multiplies the state as the reset gate has changed it. `gates` has the two others of all
    /// sequences first, then the last one.
    fn gru_step(&self, unit: &mut Unit<'_, R>, step: &Step<'_, R>, at: usize, active: impl Iterator<Item = usize> + Clone, gates: &mut [R], changed: &mut [R]) {
        let hidden = self.sizes.hidden;
        let count = unit.h.len() / hidden;
        let (zr, last) = gates.split_at_mut(count * 2 * hidden);
        R::project(unit.h, count, &unit.weights.r[0], None, zr, unit.threads);
        for b in active.clone() {
            let zr = &mut zr[b * 2 * hidden..][..2 * hidden];
            add(zr, &self.products(unit, b, at)[..2 * hidden]);
            step.gru_gates(zr);
            let h = &unit.h[b * hidden..][..hidden];
            let changed = &mut changed[b * hidden..][..hidden];
            changed.iter_mut().zip(&zr[hidden..]).zip(h).for_each(|((to, &r), &h)| *to = r.mul(h));
        }
        R::project(changed, count, &unit.weights.r[1], None, last, unit.threads);
        for b in active {
            let last = &mut last[b * hidden..][..hidden];
            add(last, &self.products(unit, b, at)[2 * hidden..]);
            step.gru(&zr[b * 2 * hidden..][..hidden], last, &mut unit.h[b * hidden..][..hidden]);
        }
    }
}

fn add<R: Real>(x: &mut [R], y: &[R]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x = x.add(y));
}
