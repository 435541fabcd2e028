//! QAttention of com.microsoft: self-attention whose projections are products of 8-bit codes; all else is f32.

use smallvec::smallvec;

use super::ANY;
use super::axes::require;
use super::matmul::{narrow, widened};
use super::product::flops;
use super::qlinear::{CODES, Levels, Rows, expect_same, expect_type, multiply, zero_levels, zero_point};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::gemm;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::View;

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "QAttention", domain: "com.microsoft", opsets: 1..=ANY, types: CODES, build }];

#[derive(Clone, Debug)]
struct QAttention {
    heads: usize,
    scale: Option<f32>,
    filter: f32,
    causal: bool,
    given: Vec<bool>,
    /// The weights less their zero points, if they are constant.
    packed: Option<Rows>,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    for name in ["do_rotary", "past_present_share_buffer"] {
        if attrs.int_or(name, 0)? != 0 {
            return Err(OpError::unsupported(format!("attribute `{name}` is not supported")));
        }
    }
    let heads = attrs.required("num_heads", attrs.int("num_heads")?)?;
    let Some(heads) = usize::try_from(heads).ok().filter(|&h| h > 0) else {
        return Err(OpError::Attribute(format!("attribute `num_heads` is {heads}")));
    };
    Ok(Box::new(QAttention {
        heads,
        scale: attrs.float("scale")?,
        filter: attrs.float_or("mask_filter_value", -10_000.0)?,
        causal: attrs.bool_or("unidirectional", false)?,
        given: attrs.inputs.clone(),
        packed: None,
    }))
}

/// Batch, tokens, numbers per token of the input; numbers of the output and of each head; tokens of the past.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    tokens: usize,
    input: usize,
    hidden: usize,
    head: usize,
    past: usize,
}

impl QAttention {
    fn sizes(&self, x: &[usize], w: Option<&[usize]>, past: Option<&[usize]>) -> Result<Sizes, OpError> {
        let packed = self.packed.as_ref().map(|rows| [rows.k, rows.count]);
        let w = packed.as_ref().map(|w| &w[..]).or(w).ok_or_else(|| OpError::missing_input(1))?;
        let (&[batch, tokens, input], &[rows, columns]) = (x, w) else {
            return Err(OpError::shape(format!("an input of shape {x:?} and weights of shape {w:?}")));
        };
        let hidden = columns / 3;
        if rows != input || columns % 3 != 0 || hidden % self.heads != 0 {
            return Err(OpError::shape(format!("an input of shape {x:?}, weights of shape {w:?} and {} heads", self.heads)));
        }
        let head = hidden / self.heads;
        let past = match past {
            None => 0,
            Some(&[2, b, n, past, d]) if (b, n, d) == (batch, self.heads, head) => past,
            Some(past) => return Err(OpError::shape(format!("a past of shape {past:?} for {batch} sequences and {} heads of {head}", self.heads))),
        };
        Ok(Sizes { batch, tokens, input, hidden, head, past })
    }

    fn sizes_of(&self, inputs: &Inputs<'_>) -> Result<Sizes, OpError> {
        self.sizes(inputs.at(0)?.shape(), inputs.get(1).map(|w| w.shape()), inputs.get(8).map(|past| past.shape()))
    }

    /// Queries, keys and values side by side, a row per token.
    fn project(&self, s: Sizes, inputs: &Inputs<'_>, ctx: &Context<'_>) -> Result<Vec<f32>, OpError> {
        let (x, columns) = (inputs.at(0)?, 3 * s.hidden);
        let zero = zero_point(inputs.get(6))?;
        let rows = Rows::left(x, 0..x.len(), (s.batch * s.tokens, s.input), |_| zero)?;
        let weights = match (&self.packed, inputs.get(1)) {
            (None, Some(w)) => {
                let zeros = zero_levels(inputs.get(7), w.shape(), 1)?;
                Some(Rows::right(w, 0..w.len(), (s.input, columns), |j| zeros.at(0, j))?)
            }
            _ => None,
        };
        let weights = weights.as_ref().or(self.packed.as_ref()).ok_or_else(|| OpError::missing_input(1))?;
        let sums = multiply(&rows, weights, ctx);
        let (bias, x_scale, w_scale) = (widened(inputs.at(2)?)?, widened(inputs.at(3)?)?, inputs.at(4)?);
        if bias.len() != columns || x_scale.len() != 1 {
            return Err(OpError::shape(format!("a bias of {} and {} scales for {columns} columns", bias.len(), x_scale.len())));
        }
        let w_scale = Levels::new(widened(w_scale)?, w_scale.shape(), &[s.input, columns], 1)?;
        let factors: Vec<f32> = (0..columns).map(|j| x_scale[0] * w_scale.at(0, j)).collect();
        let scaled = |row: &[i32]| -> Vec<f32> {
            row.iter().zip(&factors).zip(&bias).map(|((&sum, factor), bias)| sum as f32 * factor + bias).collect()
        };
        Ok(sums.chunks_exact(columns.max(1)).flat_map(scaled).collect())
    }
}

/// What is added to the scores.
struct Mask {
    /// One number per batch and key, or with `per_query` per batch, query and key; empty if nothing is masked.
    values: Vec<f32>,
    per_query: bool,
}

impl Mask {
    fn read(mask: Option<View<'_>>, s: Sizes, filter: f32) -> Result<Self, OpError> {
        let Some(view) = mask else { return Ok(Self { values: vec![], per_query: false }) };
        let (mask, total) = (view.slice::<i32>()?, s.past + s.tokens);
        let raw = |v: &i32| if *v > 0 { 0.0 } else { filter };
        let (values, per_query) = match *view.shape() {
            // Where the keys of each sequence end, and perhaps where they begin.
            [n] if n == s.batch || n == 2 * s.batch => {
                let outside = |b: usize, key: i64| key >= i64::from(mask[b]) || (n > s.batch && key < i64::from(mask[s.batch + b]));
                let keys = |b: usize| (0..total).map(move |key| if outside(b, key as i64) { filter } else { 0.0 });
                ((0..s.batch).flat_map(keys).collect(), false)
            }
            [b, keys] if (b, keys) == (s.batch, total) => (mask.iter().map(raw).collect(), false),
            [b, queries, keys] if (b, queries, keys) == (s.batch, s.tokens, total) => (mask.iter().map(raw).collect(), true),
            _ => return Err(OpError::shape(format!("a mask of shape {:?} for {} sequences of {total} keys", view.shape(), s.batch))),
        };
        Ok(Self { values, per_query })
    }

    fn row(&self, s: Sizes, batch: usize, query: usize) -> Option<&[f32]> {
        let total = s.past + s.tokens;
        let row = if self.per_query { batch * s.tokens + query } else { batch };
        if self.values.is_empty() { None } else { Some(&self.values[row * total..(row + 1) * total]) }
    }
}

/// Queries whose scores are held at once.
const QUERIES: usize = 64;

impl QAttention {
    /// One head of one sequence, a row per token; keys and values are those of the past and the new ones.
    fn head(&self, s: Sizes, isa: Isa, (b, h): (usize, usize), projected: &[f32], mask: &Mask, (keys, values): (&[f32], &[f32])) -> Vec<f32> {
        let mut y = Vec::with_capacity(s.tokens * s.head);
        let total = s.past + s.tokens;
        let scale = self.scale.filter(|&scale| scale != 0.0).unwrap_or(1.0 / (s.head as f32).sqrt());
        let mut scratch = vec![];
        for start in (0..s.tokens).step_by(QUERIES) {
            let count = QUERIES.min(s.tokens - start);
            let query = |t: usize| &projected[((b * s.tokens + t) * 3) * s.hidden + h * s.head..][..s.head];
            let queries: Vec<f32> = (start..start + count).flat_map(query).copied().collect();
            let mut scores = vec![0.0; count * total];
            let epilogue = Epilogue { alpha: scale, ..Epilogue::default() };
            gemm(isa, count, s.head, total, &queries, false, keys, true, &mut scores, &epilogue, &mut scratch);
            for (t, row) in (start..).zip(scores.chunks_exact_mut(total)) {
                if let Some(mask) = mask.row(s, b, t) {
                    row.iter_mut().zip(mask).for_each(|(v, m)| *v += m);
                }
                if self.causal {
                    row[s.past + t + 1..].fill(f32::MIN);
                }
                vector::softmax_row_in_place(isa, row);
            }
            let mut result = vec![0.0; count * s.head];
            gemm(isa, count, total, s.head, &scores, false, values, false, &mut result, &Epilogue::default(), &mut scratch);
            y.extend(result);
        }
        y
    }

    /// Keys (part 1) or values (part 2) of one head, those of the past first.
    fn part(&self, s: Sizes, (b, h): (usize, usize), part: usize, projected: &[f32], past: Option<&[f32]>) -> Vec<f32> {
        let size = s.past * s.head;
        let old = past.map_or(&[][..], |past| &past[(((part - 1) * s.batch + b) * self.heads + h) * size..][..size]);
        let new = (0..s.tokens).flat_map(|t| &projected[((b * s.tokens + t) * 3 + part) * s.hidden + h * s.head..][..s.head]);
        old.iter().chain(new).copied().collect()
    }
}

impl Op for QAttention {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 5)?;
        expect_type(inputs, 1, CODES)?;
        expect_type(inputs, 2, &[DType::F32, DType::F16])?;
        [3, 4, 8].iter().try_for_each(|&i| expect_same(inputs, 2, i))?;
        expect_type(inputs, 5, &[DType::I32])?;
        expect_same(inputs, 0, 6)?;
        expect_same(inputs, 1, 7)?;
        let kind = inputs[2].clone().unwrap_or(Kind::Tensor(DType::F32));
        Ok(smallvec![kind.clone(), kind])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let w = if self.packed.is_some() { None } else { Some(inputs.shape(1)?) };
        let s = self.sizes(inputs.shape(0)?, w, inputs.get(8).map(|_| inputs.shape(8)).transpose()?)?;
        let total = s.past.checked_add(s.tokens).ok_or_else(|| OpError::shape("the past is too long"))?;
        Ok(vec![Shape::from_iter([s.batch, s.tokens, s.hidden]), Shape::from_iter([2, s.batch, self.heads, total, s.head])])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let s = self.sizes_of(inputs)?;
        let mask = Mask::read(inputs.get(5), s, self.filter)?;
        let empty = s.batch == 0 || s.hidden == 0;
        let projected = if empty || s.tokens == 0 { vec![] } else { self.project(s, inputs, ctx)? };
        let past = inputs.get(8).map(widened).transpose()?;
        let places: Vec<(usize, usize)> =
            if empty { vec![] } else { (0..s.batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))).collect() };
        let part = |place, which| self.part(s, place, which, &projected, past.as_deref());
        if let Some(present) = outputs.get(1) {
            let all: Vec<f32> = [1, 2].iter().flat_map(|&which| places.iter().flat_map(move |&place| part(place, which))).collect();
            narrow(&all, present)?;
        }
        let mut heads: Vec<((usize, usize), Vec<f32>)> = places.iter().map(|&place| (place, vec![])).collect();
        let work = |(place, y): &mut ((usize, usize), Vec<f32>)| {
            *y = self.head(s, ctx.isa, *place, &projected, &mask, (&part(*place, 1), &part(*place, 2)));
        };
        let size = flops(s.tokens, 2 * s.head, s.past + s.tokens).saturating_mul(heads.len() as u64);
        if ctx.threads.parts(size) > 1 {
            ctx.threads.for_each(heads.iter_mut(), work);
        } else {
            heads.iter_mut().for_each(work);
        }
        let Some(y) = outputs.get(0) else { return Ok(()) };
        let mut wide = vec![0.0; projected.len() / 3];
        for ((b, h), rows) in &heads {
            for (t, row) in rows.chunks_exact(s.head).enumerate() {
                wide[(b * s.tokens + t) * s.hidden + h * s.head..][..s.head].copy_from_slice(row);
            }
        }
        narrow(&wide, y)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: Isa) -> Option<Prepacked> {
        let w = constants.get(1).copied().flatten().filter(|w| CODES.contains(&w.dtype()))?;
        let zero = constants.get(7).copied().flatten();
        let &[k, n] = w.shape() else { return None };
        if self.packed.is_some() || k < 16 || n == 0 || (zero.is_none() && self.given.get(7) == Some(&true)) {
            return None;
        }
        let zeros = zero_levels(zero.map(Tensor::view), &[k, n], 1).ok()?;
        let packed = Rows::right(w.view(), 0..w.len(), (k, n), |j| zeros.at(0, j)).ok()?;
        let mut consumed = smallvec![1];
        consumed.extend(zero.map(|_| 7));
        Some(Prepacked { op: Box::new(Self { packed: Some(packed), ..self.clone() }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let Ok(x) = inputs.shape(0) else { return 0 };
        self.sizes(x, inputs.shape(1).ok(), None).map_or(0, |s| flops(s.batch * s.tokens, s.input, 3 * s.hidden))
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Int8
    }

    fn packed_bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, Rows::bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;

    fn case() -> Case {
        op("QAttention").domain("com.microsoft").attr("num_heads", 2_i64)
    }

    /// Codes, weights and a bias for two sequences of three tokens, and scales.
    fn operands() -> [Tensor; 5] {
        let codes: Vec<u8> = (0..2 * 3 * 20).map(|i| (i * 89 % 256) as u8).collect();
        let weights: Vec<i8> = (0..20 * 12).map(|i| (i * 57 % 256) as u8 as i8).collect();
        let (scale, w_scale) = (Tensor::scalar(0.01_f32), Tensor::scalar(0.02_f32));
        [tensor(&[2, 3, 20], &codes), tensor(&[20, 12], &weights), tensor(&[12], &noise(12, 1)), scale, w_scale]
    }

    fn run(case: &Case, mask: Option<&Tensor>, past: Option<&Tensor>) -> Result<Vec<Tensor>, OpError> {
        let [x, w, bias, scale, w_scale] = &operands();
        case.run_some(&[Some(x), Some(w), Some(bias), Some(scale), Some(w_scale), mask, None, None, past])
    }

    #[test]
    fn what_is_masked_does_not_count() {
        let all = run(&case(), None, None).unwrap().remove(0);
        assert_eq!(all.shape(), [2, 3, 4]);
        let open = tensor(&[2, 3], &[1_i32; 6]);
        assert_eq!(run(&case(), Some(&open), None).unwrap().remove(0), all);
        // Ends as a list are the same as rows of ones and zeros, or a square of them.
        let ends = run(&case(), Some(&tensor(&[2], &[2_i32, 3])), None).unwrap().remove(0);
        let rows = [1_i32, 1, 0, 1, 1, 1];
        assert_eq!(run(&case(), Some(&tensor(&[2, 3], &rows)), None).unwrap().remove(0), ends);
        let square: Vec<i32> = rows.chunks(3).flat_map(|row| row.repeat(3)).collect();
        assert_eq!(run(&case(), Some(&tensor(&[2, 3, 3], &square)), None).unwrap().remove(0), ends);
        assert_ne!(ends, all);
        assert!(matches!(run(&case(), Some(&tensor(&[5], &[0_i32; 5])), None), Err(OpError::Shape(_))));
    }

    #[test]
    fn the_first_token_sees_itself_only() {
        let [x, w, bias, ..] = operands();
        let y = run(&case().attr("unidirectional", 1_i64), None, None).unwrap().remove(0);
        let code = |p: usize, j: usize| f32::from(x.slice::<u8>().unwrap()[p]) * f32::from(w.slice::<i8>().unwrap()[p * 12 + j]) * 0.01 * 0.02;
        let value = |j: usize| (0..20).map(|p| code(p, j)).sum::<f32>() + bias.slice::<f32>().unwrap()[j];
        let want: Vec<f32> = (8..12).map(value).collect();
        let first = Tensor::new(&[4], y.slice::<f32>().unwrap()[..4].to_vec()).unwrap();
        assert_close(&first, &[4], &want, 1e-4);
    }

    #[test]
    fn the_past_comes_first() {
        let past = tensor(&[2, 2, 2, 1, 2], &noise(16, 5));
        let found = run(&case().outputs(2), None, Some(&past)).unwrap();
        assert_eq!(found[1].shape(), [2, 2, 2, 4, 2]);
        assert_eq!(found[1].slice::<f32>().unwrap()[..2], past.slice::<f32>().unwrap()[..2]);
        assert!(run(&case(), None, Some(&tensor(&[2, 2, 1, 1, 4], &noise(16, 5)))).is_err());
        assert!(run(&case().attr("do_rotary", 1_i64), None, None).is_err());
        assert!(run(&op("QAttention").domain("com.microsoft").attr("num_heads", 3_i64), None, None).is_err());
    }
}
