//! Convolution of codes whose channels are neighbours (NHWC): the product of pixels with weights `[c_out, kernel, c_in]`.
//!
//! Where the channels fill steps of 64 and the stride is 1, no pixel is copied for a tap of the kernel: a tap is an offset into the
//! padded image, the same for all pixels. The rows of the product then run over the padded image line by line, and those that lie
//! in the padding are left out of the output. Otherwise a block of pixels at a time is gathered into rows.

use std::cell::RefCell;
use std::ops::Range;

use super::{Finish, Left, PackedInt8, RightCodes, STEP, STRIP, Strip, dense, multiply};
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::isa::Isa;

/// The input of a convolution of one group.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// `[n, c_in, h_in, w_in]`, or `[n, h_in, w_in, c_in]`.
    pub data: &'a [u8],
    /// Whether the channels come last.
    pub channels_last: bool,
    /// Bits to turn over: [`super::FLIP`] for signed codes, else 0.
    pub flip: u8,
    /// What lies in the padding, bits turned over.
    pub zero: u8,
}

/// Packs weights `[c_out, c_in, kernel_h, kernel_w]` with one zero point or one per output channel.
pub fn pack(isa: Isa, weights: RightCodes<'_>, (c_out, c_in, taps): (usize, usize, usize), zeros: &[i32]) -> PackedInt8 {
    fn ordered<T: Copy>(weights: &[T], c_in: usize, taps: usize) -> Vec<T> {
        let filters = weights.chunks_exact((c_in * taps).max(1));
        filters.flat_map(|filter| (0..taps).flat_map(move |tap| (0..c_in).map(move |c| filter[c * taps + tap]))).collect()
    }
    let sizes = (c_in * taps, c_out);
    match weights {
        _ if taps == 1 => PackedInt8::pack(isa, weights, sizes, true, zeros),
        RightCodes::Signed(w) => PackedInt8::pack(isa, RightCodes::Signed(&ordered(w, c_in, taps)), sizes, true, zeros),
        RightCodes::Unsigned(w) => PackedInt8::pack(isa, RightCodes::Unsigned(&ordered(w, c_in, taps)), sizes, true, zeros),
    }
}

/// An input made ready: all parts of a convolution share it.
#[derive(Debug)]
pub struct Prepared<'a> {
    shape: &'a ConvShape,
    data: &'a [u8],
    /// Height and width of what `data` holds of a sample.
    plane: (usize, usize),
    /// Whether taps are offsets.
    direct: bool,
}

/// Makes an input ready for [`run`]; `buffer` holds the padded image where one is needed. Panics unless the shape has one group and
/// fits the data.
pub fn prepare<'a>(shape: &'a ConvShape, image: &Image<'a>, buffer: &'a mut Vec<u8>) -> Prepared<'a> {
    assert_eq!(shape.groups, 1, "groups");
    assert_eq!(image.data.len(), shape.input_len(), "length of the input");
    let point = (shape.kernel_h, shape.kernel_w) == (1, 1);
    let (need_h, need_w) = (
        (shape.h_out.max(1) - 1) * shape.stride_h + (shape.kernel_h - 1) * shape.dilation_h + 1,
        (shape.w_out.max(1) - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w + 1,
    );
    let plane = (need_h.max(shape.pad_top + shape.h_in), need_w.max(shape.pad_left + shape.w_in));
    // Offsets of taps need whole steps; a single tap may run over into the next pixel, which meets zeros.
    let direct = (shape.stride_h, shape.stride_w) == (1, 1) && (point || shape.c_in.is_multiple_of(STEP));
    let as_it_is = image.channels_last && image.flip == 0 && plane == (shape.h_in, shape.w_in);
    if as_it_is {
        return Prepared { shape, data: image.data, plane, direct };
    }
    let len = shape.n * plane.0 * plane.1 * shape.c_in;
    buffer.clear();
    buffer.resize(len, image.zero);
    for sample in 0..shape.n {
        let from = &image.data[sample * shape.c_in * shape.h_in * shape.w_in..][..shape.c_in * shape.h_in * shape.w_in];
        let to = &mut buffer[sample * plane.0 * plane.1 * shape.c_in..][..plane.0 * plane.1 * shape.c_in];
        copy_sample(shape, image, from, plane, to);
    }
    Prepared { shape, data: buffer, plane, direct }
}

fn copy_sample(shape: &ConvShape, image: &Image<'_>, from: &[u8], plane: (usize, usize), to: &mut [u8]) {
    let (c, width) = (shape.c_in, shape.w_in);
    for y in 0..shape.h_in {
        let to = &mut to[((shape.pad_top + y) * plane.1 + shape.pad_left) * c..][..width * c];
        if image.channels_last {
            let from = &from[y * width * c..][..width * c];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ image.flip);
            continue;
        }
        for channel in 0..c {
            let from = &from[(channel * shape.h_in + y) * width..][..width];
            to[channel..].iter_mut().step_by(c).zip(from).for_each(|(to, from)| *to = from ^ image.flip);
        }
    }
}

/// Pixels that are gathered at once.
const GATHERED: usize = 4 * STRIP;

thread_local! {
    /// Gathered pixels.
    static ROWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Some lines of pixels (of `n * h_out`) and some output channels, as [`multiply`] takes them. The output of `finish` begins with
/// the first of the lines: a row for each pixel.
pub fn run(prepared: &Prepared<'_>, weights: &PackedInt8, lines: Range<usize>, channels: Range<usize>, finish: &mut Finish<'_>) {
    let Prepared { shape, data, plane, direct } = *prepared;
    assert_eq!(weights.k(), shape.c_in * shape.kernel_h * shape.kernel_w, "weights against the shape");
    assert!(lines.end <= shape.n * shape.h_out, "lines {lines:?}");
    if lines.is_empty() || shape.w_out == 0 {
        return;
    }
    if direct {
        let offsets = offsets(shape, plane.1);
        let left = Left { data, stride: shape.c_in, offsets: &offsets };
        return multiply(&left, &strips(shape, plane, lines), weights, channels, finish);
    }
    let pixels = lines.start * shape.w_out..lines.end * shape.w_out;
    let offsets = dense(weights.k());
    let stride = offsets.len() * STEP;
    ROWS.with_borrow_mut(|rows| {
        for first in pixels.clone().step_by(GATHERED) {
            let block = first..pixels.end.min(first + GATHERED);
            // Room for a run that is copied in pieces of 32, and for the rows of whole tiles.
            rows.resize(rows.len().max(GATHERED * stride + 64), 0);
            gather(prepared, block.clone(), stride, rows);
            let mut strips = Strip::of(0..block.len());
            let before = (block.start - pixels.start) as u32;
            strips.iter_mut().for_each(|strip| strip.to.iter_mut().for_each(|to| *to += before));
            multiply(&Left { data: rows, stride, offsets: &offsets }, &strips, weights, channels.clone(), finish);
        }
    });
}

/// Where each step of a pixel begins: the taps line by line, the channels of each in steps.
fn offsets(shape: &ConvShape, width: usize) -> Vec<usize> {
    let taps = (0..shape.kernel_h).flat_map(|y| (0..shape.kernel_w).map(move |x| (y, x)));
    let tap = |(y, x): (usize, usize)| (y * shape.dilation_h * width + x * shape.dilation_w) * shape.c_in;
    taps.flat_map(|at| (0..shape.c_in.div_ceil(STEP)).map(move |step| tap(at) + step * STEP)).collect()
}

/// Strips over the padded image, from the first pixel of the first line to the last of the last, each sample for itself.
fn strips(shape: &ConvShape, (height, width): (usize, usize), lines: Range<usize>) -> Vec<Strip> {
    let mut strips = Vec::new();
    let mut line = lines.start;
    while line < lines.end {
        let (sample, y) = (line / shape.h_out, line % shape.h_out);
        let count = (shape.h_out - y).min(lines.end - line);
        let first = (sample * height + y) * width;
        let rows = first..first + (count - 1) * width + shape.w_out;
        let target = |row: usize| {
            let (down, x) = ((row - first) / width, (row - first) % width);
            if x < shape.w_out { ((line - lines.start + down) * shape.w_out + x) as u32 } else { Strip::SKIP }
        };
        for start in rows.clone().step_by(STRIP) {
            let count = STRIP.min(rows.end - start);
            let mut to = [Strip::SKIP; STRIP];
            to.iter_mut().enumerate().take(count).for_each(|(i, to)| *to = target(start + i));
            strips.push(Strip { start, count, to });
        }
        line += count;
    }
    strips
}

/// Copies what each of some pixels meets into a row.
fn gather(prepared: &Prepared<'_>, pixels: Range<usize>, stride: usize, rows: &mut [u8]) {
    let Prepared { shape, data, plane, .. } = *prepared;
    // Neighbours along the kernel are neighbours in the image.
    let (runs, len) = if shape.dilation_w == 1 { (1, shape.kernel_w * shape.c_in) } else { (shape.kernel_w, shape.c_in) };
    let taps = (0..shape.kernel_h).flat_map(|ky| (0..runs).map(move |kx| (ky, kx)));
    let froms: Vec<usize> = taps.map(|(ky, kx)| (ky * shape.dilation_h * plane.1 + kx * shape.dilation_w) * shape.c_in).collect();
    let last = froms.last().copied().unwrap_or(0);
    let (mut line, mut x) = (pixels.start / shape.w_out, pixels.start % shape.w_out);
    for row in 0..pixels.len() {
        let (sample, y) = (line / shape.h_out, line % shape.h_out);
        let first = ((sample * plane.0 + y * shape.stride_h) * plane.1 + x * shape.stride_w) * shape.c_in;
        let to = &mut rows[row * stride..];
        let rounded = len.next_multiple_of(PIECE);
        // What is written too much is overwritten by the next run, or by the next pixel, or lies beyond `k`, where it meets zeros.
        if first + last + rounded <= data.len() && (froms.len() - 1) * len + rounded <= to.len() {
            copy_pieces(&data[first..], &froms, to, len);
        } else {
            for (from, to) in froms.iter().zip(to.chunks_exact_mut(len)) {
                to.copy_from_slice(&data[first + from..][..len]);
            }
        }
        x += 1;
        if x == shape.w_out {
            (line, x) = (line + 1, 0);
        }
    }
}

/// Bytes that are copied at once.
const PIECE: usize = 32;

/// Copies runs of `len` bytes that begin at `froms` behind each other, in whole pieces.
#[inline]
fn copy_pieces(data: &[u8], froms: &[usize], to: &mut [u8], len: usize) {
    for (run, &from) in froms.iter().enumerate() {
        for at in (0..len).step_by(PIECE) {
            let piece: &[u8; PIECE] = data[from + at..].first_chunk().expect("the caller has checked the room");
            *to[run * len + at..].first_chunk_mut().expect("the caller has checked the room") = *piece;
        }
    }
}
