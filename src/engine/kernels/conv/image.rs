//! The input image in the form the inner loops read: padded with zeros, and columns sorted by their remainder modulo the
//! stride, so that the pixels one kernel tap meets along an output row are always neighbours in memory.

use super::ConvShape;

/// Where the pixels of a (padded) image lie. All distances are in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// From row to row.
    row: usize,
    /// From the columns with one remainder to those with the next.
    phase: usize,
    /// Input rows per stored row.
    row_pitch: usize,
    /// From channel to channel.
    pub(super) plane: usize,
    /// From one output row to the next.
    pub(super) output_row: usize,
    /// Whether this differs from the input's own layout, so that a copy is needed.
    pub(super) copies: bool,
}

impl Layout {
    pub(super) fn new(shape: &ConvShape) -> Layout {
        let height = (shape.h_out - 1) * shape.stride_h + (shape.kernel_h.max(1) - 1) * shape.dilation_h + 1;
        let width = (shape.w_out - 1) * shape.stride_w + (shape.kernel_w.max(1) - 1) * shape.dilation_w + 1;
        let padded = shape.pad_top > 0 || shape.pad_left > 0 || height > shape.h_in || width > shape.w_in;
        if !padded && shape.stride_w == 1 {
            return Layout {
                row: shape.w_in,
                phase: shape.w_in,
                row_pitch: 1,
                plane: shape.h_in * shape.w_in,
                output_row: shape.stride_h * shape.w_in,
                copies: false,
            };
        }
        // A kernel of one row (column) meets only every stride-th row (column): the others are not copied.
        let row_pitch = if shape.kernel_h == 1 { shape.stride_h } else { 1 };
        let rows = height.div_ceil(row_pitch);
        // Likewise only the columns with remainder 0.
        let phases = if shape.kernel_w == 1 { 1 } else { shape.stride_w };
        let phase = width.div_ceil(shape.stride_w);
        let row = phases * phase;
        Layout { row, phase, row_pitch, plane: rows * row, output_row: shape.stride_h / row_pitch * row, copies: true }
    }

    /// Offset of a kernel tap from the output pixel's place.
    #[inline(always)]
    pub(super) fn tap(&self, shape: &ConvShape, ky: usize, kx: usize) -> usize {
        let (row, column) = (ky * shape.dilation_h * self.row, kx * shape.dilation_w);
        if shape.stride_w == 1 {
            return row + column;
        }
        row + column % shape.stride_w * self.phase + column / shape.stride_w
    }

    /// Copies one channel `[h_in, w_in]` into its places in `plane`, which was filled with zeros once: what lies outside the
    /// image is not written.
    pub(super) fn copy(&self, shape: &ConvShape, channel: &[f32], plane: &mut [f32]) {
        self.rows(shape, plane, |y, first, step, to| {
            let from = &channel[y * shape.w_in..][..shape.w_in][first..];
            if step == 1 {
                let count = to.len().min(from.len());
                to[..count].copy_from_slice(&from[..count]);
            } else {
                to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, from)| *to = *from);
            }
        });
    }

    /// Calls `fill(y, first, step, to)` for every piece of `plane` that pixels of the image belong in: those of row `y` from
    /// column `first` on, each `step`-th, as far as `to` and the row reach.
    #[inline(always)]
    pub(super) fn rows<T>(&self, shape: &ConvShape, plane: &mut [T], mut fill: impl FnMut(usize, usize, usize, &mut [T])) {
        for (index, row) in plane[..self.plane].chunks_exact_mut(self.row).enumerate() {
            let y = (index * self.row_pitch).wrapping_sub(shape.pad_top);
            if y >= shape.h_in {
                continue;
            }
            if shape.stride_w == 1 {
                let left = shape.pad_left.min(row.len());
                fill(y, 0, 1, &mut row[left..]);
                continue;
            }
            for (remainder, columns) in row.chunks_exact_mut(self.phase).enumerate() {
                // The first column of this remainder that lies in the image, and its place there.
                let skipped = shape.pad_left.saturating_sub(remainder).div_ceil(shape.stride_w).min(columns.len());
                let x = skipped * shape.stride_w + remainder - shape.pad_left.min(skipped * shape.stride_w + remainder);
                fill(y, x.min(shape.w_in), shape.stride_w, &mut columns[skipped..]);
            }
        }
    }
}
