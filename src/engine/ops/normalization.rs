//! Normalisation of rows: LayerNormalization, InstanceNormalization, GroupNormalization and LRN.

pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axes, axis, offsets, same_type, strides};
use super::broadcast::{self, Broadcast};
use super::matmul::{narrow, widened};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::threads::Threads;
use crate::engine::view::View;

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::FLOATS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("LayerNormalization", 17..=ANY, |a| layer_norm(a, false)),
    def("RMSNormalization", 23..=ANY, |a| layer_norm(a, true)),
    // Not of the standard, but exporters for ONNX Runtime write it into its domain.
    def("SimplifiedLayerNormalization", 1..=ANY, |a| layer_norm(a, true)),
    OpDef { domain: "com.microsoft", ..def("SimplifiedLayerNormalization", 1..=ANY, |a| layer_norm(a, true)) },
    def("InstanceNormalization", 1..=ANY, |a| {
        a.ignore(&["consumed_inputs"]);
        Ok(Box::new(GroupNorm { groups: Groups::Channels, epsilon: a.float_or("epsilon", 1e-5)?, stash: DType::F32 }))
    }),
    def("GroupNormalization", 18..=20, |a| group_norm(a, true)),
    def("GroupNormalization", 21..=ANY, |a| group_norm(a, false)),
    def("LRN", 1..=ANY, lrn),
    def("LpNormalization", 1..=ANY, lp_norm),
    def("MeanVarianceNormalization", 9..=ANY, |a| Ok(Box::new(MeanVariance { axes: a.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]) }))),
];

/// What a row is divided by, and whether its mean is taken off before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    pub(crate) epsilon: f32,
    /// Only the root of the mean square, not the mean.
    pub(crate) rms: bool,
}

/// Mean, and one over the standard deviation, of a row.
fn moments(isa: Isa, row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = vector::sum(isa, row) / count;
    let variance = vector::sum_of_squared_deviations(isa, row, mean) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl RowNorm {
    /// The mean (0 where it is not taken off), and one over the deviation, of a row.
    pub(crate) fn moments(self, isa: Isa, row: &[f32]) -> (f32, f32) {
        if !self.rms {
            return moments(isa, row, self.epsilon);
        }
        (0.0, 1.0 / (vector::sum_of_squared_deviations(isa, row, 0.0) / row.len() as f32 + self.epsilon).sqrt())
    }

    /// Normalises rows as long as `scale`, on as many threads as they are worth; an empty `bias` stands for zeros.
    pub(crate) fn rows(self, (isa, threads): (Isa, &Threads), x: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) {
        const FLOPS_PER_ELEMENT: u64 = 8;
        let len = scale.len();
        if x.is_empty() || len == 0 {
            return;
        }
        let per_part = (x.len() / len).div_ceil(threads.parts(FLOPS_PER_ELEMENT.saturating_mul(x.len() as u64))) * len;
        threads.for_each(x.chunks(per_part).zip(y.chunks_mut(per_part)), |(x, y)| {
            for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
                if !self.rms {
                    vector::layer_norm_row(isa, x, scale, bias, self.epsilon, y);
                    continue;
                }
                let (_, inverse) = self.moments(isa, x);
                y.iter_mut().zip(x).zip(scale).for_each(|((y, x), scale)| *y = x * inverse * scale);
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        });
    }

    /// The row normalised in arithmetic on `S`, each step of the definition rounded; returns the two moments.
    fn in_steps<S: Number>(self, row: &mut [f64]) -> (f64, f64) {
        let count = row.len() as f64;
        let rounded = |v: f64| S::from_f64(v).to_f64();
        row.iter_mut().for_each(|x| *x = rounded(*x));
        let mean = if self.rms { 0.0 } else { rounded(row.iter().sum::<f64>() / count) };
        row.iter_mut().for_each(|x| *x = rounded(*x - mean));
        let variance = rounded(row.iter().map(|x| rounded(x * x)).sum::<f64>() / count);
        let deviation = rounded(rounded(variance + rounded(f64::from(self.epsilon))).sqrt());
        row.iter_mut().for_each(|x| *x = rounded(*x / deviation));
        (mean, rounded(1.0 / deviation))
    }

    /// [`RowNorm::in_steps`] on the type that `stash_type` names.
    fn stashed(self, stash: DType, row: &mut [f64]) -> (f64, f64) {
        with_float!(stash, S => self.in_steps::<S>(row), else (f64::NAN, f64::NAN))
    }
}

/// The type of the first stage's arithmetic, attribute `stash_type`.
fn stash_type(attrs: &Attrs) -> Result<DType, OpError> {
    let code = attrs.int_or("stash_type", 1)?;
    let found = types::FLOATS.iter().find(|dtype| i64::from(dtype.onnx()) == code);
    found.copied().ok_or_else(|| OpError::Attribute(format!("attribute `stash_type` is {code}, which is no floating-point type")))
}

/// Mean and variance, or the mean square, over all dimensions from the axis on.
#[derive(Debug)]
struct LayerNorm {
    axis: i64,
    norm: RowNorm,
    stash: DType,
}

fn layer_norm(attrs: &Attrs, rms: bool) -> Result<Box<dyn Op>, OpError> {
    let norm = RowNorm { epsilon: attrs.float_or("epsilon", 1e-5)?, rms };
    Ok(Box::new(LayerNorm { axis: attrs.int_or("axis", -1)?, norm, stash: stash_type(attrs)? }))
}

impl LayerNorm {
    /// The axis, how many rows there are, and how long they are.
    fn rows(&self, shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
        let axis = axis(self.axis, shape.len())?;
        Ok((axis, shape[..axis].iter().product(), shape[axis..].iter().product()))
    }

    /// The moments that somebody reads, of rows of f32.
    fn write_moments(&self, isa: Isa, x: &[f32], len: usize, outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        for &(index, inverse) in self.moments_at() {
            let Some(y) = outputs.get(index) else { continue };
            for (y, row) in y.slice::<f32>()?.iter_mut().zip(x.chunks_exact(len)) {
                let moments = self.norm.moments(isa, row);
                *y = if inverse { moments.1 } else { moments.0 };
            }
        }
        Ok(())
    }

    /// At which outputs the moments are, and whether each is the inverse of the deviation.
    fn moments_at(&self) -> &'static [(usize, bool)] {
        if self.norm.rms { &[(1, true)] } else { &[(1, false), (2, true)] }
    }

    fn run_stashed(&self, inputs: &Inputs<'_>, len: usize, (scale, bias): (&[f32], &[f32]), outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let mut wide: Vec<f64> = with_float!(x.dtype(), T => x.slice::<T>()?.iter().map(|v| v.to_f64()).collect(),
            else return Err(OpError::wrong_type(DType::F32, x.dtype())));
        let found: Vec<(f64, f64)> = wide.chunks_exact_mut(len).map(|row| self.norm.stashed(self.stash, row)).collect();
        for &(index, inverse) in self.moments_at() {
            let Some(y) = outputs.get(index) else { continue };
            with_float!(self.stash, S => {
                y.slice::<S>()?.iter_mut().zip(&found).for_each(|(y, moments)| *y = S::from_f64(if inverse { moments.1 } else { moments.0 }));
            }, else {});
        }
        for row in wide.chunks_exact_mut(len) {
            row.iter_mut().zip(scale).for_each(|(x, scale)| *x *= f64::from(*scale));
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += f64::from(*bias));
        }
        let y = outputs.at(0)?;
        let dtype = y.dtype();
        with_float!(dtype, T => {
            y.slice::<T>()?.iter_mut().zip(&wide).for_each(|(y, v)| *y = T::from_f64(*v));
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, dtype)))
    }
}

/// A parameter, spread over a row if it is smaller.
fn spread(values: Vec<f32>, shape: &[usize], row: &[usize]) -> Vec<f32> {
    let len = row.iter().product();
    if values.len() == len {
        return values;
    }
    let mut full = vec![0.0; len];
    broadcast::map(&Broadcast::new(row, [shape]), &values, &mut full, |v, to| *to = *v);
    full
}

impl Op for LayerNorm {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let moments = Kind::Tensor(self.stash);
        if self.norm.rms {
            // The output is of the scale's type, which may be another than the input's.
            let scale = same_type(inputs, 2, [1])?.swap_remove(0);
            return Ok(smallvec![scale, moments]);
        }
        let kind = same_type(inputs, 2, 0..3)?.swap_remove(0);
        Ok(smallvec![kind, moments.clone(), moments])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let (axis, ..) = self.rows(x)?;
        for i in 1..3 {
            let Some(_) = inputs.get(i) else { continue };
            let shape = inputs.shape(i)?;
            if broadcast::shape([shape, &x[axis..]])?.as_slice() != &x[axis..] {
                return Err(OpError::shape(format!("input {i} of shape {shape:?} does not broadcast to {:?}", &x[axis..])));
            }
        }
        let moments: Shape = x.iter().enumerate().map(|(d, &n)| if d < axis { n } else { 1 }).collect();
        Ok(if self.norm.rms { vec![x.into(), moments] } else { vec![x.into(), moments.clone(), moments] })
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (axis, _, len) = self.rows(x.shape())?;
        let row_shape = &x.shape()[axis..];
        // Without rows, one may have any length; rows without elements have no moments.
        if x.is_empty() {
            for &(index, _) in self.moments_at() {
                let Some(y) = outputs.get(index) else { continue };
                with_float!(self.stash, S => y.slice::<S>()?.fill(S::from_f64(f64::NAN)), else {});
            }
            return Ok(());
        }
        let parameter = |view: View<'_>| Ok::<_, OpError>(spread(widened(view)?, view.shape(), row_shape));
        let scale = parameter(inputs.at(1)?)?;
        let bias = inputs.get(2).map(parameter).transpose()?.unwrap_or_default();
        if self.stash != DType::F32 {
            return self.run_stashed(inputs, len, (&scale, &bias), outputs);
        }
        let on = (ctx.isa, ctx.threads);
        let y = outputs.at(0)?;
        if (x.dtype(), y.dtype()) == (DType::F32, DType::F32) {
            let x = x.slice::<f32>()?;
            self.norm.rows(on, x, &scale, &bias, y.slice()?);
            return self.write_moments(ctx.isa, x, len, outputs);
        }
        let wide = widened(x)?;
        let mut result = vec![0.0; wide.len()];
        self.norm.rows(on, &wide, &scale, &bias, &mut result);
        narrow(&result, y)?;
        self.write_moments(ctx.isa, &wide, len, outputs)
    }
}

#[derive(Clone, Copy, Debug)]
enum Groups {
    /// A group each.
    Channels,
    /// As many, with a scale and bias per group or per channel.
    Count { count: usize, scale_per_group: bool },
}

/// Mean and variance over the channels of a group of a sample.
#[derive(Debug)]
struct GroupNorm {
    groups: Groups,
    epsilon: f32,
    stash: DType,
}

fn group_norm(attrs: &Attrs, scale_per_group: bool) -> Result<Box<dyn Op>, OpError> {
    let stash = stash_type(attrs)?;
    let count = attrs.required("num_groups", attrs.int("num_groups")?)?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => {
            let groups = Groups::Count { count, scale_per_group };
            Ok(Box::new(GroupNorm { groups, epsilon: attrs.float_or("epsilon", 1e-5)?, stash }))
        }
        _ => Err(OpError::Attribute(format!("attribute `num_groups` is {count}"))),
    }
}

impl GroupNorm {
    /// How many groups a tensor of `shape` has, and how many scales.
    fn sizes(&self, shape: &[usize]) -> Result<(usize, usize), OpError> {
        let Some(&channels) = shape.get(1) else {
            return Err(OpError::shape(format!("normalisation of a tensor of shape {shape:?}")));
        };
        match self.groups {
            Groups::Channels => Ok((channels, channels)),
            Groups::Count { count, scale_per_group } if channels.is_multiple_of(count) => {
                Ok((count, if scale_per_group { count } else { channels }))
            }
            Groups::Count { count, .. } => Err(OpError::shape(format!("{channels} channels in {count} groups"))),
        }
    }
}

impl GroupNorm {
    /// The same in float64 throughout: an `f32` would take half of its digits. Groups have `len` elements and `per_group` scales.
    fn run_wide(&self, inputs: &Inputs<'_>, (len, groups, per_group): (usize, usize, usize), outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let (scale, bias) = (inputs.at(1)?.slice::<f64>()?, inputs.at(2)?.slice::<f64>()?);
        let y = outputs.at(0)?.slice::<f64>()?;
        y.copy_from_slice(inputs.at(0)?.slice()?);
        for (i, row) in y.chunks_exact_mut(len).enumerate() {
            RowNorm { epsilon: self.epsilon, rms: false }.stashed(DType::F64, row);
            for (c, part) in row.chunks_exact_mut(len / per_group).enumerate() {
                let c = i % groups * per_group + c;
                part.iter_mut().for_each(|v| *v = *v * scale[c] + bias[c]);
            }
        }
        Ok(())
    }
}

impl Op for GroupNorm {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 3, 0..3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let (_, scales) = self.sizes(x)?;
        match (1..3).map(|i| inputs.shape(i)).find(|shape| shape.as_ref().is_ok_and(|s| *s != [scales])) {
            Some(shape) => Err(OpError::shape(format!("a parameter of shape {:?}; {scales} values are needed", shape?))),
            None => Ok(vec![x.into()]),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (groups, scales) = self.sizes(x.shape())?;
        let (scale, bias) = (widened(inputs.at(1)?)?, widened(inputs.at(2)?)?);
        if x.is_empty() {
            return Ok(());
        }
        let len = x.len() / (x.shape()[0] * groups);
        // How many scales a group spans, and how many elements each has.
        let per_group = scales / groups;
        let per_scale = len / per_group;
        if x.dtype() == DType::F64 {
            return self.run_wide(inputs, (len, groups, per_group), outputs);
        }
        let mut values = widened(x)?;
        for (i, row) in values.chunks_exact_mut(len).enumerate() {
            let (mean, inverse) = if self.stash == DType::F32 {
                moments(ctx.isa, row, self.epsilon)
            } else {
                // The row comes back normalised.
                let mut wide: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
                RowNorm { epsilon: self.epsilon, rms: false }.stashed(self.stash, &mut wide);
                row.iter_mut().zip(&wide).for_each(|(v, &wide)| *v = wide as f32);
                (0.0, 1.0)
            };
            for (c, part) in row.chunks_exact_mut(per_scale).enumerate() {
                let c = i % groups * per_group + c;
                part.iter_mut().for_each(|v| *v = (*v - mean) * inverse * scale[c] + bias[c]);
            }
        }
        narrow(&values, y)
    }
}

/// Division by a power of the squares' sum over neighbouring channels.
#[derive(Debug)]
struct Lrn {
    alpha: f32,
    beta: f32,
    bias: f32,
    size: usize,
}

fn lrn(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let size = attrs.required("size", attrs.int("size")?)?;
    match usize::try_from(size) {
        Ok(size) if size > 0 => Ok(Box::new(Lrn {
            alpha: attrs.float_or("alpha", 1e-4)?,
            beta: attrs.float_or("beta", 0.75)?,
            bias: attrs.float_or("bias", 1.0)?,
            size,
        })),
        _ => Err(OpError::Attribute(format!("attribute `size` is {size}"))),
    }
}

impl Op for Lrn {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        if x.len() < 2 { Err(OpError::shape(format!("normalisation of a tensor of shape {x:?}"))) } else { Ok(vec![x.into()]) }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (samples, channels, size) = around(x.shape(), 1);
        if x.is_empty() {
            return Ok(());
        }
        with_float!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, outputs.at(0)?.slice::<T>()?);
            for n in 0..samples {
                for c in 0..channels {
                    let first = c.saturating_sub((self.size - 1) / 2);
                    let end = (c + self.size / 2 + 1).min(channels);
                    for i in 0..size {
                        let at = |c: usize| x[(n * channels + c) * size + i].to_f64();
                        let squares: f64 = (first..end).map(|c| at(c) * at(c)).sum();
                        let base = f64::from(self.bias) + f64::from(self.alpha) / self.size as f64 * squares;
                        y[(n * channels + c) * size + i] = T::from_f64(at(c) / base.powf(f64::from(self.beta)));
                    }
                }
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// Division of the elements along an axis by their norm; a norm of zero gives zeros.
#[derive(Debug)]
struct LpNorm {
    axis: i64,
    squares: bool,
}

fn lp_norm(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let squares = match attrs.int_or("p", 2)? {
        1 => false,
        2 => true,
        p => return Err(OpError::Attribute(format!("attribute `p` is {p}; 1 and 2 are defined"))),
    };
    Ok(Box::new(LpNorm { axis: attrs.int_or("axis", -1)?, squares }))
}

impl Op for LpNorm {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        axis(self.axis, x.len())?;
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (_, size, inner) = around(x.shape(), axis(self.axis, x.shape().len())?);
        if x.is_empty() {
            return Ok(());
        }
        with_float!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, outputs.at(0)?.slice::<T>()?);
            let mut norms = vec![0.0_f64; inner];
            for (x, y) in x.chunks_exact(size * inner).zip(y.chunks_exact_mut(size * inner)) {
                norms.fill(0.0);
                for row in x.chunks_exact(inner) {
                    let power = |x: f64| if self.squares { x * x } else { x.abs() };
                    norms.iter_mut().zip(row).for_each(|(norm, x)| *norm += power(x.to_f64()));
                }
                if self.squares {
                    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
                }
                for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)) {
                    for ((y, x), &norm) in y.iter_mut().zip(x).zip(&norms) {
                        *y = if norm == 0.0 { T::ZERO } else { T::from_f64(x.to_f64() / norm) };
                    }
                }
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// Mean and variance over some axes: `(x - mean) / (deviation + 1e-9)`.
#[derive(Debug)]
struct MeanVariance {
    axes: Vec<i64>,
}

impl Op for MeanVariance {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        axes(&self.axes, x.len())?;
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        const EPSILON: f64 = 1e-9;
        let x = inputs.at(0)?;
        let (shape, over) = (x.shape(), axes(&self.axes, x.shape().len())?);
        // An output of one number per group is stepped over once per pass, standing still along the axes.
        let groups: Vec<usize> = shape.iter().enumerate().map(|(d, &n)| if over.contains(&d) { 1 } else { n }).collect();
        let steps: Vec<isize> = strides(&groups).iter().zip(&groups).map(|(&stride, &n)| if n == 1 { 0 } else { stride as isize }).collect();
        if x.is_empty() {
            return Ok(());
        }
        let count = (x.len() / groups.iter().product::<usize>()) as f64;
        with_float!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, outputs.at(0)?.slice::<T>()?);
            let mean_of = |f: &dyn Fn(f64, usize) -> f64| -> Vec<f64> {
                let (mut sums, mut values) = (vec![0.0; groups.iter().product()], x.iter());
                offsets(shape, &steps, 0, |group| if let Some(x) = values.next() { sums[group as usize] += f(x.to_f64(), group as usize) });
                sums.iter().map(|sum| sum / count).collect()
            };
            let mean = mean_of(&|x, _| x);
            let variance = mean_of(&|x, group| (x - mean[group]) * (x - mean[group]));
            let mut pairs = y.iter_mut().zip(x);
            offsets(shape, &steps, 0, |group| if let Some((y, x)) = pairs.next() {
                *y = T::from_f64((x.to_f64() - mean[group as usize]) / (variance[group as usize].sqrt() + EPSILON));
            });
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    #[test]
    fn layer_norm_over_the_last_axes() {
        let x = tensor(&[2, 2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 1.0, 1.0, 4.0]);
        let one = tensor(&[3], &[1.0_f32; 3]);
        let r = 1.5_f32.sqrt();
        let y = op("LayerNormalization").outputs(3).run(&[&x, &one]).unwrap();
        let s = 0.5_f32.sqrt();
        assert_close(&y[0], &[2, 2, 3], &[-r, 0.0, r, -r, 0.0, r, 0.0, 0.0, 0.0, -s, -s, 2.0 * s], 1e-4);
        assert_close(&y[1], &[2, 2, 1], &[2.0, 5.0, 0.0, 2.0], 1e-6);
        assert_eq!(y[2].shape(), [2, 2, 1]);
        let biased = op("LayerNormalization").attr("axis", 1_i64).one(&[&x, &Tensor::scalar(0.0_f32), &tensor(&[2, 1], &[1.0_f32, 2.0])]);
        assert_close(&biased, &[2, 2, 3], &[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0], 1e-6);
        assert!(matches!(op("LayerNormalization").error(&[&x, &tensor(&[2], &[1.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(op("LayerNormalization").attr("axis", 3_i64).error(&[&x, &one]), OpError::Value(_)));
    }

    #[test]
    fn instance_and_group_norm() {
        let x = tensor(&[1, 4, 2], &[1.0_f32, 3.0, 2.0, 6.0, 0.0, 0.0, 5.0, 7.0]);
        let (scale, bias) = (tensor(&[4], &[1.0_f32, 1.0, 1.0, 2.0]), tensor(&[4], &[0.0_f32, 0.0, 1.0, 0.0]));
        let y = op("InstanceNormalization").attr("epsilon", 0.0_f32).one(&[&x, &scale, &bias]);
        let found = y.slice::<f32>().unwrap();
        assert_eq!((&found[..4], &found[6..]), (&[-1.0, 1.0, -1.0, 1.0][..], &[-2.0, 2.0][..]));
        let one_each = op("GroupNormalization").attr("num_groups", 4_i64).one(&[&x, &scale, &bias]);
        assert_eq!(one_each, op("InstanceNormalization").one(&[&x, &scale, &bias]));
        let (per_group, zero) = (tensor(&[2], &[1.0_f32; 2]), tensor(&[2], &[0.0_f32; 2]));
        let old = op("GroupNormalization").opset(18).attr("num_groups", 2_i64).one(&[&x, &per_group, &zero]);
        let new = op("GroupNormalization").attr("num_groups", 2_i64).one(&[&x, &tensor(&[4], &[1.0_f32; 4]), &tensor(&[4], &[0.0_f32; 4])]);
        assert_eq!(old, new);
        assert!(op("GroupNormalization").attr("num_groups", 3_i64).run(&[&x, &scale, &bias]).is_err());
        assert!(op("GroupNormalization").attr("num_groups", 2_i64).run(&[&x, &per_group, &zero]).is_err());
        assert!(op("GroupNormalization").attr("num_groups", 0_i64).run(&[&x, &scale, &bias]).is_err());
    }

    #[test]
    fn lrn_sums_over_neighbours() {
        let x = tensor(&[1, 3, 1], &[1.0_f32, 2.0, 3.0]);
        let case = op("LRN").attr("size", 3_i64).attr("alpha", 3.0_f32).attr("beta", 1.0_f32);
        assert_close(&case.one(&[&x]), &[1, 3, 1], &[1.0 / 6.0, 2.0 / 15.0, 3.0 / 14.0], 1e-6);
        assert!(matches!(op("LRN").error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(case.error(&[&tensor(&[1], &[1.0_f32])]), OpError::Shape(_)));
    }

    #[test]
    fn groups_of_float64_keep_their_digits() {
        let x = tensor(&[1, 1, 2], &[1.0_f64, 1.0 + 1e-9]);
        let one = tensor(&[1], &[1.0_f64]);
        let (instance, group) = (op("InstanceNormalization"), op("GroupNormalization").attr("num_groups", 1_i64));
        for case in [instance, group] {
            let y = case.attr("epsilon", 0.0_f32).one(&[&x, &one, &tensor(&[1], &[0.0_f64])]);
            let y = y.slice::<f64>().unwrap();
            assert!((y[0] + 1.0).abs() < 1e-6 && (y[1] - 1.0).abs() < 1e-6, "{y:?}");
        }
    }

    #[test]
    fn halves_compute_in_f32() {
        let x = tensor(&[1, 2], &[f16::ONE, f16::from_f32(3.0)]);
        let one = tensor(&[2], &[f16::ONE; 2]);
        let y = op("LayerNormalization").one(&[&x, &one]);
        assert_eq!(y, tensor(&[1, 2], &[f16::from_f32(-1.0), f16::ONE]));
        assert_eq!(op("LayerNormalization").one(&[&tensor::<f32>(&[0, 2], &[]), &tensor(&[2], &[1.0_f32; 2])]).shape(), [0, 2]);
    }

    #[test]
    fn root_mean_square() {
        let x = tensor(&[2, 2], &[3.0_f32, 4.0, 0.0, 2.0]);
        let (r, s) = (12.5_f32.sqrt(), 2.0_f32.sqrt());
        let scale = tensor(&[2], &[1.0_f32, 10.0]);
        let want = [3.0 / r, 40.0 / r, 0.0, 20.0 / s];
        let rms = || op("RMSNormalization").opset(23).attr("epsilon", 0.0_f32);
        assert_close(&rms().one(&[&x, &scale]), &[2, 2], &want, 1e-6);
        let (wide, halves) = (tensor(&[2, 2], &[3.0_f64, 4.0, 0.0, 2.0]), tensor(&[2, 2], &[3.0, 4.0, 0.0, 2.0].map(f16::from_f32)));
        for stash in [1_i64, 10, 11, 16] {
            // The output has the type of the scale.
            for x in [&wide, &halves, &x] {
                let tolerance = if stash == 1 || stash == 11 { 1e-6 } else { 0.03 };
                assert_close(&rms().attr("stash_type", stash).one(&[x, &scale]), &[2, 2], &want, tolerance);
            }
        }
        for domain in ["", "com.microsoft"] {
            let simplified = op("SimplifiedLayerNormalization").domain(domain).opset(1).attr("epsilon", 0.0_f32).outputs(2).run(&[&x, &scale]).unwrap();
            assert_close(&simplified[0], &[2, 2], &want, 1e-6);
            assert_close(&simplified[1], &[2, 1], &[1.0 / r, 1.0 / s], 1e-6);
        }
        assert!(matches!(rms().attr("stash_type", 7_i64).error(&[&x, &scale]), OpError::Attribute(_)));
        assert!(matches!(rms().error(&[&x, &tensor(&[3], &[1.0_f32; 3])]), OpError::Shape(_)));
    }

    #[test]
    fn other_stash_types_round_each_step() {
        let x = tensor(&[1, 4], &[1.0_f32, 2.0, 3.0, 4.5]);
        let one = tensor(&[4], &[1.0_f32; 4]);
        let run = |stash: i64| op("LayerNormalization").attr("stash_type", stash).outputs(3).run(&[&x, &one]).unwrap();
        let (narrow, exact) = (run(16), run(1));
        assert_eq!(narrow[1], tensor(&[1, 1], &[half::bf16::from_f32(2.625)]));
        assert_close(&narrow[0], &[1, 4], exact[0].slice::<f32>().unwrap(), 0.02);
        assert_close(&run(11)[0], &[1, 4], exact[0].slice::<f32>().unwrap(), 1e-6);
        let grouped = |stash: i64| op("GroupNormalization").attr("num_groups", 2_i64).attr("stash_type", stash).one(&[&x, &one, &one]);
        assert_close(&grouped(11), &[1, 4], grouped(1).slice::<f32>().unwrap(), 1e-5);
    }

    #[test]
    fn norms_along_an_axis() {
        let x = tensor(&[2, 2], &[3.0_f32, 0.0, -4.0, 0.0]);
        let case = || op("LpNormalization");
        assert_close(&case().attr("axis", 0_i64).one(&[&x]), &[2, 2], &[0.6, 0.0, -0.8, 0.0], 1e-7);
        assert_close(&case().attr("axis", 0_i64).attr("p", 1_i64).one(&[&x]), &[2, 2], &[3.0 / 7.0, 0.0, -4.0 / 7.0, 0.0], 1e-7);
        assert_close(&case().one(&[&x]), &[2, 2], &[1.0, 0.0, -1.0, 0.0], 0.0);
        assert!(matches!(case().attr("p", 3_i64).error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(case().attr("axis", i64::MIN).error(&[&x]), OpError::Value(_)));
    }

    #[test]
    fn mean_and_variance_over_any_axes() {
        let x = tensor(&[2, 2, 1, 2], &[1.0_f32, 3.0, 7.0, 7.0, 5.0, 7.0, 7.0, 7.0]);
        let case = || op("MeanVarianceNormalization");
        let r = 5.0_f32.sqrt();
        assert_close(&case().one(&[&x]), &[2, 2, 1, 2], &[-3.0 / r, -1.0 / r, 0.0, 0.0, 1.0 / r, 3.0 / r, 0.0, 0.0], 1e-6);
        assert_close(&case().attr("axes", &[-1_i64][..]).one(&[&x]), &[2, 2, 1, 2], &[-1.0, 1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0], 1e-6);
        assert!(matches!(case().attr("axes", &[0_i64, -4][..]).error(&[&x]), OpError::Value(_)));
        assert!(matches!(case().error(&[&tensor(&[2], &[1.0_f32, 2.0])]), OpError::Value(_)));
    }
}
