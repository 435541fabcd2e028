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
    // The last output pixels are read as a full register too: slack behind the image.
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

/// Kernel taps whose offsets are looked up rather than computed again for each register of output; enough for 7 × 7.
const TAPS: usize = 49;

#[inline(always)]
fn convolve_body<const FMA: bool>(plane: &Plane<'_>, weights: &[f32], output: &mut [f32]) {
    let (shape, layout) = (plane.shape, plane.layout);
    let mut taps = [(0usize, 0.0f32); TAPS];
    for (index, tap) in taps.iter_mut().take(weights.len()).enumerate() {
        *tap = (layout.tap(shape, index / shape.kernel_w, index % shape.kernel_w), weights[index]);
    }
    let looked_up = &taps[..weights.len().min(TAPS)];
    for (y, row) in output.chunks_exact_mut(shape.w_out).enumerate() {
        for (index, pixels) in row.chunks_mut(LANES).enumerate() {
            let origin = &plane.image[y * layout.output_row + index * LANES..];
            let mut sums = [0.0f32; LANES];
            for (offset, weight) in looked_up {
                add_tap::<FMA>(&mut sums, *weight, &origin[*offset..]);
            }
            for index in TAPS..weights.len() {
                let offset = layout.tap(shape, index / shape.kernel_w, index % shape.kernel_w);
                add_tap::<FMA>(&mut sums, weights[index], &origin[offset..]);
            }
            if let Some(bias) = plane.bias {
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
            pixels.copy_from_slice(&sums[..pixels.len()]);
        }
        activate::<FMA>(plane.activation, row);
    }
}

#[inline(always)]
fn add_tap<const FMA: bool>(sums: &mut [f32; LANES], weight: f32, values: &[f32]) {
    let values: &[f32; LANES] = values.first_chunk().expect("the image has slack behind it");
    for i in 0..LANES {
        sums[i] = math::fma::<FMA>(weight, values[i], sums[i]);
    }
}
