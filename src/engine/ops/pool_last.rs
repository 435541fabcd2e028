//! Pooling of images whose channels come last: of f32 as the pass `channels-last` makes them, of codes as exporters do.

use super::window::{Axis, AxisList, Window};
use crate::engine::kernels::pool::{CHANNELS, PoolAxis, Pooled, max_pool_last, mean_last};
use crate::engine::op::{Context, Facts, Inputs, Op, OpError, Outputs, Shape};

/// MaxPool without indices, `[n, h, w, channels]` to the same.
#[derive(Debug)]
pub(crate) struct MaxPoolLast {
    pub(crate) window: Window,
}

impl MaxPoolLast {
    fn axes(&self, x: &[usize]) -> Result<AxisList, OpError> {
        match *x {
            [_, h, w, _] => self.window.over(&[h, w], self.window.kernel().unwrap_or_default()),
            _ => Err(OpError::shape(format!("pooling of a tensor of shape {x:?} where images are expected"))),
        }
    }
}

impl Op for MaxPoolLast {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let axes = self.axes(x)?;
        Ok(vec![[x[0]].into_iter().chain(axes.iter().map(|axis| axis.output)).chain([x[3]]).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let axes = self.axes(x.shape())?;
        let channels = x.shape()[3];
        greatest(&axes, channels, x.slice::<f32>()?, y.slice::<f32>()?, ctx);
        Ok(())
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}

/// The greatest element of each window of images with channels last, on as many threads as it is worth.
pub(crate) fn greatest<T: Pooled + Send + Sync>(axes: &[Axis], channels: usize, x: &[T], y: &mut [T], ctx: &Context<'_>) {
    let axis = |i: usize| {
        let a = &axes[i];
        PoolAxis { input: a.input, output: a.output, kernel: a.kernel, stride: a.stride, dilation: a.dilation, pad: a.pad_begin }
    };
    let axes = [axis(0), axis(1)];
    let line = axes[1].output * channels;
    if y.is_empty() {
        return;
    }
    let operations = (y.len() * axes[0].kernel * axes[1].kernel) as u64 * OPERATIONS_PER_TAP * size_of::<T>() as u64 / 4;
    let count = (y.len() / line).div_ceil(ctx.threads.parts(operations));
    ctx.threads.for_each(y.chunks_mut(count * line).enumerate(), |(part, y)| {
        let lines = part * count..part * count + y.len() / line;
        max_pool_last(ctx.isa, axes, channels, x, lines, y);
    });
}

/// A tap of pooling of 32-bit numbers, in floating-point operations: one is loaded and compared with what two of a product cost.
const OPERATIONS_PER_TAP: u64 = 4;

/// GlobalAveragePool, `[n, h, w, channels]` to `[n, 1, 1, channels]`.
#[derive(Debug)]
pub(crate) struct MeanLast;

impl Op for MeanLast {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        match *inputs.shape(0)? {
            [n, _, _, channels] => Ok(vec![Shape::from_slice(&[n, 1, 1, channels])]),
            ref x => Err(OpError::shape(format!("pooling of a tensor of shape {x:?} where images are expected"))),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let &[_, h, w, channels] = x.shape() else { return Err(OpError::shape("pooling of what is no image")) };
        let (x, y) = (x.slice::<f32>()?, y.slice::<f32>()?);
        if x.is_empty() || y.is_empty() {
            // The mean of nothing.
            y.fill(f32::NAN);
            return Ok(());
        }
        for (x, y) in x.chunks_exact(h * w * channels).zip(y.chunks_exact_mut(channels)) {
            // Parts begin where the kernel's blocks of channels do, so that none has more remainders than the whole.
            let part = channels.div_ceil(ctx.threads.parts(OPERATIONS_PER_TAP * x.len() as u64)).next_multiple_of(CHANNELS);
            let items = y.chunks_mut(part).enumerate();
            ctx.threads.for_each(items, |(number, y)| mean_last(ctx.isa, x, channels, number * part, y));
        }
        Ok(())
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}
