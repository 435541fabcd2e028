//! Some channels of a few neighbouring pixels of a depthwise convolution: their sums stay in registers.
//!
//! One body for all instruction sets, over a type of registers. Where the columns of the kernel meet neighbours in the image, what is read for a
//! pixel serves those beside it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;

use crate::engine::kernels::epilogue::{Activation, activate, activate_each};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::register::Register;
use crate::engine::kernels::vector::math;

/// What the portable set has its sums in. Of eight elements the compiler makes two registers on x86, and single numbers on aarch64.
#[cfg(target_arch = "aarch64")]
type Portable = crate::engine::kernels::register::Four;
#[cfg(not(target_arch = "aarch64"))]
type Portable = [f32; 8];

/// Pixels that are computed side by side at most: chains of multiply-adds enough to keep the units busy.
pub(super) const SIDE: usize = 8;

/// Registers of channels of a pixel that is computed alone: as many chains as with some pixels.
const ALONE: usize = 4;

/// Operands of a depthwise convolution over some pixels of a line.
#[derive(Clone, Debug)]
pub(super) struct Operands<'a> {
    /// The image.
    pub(super) x: &'a [f32],
    /// Where in `x` the lines begin that the lines of the kernel meet, downwards; none for those in the padding.
    pub(super) rows: &'a [Option<usize>],
    /// Behind that, what the first pixel meets with each column of the kernel, to the right; none for those in the padding.
    pub(super) columns: &'a [Option<usize>],
    /// Whether `columns` are neighbours in the image, and none is in the padding.
    pub(super) neighbours: bool,
    /// Elements from a column of the image to the next.
    pub(super) column: usize,
    /// Columns of the image from what a pixel meets to what the next one does.
    pub(super) stride: usize,
    /// The channel that `x` begins with.
    pub(super) first: usize,
    /// `[rows, columns, pitch]`.
    pub(super) weights: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    /// Whether the sums start from what `y` holds.
    pub(super) adds: bool,
    pub(super) activation: Activation,
    /// All channels: from pixel to pixel of the output.
    pub(super) pitch: usize,
}

/// The channels of `count` pixels, 1 to [`SIDE`]: `y` is `[count, pitch]`, of the last pixel as far as the channels go. Panics if an operand
/// is too short.
pub(super) fn pixels(isa: Isa, operands: &Operands<'_>, count: usize, channels: Range<usize>, y: &mut [f32]) {
    isa.require();
    let Operands { x, rows, columns, column, stride, first, weights, bias, pitch, .. } = *operands;
    let last = |offsets: &[Option<usize>]| offsets.iter().rev().flatten().next().copied();
    if let (Some(row), Some(at)) = (last(rows), last(columns)) {
        let end = row + at + (count - 1) * stride * column + channels.end - first;
        assert!(end <= x.len(), "what the pixels meet is in the image");
        let neighbours = columns[0].is_some_and(|first| at == first + (columns.len() - 1) * column);
        assert!(!operands.neighbours || neighbours, "columns {columns:?} are neighbours");
    }
    assert!(channels.start >= first && channels.end <= pitch && y.len() >= (count - 1) * pitch + channels.end);
    assert!(weights.len() >= rows.len() * columns.len() * pitch && bias.is_none_or(|bias| bias.len() == pitch));
    let mut rest = channels;
    let mut whole = |lanes: usize| {
        let start = rest.start;
        rest.start += rest.len() / lanes * lanes;
        start..rest.start
    };
    // SAFETY: `require` has shown that this machine has the features the functions are compiled for, the assertions that the operands
    // reach as far as the channels, which are whole registers.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                avx512(operands, count, whole(16), y);
                avx2(operands, count, whole(8), y);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(operands, count, whole(8), y),
            _ => portable(operands, count, whole(Portable::LANES), y),
        }
    }
    if !rest.is_empty() {
        instantiate!(isa, few, (operands: &Operands<'_>, count: usize, rest: Range<usize>, y: &mut [f32]));
    }
}

/// `$body` for the number of pixels.
macro_rules! by_count {
    ($count:expr, $body:ident, ($($constant:literal),+), $arguments:tt) => {
        match $count {
            1 => $body::<1 $(, $constant)+> $arguments,
            2 => $body::<2 $(, $constant)+> $arguments,
            3 => $body::<3 $(, $constant)+> $arguments,
            4 => $body::<4 $(, $constant)+> $arguments,
            5 => $body::<5 $(, $constant)+> $arguments,
            6 => $body::<6 $(, $constant)+> $arguments,
            7 => $body::<7 $(, $constant)+> $arguments,
            8 => $body::<8 $(, $constant)+> $arguments,
            count => unreachable!("{count} pixels side by side"),
        }
    };
}

/// A function for the channels of registers of a type.
macro_rules! by_registers {
    ($name:ident, $register:ty, $fma:literal $(, $features:literal)?) => {
        /// # Safety
        ///
        /// - The machine has the features it is compiled for.
        /// - `operands` and `y` are as [`pixels`] checks; the channels are whole registers.
        $(#[target_feature(enable = $features)])?
        unsafe fn $name(operands: &Operands<'_>, count: usize, channels: Range<usize>, y: &mut [f32]) {
            $(#[target_feature(enable = $features)])?
            unsafe fn beside<const P: usize, const W: usize, const S: usize>(o: &Operands<'_>, channels: Range<usize>, y: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { beside_body::<$register, P, W, S>(o, channels, y) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn apart<const P: usize, const V: usize>(o: &Operands<'_>, channels: Range<usize>, y: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { apart_body::<$register, P, V>(o, channels, y) }
            }
            const WIDE: usize = ALONE * <$register>::LANES;
            let wide = channels.start + channels.len() / WIDE * WIDE;
            // SAFETY: the caller's promise.
            unsafe {
                match (operands.neighbours, operands.columns.len(), operands.stride) {
                    (true, 3, 1) => by_count!(count, beside, (3, 1), (operands, channels.clone(), y)),
                    (true, 3, 2) => by_count!(count, beside, (3, 2), (operands, channels.clone(), y)),
                    (true, 5, 1) => by_count!(count, beside, (5, 1), (operands, channels.clone(), y)),
                    (true, 5, 2) => by_count!(count, beside, (5, 2), (operands, channels.clone(), y)),
                    _ if count == 1 => {
                        apart::<1, ALONE>(operands, channels.start..wide, y);
                        apart::<1, 1>(operands, wide..channels.end, y);
                    }
                    _ => by_count!(count, apart, (1), (operands, channels.clone(), y)),
                }
            }
            if operands.activation.bounds().is_none() {
                activate_each::<$fma>(operands.activation, y, (count, operands.pitch), channels);
            }
        }
    };
}

by_registers!(portable, Portable, false);
#[cfg(target_arch = "x86_64")]
by_registers!(avx2, __m256, true, "avx2,fma");
#[cfg(target_arch = "x86_64")]
by_registers!(avx512, __m512, true, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");

/// `P` pixels whose `W` columns are neighbours, `S` columns from pixel to pixel. What is read for one serves those beside it.
///
/// # Safety
///
/// As for [`by_registers`].
#[inline(always)]
unsafe fn beside_body<R: Register, const P: usize, const W: usize, const S: usize>(
    operands: &Operands<'_>,
    channels: Range<usize>,
    y: &mut [f32],
) {
    let Operands { x, rows, columns, column, first, weights, pitch, .. } = *operands;
    let Some(from) = columns[0] else { return };
    for channel in channels.step_by(R::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums: [[R; 1]; P] = begin(operands, channel, y);
            let mut at = weights.as_ptr().add(channel);
            for row in rows {
                let mut w = [R::zero(); W];
                for i in 0..W {
                    w[i] = R::read(at.add(i * pitch));
                }
                at = at.wrapping_add(W * pitch);
                let Some(row) = row else {
                    for p in 0..P {
                        for i in 0..W {
                            sums[p][0] = sums[p][0].plus_product(w[i], R::zero());
                        }
                    }
                    continue;
                };
                let x = x.as_ptr().add(row + from + channel - first);
                // Written out: in a loop of more than ten steps the compiler does not see which conditions hold.
                macro_rules! columns {
                    ($($j:literal)*) => {$(
                        if $j < (P - 1) * S + W {
                            let value = R::read(x.add($j * column));
                            for i in 0..W {
                                if i <= $j && ($j - i) % S == 0 && ($j - i) / S < P {
                                    sums[($j - i) / S][0] = sums[($j - i) / S][0].plus_product(w[i], value);
                                }
                            }
                        }
                    )*};
                }
                columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
            }
            end(operands, channel, sums, y);
        }
    }
}

/// `P` pixels whatever their columns are, `V` registers of channels together.
///
/// # Safety
///
/// As for [`by_registers`], and the channels are multiples of `V` registers.
#[inline(always)]
unsafe fn apart_body<R: Register, const P: usize, const V: usize>(operands: &Operands<'_>, channels: Range<usize>, y: &mut [f32]) {
    let Operands { x, rows, columns, column, stride, first, weights, pitch, .. } = *operands;
    for channel in channels.step_by(V * R::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums: [[R; V]; P] = begin(operands, channel, y);
            let mut at = weights.as_ptr().add(channel);
            for row in rows {
                for from in columns {
                    let met = row.zip(*from).map(|(row, from)| x.as_ptr().add(row + from + channel - first));
                    for v in 0..V {
                        let weight = R::read(at.add(v * R::LANES));
                        for p in 0..P {
                            let value = match met {
                                Some(x) => R::read(x.add(p * stride * column + v * R::LANES)),
                                None => R::zero(),
                            };
                            sums[p][v] = sums[p][v].plus_product(weight, value);
                        }
                    }
                    at = at.wrapping_add(pitch);
                }
            }
            end(operands, channel, sums, y);
        }
    }
}

/// What the sums start from.
///
/// # Safety
///
/// `y` has `V` registers from `channel` on, of `P` pixels.
#[inline(always)]
unsafe fn begin<R: Register, const P: usize, const V: usize>(operands: &Operands<'_>, channel: usize, y: &[f32]) -> [[R; V]; P] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[R::zero(); V]; P];
        if operands.adds {
            for p in 0..P {
                for v in 0..V {
                    sums[p][v] = R::read(y.as_ptr().add(p * operands.pitch + channel + v * R::LANES));
                }
            }
        }
        sums
    }
}

/// Adds the bias, limits the sums and puts them into `y`.
///
/// # Safety
///
/// As for [`begin`], and a bias has as many.
#[inline(always)]
unsafe fn end<R: Register, const P: usize, const V: usize>(operands: &Operands<'_>, channel: usize, mut sums: [[R; V]; P], y: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        for v in 0..V {
            let channel = channel + v * R::LANES;
            if let Some(bias) = operands.bias {
                let bias = R::read(bias.as_ptr().add(channel));
                for p in 0..P {
                    sums[p][v] = sums[p][v].plus(bias);
                }
            }
            if let Some((low, high)) = operands.activation.bounds() {
                for p in 0..P {
                    sums[p][v] = sums[p][v].limited(low, high);
                }
            }
            for p in 0..P {
                sums[p][v].write(y.as_mut_ptr().add(p * operands.pitch + channel));
            }
        }
    }
}

/// The channels that fill no register, tap by tap.
#[inline(always)]
fn few<const FMA: bool>(operands: &Operands<'_>, count: usize, rest: Range<usize>, y: &mut [f32]) {
    let Operands { x, rows, columns, column, stride, first, weights, bias, adds, activation, pitch, .. } = *operands;
    for (pixel, y) in y.chunks_mut(pitch).take(count).enumerate() {
        let y = &mut y[rest.clone()];
        if !adds {
            y.fill(0.0);
        }
        let taps = rows.iter().flat_map(|row| columns.iter().map(move |from| row.zip(*from)));
        for (met, weights) in taps.zip(weights.chunks_exact(pitch)) {
            let weights = &weights[rest.clone()];
            match met {
                Some((row, from)) => {
                    let values = &x[row + from + pixel * stride * column + rest.start - first..][..y.len()];
                    y.iter_mut().zip(values).zip(weights).for_each(|((y, value), weight)| *y = math::fma::<FMA>(*weight, *value, *y));
                }
                None => y.iter_mut().zip(weights).for_each(|(y, weight)| *y = math::fma::<FMA>(*weight, 0.0, *y)),
            }
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(&bias[rest.clone()]).for_each(|(y, bias)| *y += bias);
        }
        activate::<FMA>(activation, y);
    }
}
