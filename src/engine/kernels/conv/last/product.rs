//! Convolution with channels last as products of lines.
//!
//! From the outside in: a strip of lines, which stays in the second-level cache; a panel of output channels; a part of it, which stays in
//! the first-level cache; the strip's pixels, a tile at a time. Partial sums are stored and loaded between the parts, which is exact.

use std::ops::Range;

use super::strip::Reading;
use super::{ConvShape, Image, Job};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::PackedB;
use crate::engine::kernels::gemm::tile::{self, Rows, Tile};
use crate::engine::kernels::isa::Isa;

/// Steps of a panel that are used for all pixels of a strip before the next. With AVX-512 192 × 32 × 4 = 24 KiB, beside what a tile meets of
/// the image in a first-level cache of 32. With AVX2 a step takes a line of the panel every six cycles, which the second-level cache delivers
/// in time, and sums that are stored and loaded between parts cost more.
fn steps_at_once(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 => 768,
        Isa::Scalar | Isa::Avx512 | Isa::Amx => 192,
    }
}

pub(super) fn run(job: &Job<'_>, groups: &[PackedB], x: Image<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    let reading = Reading::new(job.shape, &x);
    let plan = Plan::new(job, &reading);
    strips(job, &reading, x, scratch, y, |lines, y| {
        groups.iter().enumerate().for_each(|(group, weights)| plan.group(group, weights, lines, y))
    });
}

/// Calls `f` with every strip of the input and its part of the output.
pub(super) fn strips(
    job: &Job<'_>,
    reading: &Reading,
    x: Image<'_>,
    scratch: &mut Vec<f32>,
    y: &mut [f32],
    mut f: impl FnMut(&Lines<'_>, &mut [f32]),
) {
    let shape = job.shape;
    let (line, pitch) = (shape.w_out * job.channels.len(), reading.pitch * shape.c_in);
    scratch.resize(scratch.len().max(reading.len(shape)), 0.0);
    let mut next = job.lines.start;
    while next < job.lines.end {
        let (sample, first) = (next / shape.h_out, next % shape.h_out);
        let mut count = reading.lines.min(shape.h_out - first).min(job.lines.end - next);
        let strip = if reading.dense && !reading.copies {
            // Samples continue one another, too.
            count = reading.lines.max(SMALL.div_ceil(shape.w_out)).min(job.lines.end - next);
            Lines { a: &x.data[next * pitch..], pitch: 0, count: 1, pixels: count * shape.w_out }
        } else {
            let a = reading.strip(shape, x, sample, first..first + count, scratch);
            let (lines, pixels) = if reading.continues() { (1, count * shape.w_out) } else { (count, shape.w_out) };
            Lines { a, pitch: pitch * shape.stride_h, count: lines, pixels }
        };
        f(&strip, &mut y[(next - job.lines.start) * line..][..count * line]);
        next += count;
    }
}

/// Pixels of images so small that those of several samples fill tiles together.
const SMALL: usize = 256;

/// Some lines of input.
pub(super) struct Lines<'a> {
    /// From what the first pixel of the first line meets.
    pub(super) a: &'a [f32],
    /// From what the first pixel of a line meets to the same of the next line.
    pub(super) pitch: usize,
    pub(super) count: usize,
    /// Pixels of each line.
    pub(super) pixels: usize,
}

/// A part of the sums: some of the runs of neighbours that a pixel meets, and some elements of each.
struct Part {
    runs: Range<usize>,
    elements: Range<usize>,
}

impl Part {
    /// How many steps of the sums, which follow one another in a panel: a part has elements of one run, or whole runs.
    fn steps(&self) -> usize {
        self.runs.len() * self.elements.len()
    }
}

/// What is the same for all strips.
struct Plan<'a> {
    job: &'a Job<'a>,
    /// From what a pixel meets to what the next one does.
    lda: usize,
    /// Where the runs that a pixel meets begin.
    runs: Vec<usize>,
    /// Elements of a run.
    len: usize,
    parts: Vec<Part>,
}

impl<'a> Plan<'a> {
    fn new(job: &'a Job<'a>, reading: &Reading) -> Plan<'a> {
        let shape = job.shape;
        let (runs, len) = runs(shape, reading.pitch * shape.c_in, shape.dilation_w > 1);
        let (mut parts, most) = (Vec::new(), steps_at_once(job.isa));
        if len > most {
            // Of equal size: a short last one would pay for loading and storing sums with little work.
            let step = len.div_ceil(len.div_ceil(most));
            for run in 0..runs.len() {
                parts.extend((0..len).step_by(step).map(|from| Part { runs: run..run + 1, elements: from..len.min(from + step) }));
            }
        } else {
            let step = most / len.max(1);
            parts.extend((0..runs.len()).step_by(step).map(|run| Part { runs: run..runs.len().min(run + step), elements: 0..len }));
        }
        if parts.is_empty() {
            parts.push(Part { runs: 0..0, elements: 0..0 });
        }
        Plan { job, lda: reading.step(shape), runs, len, parts }
    }

    /// All channels of a group.
    fn group(&self, group: usize, weights: &PackedB, lines: &Lines<'_>, y: &mut [f32]) {
        let shape = self.job.shape;
        let (c_in, c_out) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
        let a = if lines.a.is_empty() { lines.a } else { &lines.a[group * c_in..] };
        let (columns, ldc) = (self.job.columns(group), self.job.channels.len());
        for column in columns.clone().step_by(weights.panel_width()) {
            let (b, width) = weights.panels().panel(column, 0..weights.k());
            let behind = column + weights.panel_width();
            let behind = if behind < columns.end { weights.panels().panel(behind, 0..weights.k()).0 } else { &[] };
            for (index, part) in self.parts.iter().enumerate() {
                let from = part.runs.start * self.len + part.elements.start;
                // The parts of a panel follow one another, and the next panel the last of them.
                let next = if index + 1 < self.parts.len() { &b[(from + part.steps()) * width..] } else { behind };
                let mut next = next[..next.len().min(part.steps() * width)].chunks((part.steps() * width).div_ceil(lines.count).max(1));
                let panel = Panel {
                    b: &b[from * width..],
                    width,
                    columns: width.min(columns.end - column),
                    channel: group * c_out + column,
                    first: index == 0,
                    last: index + 1 == self.parts.len(),
                    part,
                };
                let a = a.get(part.elements.start..).unwrap_or_default();
                for line in 0..lines.count {
                    let y = &mut y[line * lines.pixels * ldc..][..lines.pixels * ldc];
                    let a = a.get(line * lines.pitch..).unwrap_or_default();
                    self.line(&panel, (a, lines.pixels), next.next().unwrap_or_default(), y);
                }
            }
        }
    }

    /// Some pixels, which fetch what is met next.
    fn line(&self, panel: &Panel<'_>, (a, pixels): (&[f32], usize), next: &[f32], y: &mut [f32]) {
        let (job, ldc) = (self.job, self.job.channels.len());
        let bias = job.epilogue.bias.tile(0, 0, panel.channel, panel.columns);
        let (runs, len) = (&self.runs[panel.part.runs.clone()], panel.part.elements.len());
        let mut tile = Tile {
            a,
            a_rows: Rows::Runs { lda: self.lda, runs, len },
            b: panel.b,
            b_stride: panel.width,
            width: panel.width,
            k: panel.part.steps(),
            rows: pixels,
            columns: panel.columns,
            c: &mut y[panel.channel - job.channels.start..],
            ldc,
            first: panel.first && !job.epilogue.adds,
            finish: panel.last.then_some(Epilogue { bias, ..job.epilogue }),
        };
        tile::run_fetching(job.isa, &mut tile, next);
    }
}

/// Where the runs of neighbours that a pixel meets begin, and how long each is: a line of the kernel, or a tap where `taps` are apart.
pub(super) fn runs(shape: &ConvShape, pitch: usize, taps: bool) -> (Vec<usize>, usize) {
    let line = |ky: usize| ky * shape.dilation_h * pitch;
    if shape.groups == 1 && !taps {
        return ((0..shape.kernel_h).map(line).collect(), shape.kernel_w * shape.c_in);
    }
    let taps = (0..shape.kernel_h).flat_map(|ky| (0..shape.kernel_w).map(move |kx| (ky, kx)));
    (taps.map(|(ky, kx)| line(ky) + kx * shape.dilation_w * shape.c_in).collect(), shape.c_in / shape.groups)
}

/// A part of a panel of output channels.
struct Panel<'a> {
    b: &'a [f32],
    width: usize,
    /// Channels of it, and the first.
    columns: usize,
    channel: usize,
    /// Whether sums begin, and end, with this part.
    first: bool,
    last: bool,
    part: &'a Part,
}
