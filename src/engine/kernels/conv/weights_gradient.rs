//! The gradient of a convolution's weights: the product of the gradient of its output, a row per output channel, with the pixels that
//! the taps meet, a row per output position.
//!
//! The pixels are brought into an order in which the channels of one are neighbours. A panel of the right operand is then
//! a copy of some channels of one pixel in each row, whatever the padding, the strides and the dilations are. It is gathered once for
//! `Shape::steps` positions and read by the tiles of all output channels from the first-level cache.
//!
//! Sums run over the positions of all samples, in chunks: each is one chain of multiply-adds, whose results are added up. The
//! chunks depend on the shape alone, so how channels are given to threads changes no bit.

use std::cell::Cell;
use std::ops::Range;

use super::ConvShape;
use crate::engine::kernels::gemm::tile::{self, Rows, Tile, WIDTH_MAX};
use crate::engine::kernels::isa::{Isa, instantiate};

/// Elements of the output's gradient in a chunk: 1 MiB of a second-level cache, which passes by each panel.
const CHUNK: usize = 256 * 1024;

/// Positions in a chunk: few rows would otherwise have sums whose rounding errors grow long, and many no reuse.
const POSITIONS: Range<usize> = 512..4096;

/// Elements moved by one copy of a gathered row.
const COPY: usize = 16;

/// The channels of one group whose weights are wanted: of the group's input channels, and of its output channels.
#[derive(Clone, Debug)]
pub struct Part {
    /// The group.
    pub group: usize,
    /// Input channels, counted in the group.
    pub inputs: Range<usize>,
    /// Output channels, counted in the group.
    pub outputs: Range<usize>,
}

/// Writes the gradients of the weights of `part` to `sums`, `[outputs, kernel_h, kernel_w, inputs]`: of the output's gradient `g`,
/// `[n, c_out, h_out, w_out]`, and the input `x`, `[n, c_in, h_in, w_in]`. Neither may be empty. Memory is kept by the thread for
/// the next call. Panics if a length does not fit the shape.
pub fn weights_gradient(shape: &ConvShape, isa: Isa, g: &[f32], x: &[f32], part: &Part, sums: &mut [f32]) {
    shape.check();
    isa.require();
    let (inputs, outputs) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    assert!(part.group < shape.groups && part.inputs.end <= inputs && part.outputs.end <= outputs, "{part:?} of {shape:?}");
    assert!(g.len() == shape.output_len() && x.len() == shape.input_len(), "lengths of the gradient and the input");
    assert!(!g.is_empty() && !x.is_empty(), "a convolution of nothing");
    let columns = shape.kernel_h * shape.kernel_w * part.inputs.len();
    assert_eq!(sums.len(), part.outputs.len() * columns, "length of the sums");
    if sums.is_empty() {
        return;
    }
    let mut memory = MEMORY.take();
    let job = Job { shape, isa, g, x, part, columns };
    for (index, chunk) in Chunks::new(shape).enumerate() {
        job.run(&chunk, index == 0, &mut memory, sums);
    }
    MEMORY.set(memory);
}

#[derive(Debug, Default)]
struct Memory {
    /// The pixels of a chunk, the channels of each side by side, and [`COPY`] elements behind them.
    pixels: Vec<f32>,
    /// Where the pixel of the first tap of each position lies in them.
    places: Vec<usize>,
    /// The gradient of the output as the tiles read it.
    left: Vec<f32>,
    /// A panel, and [`COPY`] elements behind it.
    panel: Vec<f32>,
    /// The product of a chunk with a panel.
    product: Vec<f32>,
    copies: Vec<Copy>,
}

thread_local! {
    static MEMORY: Cell<Memory> = Cell::new(Memory::default());
}

/// Output positions of one sample that follow one another: whole rows, or a part of one.
#[derive(Clone, Debug)]
struct Segment {
    sample: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Segment {
    fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

/// Output positions of all samples, in chunks of whole rows, or of pieces of rows that are longer than a chunk.
#[derive(Clone, Debug)]
struct Chunks {
    height: usize,
    width: usize,
    samples: usize,
    /// Columns of a piece: as many as there are, if rows are whole.
    piece: usize,
    /// Rows, or pieces of rows, in a chunk.
    count: usize,
    next: usize,
}

impl Chunks {
    fn new(shape: &ConvShape) -> Self {
        let (height, width) = (shape.h_out, shape.w_out);
        let most = (CHUNK / (shape.c_out / shape.groups)).clamp(POSITIONS.start, POSITIONS.end);
        let piece = width.div_ceil(width.div_ceil(most));
        // Chunks of nearly equal size.
        let all = shape.n * height * width.div_ceil(piece);
        let count = if piece < width { 1 } else { all.div_ceil((all * width).div_ceil(most)) };
        Self { height, width, samples: shape.n, piece, count, next: 0 }
    }
}

impl Iterator for Chunks {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let pieces = self.width.div_ceil(self.piece);
        let all = self.samples * self.height * pieces;
        let units = self.next..all.min(self.next + self.count);
        self.next = units.end;
        (!units.is_empty()).then_some(Chunk { units, pieces, piece: self.piece, height: self.height, width: self.width })
    }
}

/// Rows, or pieces of rows, of the output, counted through all samples.
#[derive(Clone, Debug)]
struct Chunk {
    units: Range<usize>,
    pieces: usize,
    piece: usize,
    height: usize,
    width: usize,
}

impl Chunk {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let (of_sample, chunk) = (self.height * self.pieces, self.clone());
        let mut next = self.units.start;
        std::iter::from_fn(move || {
            let (sample, unit) = (next / of_sample, next % of_sample);
            let (row, piece) = (unit / chunk.pieces, unit % chunk.pieces);
            let columns = piece * chunk.piece..chunk.width.min((piece + 1) * chunk.piece);
            // Pieces come one by one, rows as many as the sample has.
            let rows = if chunk.pieces > 1 { 1 } else { (chunk.height - row).min(chunk.units.end.saturating_sub(next)) };
            let some = next < chunk.units.end;
            next += rows;
            some.then_some(Segment { sample, rows: row..row + rows, columns })
        })
    }

    fn len(&self) -> usize {
        self.segments().map(|segment| segment.len()).sum()
    }
}

/// Neighbours in the pixels that are neighbours in a row of a panel.
#[derive(Clone, Copy, Debug)]
struct Copy {
    /// Distance from the place of the position.
    from: usize,
    /// Column of the panel.
    to: usize,
    len: usize,
}

struct Job<'a> {
    shape: &'a ConvShape,
    isa: Isa,
    g: &'a [f32],
    x: &'a [f32],
    part: &'a Part,
    /// Columns of the right operand: taps, and in them input channels.
    columns: usize,
}

impl Job<'_> {
    /// Adds the products of a chunk to the sums.
    fn run(&self, chunk: &Chunk, first: bool, memory: &mut Memory, sums: &mut [f32]) {
        let positions = chunk.len();
        // Blocks of equal size, and tiles.
        let (rows, shape) = (self.part.outputs.len(), tile::shape(self.isa));
        let block = positions.div_ceil(positions.div_ceil(shape.steps));
        let height = rows.div_ceil(rows.div_ceil(shape.rows));
        self.arrange(chunk, memory);
        self.pack(chunk, (positions, block, height), &mut memory.left);
        let Memory { pixels, places, left, panel, product, copies } = memory;
        panel.resize(panel.len().max(shape.steps * WIDTH_MAX + COPY), 0.0);
        product.resize(product.len().max(rows * WIDTH_MAX), 0.0);
        for column in (0..self.columns).step_by(shape.width) {
            let count = shape.width.min(self.columns - column);
            self.plan(chunk, column..column + count, copies);
            for (index, places) in places.chunks(block).enumerate() {
                gather(self.isa, pixels, places, copies, shape.width, panel);
                for row in (0..rows).step_by(height) {
                    let tall = height.min(rows - row);
                    let mut tile = Tile {
                        a: &left[(row * positions.div_ceil(block) + index * tall) * shape.stride()..],
                        a_rows: Rows::Blocked,
                        b: panel,
                        b_stride: shape.width,
                        width: shape.width,
                        k: places.len(),
                        rows: tall,
                        columns: count,
                        c: &mut product[row * WIDTH_MAX..],
                        ldc: WIDTH_MAX,
                        first: index == 0,
                        finish: None,
                    };
                    tile::run(self.isa, &mut tile);
                }
            }
            for (sums, product) in sums.chunks_exact_mut(self.columns).zip(product.chunks_exact(WIDTH_MAX)) {
                let sums = &mut sums[column..column + count];
                if first {
                    sums.copy_from_slice(&product[..count]);
                } else {
                    sums.iter_mut().zip(product).for_each(|(sum, product)| *sum += product);
                }
            }
        }
    }

    /// Rows and columns of pixels that are kept of the (padded) input for some output positions.
    fn reach(&self, segment: &Segment) -> (usize, usize) {
        let (rows, columns) = self.pitches();
        let of = |len: usize, stride: usize, kernel: usize, dilation: usize| (len - 1) * stride + (kernel - 1) * dilation + 1;
        let shape = self.shape;
        (
            of(segment.rows.len(), shape.stride_h / rows, shape.kernel_h, shape.dilation_h),
            of(segment.columns.len(), shape.stride_w / columns, shape.kernel_w, shape.dilation_w),
        )
    }

    /// Every how manieth row and column of the input is kept: a single tap meets no others than each `stride`-th.
    fn pitches(&self) -> (usize, usize) {
        let of = |kernel: usize, stride: usize| if kernel == 1 { stride } else { 1 };
        (of(self.shape.kernel_h, self.shape.stride_h), of(self.shape.kernel_w, self.shape.stride_w))
    }

    /// Brings the pixels that a chunk meets into their order.
    fn arrange(&self, chunk: &Chunk, memory: &mut Memory) {
        let (shape, channels, pitches) = (self.shape, self.part.inputs.len(), self.pitches());
        let len: usize = chunk.segments().map(|segment| self.reach(&segment)).map(|(height, width)| height * width * channels).sum();
        memory.pixels.clear();
        // What is padding stays zero.
        memory.pixels.resize(len + COPY, 0.0);
        memory.places.clear();
        let (plane, mut start) = (shape.h_in * shape.w_in, 0);
        for segment in chunk.segments() {
            let (height, width) = self.reach(&segment);
            let channel = segment.sample * shape.c_in + self.part.group * (shape.c_in / shape.groups) + self.part.inputs.start;
            let x = &self.x[channel * plane..][..channels * plane];
            let first = (segment.rows.start * shape.stride_h, segment.columns.start * shape.stride_w);
            // The rows and columns of the image among those of the segment.
            let inside =
                |first: usize, len: usize, pad: usize, size: usize| first.saturating_sub(pad)..(first + len).saturating_sub(pad).min(size);
            let rows = inside(first.0, (height - 1) * pitches.0 + 1, shape.pad_top, shape.h_in);
            let columns = inside(first.1, (width - 1) * pitches.1 + 1, shape.pad_left, shape.w_in);
            let kept = |at: usize, pitch: usize| at.is_multiple_of(pitch).then_some(at / pitch);
            let place = |pixel: usize| {
                let (y, x) = (pixel / shape.w_in, pixel % shape.w_in);
                let (row, column) = (kept(y + shape.pad_top - first.0, pitches.0)?, kept(x + shape.pad_left - first.1, pitches.1)?);
                columns.contains(&x).then_some(start + (row * width + column) * channels)
            };
            if columns.len() == shape.w_in {
                turn(self.isa, (x, plane, channels), rows.start * shape.w_in..rows.end * shape.w_in, place, &mut memory.pixels);
            } else if !columns.is_empty() {
                for row in rows {
                    let row = row * shape.w_in;
                    turn(self.isa, (x, plane, channels), row + columns.start..row + columns.end, place, &mut memory.pixels);
                }
            }
            let strides = (shape.stride_h / pitches.0 * width, shape.stride_w / pitches.1);
            for row in 0..segment.rows.len() {
                let row = start + row * strides.0 * channels;
                memory.places.extend((0..segment.columns.len()).map(|column| row + column * strides.1 * channels));
            }
            start += height * width * channels;
        }
    }

    /// Writes the gradient of the output as [`Rows::Blocked`] reads it: tiles of `height` rows behind each other, in them blocks of
    /// positions.
    fn pack(&self, chunk: &Chunk, (positions, block, height): (usize, usize, usize), left: &mut Vec<f32>) {
        let (shape, rows, blocks) = (self.shape, self.part.outputs.len(), positions.div_ceil(block));
        let stride = tile::shape(self.isa).stride();
        left.resize(left.len().max(rows * blocks * stride), 0.0);
        let plane = shape.pixels();
        for row in 0..rows {
            let (first, tall) = (row / height * height, height.min(rows - row / height * height));
            let channel = self.part.group * (shape.c_out / shape.groups) + self.part.outputs.start + row;
            let mut at = 0;
            for segment in chunk.segments() {
                let start = (segment.sample * shape.c_out + channel) * plane + segment.rows.start * shape.w_out + segment.columns.start;
                let mut from = &self.g[start..][..segment.len()];
                while !from.is_empty() {
                    let (index, step) = (at / block, at % block);
                    let (piece, rest) = from.split_at(from.len().min(block - step));
                    left[(first * blocks + index * tall + row - first) * stride + step..][..piece.len()].copy_from_slice(piece);
                    at += piece.len();
                    from = rest;
                }
            }
        }
    }

    /// What makes a row of the panel with these columns.
    fn plan(&self, chunk: &Chunk, columns: Range<usize>, copies: &mut Vec<Copy>) {
        copies.clear();
        let (shape, channels) = (self.shape, self.part.inputs.len());
        let (_, width) = self.reach(&chunk.segments().next().expect("a chunk has positions"));
        let mut column = columns.start;
        while column < columns.end {
            let (tap, channel) = (column / channels, column % channels);
            let (ky, kx) = (tap / shape.kernel_w, tap % shape.kernel_w);
            let from = (ky * shape.dilation_h * width + kx * shape.dilation_w) * channels + channel;
            let len = (channels - channel).min(columns.end - column).min(COPY);
            match copies.last_mut() {
                // Taps that are neighbours continue one another.
                Some(last) if last.from + last.len == from && last.len + len <= COPY => last.len += len,
                _ => copies.push(Copy { from, to: column - columns.start, len }),
            }
            column += len;
        }
    }
}

/// Copies the channels of each of some pixels of `x`, where channels are `plane` apart, behind one another to the place of the pixel.
fn turn(
    isa: Isa,
    (x, plane, channels): (&[f32], usize, usize),
    pixels: Range<usize>,
    place: impl Fn(usize) -> Option<usize>,
    to: &mut [f32],
) {
    let end = pixels.end;
    for first in pixels.step_by(SIDE) {
        let mut places = [None; SIDE];
        places.iter_mut().zip(first..end).for_each(|(to, pixel)| *to = place(pixel));
        if places.iter().any(Option::is_some) {
            turn_square(isa, &x[first..], plane, channels, &places, to);
        }
    }
}

/// Pixels, and channels, that are turned together.
const SIDE: usize = 16;

fn turn_square(isa: Isa, x: &[f32], plane: usize, channels: usize, places: &[Option<usize>; SIDE], to: &mut [f32]) {
    instantiate!(isa, turn_body, (x: &[f32], plane: usize, channels: usize, places: &[Option<usize>; SIDE], to: &mut [f32]));
}

#[inline(always)]
fn turn_body<const FMA: bool>(x: &[f32], plane: usize, channels: usize, places: &[Option<usize>; SIDE], to: &mut [f32]) {
    let mut square = [[0.0; SIDE]; SIDE];
    for channel in (0..channels).step_by(SIDE) {
        let count = SIDE.min(channels - channel);
        for (i, row) in square.iter_mut().enumerate().take(count) {
            let from = &x[(channel + i) * plane..];
            match from.first_chunk() {
                Some(from) => *row = *from,
                None => row[..from.len()].copy_from_slice(from),
            }
        }
        exchange::<8>(&mut square);
        exchange::<4>(&mut square);
        exchange::<2>(&mut square);
        exchange::<1>(&mut square);
        for (place, row) in places.iter().zip(&square) {
            let Some(place) = place else { continue };
            let to = &mut to[place + channel..];
            match to.first_chunk_mut::<SIDE>() {
                Some(to) if count == SIDE => *to = *row,
                _ => to[..count].copy_from_slice(&row[..count]),
            }
        }
    }
}

/// Exchanges the upper right and the lower left quarter of each square of `2 * S` rows and columns: done for all powers of two, the
/// whole is transposed.
#[inline(always)]
fn exchange<const S: usize>(square: &mut [[f32; SIDE]; SIDE]) {
    for i in 0..SIDE {
        if i & S == 0 {
            let (upper, lower) = (square[i], square[i + S]);
            square[i] = std::array::from_fn(|c| if c & S == 0 { upper[c] } else { lower[c - S] });
            square[i + S] = std::array::from_fn(|c| if c & S == 0 { upper[c + S] } else { lower[c] });
        }
    }
}

/// Writes a row of `width` elements for each place. `panel` has [`COPY`] elements more, and so have the pixels.
fn gather(isa: Isa, pixels: &[f32], places: &[usize], copies: &[Copy], width: usize, panel: &mut [f32]) {
    instantiate!(isa, gather_body, (pixels: &[f32], places: &[usize], copies: &[Copy], width: usize, panel: &mut [f32]));
}

#[inline(always)]
fn gather_body<const FMA: bool>(pixels: &[f32], places: &[usize], copies: &[Copy], width: usize, panel: &mut [f32]) {
    for (row, &place) in places.iter().enumerate() {
        for copy in copies {
            // Always a full register: what is too much is overwritten by the next copy, in this row or the next.
            let from: &[f32; COPY] = pixels[place + copy.from..].first_chunk().expect("there are elements behind the last pixel");
            *panel[row * width + copy.to..].first_chunk_mut().expect("a panel has slack behind it") = *from;
        }
    }
}
