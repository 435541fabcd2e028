//! The lines of an image that some lines of the output meet: where they lie, or a copy of them with the padding around.

use std::ops::Range;

use super::{ConvShape, Image};

/// Elements of a strip, 512 KiB: it stays in the second-level cache while one panel of weights after the other passes by, and with the
/// small images behind deep layers it is all of them, so that their weights are read once.
const STRIP: usize = 1 << 17;

/// How the lines of a convolution are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Whether the lines are copied.
    pub(super) copies: bool,
    /// Whether each pixel of the output meets one of the strip, in the same order: lines continue one another.
    pub(super) dense: bool,
    /// Pixels from line to line.
    pub(super) pitch: usize,
    /// Lines of the output whose input is there at once.
    pub(super) lines: usize,
}

impl Reading {
    pub(super) fn new(shape: &ConvShape, x: &Image<'_>) -> Reading {
        let (height, width) = reach(shape, shape.h_out);
        let padded = shape.pad_top > 0 || shape.pad_left > 0 || height > shape.h_in || width > shape.w_in;
        let dense = (shape.kernel_h, shape.kernel_w) == (1, 1) && !padded;
        let strided = (shape.stride_h, shape.stride_w) != (1, 1) || (shape.h_out, shape.w_out) != (shape.h_in, shape.w_in);
        let copies = padded || !x.channels_last || dense && strided;
        let pitch = match (dense, copies) {
            (true, _) => shape.w_out,
            (_, true) => width,
            _ => shape.w_in,
        };
        let line = (pitch * shape.c_in).max(1);
        let (first, step) = if dense { (1, 1) } else { (reach(shape, 1).0, shape.stride_h) };
        let lines = (STRIP / line).saturating_sub(first) / step + 1;
        Reading { copies, dense, pitch, lines: lines.min(shape.h_out) }
    }

    /// Elements from what a pixel meets to what the next one does. Lines of single pixels continue one another.
    pub(super) fn step(&self, shape: &ConvShape) -> usize {
        match (self.dense, self.continues()) {
            (true, _) => shape.c_in,
            (_, true) => shape.stride_h * shape.c_in,
            _ => shape.stride_w * shape.c_in,
        }
    }

    /// Whether the pixels of all lines lie equally far apart.
    pub(super) fn continues(&self) -> bool {
        self.dense || self.pitch == 1
    }

    /// Elements of the copy that [`Reading::strip`] makes.
    pub(super) fn len(&self, shape: &ConvShape) -> usize {
        if self.copies { self.lines_in(shape, self.lines) * self.pitch * shape.c_in } else { 0 }
    }

    /// Lines of the strip for some neighbouring lines of the output.
    fn lines_in(&self, shape: &ConvShape, lines: usize) -> usize {
        if self.dense { lines } else { reach(shape, lines).0 }
    }

    /// The input of some lines of a sample's output, from the first line and column that the first pixel meets. A copy is put into
    /// `buffer`, of [`Reading::len`] elements.
    pub(super) fn strip<'s>(
        &self,
        shape: &ConvShape,
        x: Image<'s>,
        sample: usize,
        lines: Range<usize>,
        buffer: &'s mut [f32],
    ) -> &'s [f32] {
        let len = shape.c_in * shape.h_in * shape.w_in;
        let data = &x.data[sample * len..][..len];
        if !self.copies {
            return &data[lines.start * shape.stride_h * shape.w_in * shape.c_in..];
        }
        let line = self.pitch * shape.c_in;
        let copied = &mut buffer[..self.lines_in(shape, lines.len()) * line];
        if line == 0 {
            return copied;
        }
        let step = if self.dense { shape.stride_h } else { 1 };
        for (index, to) in copied.chunks_exact_mut(line).enumerate() {
            let row = (lines.start * shape.stride_h + index * step).wrapping_sub(shape.pad_top);
            if row >= shape.h_in {
                to.fill(0.0);
                continue;
            }
            let to = between_padding(to, shape.c_in, shape.pad_left, shape.w_in);
            let step = if self.dense { shape.stride_w } else { 1 };
            match x.channels_last {
                false => turn(shape, data, row, step, to),
                true if step == 1 => to.copy_from_slice(&data[row * shape.w_in * shape.c_in..][..to.len()]),
                true => {
                    let from = data[row * shape.w_in * shape.c_in..].chunks(shape.c_in).step_by(step);
                    to.chunks_exact_mut(shape.c_in).zip(from).for_each(|(to, from)| to.copy_from_slice(from));
                }
            }
        }
        copied
    }
}

/// Fills what a line of pixels of `channels` has beside the image with zeros, and returns the rest: `width` pixels behind the first `left`, as
/// far as the line goes.
pub(super) fn between_padding(line: &mut [f32], channels: usize, left: usize, width: usize) -> &mut [f32] {
    let pixels = line.len() / channels;
    let (start, end) = (left.min(pixels) * channels, (left + width).min(pixels) * channels);
    line[..start].fill(0.0);
    line[end..].fill(0.0);
    &mut line[start..end]
}

/// Height and width of the image with padding that `lines` whole lines of the output meet.
pub(super) fn reach(shape: &ConvShape, lines: usize) -> (usize, usize) {
    let extent = |output: usize, stride: usize, kernel: usize, dilation: usize| (output - 1) * stride + (kernel.max(1) - 1) * dilation + 1;
    (extent(lines, shape.stride_h, shape.kernel_h, shape.dilation_h), extent(shape.w_out, shape.stride_w, shape.kernel_w, shape.dilation_w))
}

/// Copies columns of a row, each `step`-th, of an image with its channels first.
pub(super) fn turn(shape: &ConvShape, data: &[f32], row: usize, step: usize, to: &mut [f32]) {
    let plane = shape.h_in * shape.w_in;
    let channel = |c: usize| data[c * plane + row * shape.w_in..][..shape.w_in].iter().step_by(step);
    if shape.c_in == 3 && step == 1 {
        // Pictures.
        let channel = |c: usize| &data[c * plane + row * shape.w_in..][..shape.w_in];
        let (red, green, blue) = (channel(0), channel(1), channel(2));
        for (((to, red), green), blue) in to.as_chunks_mut::<3>().0.iter_mut().zip(red).zip(green).zip(blue) {
            *to = [*red, *green, *blue];
        }
        return;
    }
    for c in 0..shape.c_in {
        to[c..].iter_mut().step_by(shape.c_in).zip(channel(c)).for_each(|(to, from)| *to = *from);
    }
}
