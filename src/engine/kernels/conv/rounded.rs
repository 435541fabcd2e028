//! Convolution with operands rounded to bf16: the weights are the left operand of a product of tiles, the pixels the right.
//!
//! Neighbours along `k` are two input channels under the same kernel tap. So the image is rounded once into planes of pairs,
//! one plane for two channels, and a line of a right tile is 16 pairs that lie side by side in such a plane: gathering a
//! panel is copying lines.

use std::cell::RefCell;
use std::ops::Range;

use super::image::Layout;
use super::{ConvShape, Job};
use crate::engine::kernels::bf16::{Line, Multiplier, PANEL, ROWS_BLOCK, RoundedLeft, STRIP, SumsBlock, TILE_LINES, finish};
use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::rows::{every_second, rounded_pairs};

/// Output channels per strip: where ranges of channels may start and end.
pub(super) const CHANNELS: usize = STRIP;

/// Packs the weights of one group, `[rows, c_in, taps]`.
pub(super) fn pack(isa: Isa, weights: &[f32], rows: usize, c_in: usize, taps: usize) -> RoundedLeft {
    let k = c_in.div_ceil(2) * taps * 2;
    let mut ordered = vec![0.0; rows * k];
    for (row, to) in ordered.chunks_exact_mut(k.max(1)).enumerate() {
        for (channel, weights) in weights[row * c_in * taps..][..c_in * taps].chunks_exact(taps).enumerate() {
            for (tap, weight) in weights.iter().enumerate() {
                to[(channel / 2 * taps + tap) * 2 + channel % 2] = *weight;
            }
        }
    }
    RoundedLeft::pack(isa, &ordered, rows, k)
}

/// Working memory, kept between calls: the image in pairs, a row of it, and a panel.
#[derive(Default)]
struct Buffers {
    image: Vec<u32>,
    row: Vec<u32>,
    panel: Vec<Line>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

pub(super) fn run(job: &Job<'_>, groups: &[RoundedLeft], x: &[f32], y: &mut [f32]) {
    BUFFERS.with_borrow_mut(|buffers| run_in(job, groups, x, y, buffers));
}

fn run_in(job: &Job<'_>, groups: &[RoundedLeft], x: &[f32], y: &mut [f32], buffers: &mut Buffers) {
    let shape = job.shape;
    let (per_group, c_in, pixels) = (shape.c_out / shape.groups, shape.c_in / shape.groups, shape.pixels());
    let (input_plane, sample_in) = (shape.h_in * shape.w_in, shape.c_in * shape.h_in * shape.w_in);
    let layout = Layout::new(shape);
    let pairs = c_in.div_ceil(2);
    // Lines are copied whole: slack behind the image.
    let len = pairs * layout.plane + Line::PAIRS;
    buffers.image.resize(len.max(buffers.image.len()), 0);
    let multiplier = Multiplier::new(job.isa);
    let image = &mut buffers.image[..len];
    if layout.copies {
        image.fill(0);
    }
    buffers.row.resize(shape.w_in.max(buffers.row.len()), 0);
    for (x, y) in x.chunks_exact(sample_in.max(1)).zip(y.chunks_exact_mut(job.channels.len() * pixels)) {
        for (group, weights) in groups.iter().enumerate() {
            let first = group * per_group;
            let channels = job.channels.start.max(first)..job.channels.end.min(first + per_group);
            if channels.is_empty() {
                continue;
            }
            for pair in 0..pairs {
                let channel = |at: usize| &x[(group * c_in + at) * input_plane..][..input_plane];
                // Without a partner a channel is its own: the weights of the second are zero.
                let channels = (channel(2 * pair), channel((2 * pair + 1).min(c_in - 1)));
                round_image(job.isa, &layout, shape, channels, &mut image[pair * layout.plane..][..layout.plane], &mut buffers.row);
            }
            let rows = channels.start - first..channels.end - first;
            let bias = match job.epilogue.bias {
                Bias::PerRow(bias) => Bias::PerRow(&bias[channels.clone()]),
                other => other,
            };
            let y = &mut y[(channels.start - job.channels.start) * pixels..][..channels.len() * pixels];
            let product = Product { job, weights, rows, layout: &layout, epilogue: Epilogue { bias, ..job.epilogue } };
            product.run(&multiplier, image, &mut buffers.panel, y);
        }
    }
}

/// The product of some rows of one group's weights with all pixels of a sample.
struct Product<'a> {
    job: &'a Job<'a>,
    weights: &'a RoundedLeft,
    rows: Range<usize>,
    layout: &'a Layout,
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    fn run(&self, multiplier: &Multiplier, image: &[u32], panel: &mut Vec<Line>, y: &mut [f32]) {
        let (pixels, steps) = (self.job.shape.pixels(), self.weights.steps());
        let mut sums = SumsBlock::ZERO;
        panel.resize(steps * 2 * TILE_LINES, Line::default());
        for pixel in (0..pixels).step_by(PANEL) {
            let width = PANEL.min(pixels - pixel);
            self.gather(image, pixel..pixel + width, panel);
            for row in self.rows.clone().step_by(ROWS_BLOCK) {
                let rows = row..self.rows.end.min(row + ROWS_BLOCK);
                let channel = row - self.rows.start;
                let y = &mut y[channel * pixels + pixel..];
                let touch = (y.as_ptr(), pixels);
                multiplier.multiply_panel(&self.weights.rows(rows.clone()), panel, touch, &mut sums, |row, sums| {
                    let count = STRIP.min(rows.len() - row);
                    let bias = self.epilogue.bias.tile(channel + row, count, 0, 0);
                    let epilogue = Epilogue { bias, ..self.epilogue };
                    finish(self.job.isa, sums, 0..count, &epilogue, &mut y[row * pixels..], (pixels, width));
                });
            }
        }
    }

    /// Fills the panel for some pixels.
    fn gather(&self, image: &[u32], pixels: Range<usize>, panel: &mut [Line]) {
        let mut copies = [[Copy::default(); Line::PAIRS]; 2];
        let mut counts = [0; 2];
        for (half, (copies, count)) in copies.iter_mut().zip(&mut counts).enumerate() {
            let start = (pixels.start + half * Line::PAIRS).min(pixels.end);
            *count = plan(self.job.shape, self.layout, start..pixels.end.min(start + Line::PAIRS), copies);
        }
        let taps = Taps {
            shape: self.job.shape,
            layout: self.layout,
            pairs: self.weights.k() / 2,
            copies: [&copies[0][..counts[0]], &copies[1][..counts[1]]],
        };
        gather(self.job.isa, &taps, image, panel);
    }
}

/// Neighbours in the image that are neighbours in a line.
#[derive(Clone, Copy, Debug, Default)]
struct Copy {
    from: usize,
    to: usize,
}

/// Cuts the pixels of a line into rows of the output; returns how many pieces there are.
fn plan(shape: &ConvShape, layout: &Layout, pixels: Range<usize>, copies: &mut [Copy; Line::PAIRS]) -> usize {
    let (mut pixel, mut count) = (pixels.start, 0);
    let mut after = usize::MAX;
    while pixel < pixels.end {
        let (row, column) = (pixel / shape.w_out, pixel % shape.w_out);
        let from = row * layout.output_row + column;
        let len = (shape.w_out - column).min(pixels.end - pixel);
        // Rows without padding between them continue one another.
        if from != after {
            copies[count] = Copy { from, to: pixel - pixels.start };
            count += 1;
        }
        after = from + len;
        pixel += len;
    }
    count
}

/// Which lines a panel holds.
struct Taps<'a> {
    shape: &'a ConvShape,
    layout: &'a Layout,
    /// Lines of a tile column: pairs of channels times kernel taps.
    pairs: usize,
    /// The pieces of the lines of either tile.
    copies: [&'a [Copy]; 2],
}

fn gather(isa: Isa, taps: &Taps<'_>, image: &[u32], panel: &mut [Line]) {
    instantiate!(isa, gather_body, (taps: &Taps<'_>, image: &[u32], panel: &mut [Line]));
}

#[inline(always)]
fn gather_body<const FMA: bool>(taps: &Taps<'_>, image: &[u32], panel: &mut [Line]) {
    let (shape, layout) = (taps.shape, taps.layout);
    let (mut plane, mut ky, mut kx) = (0, 0, 0);
    for index in 0..taps.pairs.next_multiple_of(TILE_LINES) {
        let tile = index / TILE_LINES * 2 * TILE_LINES + index % TILE_LINES;
        if index >= taps.pairs {
            // Their weights are zero; a NaN of an earlier panel would still show.
            (panel[tile], panel[tile + TILE_LINES]) = (Line::default(), Line::default());
            continue;
        }
        let image = &image[plane + layout.tap(shape, ky, kx)..];
        for (half, copies) in taps.copies.into_iter().enumerate() {
            panel[tile + half * TILE_LINES] = line(image, copies);
        }
        kx += 1;
        if kx == shape.kernel_w {
            (kx, ky) = (0, ky + 1);
            if ky == shape.kernel_h {
                (ky, plane) = (0, plane + layout.plane);
            }
        }
    }
}

/// A line of its pieces, each of which overwrites what the one before had too much.
#[inline(always)]
fn line(image: &[u32], copies: &[Copy]) -> Line {
    if let [copy] = copies
        && let Some(whole) = image[copy.from..].first_chunk()
    {
        return Line(*whole);
    }
    let mut buffer = [0_u32; 2 * Line::PAIRS];
    for copy in copies {
        let to = &mut buffer[copy.to..copy.to + Line::PAIRS];
        match image[copy.from..].first_chunk::<{ Line::PAIRS }>() {
            Some(whole) => to.copy_from_slice(whole),
            None => to.iter_mut().zip(&image[copy.from..]).for_each(|(to, from)| *to = *from),
        }
    }
    Line(*buffer.first_chunk().expect("half of the buffer"))
}

/// Rounds two channels into their places in a plane of pairs, in which padding is zero already and stays.
fn round_image(isa: Isa, layout: &Layout, shape: &ConvShape, (even, odd): (&[f32], &[f32]), plane: &mut [u32], row: &mut [u32]) {
    layout.rows(shape, plane, |y, first, step, to| {
        let columns = y * shape.w_in + first..(y + 1) * shape.w_in;
        let count = columns.len();
        let (even, odd) = (&even[columns.clone()], &odd[columns]);
        match step {
            1 => rounded_pairs(isa, even, odd, to),
            2 => {
                rounded_pairs(isa, even, odd, row);
                every_second(isa, &row[..count], to);
            }
            _ => {
                rounded_pairs(isa, even, odd, row);
                to.iter_mut().zip(row[..count].iter().step_by(step)).for_each(|(to, from)| *to = *from);
            }
        }
    });
}
