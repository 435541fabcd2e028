//! BatchNormalization in all its versions: as it serves, and as it trains.

mod channels;
pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::{product, same_type};
use super::number::{Number, with_float};
use super::scalar::{Scalar, with_scalar};
use channels::{each_plane, moments};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const DEFS: &[OpDef] =
    &[OpDef { name: "BatchNormalization", domain: "", opsets: 1..=ANY, types: types::FLOATS, build: batch_norm }];

/// `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel, with given mean and variance.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    pub(crate) epsilon: f32,
}

fn batch_norm(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    attrs.ignore(&["consumed_inputs"]);
    let momentum = attrs.float_or("momentum", 0.9)?;
    let spatial = attrs.opset >= 9 || attrs.bool_or("spatial", true)?;
    let several = attrs.outputs.iter().skip(1).any(|&wanted| wanted);
    let training = match attrs.opset {
        14.. => attrs.bool_or("training_mode", false)?,
        7.. => several,
        _ => !attrs.bool_or("is_test", false)?,
    };
    if several && !training {
        return Err(OpError::Attribute("the outputs of training mode are listed, but the mode is off".into()));
    }
    let norm = BatchNorm { epsilon: attrs.float_or("epsilon", 1e-5)? };
    if spatial && !training {
        return Ok(Box::new(norm));
    }
    Ok(Box::new(Statistical { norm, spatial, training: training.then_some(momentum), saves: attrs.opset < 14 }))
}

/// How the elements of a tensor are grouped: samples, then channels, then the elements of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    samples: usize,
    channels: usize,
    size: usize,
}

impl Sizes {
    /// A tensor of rank 1 has one channel; one that is not spatial has a channel per element of a sample.
    fn of(shape: &[usize], spatial: bool) -> Result<Self, OpError> {
        match shape {
            [] => Err(OpError::shape("normalisation of a scalar")),
            [samples] => Ok(Self { samples: *samples, channels: 1, size: 1 }),
            [samples, rest @ ..] if !spatial => Ok(Self { samples: *samples, channels: product(rest)?, size: 1 }),
            [samples, channels, rest @ ..] => Ok(Self { samples: *samples, channels: *channels, size: product(rest)? }),
        }
    }
}

/// Makes `list` the elements of a tensor of floats.
fn doubles(view: View<'_>, list: &mut Vec<f64>) -> Result<(), OpError> {
    list.clear();
    with_float!(view.dtype(), T => {
        list.extend(view.slice::<T>()?.iter().map(|v| v.to_f64()));
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, view.dtype())))
}

impl BatchNorm {
    fn normalise(&self, x: View<'_>, sizes: Sizes, [scale, bias, mean, variance]: [&[f64]; 4], y: &mut ViewMut<'_>) -> Result<(), OpError> {
        if x.is_empty() {
            return Ok(());
        }
        let factors: Vec<f64> = scale.iter().zip(variance).map(|(scale, variance)| scale / (variance + f64::from(self.epsilon)).sqrt()).collect();
        with_float!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            for (plane, (x, y)) in x.chunks_exact(sizes.size).zip(y.chunks_exact_mut(sizes.size)).enumerate() {
                let c = plane % sizes.channels;
                for (y, x) in y.iter_mut().zip(x) {
                    *y = T::from_f64((x.to_f64() - mean[c]) * factors[c] + bias[c]);
                }
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// The types of the input and of the running statistics.
fn kinds_of(inputs: &[Option<Kind>]) -> Result<(Kind, Kind), OpError> {
    let x = same_type(inputs, 5, [0])?.swap_remove(0);
    // From opset 14 on the parameters may be of other types than the input; two and two of one.
    same_type(inputs, 5, 1..3)?;
    Ok((x, same_type(inputs, 5, 3..5)?.swap_remove(0)))
}

/// Checks that the four parameters have a number per channel.
fn check_parameters(inputs: &Facts<'_>, sizes: Sizes, spatial: bool) -> Result<(), OpError> {
    let x = inputs.shape(0)?;
    for i in 1..5 {
        let shape = inputs.shape(i)?;
        let fits = if spatial { shape == [sizes.channels] } else { product(shape)? == sizes.channels };
        if !fits {
            let channels = sizes.channels;
            return Err(OpError::shape(format!("input {i} has shape {shape:?}; the input of shape {x:?} has {channels} channels")));
        }
    }
    Ok(())
}

impl Op for BatchNorm {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        Ok(smallvec![kinds_of(inputs)?.0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        check_parameters(inputs, Sizes::of(x, true)?, true)?;
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let mut parameters: [Vec<f64>; 4] = ctx.scratch.take_all();
        parameters.iter_mut().enumerate().try_for_each(|(i, list)| doubles(inputs.at(i + 1)?, list))?;
        self.normalise(x, Sizes::of(x.shape(), true)?, parameters.each_ref().map(Vec::as_slice), outputs.at(0)?)?;
        ctx.scratch.give_all(parameters);
        Ok(())
    }
}

/// The forms that take statistics of the input, or have a channel per element.
#[derive(Debug)]
struct Statistical {
    norm: BatchNorm,
    spatial: bool,
    /// In training: the share of the old running statistics in the new ones.
    training: Option<f32>,
    /// Whether the statistics of the input themselves are outputs, too.
    saves: bool,
}

/// Mean and variance (of the population) per channel.
fn statistics<T: Number>(x: &[T], Sizes { samples, channels, size }: Sizes) -> [Vec<f64>; 2] {
    let count = (samples * size) as f64;
    let of = |f: &dyn Fn(f64, usize) -> f64| -> Vec<f64> {
        let mut sums = vec![0.0; channels];
        // A plane without elements has no chunks.
        for (plane, x) in x.chunks_exact(size.max(1)).enumerate() {
            sums[plane % channels] += x.iter().map(|x| f(x.to_f64(), plane % channels)).sum::<f64>();
        }
        sums.iter().map(|sum| sum / count).collect()
    };
    let mean = of(&|x, _| x);
    let variance = of(&|x, c| (x - mean[c]) * (x - mean[c]));
    [mean, variance]
}

fn write(values: impl IntoIterator<Item = f64>, y: Option<&mut ViewMut<'_>>) -> Result<(), OpError> {
    let Some(y) = y else { return Ok(()) };
    let dtype = y.dtype();
    with_float!(dtype, T => {
        y.slice::<T>()?.iter_mut().zip(values).for_each(|(y, v)| *y = T::from_f64(v));
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, dtype)))
}

impl Op for Statistical {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let (x, running) = kinds_of(inputs)?;
        Ok([x].into_iter().chain(std::iter::repeat_n(running, if self.saves { 4 } else { 2 })).collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        check_parameters(inputs, Sizes::of(x, self.spatial)?, self.spatial)?;
        let (mean, variance) = (Shape::from(inputs.shape(3)?), Shape::from(inputs.shape(4)?));
        let saved = if self.saves { vec![mean.clone(), variance.clone()] } else { vec![] };
        Ok([x.into(), mean, variance].into_iter().chain(saved).collect())
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let sizes = Sizes::of(x.shape(), self.spatial)?;
        let mut parameters: [Vec<f64>; 4] = ctx.scratch.take_all();
        parameters.iter_mut().enumerate().try_for_each(|(i, list)| doubles(inputs.at(i + 1)?, list))?;
        let [scale, bias, mean, variance] = parameters.each_ref().map(Vec::as_slice);
        let Some(momentum) = self.training.map(f64::from) else {
            return self.norm.normalise(x, sizes, [scale, bias, mean, variance], outputs.at(0)?);
        };
        let mut current: [Vec<f64>; 2] = ctx.scratch.take_all();
        match x.dtype() {
            DType::F32 | DType::F64 => with_scalar!(x.dtype(), T => {
                let x = x.slice::<T>()?;
                moments(x, sizes, ctx.threads, current.each_mut());
                each_plane([x], outputs.at(0)?.slice()?, sizes, ctx.threads, |c, [x], y| {
                    let factor = scale[c] / (current[1][c] + f64::from(self.norm.epsilon)).sqrt();
                    let [factor, mean, bias] = [factor, current[0][c], bias[c]].map(<T as Scalar>::of);
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * factor + bias);
                });
                Ok(())
            })?,
            _ => {
                current =
                    with_float!(x.dtype(), T => statistics(x.slice::<T>()?, sizes), else return Err(OpError::wrong_type(DType::F32, x.dtype())));
                self.norm.normalise(x, sizes, [scale, bias, &current[0], &current[1]], outputs.at(0)?)?;
            }
        }
        for (i, (old, new)) in [mean, variance].into_iter().zip(&current).enumerate() {
            write(old.iter().zip(new).map(|(old, new)| old * momentum + new * (1.0 - momentum)), outputs.get(1 + i))?;
            write(new.iter().copied(), outputs.get(3 + i))?;
        }
        ctx.scratch.give_all(current);
        ctx.scratch.give_all(parameters);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn parameters(channels: usize) -> [Tensor; 4] {
        let positive: Vec<f32> = noise(channels, 9).iter().map(|v| v.abs() + 0.5).collect();
        let [scale, bias, mean] = [1, 2, 3].map(|seed| tensor(&[channels], &noise(channels, seed)));
        [scale, bias, mean, tensor(&[channels], &positive)]
    }

    fn case() -> Case {
        op("BatchNormalization")
    }

    #[test]
    fn by_definition() {
        let [scale, bias, mean, variance] = parameters(3);
        let x = tensor(&[2, 3, 4], &noise(24, 7));
        let inputs = [&x, &scale, &bias, &mean, &variance];
        let y = case().attr("epsilon", 0.01_f32).one(&inputs);
        let of = |t: &Tensor, c: usize| t.slice::<f32>().unwrap()[c];
        let want = |per: usize| -> Vec<f32> {
            let by_definition = |(i, x): (usize, &f32)| {
                let c = i / per % 3;
                (x - of(&mean, c)) / (of(&variance, c) + 0.01).sqrt() * of(&scale, c) + of(&bias, c)
            };
            x.slice::<f32>().unwrap().iter().enumerate().map(by_definition).collect()
        };
        assert_close(&y, &[2, 3, 4], &want(4), 1e-5);
        assert_eq!(case().one(&[&tensor(&[2, 3], &noise(6, 1)), &scale, &bias, &mean, &variance]).shape(), [2, 3]);
        // The old forms: test mode, and a channel per element.
        let old = |opset| case().opset(opset).attr("epsilon", 0.01_f32);
        assert_eq!(old(6).attr("is_test", 1_i64).one(&inputs), y);
        assert_eq!(old(1).attr("is_test", 1_i64).attr("consumed_inputs", &[0_i64, 0, 0, 1, 1][..]).one(&inputs), y);
        assert_eq!(old(7).attr("spatial", 1_i64).one(&inputs), y);
        let flat = x.reshape(&[8, 3, 1]).unwrap();
        let each = old(8).attr("spatial", 0_i64).one(&[&flat, &scale, &bias, &mean, &variance]);
        assert_close(&each, &[8, 3, 1], &want(1), 1e-5);
    }

    #[test]
    fn training_takes_the_statistics_of_the_input() {
        let x = tensor(&[2, 2, 2], &[1.0_f32, 3.0, 0.0, 0.0, 5.0, 7.0, 0.0, 8.0]);
        let [one, zero] = [1.0_f32, 0.0].map(|v| tensor(&[2], &[v; 2]));
        let (mean, variance) = (tensor(&[2], &[10.0_f32, 20.0]), tensor(&[2], &[1.0_f32, 2.0]));
        let inputs = [&x, &one, &zero, &mean, &variance];
        let case = || case().attr("epsilon", 0.0_f32).attr("momentum", 0.5_f32);
        let y = case().attr("training_mode", 1_i64).outputs(3).run(&inputs).unwrap();
        let (r, s) = (5.0_f32.sqrt(), 12.0_f32.sqrt());
        assert_close(&y[0], &[2, 2, 2], &[-3.0 / r, -1.0 / r, -2.0 / s, -2.0 / s, 1.0 / r, 3.0 / r, -2.0 / s, 6.0 / s], 1e-6);
        assert_close(&y[1], &[2], &[7.0, 11.0], 1e-6);
        assert_close(&y[2], &[2], &[3.0, 7.0], 1e-6);
        let old = case().opset(9).outputs(5).run(&inputs).unwrap();
        assert_eq!(old[..3], y[..]);
        assert_close(&old[3], &[2], &[4.0, 2.0], 1e-6);
        assert_close(&old[4], &[2], &[5.0, 12.0], 1e-6);
        assert_eq!(case().opset(6).one(&inputs), y[0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let [scale, bias, mean, variance] = parameters(3);
        let x = tensor(&[2, 3], &noise(6, 7));
        let inputs = [&x, &scale, &bias, &mean, &variance];
        assert!(matches!(case().outputs(3).error(&inputs), OpError::Attribute(_)));
        assert!(matches!(case().error(&[&x, &scale, &bias, &mean, &x]), OpError::Shape(_)));
        assert!(matches!(case().error(&[&x, &scale, &bias]), OpError::Shape(_)));
        assert!(matches!(case().error(&[&Tensor::scalar(1.0_f32), &scale, &bias, &mean, &variance]), OpError::Shape(_)));
        let empty = Tensor::zeros(DType::F32, &[0, 3, 2]);
        let trained = case().attr("training_mode", 1_i64).outputs(3).run(&[&empty, &scale, &bias, &mean, &variance]).unwrap();
        assert_eq!(trained[0].shape(), [0, 3, 2]);
        assert!(trained[1].slice::<f32>().unwrap().iter().all(|v| v.is_nan()));
    }
}
