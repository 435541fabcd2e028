//! The input image in the form the inner loops read: padded with zeros, and columns sorted by their remainder modulo the
//! stride, so that the pixels one kernel tap meets along an output row are always neighbours in memory.

use super::ConvShape;

/// Where the pixels of a (padded) image lie. All distances are in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Rows stored per channel.
    rows: usize,
    /// From row to row.
    row: usize,
    /// From the columns with one remainder to those with the next.
    phase: usize,
    /// Remainders stored: all, or only 0 if the kernel is one column wide.
    phases: usize,
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
                rows: shape.h_in,
                row: shape.w_in,
                phase: shape.w_in,
                phases: 1,
                row_pitch: 1,
                plane: shape.h_in * shape.w_in,
                output_row: shape.stride_h * shape.w_in,
                copies: false,
            };
        }
        // A kernel of one row (column) meets only every stride-th row (column): the others are not copied.
        let row_pitch = if shape.kernel_h == 1 { shape.stride_h } else { 1 };
        let rows = height.div_ceil(row_pitch);
        let phases = if shape.kernel_w == 1 { 1 } else { shape.stride_w };
        let phase = width.div_ceil(shape.stride_w);
        let row = phases * phase;
        Layout { rows, row, phase, phases, row_pitch, plane: rows * row, output_row: shape.stride_h / row_pitch * row, copies: true }
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

    /// Copies one channel `[h_in, w_in]` into `plane`, writing every element of it.
    pub(super) fn copy(&self, shape: &ConvShape, channel: &[f32], plane: &mut [f32]) {
        for (index, row) in plane[..self.plane].chunks_exact_mut(self.row).enumerate() {
            let y = (index * self.row_pitch).wrapping_sub(shape.pad_top);
            if y >= shape.h_in {
                row.fill(0.0);
                continue;
            }
            let source = &channel[y * shape.w_in..][..shape.w_in];
            if shape.stride_w == 1 {
                copy_row(source, shape.pad_left, row);
                continue;
            }
            for (remainder, columns) in row.chunks_exact_mut(self.phase).enumerate() {
                for (at, value) in columns.iter_mut().enumerate() {
                    let x = (at * shape.stride_w + remainder).wrapping_sub(shape.pad_left);
                    *value = source.get(x).copied().unwrap_or(0.0);
                }
            }
        }
        debug_assert!(self.phases * self.phase == self.row && self.rows * self.row == self.plane);
    }
}

/// Copies a row behind `left` zeros and fills up with zeros; what does not fit is cut off.
fn copy_row(source: &[f32], left: usize, row: &mut [f32]) {
    let left = left.min(row.len());
    let count = source.len().min(row.len() - left);
    row[..left].fill(0.0);
    row[left..left + count].copy_from_slice(&source[..count]);
    row[left + count..].fill(0.0);
}
