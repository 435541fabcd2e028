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
    image[layout.plane..].fill(0.0);
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

#[inline(always)]
fn convolve_body<const FMA: bool>(plane: &Plane<'_>, weights: &[f32], output: &mut [f32]) {
    let shape = plane.shape;
    for (y, row) in output.chunks_exact_mut(shape.w_out).enumerate() {
        for (index, pixels) in row.chunks_mut(LANES).enumerate() {
            let origin = &plane.image[y * plane.layout.output_row + index * LANES..];
            let mut sums = [0.0f32; LANES];
            for ky in 0..shape.kernel_h {
                for kx in 0..shape.kernel_w {
                    let weight = weights[ky * shape.kernel_w + kx];
                    let values: &[f32; LANES] =
                        origin[plane.layout.tap(shape, ky, kx)..].first_chunk().expect("the image has slack behind it");
                    for i in 0..LANES {
                        sums[i] = math::fma::<FMA>(weight, values[i], sums[i]);
                    }
                }
            }
            if let Some(bias) = plane.bias {
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
            pixels.copy_from_slice(&sums[..pixels.len()]);
        }
        activate::<FMA>(plane.activation, row);
    }
}
