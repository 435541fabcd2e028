//! Products with a matrix of few bits per weight, of com.microsoft: MatMulNBits (2, 4 and 8 bits in blocks with a scale and a
//! zero point each) and MatMulBnb4 (a table of 16 numbers).
//!
//! The weights stay packed: a strip of columns at a time is widened to f32 and multiplied.

use super::ANY;
use super::axes::require;
use super::matmul::{narrow, widened};
use super::product::flops;
use super::qlinear::expect_type;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::gemm;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

const TYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16];

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "MatMulNBits", domain: "com.microsoft", opsets: 1..=ANY, types: TYPES, build: nbits },
    OpDef { name: "MatMulBnb4", domain: "com.microsoft", opsets: 1..=ANY, types: TYPES, build: bnb4 },
];

/// Rows of codes of 2, 4 or 8 bits, low bits first, in blocks along the row.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    data: &'a [u8],
    bits: usize,
    /// Codes per row, codes per block, blocks per row.
    k: usize,
    block: usize,
    per_row: usize,
    scales: Vec<f32>,
    pub(crate) zeros: Zeros<'a>,
    /// The block of every code of a row, if that does not follow from its place.
    groups: Option<&'a [i32]>,
}

/// The zero points of blocks: the middle of the range, codes packed row by row, or a number each.
#[derive(Debug)]
pub(crate) enum Zeros<'a> {
    Middle,
    Packed(&'a [u8]),
    Numbers(Vec<f32>),
}

/// Code `index` of a row of packed ones.
pub(crate) fn code(row: &[u8], index: usize, bits: usize) -> u8 {
    let at = index * bits;
    (row[at / 8] >> (at % 8)) & (u8::MAX >> (8 - bits))
}

impl<'a> Blocks<'a> {
    /// Checks the operands of a matrix of `n` rows of `k` codes; rows of whole blocks if `padded`.
    pub(crate) fn new(
        data: &'a [u8],
        (bits, block, padded): (usize, usize, bool),
        (n, k): (usize, usize),
        scales: &[f32],
        zeros: Option<View<'a>>,
    ) -> Result<Self, OpError> {
        let per_row = k.div_ceil(block);
        let row = if padded { per_row * (block * bits).div_ceil(8) } else { (k * bits).div_ceil(8) };
        if n.checked_mul(row) != Some(data.len()) {
            return Err(OpError::shape(format!("{} bytes for {n} rows of {k} codes of {bits} bits in blocks of {block}", data.len())));
        }
        if n.checked_mul(per_row) != Some(scales.len()) {
            return Err(OpError::shape(format!("{} scales for {n} rows of {per_row} blocks", scales.len())));
        }
        let zeros = match zeros {
            None => Zeros::Middle,
            Some(zeros) => {
                let (found, packed) = (zeros.len(), zeros.dtype() == DType::U8);
                let row = if packed { (per_row * bits).div_ceil(8) } else { per_row };
                if n.checked_mul(row) != Some(found) {
                    return Err(OpError::shape(format!("zero points of shape {:?} for {n} rows of {per_row} blocks", zeros.shape())));
                }
                if packed { Zeros::Packed(zeros.slice()?) } else { Zeros::Numbers(widened(zeros)?) }
            }
        };
        Ok(Self { data, bits, k, block, per_row, scales: scales.to_vec(), zeros, groups: None })
    }

    fn zero(&self, row: usize, block: usize) -> f32 {
        match &self.zeros {
            Zeros::Middle => f32::from(1_u8 << (self.bits - 1)),
            Zeros::Packed(bytes) => {
                let width = (self.per_row * self.bits).div_ceil(8);
                f32::from(code(&bytes[row * width..], block, self.bits))
            }
            Zeros::Numbers(values) => values[row * self.per_row + block],
        }
    }
}

/// A matrix that can be widened row by row.
pub(crate) trait Widen: Sync {
    /// Writes row `row`.
    fn widen(&self, row: usize, to: &mut [f32]);
}

impl Widen for Blocks<'_> {
    fn widen(&self, row: usize, to: &mut [f32]) {
        let (bits, width) = (self.bits, self.data.len() / (self.scales.len() / self.per_row));
        let codes = &self.data[row * width..(row + 1) * width];
        let scales = &self.scales[row * self.per_row..(row + 1) * self.per_row];
        if let Some(groups) = self.groups {
            for (index, (to, &group)) in to.iter_mut().zip(groups).enumerate() {
                *to = (f32::from(code(codes, index, bits)) - self.zero(row, group as usize)) * scales[group as usize];
            }
            return;
        }
        let bytes = self.block * bits / 8;
        for (block, (to, &scale)) in to[..self.k].chunks_mut(self.block).zip(scales).enumerate() {
            let zero = self.zero(row, block);
            let codes = &codes[block * bytes..];
            match bits {
                8 => to.iter_mut().zip(codes).for_each(|(to, &code)| *to = (f32::from(code) - zero) * scale),
                4 => to.chunks_mut(2).zip(codes).for_each(|(to, &pair)| {
                    to.iter_mut().zip([pair & 15, pair >> 4]).for_each(|(to, code)| *to = (f32::from(code) - zero) * scale);
                }),
                _ => to.iter_mut().enumerate().for_each(|(i, to)| *to = (f32::from(code(codes, i, bits)) - zero) * scale),
            }
        }
    }
}

/// Columns widened at once.
const STRIP: usize = 64;

/// `y[m, n] = a[m, k] · wᵀ + bias` with `n` rows of `k` weights.
pub(crate) fn multiply(a: &[f32], w: &dyn Widen, (k, n): (usize, usize), bias: Option<&[f32]>, y: &mut [f32], ctx: &mut Context<'_>) {
    let m = y.len().checked_div(n).unwrap_or(0);
    if m == 0 {
        return;
    }
    let isa = ctx.isa;
    let work = |start: usize, strip: &mut Vec<f32>, rows: &mut Vec<f32>, scratch: &mut Vec<f32>| {
        let width = STRIP.min(n - start);
        rows.resize(width * k, 0.0);
        rows.chunks_exact_mut(k.max(1)).enumerate().for_each(|(j, to)| w.widen(start + j, to));
        strip.resize(m * width, 0.0);
        gemm(isa, m, k, width, a, false, rows, true, strip, &Epilogue::default(), scratch);
    };
    let mut store = |start: usize, strip: &[f32]| {
        let width = STRIP.min(n - start);
        for (row, values) in y.chunks_exact_mut(n).zip(strip.chunks_exact(width)) {
            let y = &mut row[start..start + width];
            match bias {
                Some(bias) => y.iter_mut().zip(values).zip(&bias[start..]).for_each(|((y, v), b)| *y = v + b),
                None => y.copy_from_slice(values),
            }
        }
    };
    let starts: Vec<usize> = (0..n).step_by(STRIP).collect();
    let parts = ctx.threads.parts(flops(m, k, n));
    let mut rows = vec![];
    if parts <= 1 {
        let mut strip = vec![];
        for start in starts {
            work(start, &mut strip, &mut rows, &mut ctx.scratch.f32);
            store(start, &strip);
        }
        return;
    }
    // A few strips per thread at a time bound what is held.
    for starts in starts.chunks(4 * parts) {
        let mut strips: Vec<(usize, Vec<f32>)> = starts.iter().map(|&start| (start, vec![])).collect();
        ctx.threads.for_each(strips.iter_mut(), |(start, strip)| work(*start, strip, &mut vec![], &mut vec![]));
        strips.iter().for_each(|(start, strip)| store(*start, strip));
    }
}

/// A size that an attribute must give.
fn size(attrs: &Attrs, name: &str) -> Result<usize, OpError> {
    let value = attrs.required(name, attrs.int(name)?)?;
    match usize::try_from(value) {
        Ok(size) if (1..1 << 31).contains(&size) => Ok(size),
        _ => Err(OpError::Attribute(format!("attribute `{name}` is {value}"))),
    }
}

#[derive(Debug)]
struct NBits {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

fn nbits(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    // Whether activations may be rounded to save time: they never are.
    attrs.ignore(&["accuracy_level"]);
    if attrs.int_or("weight_prepacked", 0)? != 0 {
        return Err(OpError::unsupported("weights in a layout of one accelerator (attribute `weight_prepacked`) are not supported"));
    }
    let bits = attrs.int_or("bits", 4)?;
    let Some(&bits) = [2_usize, 4, 8].iter().find(|&&b| bits == b as i64) else {
        return Err(OpError::unsupported(format!("weights of {bits} bits are not supported; supported are 2, 4 and 8")));
    };
    let block = size(attrs, "block_size")?;
    if !block.is_power_of_two() || block < 16 {
        return Err(OpError::Attribute(format!("attribute `block_size` is {block}, not a power of two from 16 on")));
    }
    Ok(Box::new(NBits { k: size(attrs, "K")?, n: size(attrs, "N")?, bits, block }))
}

/// The result's shape for rows of `k` numbers that become rows of `n`.
fn shape(x: &[usize], k: usize, n: usize) -> Result<Vec<Shape>, OpError> {
    match x.split_last() {
        Some((&last, rest)) if last == k => Ok(vec![rest.iter().copied().chain([n]).collect()]),
        _ => Err(OpError::shape(format!("an input of shape {x:?}, weights for rows of {k}"))),
    }
}

/// Computes in f32, whatever float type the operands have.
fn run(x: View<'_>, w: &dyn Widen, sizes: (usize, usize), bias: Option<View<'_>>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
    let y = outputs.at(0)?;
    let bias = bias.map(widened).transpose()?;
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != sizes.1) {
        return Err(OpError::shape(format!("a bias of {} elements for {} columns", bias.len(), sizes.1)));
    }
    if let Ok(x) = x.slice::<f32>() {
        multiply(x, w, sizes, bias.as_deref(), y.slice()?, ctx);
        return Ok(());
    }
    let mut wide = vec![0.0; y.shape().iter().product()];
    multiply(&widened(x)?, w, sizes, bias.as_deref(), &mut wide, ctx);
    narrow(&wide, y)
}

/// Weights that are left out: all zero.
struct Nothing;

impl Widen for Nothing {
    fn widen(&self, _: usize, to: &mut [f32]) {
        to.fill(0.0);
    }
}

impl Op for NBits {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        expect_type(inputs, 1, &[DType::U8])?;
        [2, 5].iter().try_for_each(|&i| expect_type(inputs, i, TYPES))?;
        expect_type(inputs, 3, &[DType::U8, DType::F32, DType::F16, DType::BF16])?;
        expect_type(inputs, 4, &[DType::I32])?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        shape(inputs.shape(0)?, self.k, self.n)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, b, sizes) = (inputs.at(0)?, inputs.at(1)?, (self.k, self.n));
        if b.is_empty() {
            // Zeros even of what is no number.
            let zeros = crate::engine::tensor::Tensor::zeros(x.dtype(), x.shape());
            return run(zeros.view(), &Nothing, sizes, inputs.get(5), outputs, ctx);
        }
        let mut blocks = Blocks::new(b.slice()?, (self.bits, self.block, true), (self.n, self.k), &widened(inputs.at(2)?)?, inputs.get(3))?;
        if let Some(groups) = inputs.get(4).filter(|groups| !groups.is_empty()) {
            let values = groups.slice::<i32>()?;
            let bad = values.iter().find(|&&g| usize::try_from(g).map_or(true, |g| g >= blocks.per_row));
            if let Some(bad) = bad {
                return Err(OpError::value(format!("group {bad} of {}", blocks.per_row)));
            }
            if values.len() < self.k {
                return Err(OpError::shape(format!("groups of shape {:?} for rows of {}", groups.shape(), self.k)));
            }
            blocks.groups = Some(values);
        }
        run(x, &blocks, sizes, inputs.get(5), outputs, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let rows = inputs.shape(0).map_or(0, |x| x[..x.len().saturating_sub(1)].iter().product());
        flops(rows, self.k, self.n)
    }
}

/// The numbers that the codes of the kind `fp4` stand for, times the scale of the block.
const FP4: [f32; 16] = [
    0.0, 1.0 / 192.0, 2.0 / 3.0, 1.0, 1.0 / 3.0, 0.5, 1.0 / 6.0, 0.25, -0.0, -1.0 / 192.0, -2.0 / 3.0, -1.0, -1.0 / 3.0, -0.5, -1.0 / 6.0, -0.25,
];

/// Those of the kind `nf4`: quantiles of the normal distribution, <https://arxiv.org/abs/2305.14314>.
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0, 0.079_580_3, 0.160_930_2,
    0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

#[derive(Debug)]
struct Bnb4 {
    k: usize,
    n: usize,
    block: usize,
    table: &'static [f32; 16],
}

fn bnb4(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    attrs.ignore(&["training_mode"]);
    if !attrs.bool_or("transB", true)? {
        return Err(OpError::unsupported("weights that are not transposed (attribute `transB` = 0) are not supported"));
    }
    let table = match attrs.required("quant_type", attrs.int("quant_type")?)? {
        0 => &FP4,
        1 => &NF4,
        other => return Err(OpError::Attribute(format!("attribute `quant_type` is {other}"))),
    };
    Ok(Box::new(Bnb4 { k: size(attrs, "K")?, n: size(attrs, "N")?, block: size(attrs, "block_size")?, table }))
}

/// All weights in one row of codes, the first of a pair in the high bits, with a scale per block.
struct Table<'a> {
    data: &'a [u8],
    scales: Vec<f32>,
    k: usize,
    block: usize,
    table: &'static [f32; 16],
}

impl Widen for Table<'_> {
    fn widen(&self, row: usize, to: &mut [f32]) {
        for (at, to) in (row * self.k..).zip(to) {
            let pair = self.data[at / 2];
            let code = if at % 2 == 0 { pair >> 4 } else { pair & 15 };
            *to = self.table[usize::from(code)] * self.scales[at / self.block];
        }
    }
}

impl Op for Bnb4 {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        expect_type(inputs, 1, &[DType::U8])?;
        expect_type(inputs, 2, TYPES)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        shape(inputs.shape(0)?, self.k, self.n)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, b, scales) = (inputs.at(0)?, inputs.at(1)?, inputs.at(2)?);
        let count = self.n * self.k;
        if b.len() < count.div_ceil(2) || scales.len() < count.div_ceil(self.block) {
            return Err(OpError::shape(format!("weights of shape {:?} and scales of shape {:?} for {count} codes", b.shape(), scales.shape())));
        }
        let table = Table { data: b.slice()?, scales: widened(scales)?, k: self.k, block: self.block, table: self.table };
        run(x, &table, (self.k, self.n), None, outputs, ctx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    fn case(k: i64, n: i64, bits: i64) -> super::super::testing::Case {
        op("MatMulNBits").domain("com.microsoft").attr("K", k).attr("N", n).attr("bits", bits).attr("block_size", 16_i64)
    }

    #[test]
    fn codes_of_every_width() {
        for bits in [2_usize, 4, 8] {
            // Two blocks of which the second is partly padding.
            let (m, k, n) = (3, 20, 70);
            let bytes: Vec<u8> = (0..n * 2 * 2 * bits).map(|i| (i * 37 % 251) as u8).collect();
            let (scales, zeros) = (noise(n * 2, 1), noise(n * 2, 2));
            let x = noise(m * k, 3);
            let w = |j: usize, p: usize| {
                let code = bytes[j * 4 * bits + p * bits / 8] >> (p * bits % 8) & (u8::MAX >> (8 - bits));
                (f32::from(code) - zeros[j * 2 + p / 16]) * scales[j * 2 + p / 16]
            };
            let want: Vec<f32> = (0..m * n).map(|i| (0..k).map(|p| x[i / n * k + p] * w(i % n, p)).sum()).collect();
            let (b, scales, zeros) = (tensor(&[n, 2, 2 * bits], &bytes), tensor(&[n, 2], &scales), tensor(&[n, 2], &zeros));
            let y = case(20, 70, bits as i64).one(&[&tensor(&[m, k], &x), &b, &scales, &zeros]);
            assert_close(&y, &[m, n], &want, 1e-3);
        }
    }

    #[test]
    fn zero_points_are_packed_or_in_the_middle() {
        let b = tensor(&[1, 1, 8], &[0x1f_u8, 0, 0, 0, 0, 0, 0, 0]);
        let x = tensor(&[1, 2], &[1.0_f32, 10.0]);
        let scale = tensor(&[1], &[0.5_f32]);
        assert_close(&case(2, 1, 4).one(&[&x, &b, &scale]), &[1, 1], &[3.5 - 35.0], 1e-6);
        let zero = tensor(&[1, 1], &[0xf1_u8]);
        assert_close(&case(2, 1, 4).one(&[&x, &b, &scale, &zero]), &[1, 1], &[7.0], 1e-6);
        let half = |t: &Tensor| tensor(t.shape(), &t.slice::<f32>().unwrap().iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
        let (groups, bias) = (tensor(&[2], &[0_i32, 0]), tensor(&[1], &[f16::from_f32(0.5)]));
        let y = case(2, 1, 4).one(&[&half(&x), &b, &half(&scale), &zero, &groups, &bias]);
        assert_eq!(y, tensor(&[1, 1], &[f16::from_f32(7.5)]));
        let nothing = Tensor::zeros(DType::U8, &[0, 1, 8]);
        assert_close(&case(2, 1, 4).one(&[&x, &nothing, &scale]), &[1, 1], &[0.0], 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (b, x, scale) = (tensor(&[1, 1, 8], &[0_u8; 8]), tensor(&[1, 2], &[1.0_f32; 2]), tensor(&[1], &[0.5_f32]));
        assert!(matches!(case(3, 1, 4).error(&[&x, &b, &scale]), OpError::Shape(_)));
        assert!(matches!(case(2, 2, 4).error(&[&x, &b, &scale]), OpError::Shape(_)));
        assert!(matches!(case(2, 1, 8).error(&[&x, &b, &scale]), OpError::Shape(_)));
        assert!(matches!(case(2, 1, 3).error(&[&x, &b, &scale]), OpError::Unsupported(_)));
        assert!(matches!(case(-2, 1, 4).error(&[&x, &b, &scale]), OpError::Attribute(_)));
        assert!(matches!(case(2, i64::MAX, 4).error(&[&x, &b, &scale]), OpError::Attribute(_)));
        let packed = case(2, 1, 4).attr("weight_prepacked", 1_i64);
        assert!(matches!(packed.error(&[&x, &b, &scale]), OpError::Unsupported(_)));
        let groups = tensor(&[2], &[0_i32, 1]);
        let zero = tensor(&[1], &[8_u8]);
        assert!(matches!(case(2, 1, 4).error(&[&x, &b, &scale, &zero, &groups]), OpError::Value(_)));
    }

    #[test]
    fn a_table_of_sixteen_numbers() {
        let case = |kind: i64| {
            let case = op("MatMulBnb4").domain("com.microsoft").attr("K", 2_i64).attr("N", 1_i64);
            case.attr("block_size", 16_i64).attr("quant_type", kind)
        };
        let (x, b, scale) = (tensor(&[1, 2], &[1.0_f32, 10.0]), tensor(&[1], &[0x3f_u8]), tensor(&[1], &[2.0_f32]));
        assert_close(&case(0).one(&[&x, &b, &scale]), &[1, 1], &[2.0 - 5.0], 1e-6);
        assert_close(&case(1).one(&[&x, &b, &scale]), &[1, 1], &[2.0 * -0.394_917_5 + 20.0], 1e-6);
        assert!(matches!(case(2).error(&[&x, &b, &scale]), OpError::Attribute(_)));
        assert!(matches!(case(1).attr("transB", 0_i64).error(&[&x, &b, &scale]), OpError::Unsupported(_)));
    }
}
