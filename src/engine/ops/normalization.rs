//! Normalisation: BatchNormalization as it serves, LayerNormalization, InstanceNormalization, GroupNormalization and LRN.

use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axis, same_type};
use super::broadcast::{self, Broadcast};
use super::matmul::{narrow, widened};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::FLOATS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("BatchNormalization", 7..=ANY, batch_norm),
    def("LayerNormalization", 17..=ANY, layer_norm),
    def("InstanceNormalization", 6..=ANY, |a| {
        Ok(Box::new(GroupNorm { groups: Groups::Channels, epsilon: a.float_or("epsilon", 1e-5)? }))
    }),
    def("GroupNormalization", 18..=20, |a| group_norm(a, true)),
    def("GroupNormalization", 21..=ANY, |a| group_norm(a, false)),
    def("LRN", 1..=ANY, lrn),
];

/// `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel, with given mean and variance.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    pub(crate) epsilon: f32,
}

fn batch_norm(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    // The momentum of the running mean matters in training only.
    attrs.ignore(&["momentum"]);
    if attrs.opset < 9 && attrs.int_or("spatial", 1)? != 1 {
        return Err(OpError::unsupported("attribute `spatial` = 0 is not supported"));
    }
    if attrs.opset >= 14 && attrs.bool_or("training_mode", false)? {
        return Err(OpError::unsupported("training mode is not supported"));
    }
    if attrs.outputs.len() > 1 {
        return Err(OpError::unsupported("the outputs of training mode are not supported"));
    }
    Ok(Box::new(BatchNorm { epsilon: attrs.float_or("epsilon", 1e-5)? }))
}

impl BatchNorm {
    /// The factor and the mean and the shift of a channel.
    fn channel<T: Number>(&self, [scale, bias, mean, variance]: [T; 4]) -> (f64, f64, f64) {
        (scale.to_f64() / (variance.to_f64() + f64::from(self.epsilon)).sqrt(), mean.to_f64(), bias.to_f64())
    }
}

impl Op for BatchNorm {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 5, [0])?;
        // From opset 14 on the parameters may be of another type than the input; as one of their own.
        same_type(inputs, 5, 1..3)?;
        same_type(inputs, 5, 3..5)?;
        same_type(inputs, 5, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        // A tensor of rank 1 has one channel.
        let channels = x.get(1).copied().unwrap_or(1);
        for i in 1..5 {
            let shape = inputs.shape(i)?;
            if shape != [channels] || x.is_empty() {
                return Err(OpError::shape(format!("input {i} has shape {shape:?}; the input of shape {x:?} has {channels} channels")));
            }
        }
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let parameters: Vec<Vec<f64>> = (1..5).map(|i| doubles(inputs.at(i)?)).collect::<Result<_, _>>()?;
        let channels = x.shape().get(1).copied().unwrap_or(1);
        let size: usize = x.shape().get(2..).unwrap_or_default().iter().product();
        let of = |c: usize| self.channel([0, 1, 2, 3].map(|i| parameters[i][c]));
        if x.is_empty() {
            return Ok(());
        }
        with_float!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, outputs.at(0)?.slice::<T>()?);
            for (plane, (x, y)) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)).enumerate() {
                let (factor, mean, shift) = of(plane % channels);
                for (y, x) in y.iter_mut().zip(x) {
                    *y = T::from_f64((x.to_f64() - mean) * factor + shift);
                }
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// The elements of a tensor of floats as f64.
pub(crate) fn doubles(view: View<'_>) -> Result<Vec<f64>, OpError> {
    with_float!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|v| v.to_f64()).collect()),
        else Err(OpError::wrong_type(DType::F32, view.dtype())))
}

/// Mean and variance over all dimensions from the axis on.
#[derive(Debug)]
struct LayerNorm {
    axis: i64,
    epsilon: f32,
}

fn layer_norm(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    if attrs.int_or("stash_type", 1)? != 1 {
        return Err(OpError::unsupported("attribute `stash_type` other than 1 (float32) is not supported"));
    }
    Ok(Box::new(LayerNorm { axis: attrs.int_or("axis", -1)?, epsilon: attrs.float_or("epsilon", 1e-5)? }))
}

/// Mean, and one over the standard deviation, of a row.
fn moments(isa: Isa, row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = vector::sum(isa, row) / count;
    let variance = vector::sum_of_squared_deviations(isa, row, mean) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl LayerNorm {
    /// How many rows there are, and how long they are.
    fn rows(&self, shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
        let axis = axis(self.axis, shape.len())?;
        Ok((axis, shape[..axis].iter().product(), shape[axis..].iter().product()))
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
        let kind = same_type(inputs, 2, 0..3)?.swap_remove(0);
        Ok(smallvec![kind, Kind::Tensor(DType::F32), Kind::Tensor(DType::F32)])
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
        Ok(vec![x.into(), moments.clone(), moments])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (axis, _, len) = self.rows(x.shape())?;
        let row_shape = &x.shape()[axis..];
        // Without rows, one may have any length.
        if x.is_empty() {
            return Ok(());
        }
        let parameter = |view: View<'_>| Ok::<_, OpError>(spread(widened(view)?, view.shape(), row_shape));
        let scale = parameter(inputs.at(1)?)?;
        let bias = inputs.get(2).map(parameter).transpose()?.unwrap_or_default();
        for (output, pick) in [(1, 0), (2, 1)] {
            let Some(output) = outputs.get(output) else { continue };
            let rows = widened(x)?;
            for (y, row) in output.slice::<f32>()?.iter_mut().zip(rows.chunks_exact(len)) {
                let (mean, inverse) = moments(ctx.isa, row, self.epsilon);
                *y = if pick == 0 { mean } else { inverse };
            }
        }
        let y = outputs.at(0)?;
        if x.dtype() == DType::F32 {
            let (x, y) = (x.slice::<f32>()?, y.slice::<f32>()?);
            for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
                vector::layer_norm_row(ctx.isa, x, &scale, &bias, self.epsilon, y);
            }
            return Ok(());
        }
        // The standard computes in float32 whatever the type.
        let wide = widened(x)?;
        let mut result = vec![0.0; wide.len()];
        for (x, y) in wide.chunks_exact(len).zip(result.chunks_exact_mut(len)) {
            vector::layer_norm_row(ctx.isa, x, &scale, &bias, self.epsilon, y);
        }
        narrow(&result, y)
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
}

fn group_norm(attrs: &Attrs, scale_per_group: bool) -> Result<Box<dyn Op>, OpError> {
    if attrs.int_or("stash_type", 1)? != 1 {
        return Err(OpError::unsupported("attribute `stash_type` other than 1 (float32) is not supported"));
    }
    let count = attrs.required("num_groups", attrs.int("num_groups")?)?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => {
            Ok(Box::new(GroupNorm { groups: Groups::Count { count, scale_per_group }, epsilon: attrs.float_or("epsilon", 1e-5)? }))
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
        let mut values = widened(x)?;
        let len = values.len() / (x.shape()[0] * groups);
        // How many scales a group spans, and how many elements each has.
        let per_group = scales / groups;
        let per_scale = len / per_group;
        for (i, row) in values.chunks_exact_mut(len).enumerate() {
            let (mean, inverse) = moments(ctx.isa, row, self.epsilon);
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

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    fn parameters(channels: usize) -> [Tensor; 4] {
        let positive: Vec<f32> = noise(channels, 9).iter().map(|v| v.abs() + 0.5).collect();
        [1, 2, 3].map(|seed| tensor(&[channels], &noise(channels, seed))).into_iter().chain([tensor(&[channels], &positive)]).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn batch_norm_by_definition() {
        let [scale, bias, mean, variance] = parameters(3);
        let x = tensor(&[2, 3, 4], &noise(24, 7));
        let y = op("BatchNormalization").attr("epsilon", 0.01_f32).one(&[&x, &scale, &bias, &mean, &variance]);
        let of = |t: &Tensor, c: usize| t.slice::<f32>().unwrap()[c];
        let want: Vec<f32> = x.slice::<f32>().unwrap().iter().enumerate().map(|(i, x)| {
            let c = i / 4 % 3;
            (x - of(&mean, c)) / (of(&variance, c) + 0.01).sqrt() * of(&scale, c) + of(&bias, c)
        }).collect();
        assert_close(&y, &[2, 3, 4], &want, 1e-5);
        let flat = op("BatchNormalization").one(&[&tensor(&[2, 3], &noise(6, 1)), &scale, &bias, &mean, &variance]);
        assert_eq!(flat.shape(), [2, 3]);
    }

    #[test]
    fn batch_norm_refuses_training() {
        let [scale, bias, mean, variance] = parameters(3);
        let x = tensor(&[2, 3], &noise(6, 7));
        let inputs = [&x, &scale, &bias, &mean, &variance];
        assert!(matches!(op("BatchNormalization").attr("training_mode", 1_i64).error(&inputs), OpError::Unsupported(_)));
        assert!(matches!(op("BatchNormalization").outputs(3).error(&inputs), OpError::Unsupported(_)));
        assert!(matches!(op("BatchNormalization").opset(7).attr("spatial", 0_i64).error(&inputs), OpError::Unsupported(_)));
        assert!(op("BatchNormalization").opset(7).attr("spatial", 1_i64).run(&inputs).is_ok());
        assert!(matches!(op("BatchNormalization").error(&[&x, &scale, &bias, &mean, &x]), OpError::Shape(_)));
        assert!(matches!(op("BatchNormalization").error(&[&x, &scale, &bias]), OpError::Shape(_)));
    }

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
    fn halves_compute_in_f32() {
        let x = tensor(&[1, 2], &[f16::ONE, f16::from_f32(3.0)]);
        let one = tensor(&[2], &[f16::ONE; 2]);
        let y = op("LayerNormalization").one(&[&x, &one]);
        assert_eq!(y, tensor(&[1, 2], &[f16::from_f32(-1.0), f16::ONE]));
        assert_eq!(op("LayerNormalization").one(&[&tensor::<f32>(&[0, 2], &[]), &tensor(&[2], &[1.0_f32; 2])]).shape(), [0, 2]);
    }
}
