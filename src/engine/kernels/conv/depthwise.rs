//! Convolution with one input channel per group: each output row is a sum of shifted input rows.

use super::image::Layout;
use super::{ConvShape, Job};
use crate::engine::kernels::epilogue::{Activation, Bias, activate};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::vector::math::{self, LANES};

pub(super) fn run(job: &Job<'_>, weights: &[f32], x: &[f32], y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    let layout = Layout::new(shape);
    let taps = shape.kernel_h * shape.kernel_w;
    let per_group = shape.c_out / shape.groups;
    let (input_plane, pixels) = (shape.h_in * shape.w_in, shape.pixels());
    // The last output pixels are read as a full step too: slack behind the image.
    let needed = layout.plane + LANES;
    scratch.resize(scratch.len().max(needed), 0.0);
    let image = &mut scratch[..needed];
    image.fill(0.0);
    for (sample, output) in y.chunks_exact_mut(job.channels.len() * pixels).enumerate() {
        let mut loaded = None;
        for (channel, output) in job.channels.clone().zip(output.chunks_exact_mut(pixels)) {
            let group = channel / per_group;
            if loaded != Some(group) {
                let source = &x[(sample * shape.c_in + group) * input_plane..][..input_plane];
                if layout.copies {
                    layout.copy(shape, source, image);
                } else {
                    image[..input_plane].copy_from_slice(source);
                }
                loaded = Some(group);
            }
            let bias = match job.epilogue.bias {
                Bias::PerRow(bias) => Some(bias[channel]),
                _ => None,
            };
            let plane = Plane { shape, layout: &layout, image, bias, activation: job.epilogue.activation };
            convolve(job.isa, &plane, &weights[channel * taps..][..taps], output);
        }
    }
}

/// One channel of one sample.
struct Plane<'a> {
    shape: &'a ConvShape,
    layout: &'a Layout,
    image: &'a [f32],
    bias: Option<f32>,
    activation: Activation,
}

fn convolve(isa: Isa, plane: &Plane<'_>, weights: &[f32], output: &mut [f32]) {
    instantiate!(isa, convolve_body, (plane: &Plane<'_>, weights: &[f32], output: &mut [f32]));
}

/// Sums kept on the stack: 1 KiB, well inside the first-level cache beside the rows of the image.
const SUMS: usize = 256;

#[inline(always)]
fn convolve_body<const FMA: bool>(plane: &Plane<'_>, weights: &[f32], output: &mut [f32]) {
    // The usual kernels have all taps in one pass, so that a sum stays in a register until it is complete. Three
    // passes over sums in memory took 520 µs for 96 channels of 56 × 56, one pass 325 µs.
    match weights.len() {
        3 => convolve_by::<FMA, 3>(plane, weights, output),
        9 => convolve_by::<FMA, 9>(plane, weights, output),
        25 => convolve_by::<FMA, 25>(plane, weights, output),
        _ => convolve_by::<FMA, 7>(plane, weights, output),
    }
    activate::<FMA>(plane.activation, output);
}

/// All output rows, with `N` taps per pass.
#[inline(always)]
fn convolve_by<const FMA: bool, const N: usize>(plane: &Plane<'_>, weights: &[f32], output: &mut [f32]) {
    let (shape, layout) = (plane.shape, plane.layout);
    let offset = |tap: usize| layout.tap(shape, tap / shape.kernel_w, tap % shape.kernel_w);
    let (passes, rest) = weights.as_chunks::<N>();
    let first: [usize; N] = std::array::from_fn(|tap| if passes.is_empty() { 0 } else { offset(tap) });
    let mut buffer = [0.0f32; SUMS];
    for (y, row) in output.chunks_exact_mut(shape.w_out).enumerate() {
        for (index, pixels) in row.chunks_mut(SUMS).enumerate() {
            let sums = &mut buffer[..pixels.len().next_multiple_of(LANES)];
            sums.fill(0.0);
            let origin = &plane.image[y * layout.output_row + index * SUMS..];
            for (pass, weights) in passes.iter().enumerate() {
                let offsets = if pass == 0 { first } else { std::array::from_fn(|tap| offset(pass * N + tap)) };
                add_taps::<FMA, N>(sums, weights, offsets.map(|offset| &origin[offset..]));
            }
            for (tap, weight) in rest.iter().enumerate() {
                add_taps::<FMA, 1>(sums, &[*weight], [&origin[offset(passes.len() * N + tap)..]]);
            }
            if let Some(bias) = plane.bias {
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
            pixels.copy_from_slice(&sums[..pixels.len()]);
        }
    }
}

/// Adds the products of some taps, one after the other, to every sum of a row.
#[inline(always)]
fn add_taps<const FMA: bool, const N: usize>(sums: &mut [f32], weights: &[f32; N], sources: [&[f32]; N]) {
    let sources = sources.map(|source| &source[..sums.len()]);
    for (index, step) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sum = *step;
        for tap in 0..N {
            let values: &[f32; LANES] = sources[tap][index * LANES..].first_chunk().expect("as long as the sums");
            for i in 0..LANES {
                sum[i] = math::fma::<FMA>(weights[tap], values[i], sum[i]);
            }
        }
        *step = sum;
    }
}
