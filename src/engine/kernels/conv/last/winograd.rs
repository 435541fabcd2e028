//! Convolution of 3 by 3 with stride 1 by Winograd's minimal filtering F(2×2, 3×3): 16 products for 4 pixels of the output, where the
//! definition has 36.
//!
//! With the matrices of Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks* (2015), section 4.1, the 2 by 2 outputs of a
//! tile are `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`: `g` are the 9 weights, `d` the 4 by 4 pixels that the tile meets, and the products are summed
//! over the input channels before the last step. For each of the 16 places of a tile these sums are a matrix product of tiles and
//! channels. From the outside in: some tiles, whose `Bᵀ d B` stay in the second-level cache; a panel of output channels; the places.
//!
//! The factors are 1 and ½, so that sums lose no more than a bit or two to the definition's. An output that is not finite, which by its
//! neighbours in the tile it may be although its own pixels are, is computed by the definition.

use std::cell::Cell;
use std::ops::Range;

use super::strip::turn;
use super::{ConvShape, Image, Job};
use crate::engine::kernels::epilogue::{Bias, activate};
use crate::engine::kernels::gemm::PackedB;
use crate::engine::kernels::gemm::tile::{self as dense, Rows, Tile, WIDTH_MAX};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::stored::Source;
use crate::engine::kernels::vector::math;

/// Places of a tile, 4 by 4.
const PLACES: usize = 16;

/// Lines, and columns, of a tile's output.
pub(super) const LINES: usize = 2;

/// Taps of the kernel, 3 by 3.
const TAPS: usize = 9;

/// Channels that are transformed together; divides the input channels.
const LANES: usize = 8;

/// Elements of the transformed pixels of some tiles, 256 KiB: half of a second-level cache.
const BLOCK: usize = 1 << 16;

/// Tiles of a block at least, if there are as many.
const TILES_LEAST: usize = 24;

/// Weights `G g Gᵀ`: a right operand `[place * c_in, c_out]`.
#[derive(Clone, Debug)]
pub(super) struct Winograd(PackedB);

impl Winograd {
    /// Packs `weights`, `[c_out, c_in, 3, 3]`; `None` where the definition is better: for few channels, whose products are so short that
    /// the transforms take what is gained, and for weights that are not finite.
    pub(super) fn pack(isa: Isa, weights: &(impl Source + ?Sized), (c_out, c_in): (usize, usize)) -> Option<Winograd> {
        const LEAST: usize = 32;
        if c_in < LEAST || c_out < LEAST || !c_in.is_multiple_of(LANES) {
            return None;
        }
        let size = (PLACES * c_in, c_out);
        let packed =
            PackedB::pack_with(isa, size, weights, format_args!("winograd {c_in} {c_out}"), |weights, column, width, columns, panel| {
                let mut finite = true;
                for c in 0..c_in {
                    for j in 0..columns {
                        let g = weights[((column + j) * c_in + c) * TAPS..].first_chunk().expect("checked: the weights have 9 taps");
                        let values = transformed_weights(g);
                        finite &= values.iter().sum::<f32>().is_finite();
                        for (place, value) in values.iter().enumerate() {
                            panel[(place * c_in + c) * width + j] = *value;
                        }
                    }
                }
                finite
            });
        packed.map(Winograd)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    pub(super) fn panel_width(&self) -> usize {
        self.0.panel_width()
    }
}

/// `G g Gᵀ` with `G = [1 0 0; ½ ½ ½; ½ -½ ½; 0 0 1]`.
fn transformed_weights(g: &[f32; TAPS]) -> [f32; PLACES] {
    let line = |a: f32, b: f32, c: f32| {
        let (ends, middle) = (0.5 * (a + c), 0.5 * b);
        [a, ends + middle, ends - middle, c]
    };
    let columns: [[f32; 4]; 3] = std::array::from_fn(|j| line(g[j], g[3 + j], g[6 + j]));
    let rows: [[f32; 4]; 4] = std::array::from_fn(|i| line(columns[0][i], columns[1][i], columns[2][i]));
    std::array::from_fn(|place| rows[place / 4][place % 4])
}

/// `g` of `G g Gᵀ`, but for rounding, for some channels.
#[inline(always)]
fn original_weights(u: &[[f32; LANES]; PLACES]) -> [[f32; LANES]; TAPS] {
    #[inline(always)]
    fn line(u: [&[f32; LANES]; 4]) -> [[f32; LANES]; 3] {
        [*u[0], minus(u[1], u[2]), *u[3]]
    }
    let mut rows = [[[0.0; LANES]; 3]; 4];
    for i in 0..4 {
        rows[i] = line([&u[4 * i], &u[4 * i + 1], &u[4 * i + 2], &u[4 * i + 3]]);
    }
    let mut weights = [[0.0; LANES]; TAPS];
    for j in 0..3 {
        [weights[j], weights[3 + j], weights[6 + j]] = line([&rows[0][j], &rows[1][j], &rows[2][j], &rows[3][j]]);
    }
    weights
}

thread_local! {
    /// The transformed pixels and the sums of the convolution at hand, kept for the next.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

pub(super) fn run(job: &Job<'_>, weights: &Winograd, x: Image<'_>, y: &mut [f32]) {
    let (shape, blocks) = (job.shape, Blocks::new(job));
    let len = shape.c_in * shape.h_in * shape.w_in;
    let turned = if x.channels_last { 0 } else { blocks.samples_most() * len };
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(turned + (1 + PLACES) * shape.c_in + blocks.len()), 0.0);
    let (images, rest) = scratch.split_at_mut(turned);
    let (zeros, rest) = rest.split_at_mut(shape.c_in);
    let (around, rest) = rest.split_at_mut(PLACES * shape.c_in);
    zeros.fill(0.0);
    let mut held = 0..0;
    for tiles in blocks.each() {
        let samples = blocks.samples(&tiles);
        if !x.channels_last && held != samples {
            for (sample, to) in samples.clone().zip(images.chunks_exact_mut(len.max(1))) {
                let data = &x.data[sample * len..][..len];
                to.chunks_exact_mut((shape.w_in * shape.c_in).max(1)).enumerate().for_each(|(row, to)| turn(shape, data, row, 1, to));
            }
            held = samples.clone();
        }
        let images = if x.channels_last { &x.data[samples.start * len..] } else { &*images };
        let work = Work { job, images, first: samples.start, zeros, weights: &weights.0 };
        blocks.run(&work, tiles, around, rest, y);
    }
    SCRATCH.set(scratch);
}

/// How the tiles of a job are divided. Those of all samples are counted on, so that small images fill blocks together.
struct Blocks {
    tiles: Range<usize>,
    /// Tiles of a sample.
    per_sample: usize,
    /// Tiles of a block at most.
    size: usize,
    c_in: usize,
    width: usize,
}

impl Blocks {
    fn new(job: &Job<'_>) -> Blocks {
        let (shape, dense, lines) = (job.shape, dense::shape(job.isa), &job.lines);
        let across = shape.w_out.div_ceil(2);
        let per_sample = shape.h_out.div_ceil(LINES) * across;
        // The first tile that has pixels of a line.
        let first = |line: usize| line / shape.h_out * per_sample + line % shape.h_out / LINES * across;
        let tiles = first(lines.start)..first(lines.end - 1) + across;
        // Of many channels several tiles of rows, for which the weights, more than a cache holds, are read once.
        let most = (BLOCK / (PLACES * shape.c_in)).max(TILES_LEAST) / dense.rows * dense.rows;
        // Blocks of equal size, in whole tiles of rows if there are several.
        let size = match tiles.len().div_ceil(most) {
            1 => tiles.len(),
            count => tiles.len().div_ceil(count).next_multiple_of(dense.rows),
        };
        Blocks { tiles, per_sample, size, c_in: shape.c_in, width: dense.width }
    }

    fn each(&self) -> impl Iterator<Item = Range<usize>> {
        self.tiles.clone().step_by(self.size).map(|first| first..self.tiles.end.min(first + self.size))
    }

    /// The samples that tiles belong to, and of how many those of a block may be.
    fn samples(&self, tiles: &Range<usize>) -> Range<usize> {
        tiles.start / self.per_sample..(tiles.end - 1) / self.per_sample + 1
    }

    fn samples_most(&self) -> usize {
        self.each().map(|tiles| self.samples(&tiles).len()).max().unwrap_or(0)
    }

    /// From the pixels of a tile to those of the next: odd in lines of the cache, so that rows spread over its sets.
    fn pitch(&self) -> usize {
        self.c_in + 16
    }

    fn len(&self) -> usize {
        PLACES * self.size * (self.pitch() + self.width)
    }

    fn run(&self, work: &Work<'_>, tiles: Range<usize>, around: &mut [f32], scratch: &mut [f32], y: &mut [f32]) {
        let (job, pitch) = (work.job, self.pitch());
        let (pixels, sums) = scratch[..self.len()].split_at_mut(PLACES * self.size * pitch);
        work.transform(tiles.clone(), around, (pixels, self.size * pitch, pitch));
        for column in job.channels.clone().step_by(self.width) {
            let columns = column..job.channels.end.min(column + self.width);
            for place in 0..PLACES {
                let pixels = &pixels[place * self.size * pitch..][..self.size * pitch];
                let sums = &mut sums[place * self.size * self.width..][..self.size * self.width];
                work.multiply(place, column, (pixels, pitch), (sums, self.width), tiles.len());
            }
            work.finish(tiles.clone(), columns, Sums { values: sums, plane: self.size * self.width, width: self.width }, y);
        }
    }
}

/// What the tiles of a block meet.
struct Work<'a> {
    job: &'a Job<'a>,
    /// `[samples, h_in, w_in, c_in]`, from a sample on.
    images: &'a [f32],
    first: usize,
    /// A pixel of the padding.
    zeros: &'a [f32],
    weights: &'a PackedB,
}

/// Where a tile lies: the sample, and the line and column of its first pixel.
#[derive(Clone, Copy)]
struct Origin {
    sample: usize,
    line: usize,
    column: usize,
}

impl Work<'_> {
    /// `[h_in, w_in, c_in]` of a sample.
    #[inline(always)]
    fn image(&self, sample: usize) -> &[f32] {
        let len = self.job.shape.h_in * self.job.shape.w_in * self.job.shape.c_in;
        &self.images[(sample - self.first) * len..][..len]
    }

    /// The pixel that lies so far from that of a tile, by places to the right and down.
    #[inline(always)]
    fn pixel(&self, origin: Origin, place: usize) -> &[f32] {
        let ConvShape { c_in, h_in, w_in, pad_top, pad_left, .. } = *self.job.shape;
        let (row, column) = ((origin.line + place / 4).wrapping_sub(pad_top), (origin.column + place % 4).wrapping_sub(pad_left));
        if row < h_in && column < w_in { &self.image(origin.sample)[(row * w_in + column) * c_in..][..c_in] } else { self.zeros }
    }

    fn origin(&self, tile: usize) -> Origin {
        let (across, down) = (self.job.shape.w_out.div_ceil(2), self.job.shape.h_out.div_ceil(LINES));
        let (line, sample) = (tile / across % down, tile / across / down);
        Origin { sample, line: line * LINES, column: tile % across * 2 }
    }

    /// `Bᵀ d B` of some tiles: of each place a row of channels for each tile.
    fn transform(&self, tiles: Range<usize>, around: &mut [f32], (to, plane, pitch): (&mut [f32], usize, usize)) {
        let ConvShape { c_in, h_in, w_in, pad_top, pad_left, .. } = *self.job.shape;
        for (index, tile) in tiles.enumerate() {
            let origin = self.origin(tile);
            let to = Transformed { values: &mut to[index * pitch..], plane };
            let (row, left) = (origin.line.wrapping_sub(pad_top), origin.column.wrapping_sub(pad_left));
            if row < h_in && row + 4 <= h_in && left < w_in && left + 4 <= w_in {
                let pixels = Pixels { values: &self.image(origin.sample)[(row * w_in + left) * c_in..], pitch: w_in * c_in };
                transform_pixels(self.job.isa, c_in, pixels, to);
            } else {
                self.gather(origin, around);
                transform_pixels(self.job.isa, c_in, Pixels { values: around, pitch: 4 * c_in }, to);
            }
        }
    }

    /// Copies the pixels that a tile meets, with those of the padding.
    fn gather(&self, origin: Origin, to: &mut [f32]) {
        #[inline(always)]
        fn body<const FMA: bool>(work: &Work<'_>, origin: Origin, to: &mut [f32]) {
            for (place, to) in to.chunks_exact_mut(work.job.shape.c_in).enumerate() {
                let pixel = work.pixel(origin, place);
                to.as_chunks_mut::<LANES>().0.iter_mut().zip(pixel.as_chunks().0).for_each(|(to, pixel)| *to = *pixel);
            }
        }
        let work = self;
        instantiate!(self.job.isa, body, (work: &Work<'_>, origin: Origin, to: &mut [f32]));
    }

    /// The sums of a place, over the channels, for a panel.
    fn multiply(&self, place: usize, column: usize, (a, pitch): (&[f32], usize), (c, ldc): (&mut [f32], usize), tiles: usize) {
        let (isa, k, panels) = (self.job.isa, self.job.shape.c_in, self.weights.panels());
        let (b, width) = panels.panel(column, place * k..(place + 1) * k);
        let next = match place + 1 {
            PLACES if column + width >= panels.n => &[],
            PLACES => panels.panel(column + width, 0..k).0,
            place => panels.panel(column, place * k..(place + 1) * k).0,
        };
        let mut tile = Tile {
            a,
            a_rows: Rows::Strided(pitch),
            b,
            b_stride: width,
            width,
            k,
            rows: tiles,
            columns: width,
            c,
            ldc,
            first: true,
            finish: None,
        };
        dense::run_fetching(isa, &mut tile, next);
    }

    /// The outputs of some tiles, of the channels of a panel.
    fn finish(&self, tiles: Range<usize>, columns: Range<usize>, sums: Sums<'_>, y: &mut [f32]) {
        #[inline(always)]
        fn body<const FMA: bool>(work: &Work<'_>, tiles: Range<usize>, columns: Range<usize>, sums: Sums<'_>, y: &mut [f32]) {
            work.finish_tiles::<FMA>(tiles, columns, sums, y);
        }
        let work = self;
        instantiate!(self.job.isa, body, (work: &Work<'_>, tiles: Range<usize>, columns: Range<usize>, sums: Sums<'_>, y: &mut [f32]));
    }

    #[inline(always)]
    fn finish_tiles<const FMA: bool>(&self, tiles: Range<usize>, columns: Range<usize>, sums: Sums<'_>, y: &mut [f32]) {
        let (shape, epilogue) = (self.job.shape, &self.job.epilogue);
        let (ldc, from) = (self.job.channels.len(), columns.start - self.job.channels.start);
        let mut bias = [0.0; WIDTH_MAX];
        if let Bias::PerColumn(values) = epilogue.bias {
            bias[..columns.len()].copy_from_slice(&values[columns.clone()]);
        }
        let (bounded, (low, high)) =
            epilogue.activation.bounds().map_or((false, (f32::NEG_INFINITY, f32::INFINITY)), |bounds| (true, bounds));
        for (index, tile) in tiles.enumerate() {
            let (origin, wanted) = (self.origin(tile), &self.job.lines);
            // Where each output goes; what nobody wants goes nowhere.
            let places: [Option<usize>; 4] = std::array::from_fn(|at| {
                let (line, column) = (origin.line + at / 2, origin.column + at % 2);
                let of_all = origin.sample * shape.h_out + line;
                let is_wanted = line < shape.h_out && wanted.contains(&of_all) && column < shape.w_out;
                is_wanted.then(|| ((of_all - wanted.start) * shape.w_out + column) * ldc + from)
            });
            for j in (0..columns.len()).step_by(LANES) {
                let (mut outputs, finite) = outputs(sums.values, sums.plane, index * sums.width + j);
                if !finite {
                    outputs = self.define(tile, columns.start + j, outputs);
                }
                let bias: &[f32; LANES] = bias[j..].first_chunk().expect("panels are whole lanes");
                let end = Finish { bias, adds: epilogue.adds, low, high, count: columns.len() - j };
                for at in 0..4 {
                    if let Some(place) = places[at] {
                        end.store(&outputs[at], &mut y[place + j..]);
                    }
                }
            }
            if !bounded {
                for place in places.into_iter().flatten() {
                    activate::<FMA>(epilogue.activation, &mut y[place..][..columns.len()]);
                }
            }
        }
    }

    /// Replaces outputs that are not finite by what the definition says, of the channels from `column` on. What meets a NaN is one already:
    /// a request may be full of them, and is not to take ten times as long for it.
    #[cold]
    fn define(&self, tile: usize, column: usize, outputs: [[f32; LANES]; 4]) -> [[f32; LANES]; 4] {
        #[inline(always)]
        fn body<const FMA: bool>(work: &Work<'_>, tile: usize, column: usize, outputs: [[f32; LANES]; 4]) -> [[f32; LANES]; 4] {
            let (c_in, panel_width) = (work.job.shape.c_in, work.weights.panel_width());
            let first = column / panel_width * panel_width;
            let (b, width) = work.weights.panels().panel(first, 0..PLACES * c_in);
            let origin = work.origin(tile);
            let pixels: [&[f32]; PLACES] = std::array::from_fn(|place| work.pixel(origin, place));
            let met = |at: usize, tap: usize| 4 * (at / 2 + tap / 3) + at % 2 + tap % 3;
            let nan = pixels.map(|pixel| pixel.iter().fold(false, |nan, value| nan | value.is_nan()));
            let defined = |at: usize| outputs[at].iter().all(|output| output.is_finite()) || (0..TAPS).any(|tap| nan[met(at, tap)]);
            if (0..4).all(defined) {
                return outputs;
            }
            let mut sums = [[0.0; LANES]; 4];
            for c in 0..c_in {
                let mut transformed = [[0.0; LANES]; PLACES];
                for place in 0..PLACES {
                    transformed[place] = lanes(b, (place * c_in + c) * width + column - first);
                }
                let weights = original_weights(&transformed);
                for at in 0..4 {
                    for tap in 0..TAPS {
                        let pixel = pixels[met(at, tap)][c];
                        for lane in 0..LANES {
                            sums[at][lane] = math::fma::<FMA>(weights[tap][lane], pixel, sums[at][lane]);
                        }
                    }
                }
            }
            let chosen = |output: f32, sum: f32| if output.is_finite() { output } else { sum };
            std::array::from_fn(|at| std::array::from_fn(|lane| chosen(outputs[at][lane], sums[at][lane])))
        }
        let work = self;
        instantiate!(
            self.job.isa,
            body,
            (work: &Work<'_>, tile: usize, column: usize, outputs: [[f32; LANES]; 4]) -> [[f32; LANES]; 4]
        )
    }
}

/// The elements from `at` on, as many as there are: a panel may be narrower, and behind it nothing is wanted.
#[inline(always)]
fn lanes(b: &[f32], at: usize) -> [f32; LANES] {
    match b[at..].first_chunk() {
        Some(lanes) => *lanes,
        None => std::array::from_fn(|lane| b.get(at + lane).copied().unwrap_or_default()),
    }
}

/// The 4 by 4 pixels that a tile meets: rows of 4 pixels.
struct Pixels<'a> {
    values: &'a [f32],
    pitch: usize,
}

/// Where a tile's row of each place goes.
struct Transformed<'a> {
    values: &'a mut [f32],
    plane: usize,
}

/// `Bᵀ d B` with `Bᵀ = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]`, for all channels.
fn transform_pixels(isa: Isa, c_in: usize, pixels: Pixels<'_>, to: Transformed<'_>) {
    #[inline(always)]
    fn body<const FMA: bool>(c_in: usize, pixels: Pixels<'_>, to: Transformed<'_>) {
        assert!(pixels.values.len() >= 3 * pixels.pitch + 4 * c_in && to.values.len() >= (PLACES - 1) * to.plane + c_in);
        let (from, values) = (pixels.values.as_ptr(), to.values.as_mut_ptr());
        for c in (0..c_in / LANES).map(|c| c * LANES) {
            let mut columns = [[[0.0f32; LANES]; 4]; 4];
            for j in 0..4 {
                // SAFETY: rows are `pitch` apart and pixels in them `c_in`, of which LANES from c on lie within: seen above.
                let d = [0, 1, 2, 3].map(|i| unsafe { from.add(i * pixels.pitch + j * c_in + c).cast::<[f32; LANES]>().read() });
                columns[j] = line(&d);
            }
            for row in 0..4 {
                let values_of = line(&[columns[0][row], columns[1][row], columns[2][row], columns[3][row]]);
                for column in 0..4 {
                    // SAFETY: as above, rows of c_in elements `plane` apart.
                    unsafe { values.add((4 * row + column) * to.plane + c).cast::<[f32; LANES]>().write(values_of[column]) };
                }
            }
        }
    }
    #[inline(always)]
    fn line(d: &[[f32; LANES]; 4]) -> [[f32; LANES]; 4] {
        [minus(&d[0], &d[2]), plus(&d[1], &d[2]), minus(&d[2], &d[1]), minus(&d[1], &d[3])]
    }
    instantiate!(isa, body, (c_in: usize, pixels: Pixels<'_>, to: Transformed<'_>));
}

/// The sums of some tiles with a panel: of each place a row of `width` for each tile.
struct Sums<'a> {
    values: &'a [f32],
    plane: usize,
    width: usize,
}

/// What is applied to some channels of an output.
struct Finish<'a> {
    bias: &'a [f32; LANES],
    adds: bool,
    low: f32,
    high: f32,
    /// Channels from here on.
    count: usize,
}

impl Finish<'_> {
    #[inline(always)]
    fn store(&self, output: &[f32; LANES], y: &mut [f32]) {
        let Self { bias, adds, low, high, count } = *self;
        if count >= LANES {
            let y: &mut [f32; LANES] = y.first_chunk_mut().expect("the pixel has as many channels");
            let held = if adds { *y } else { [0.0; LANES] };
            *y = std::array::from_fn(|lane| math::clamp(output[lane] + held[lane] + bias[lane], low, high));
        } else {
            for ((y, output), bias) in y[..count].iter_mut().zip(output).zip(bias) {
                *y = math::clamp(output + if adds { *y } else { 0.0 } + bias, low, high);
            }
        }
    }
}

/// `Aᵀ m A` with `Aᵀ = [1 1 1 0; 0 1 -1 -1]`, for some channels; whether all of it is finite.
#[inline(always)]
fn outputs(sums: &[f32], plane: usize, first: usize) -> ([[f32; LANES]; 4], bool) {
    #[inline(always)]
    fn line(m: &[[f32; LANES]; 4]) -> [[f32; LANES]; 2] {
        [plus(&plus(&m[0], &m[1]), &m[2]), minus(&minus(&m[1], &m[2]), &m[3])]
    }
    assert!(sums.len() >= (PLACES - 1) * plane + first + LANES);
    let from = sums.as_ptr();
    let mut columns = [[[0.0f32; LANES]; 2]; 4];
    for j in 0..4 {
        // SAFETY: seen above.
        columns[j] = line(&[0, 1, 2, 3].map(|i| unsafe { from.add((4 * i + j) * plane + first).cast::<[f32; LANES]>().read() }));
    }
    let upper = line(&[columns[0][0], columns[1][0], columns[2][0], columns[3][0]]);
    let lower = line(&[columns[0][1], columns[1][1], columns[2][1], columns[3][1]]);
    let sum = plus(&plus(&upper[0], &upper[1]), &plus(&lower[0], &lower[1]));
    let finite = sum.iter().fold(true, |finite, sum| finite & (sum.abs() <= f32::MAX));
    ([upper[0], upper[1], lower[0], lower[1]], finite)
}

#[inline(always)]
fn plus(a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

#[inline(always)]
fn minus(a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|lane| a[lane] - b[lane])
}
