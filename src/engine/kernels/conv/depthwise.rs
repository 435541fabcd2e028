//! Convolution with one input channel per group: every kernel tap adds a multiple of the same plane, shifted.
//!
//! A channel is copied into planes of its own, one for each remainder of row and column modulo the strides, with the padding
//! around it. Then the pixels that one tap meets lie one behind the other for the whole output, rows included: a plane is a
//! vector, and the convolution a sum of such vectors, shifted. What it computes between the rows is thrown away.

use super::{ConvShape, Job};
use crate::engine::kernels::epilogue::{Activation, Bias, activate};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::rows::every_second;
use crate::engine::kernels::vector::math::{self, LANES};

pub(super) fn run(job: &Job<'_>, weights: &[f32], x: &[f32], y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    let planes = Planes::new(shape);
    let taps = shape.kernel_h * shape.kernel_w;
    let per_group = shape.c_out / shape.groups;
    let (input_plane, pixels) = (shape.h_in * shape.w_in, shape.pixels());
    let sums = (shape.h_out * planes.pitch).next_multiple_of(LANES);
    // The last sums are read as a full step too: slack behind the image.
    let image = planes.len() + LANES;
    scratch.resize(scratch.len().max(image + sums), 0.0);
    let (image, rest) = scratch.split_at_mut(image);
    let sums = &mut rest[..sums];
    image.fill(0.0);
    for (sample, output) in y.chunks_exact_mut(job.channels.len() * pixels).enumerate() {
        let mut loaded = None;
        for (channel, output) in job.channels.clone().zip(output.chunks_exact_mut(pixels)) {
            let group = channel / per_group;
            if loaded.replace(group) != Some(group) {
                planes.copy(job.isa, shape, &x[(sample * shape.c_in + group) * input_plane..][..input_plane], image);
            }
            let bias = match job.epilogue.bias {
                Bias::PerRow(bias) => Some(bias[channel]),
                _ => None,
            };
            let weights = &weights[channel * taps..][..taps];
            let plane = Channel { shape, planes: &planes, weights, bias, adds: job.epilogue.adds, activation: job.epilogue.activation };
            convolve(job.isa, &plane, image, sums, output);
        }
    }
}

/// Where the pixels of a padded channel lie. All distances are in elements.
#[derive(Clone, Copy, Debug)]
struct Planes {
    /// From row to row of a plane, and so of the sums.
    pitch: usize,
    /// From one plane to the next.
    plane: usize,
    /// Planes side by side: by row, by column.
    count: (usize, usize),
}

impl Planes {
    fn new(shape: &ConvShape) -> Planes {
        let (rows, columns) = ((shape.kernel_h.max(1) - 1) * shape.dilation_h, (shape.kernel_w.max(1) - 1) * shape.dilation_w);
        // Remainders that no tap has are left out.
        let count = (if rows == 0 { 1 } else { shape.stride_h }, if columns == 0 { 1 } else { shape.stride_w });
        let pitch = shape.w_out + columns / shape.stride_w;
        Planes { pitch, plane: (shape.h_out + rows / shape.stride_h) * pitch, count }
    }

    /// Elements of all planes. The last sums of a plane, those between its last rows, reach into what follows.
    fn len(&self) -> usize {
        self.count.0 * self.count.1 * self.plane + self.pitch
    }

    /// The place that a tap has for the first output pixel.
    #[inline(always)]
    fn tap(&self, shape: &ConvShape, tap: usize) -> usize {
        let (row, column) = (tap / shape.kernel_w * shape.dilation_h, tap % shape.kernel_w * shape.dilation_w);
        let plane = row % shape.stride_h * self.count.1 + column % shape.stride_w;
        plane * self.plane + row / shape.stride_h * self.pitch + column / shape.stride_w
    }

    /// Copies a channel `[h_in, w_in]` into its places in `image`, which was filled with zeros once: what is padding is not
    /// written.
    fn copy(&self, isa: Isa, shape: &ConvShape, channel: &[f32], image: &mut [f32]) {
        for (index, plane) in image.chunks_exact_mut(self.plane).take(self.count.0 * self.count.1).enumerate() {
            let (first_row, first_column) = (index / self.count.1, index % self.count.1);
            for (row, to) in plane.chunks_exact_mut(self.pitch).enumerate() {
                let y = (row * shape.stride_h + first_row).wrapping_sub(shape.pad_top);
                if y < shape.h_in {
                    copy_row(isa, shape, first_column, &channel[y * shape.w_in..][..shape.w_in], to);
                }
            }
        }
    }
}

/// Copies the columns of one remainder: `to[i]` is column `i * stride + first - pad_left`, where there is one.
fn copy_row(isa: Isa, shape: &ConvShape, first: usize, from: &[f32], to: &mut [f32]) {
    let (stride, pad) = (shape.stride_w, shape.pad_left);
    let skipped = pad.saturating_sub(first).div_ceil(stride).min(to.len());
    let from = from.get(skipped * stride + first - pad.min(skipped * stride + first)..).unwrap_or(&[]);
    let to = &mut to[skipped..];
    match stride {
        1 => {
            let count = to.len().min(from.len());
            copy_short(&from[..count], &mut to[..count]);
        }
        2 => every_second(isa, from, to),
        _ => to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, from)| *to = *from),
    }
}

/// Copies a row of an image: as short as rows are, a call of the system's copy costs more than the copy.
#[inline(always)]
fn copy_short(from: &[f32], to: &mut [f32]) {
    #[inline(always)]
    fn ends<const N: usize>(from: &[f32], to: &mut [f32]) {
        let (head, tail): (&[f32; N], &[f32; N]) = (from.first_chunk().expect("long enough"), from.last_chunk().expect("long enough"));
        *to.first_chunk_mut().expect("as long") = *head;
        *to.last_chunk_mut().expect("as long") = *tail;
    }
    match from.len() {
        LANES.. => {
            to.as_chunks_mut::<LANES>().0.iter_mut().zip(from.as_chunks::<LANES>().0).for_each(|(to, from)| *to = *from);
            let tail: &[f32; LANES] = from.last_chunk().expect("long enough");
            *to.last_chunk_mut().expect("as long") = *tail;
        }
        8.. => ends::<8>(from, to),
        4.. => ends::<4>(from, to),
        2.. => ends::<2>(from, to),
        _ => to.copy_from_slice(from),
    }
}

/// One channel of one sample.
struct Channel<'a> {
    shape: &'a ConvShape,
    planes: &'a Planes,
    weights: &'a [f32],
    bias: Option<f32>,
    adds: bool,
    activation: Activation,
}

fn convolve(isa: Isa, channel: &Channel<'_>, image: &[f32], sums: &mut [f32], output: &mut [f32]) {
    instantiate!(isa, convolve_body, (channel: &Channel<'_>, image: &[f32], sums: &mut [f32], output: &mut [f32]));
}

#[inline(always)]
fn convolve_body<const FMA: bool>(channel: &Channel<'_>, image: &[f32], sums: &mut [f32], output: &mut [f32]) {
    match channel.weights.len() {
        3 => add_all::<FMA, 3>(channel, image, sums),
        9 => add_all::<FMA, 9>(channel, image, sums),
        25 => add_all::<FMA, 25>(channel, image, sums),
        _ => add_by_tap::<FMA>(channel, image, sums),
    }
    for (row, sums) in output.chunks_exact_mut(channel.shape.w_out).zip(sums.chunks(channel.planes.pitch)) {
        if channel.adds {
            row.iter_mut().zip(sums).for_each(|(held, sum)| *held += sum);
        } else {
            copy_short(&sums[..row.len()], row);
        }
    }
    if let Some(bias) = channel.bias {
        output.iter_mut().for_each(|sum| *sum += bias);
    }
    activate::<FMA>(channel.activation, output);
}

/// Every sum in one go: it stays in a register until it is complete.
#[inline(always)]
fn add_all<const FMA: bool, const TAPS: usize>(channel: &Channel<'_>, image: &[f32], sums: &mut [f32]) {
    let weights: &[f32; TAPS] = channel.weights.first_chunk().expect("as many weights as taps");
    let offsets: [usize; TAPS] = std::array::from_fn(|tap| channel.planes.tap(channel.shape, tap));
    // Steps side by side: as many chains of multiply-adds as the units need to be busy.
    const SIDE: usize = 4 * LANES;
    let (blocks, rest) = sums.as_chunks_mut::<SIDE>();
    let done = blocks.len() * SIDE;
    for (index, block) in blocks.iter_mut().enumerate() {
        *block = step::<FMA, TAPS, SIDE>(weights, &offsets, &image[index * SIDE..]);
    }
    for (index, block) in rest.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        *block = step::<FMA, TAPS, LANES>(weights, &offsets, &image[done + index * LANES..]);
    }
}

#[inline(always)]
fn step<const FMA: bool, const TAPS: usize, const SIDE: usize>(
    weights: &[f32; TAPS],
    offsets: &[usize; TAPS],
    image: &[f32],
) -> [f32; SIDE] {
    let mut sums = [0.0f32; SIDE];
    for tap in 0..TAPS {
        let values: &[f32; SIDE] = image[offsets[tap]..].first_chunk().expect("the image has slack behind it");
        for i in 0..SIDE {
            sums[i] = math::fma::<FMA>(weights[tap], values[i], sums[i]);
        }
    }
    sums
}

/// For kernels of other sizes: one tap after the other for all sums.
#[inline(always)]
fn add_by_tap<const FMA: bool>(channel: &Channel<'_>, image: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for (tap, weight) in channel.weights.iter().enumerate() {
        let values = &image[channel.planes.tap(channel.shape, tap)..][..sums.len()];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = math::fma::<FMA>(*weight, *value, *sum));
    }
}
