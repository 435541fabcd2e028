//! DFT and STFT: discrete Fourier transforms along an axis, and of windows of a signal.
//!
//! Complex numbers are pairs along the last dimension. Transforms are done in f64 and rounded once, except those of complex
//! f32: what the reference rounds there, in f32, is part of what models' golden outputs hold where the result is zero.

mod fft;

use fft::{Fft, splits};
use num_complex::Complex;
use num_traits::Float;

use super::ANY;
use super::axes::{around, axis, ints, require};
use super::number::{Number, with_float};
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "DFT", domain: "", opsets: 17..=19, types: types::FLOATS, build: |a| {
        let axis = Some(a.int_or("axis", 1)?);
        Ok(Box::new(Dft { axis, inverse: a.bool_or("inverse", false)?, onesided: a.bool_or("onesided", false)? }))
    } },
    OpDef { name: "DFT", domain: "", opsets: 20..=ANY, types: types::FLOATS, build: |a| {
        Ok(Box::new(Dft { axis: None, inverse: a.bool_or("inverse", false)?, onesided: a.bool_or("onesided", false)? }))
    } },
    OpDef { name: "STFT", domain: "", opsets: 17..=ANY, types: types::FLOATS, build: |a| {
        Ok(Box::new(Stft { onesided: a.bool_or("onesided", true)? }))
    } },
];

/// The longest transform: beyond it, working memory is many times that of the output.
const LONGEST: usize = 1 << 24;

/// The one element of an operand that is a scalar.
fn scalar(values: &[i64], name: &str) -> Result<i64, OpError> {
    match values {
        [value] => Ok(*value),
        _ => Err(OpError::shape(format!("{name} is one number, {} are given", values.len()))),
    }
}

/// A length that a transform may have.
fn length(value: i64, name: &str) -> Result<usize, OpError> {
    match usize::try_from(value) {
        Ok(n) if (1..=LONGEST).contains(&n) => Ok(n),
        _ => Err(OpError::value(format!("{name} is {value}; it must be between 1 and {LONGEST}"))),
    }
}

/// How many numbers make up one element: 1, or 2 for complex ones.
fn components(shape: &[usize]) -> Result<usize, OpError> {
    match shape.last() {
        Some(&n @ (1 | 2)) if shape.len() >= 2 => Ok(n),
        _ => Err(OpError::shape(format!("a signal has a last dimension of 1 or 2, not shape {shape:?}"))),
    }
}

fn complex_onesided() -> OpError {
    OpError::shape("half of the spectrum is enough for real signals only, this one is complex")
}

/// The transform along one axis.
#[derive(Debug)]
struct Dft {
    /// The axis, if it is no input.
    axis: Option<i64>,
    inverse: bool,
    /// Only the half of the spectrum is given or wanted that determines the other.
    onesided: bool,
}

/// What a transform is done on.
struct Plan {
    axis: usize,
    /// The length of the transform.
    n: usize,
    shape: Shape,
}

impl Dft {
    fn plan(&self, shape: &[usize], operand: impl Fn(usize) -> Result<Option<Vec<i64>>, OpError>) -> Result<Plan, OpError> {
        let parts = components(shape)?;
        let wanted = match (self.axis, operand(2)?) {
            (Some(axis), _) => axis,
            (None, Some(values)) => scalar(&values, "the axis")?,
            (None, None) => -2,
        };
        let axis = axis(wanted, shape.len())?;
        if axis + 1 == shape.len() {
            return Err(OpError::value(format!("axis {wanted} is the one of real and imaginary parts")));
        }
        let n = match operand(1)? {
            Some(values) => length(scalar(&values, "the length")?, "the length of a transform")?,
            None if self.inverse && self.onesided => 2 * shape[axis].saturating_sub(1).min(LONGEST + 1),
            None => shape[axis],
        };
        if self.onesided && !self.inverse && parts == 2 {
            return Err(complex_onesided());
        }
        let mut out = Shape::from_slice(shape);
        out[axis] = if self.onesided && !self.inverse && n > 0 { n / 2 + 1 } else { n };
        out[shape.len() - 1] = if self.onesided && self.inverse { 1 } else { 2 };
        Ok(Plan { axis, n, shape: out })
    }

    fn run_typed<T: Number, F: Float + Number>(&self, plan: &Plan, x: View<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
        let parts = components(x.shape())?;
        let rank = x.shape().len();
        let (_, from, inner) = around(&x.shape()[..rank - 1], plan.axis);
        let (to, wide) = (plan.shape[plan.axis], plan.shape[rank - 1]);
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        let fft = Fft::<F>::new(plan.n);
        let float = |value: T| <F as Number>::from_f64(value.to_f64());
        // Elements of the input that take part in one transform.
        let taken = if self.inverse && self.onesided { plan.n / 2 + 1 } else { plan.n }.min(from);
        let lines = y.len() / (to * inner * wide);
        let threads = ctx.threads.parts((y.len() as u64).saturating_mul(64));
        let per_part = lines.div_ceil(threads).max(1);
        let items = y.chunks_mut(per_part * to * inner * wide).enumerate();
        ctx.threads.for_each(items, |(part, y)| {
            let (mut line, mut work) = (vec![Complex::new(F::ZERO, F::ZERO); plan.n], Vec::new());
            for (i, y) in y.chunks_exact_mut(to * inner * wide).enumerate() {
                let x = &x[(part * per_part + i) * from * inner * parts..][..from * inner * parts];
                for column in 0..inner {
                    line.fill(Complex::new(F::ZERO, F::ZERO));
                    for (k, value) in line.iter_mut().enumerate().take(taken) {
                        let at = (k * inner + column) * parts;
                        let imaginary = if parts == 2 { float(x[at + 1]) } else { F::ZERO };
                        *value = Complex::new(float(x[at]), imaginary);
                    }
                    self.transform(&fft, &mut line, &mut work);
                    for (k, value) in line.iter().enumerate().take(to) {
                        let at = (k * inner + column) * wide;
                        y[at] = T::from_f64(Number::to_f64(value.re));
                        if wide == 2 {
                            y[at + 1] = T::from_f64(Number::to_f64(value.im));
                        }
                    }
                }
            }
        });
        Ok(())
    }

    fn transform<F: Float + Number>(&self, fft: &Fft<F>, line: &mut [Complex<F>], work: &mut Vec<Complex<F>>) {
        if !self.inverse {
            return fft.forward(line, work);
        }
        if self.onesided {
            // The spectrum of a real signal: the second half mirrors the first, and what mirrors itself is real.
            let n = line.len();
            line[0].im = F::ZERO;
            if n.is_multiple_of(2) {
                line[n / 2].im = F::ZERO;
            }
            for k in 1..n.div_ceil(2) {
                line[n - k] = line[k].conj();
            }
        }
        fft.inverse(line, work);
    }
}

impl Op for Dft {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let operand = |i| inputs.get(i).map(|_| inputs.ints(i)).transpose();
        Ok(vec![self.plan(inputs.shape(0)?, operand)?.shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let plan = self.plan(x.shape(), |i| inputs.get(i).map(|view| ints(view).map(|v| v.to_vec())).transpose())?;
        if y.data().is_empty() {
            return Ok(());
        }
        length(plan.n as i64, "the length of a transform")?;
        let complex = components(x.shape())? == 2 && !self.onesided;
        if complex && x.dtype() == DType::F32 && splits(plan.n) {
            return self.run_typed::<f32, f32>(&plan, x, y, ctx);
        }
        with_float!(x.dtype(), T => self.run_typed::<T, f64>(&plan, x, y, ctx), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// Transforms of parts of a signal that follow each other, each weighed by a window.
#[derive(Debug)]
struct Stft {
    onesided: bool,
}

/// What the short-time transform is done on.
struct Frames {
    /// The length of a frame, and of its transform.
    n: usize,
    step: usize,
    shape: Shape,
}

impl Stft {
    fn frames(&self, shape: &[usize], window: Option<&[usize]>, operand: impl Fn(usize) -> Result<Option<Vec<i64>>, OpError>) -> Result<Frames, OpError> {
        let &[batch, samples, parts @ (1 | 2)] = shape else {
            return Err(OpError::shape(format!("a signal has three dimensions, the last of 1 or 2, not shape {shape:?}")));
        };
        let step = operand(1)?.ok_or_else(|| OpError::missing_input(1))?;
        let step = length(scalar(&step, "the step")?, "the step between frames")?;
        let given = operand(3)?.map(|values| scalar(&values, "the frame's length")).transpose()?;
        let of_window = match window {
            Some(&[n]) => Some(n as i64),
            Some(other) => return Err(OpError::shape(format!("the window has shape {other:?}, it must be a vector"))),
            None => None,
        };
        if let (Some(given), Some(window)) = (given, of_window)
            && given != window
        {
            return Err(OpError::shape(format!("the window has {window} elements for frames of {given}")));
        }
        let n = length(given.or(of_window).unwrap_or(samples as i64), "the frame's length")?;
        let Some(room) = samples.checked_sub(n) else {
            return Err(OpError::shape(format!("frames of {n} in a signal of {samples}")));
        };
        if self.onesided && parts == 2 {
            return Err(complex_onesided());
        }
        let bins = if self.onesided { n / 2 + 1 } else { n };
        Ok(Frames { n, step, shape: Shape::from_slice(&[batch, room / step + 1, bins, 2]) })
    }

    fn run_typed<T: Number>(plan: &Frames, x: View<'_>, window: Option<View<'_>>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
        let (samples, parts) = (x.shape()[1], x.shape()[2]);
        let (frames, bins) = (plan.shape[1], plan.shape[2]);
        let window: Option<Vec<f64>> = match window {
            Some(view) => Some(view.slice::<T>()?.iter().map(|v| v.to_f64()).collect()),
            None => None,
        };
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        let fft = Fft::<f64>::new(plan.n);
        let all = y.len() / (bins * 2);
        let per_part = all.div_ceil(ctx.threads.parts((y.len() as u64).saturating_mul(64))).max(1);
        let items = y.chunks_mut(per_part * bins * 2).enumerate();
        ctx.threads.for_each(items, |(part, y)| {
            let (mut line, mut work) = (vec![Complex::default(); plan.n], Vec::new());
            for (i, y) in y.chunks_exact_mut(bins * 2).enumerate() {
                let (batch, frame) = ((part * per_part + i) / frames, (part * per_part + i) % frames);
                let x = &x[(batch * samples + frame * plan.step) * parts..][..plan.n * parts];
                for (k, (value, x)) in line.iter_mut().zip(x.chunks_exact(parts)).enumerate() {
                    let weight = window.as_ref().map_or(1.0, |window| window[k]);
                    *value = Complex::new(x[0].to_f64() * weight, x.get(1).map_or(0.0, |x| x.to_f64() * weight));
                }
                fft.forward(&mut line, &mut work);
                for (y, value) in y.chunks_exact_mut(2).zip(&line) {
                    (y[0], y[1]) = (T::from_f64(value.re), T::from_f64(value.im));
                }
            }
        });
        Ok(())
    }
}

impl Op for Stft {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let operand = |i| inputs.get(i).map(|_| inputs.ints(i)).transpose();
        let window = inputs.get(2).map(|_| inputs.shape(2)).transpose()?;
        Ok(vec![self.frames(inputs.shape(0)?, window, operand)?.shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y, window) = (inputs.at(0)?, outputs.at(0)?, inputs.get(2));
        let operand = |i| inputs.get(i).map(|view| ints(view).map(|v| v.to_vec())).transpose();
        let plan = self.frames(x.shape(), window.map(|view| view.shape()), operand)?;
        if y.data().is_empty() {
            return Ok(());
        }
        with_float!(x.dtype(), T => Self::run_typed::<T>(&plan, x, window, y, ctx), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    fn number(value: i64) -> Tensor {
        Tensor::scalar(value)
    }

    #[test]
    fn a_transform_by_hand_and_back() {
        let x = tensor(&[1, 4, 1], &[1.0_f32, 2.0, 3.0, 4.0]);
        let want = [10.0, 0.0, -2.0, 2.0, -2.0, 0.0, -2.0, -2.0];
        let y = op("DFT").one(&[&x]);
        assert_close(&y, &[1, 4, 2], &want, 1e-7);
        let half = op("DFT").attr("onesided", 1_i64).one(&[&x]);
        assert_close(&half, &[1, 3, 2], &want[..6], 1e-7);
        let back = op("DFT").attr("inverse", 1_i64).one(&[&y]);
        assert_close(&back, &[1, 4, 2], &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0], 1e-7);
        let real = op("DFT").attr("inverse", 1_i64).attr("onesided", 1_i64).one(&[&half]);
        assert_close(&real, &[1, 4, 1], &[1.0, 2.0, 3.0, 4.0], 1e-7);
        // An odd length has to be told.
        let x = tensor(&[5, 1], &[1.0_f32, -2.0, 3.0, 0.5, 4.0]);
        let half = op("DFT").attr("onesided", 1_i64).one(&[&x]);
        let real = op("DFT").attr("inverse", 1_i64).attr("onesided", 1_i64).one(&[&half, &number(5)]);
        assert_close(&real, &[5, 1], x.slice().unwrap(), 1e-6);
    }

    #[test]
    fn axes_and_lengths() {
        let x = noise(2 * 3 * 40, 1);
        let (rows, whole) = (tensor(&[2, 3, 40, 1], &x), tensor(&[6, 40, 1], &x));
        let last = op("DFT").one(&[&rows, &number(37), &number(-2)]);
        assert_close(&last, &[2, 3, 37, 2], op("DFT").one(&[&whole, &number(37)]).slice().unwrap(), 0.0);
        // Along the first axis: the same as along the last of the transposed tensor.
        let across: Vec<f32> = (0..240).map(|i| x[i % 2 * 120 + i / 2]).collect();
        let first = op("DFT").one(&[&rows, &number(5), &number(0)]);
        let want = op("DFT").one(&[&tensor(&[120, 2, 1], &across), &number(5)]);
        let (first, want) = (first.slice::<f32>().unwrap(), want.slice::<f32>().unwrap());
        for i in 0..120 * 5 {
            assert_eq!(first[(i % 5 * 120 + i / 5) * 2], want[i * 2], "{i}");
        }
        let older = op("DFT").opset(17).attr("axis", 2_i64).one(&[&rows]);
        assert_eq!(older, op("DFT").one(&[&rows]));
        assert_eq!(op("DFT").opset(17).one(&[&rows]).shape(), [2, 3, 40, 2]);
        let halves = tensor(&[2, 1], &[f16::from_f32(1.0), f16::from_f32(2.0)]);
        assert_eq!(op("DFT").one(&[&halves]).slice::<f16>().unwrap()[0].to_f32(), 3.0);
    }

    #[test]
    fn frames_are_transforms_of_their_own() {
        let x = tensor(&[2, 10, 1], &noise(20, 2));
        let window = tensor(&[4], &[0.5_f32, 1.0, 1.0, 0.5]);
        let y = op("STFT").one(&[&x, &number(3), &window]);
        assert_eq!(y.shape(), [2, 3, 3, 2]);
        let cut = |start: usize| -> Vec<f32> { (0..4).map(|i| x.slice::<f32>().unwrap()[start + i] * window.slice::<f32>().unwrap()[i]).collect() };
        let last = op("DFT").attr("onesided", 1_i64).one(&[&tensor(&[4, 1], &cut(10 + 6))]);
        assert_close(&tensor(&[3, 2], &y.slice::<f32>().unwrap()[30..]), &[3, 2], last.slice().unwrap(), 1e-6);
        let whole = op("STFT").attr("onesided", 0_i64).run_some(&[Some(&x), Some(&number(3)), None, Some(&number(5))]).unwrap();
        assert_eq!(whole[0].shape(), [2, 2, 5, 2]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let real = tensor(&[4, 1], &[1.0_f32; 4]);
        let complex = tensor(&[4, 2], &[1.0_f32; 8]);
        for n in [0, -1, i64::MIN, i64::MAX] {
            assert!(matches!(op("DFT").error(&[&real, &number(n)]), OpError::Value(_)), "{n}");
        }
        for axis in [1, -1, 2, i64::MIN] {
            assert!(matches!(op("DFT").error(&[&real, &number(4), &number(axis)]), OpError::Value(_)), "{axis}");
        }
        assert!(matches!(op("DFT").attr("onesided", 1_i64).error(&[&complex]), OpError::Shape(_)));
        assert!(matches!(op("DFT").error(&[&tensor(&[4], &[1.0_f32; 4])]), OpError::Shape(_)));
        let signal = tensor(&[1, 4, 1], &[1.0_f32; 4]);
        let window = tensor(&[2], &[1.0_f32; 2]);
        assert!(matches!(op("STFT").error(&[&signal, &number(0)]), OpError::Value(_)));
        assert!(matches!(op("STFT").error(&[&signal, &number(1), &window, &number(3)]), OpError::Shape(_)));
        assert!(matches!(op("STFT").error(&[&signal, &number(1), &tensor(&[5], &[1.0_f32; 5])]), OpError::Shape(_)));
        assert!(matches!(op("STFT").error(&[&real, &number(1)]), OpError::Shape(_)));
    }

    #[test]
    fn empty_tensors_cost_nothing() {
        let empty = Tensor::zeros(DType::F32, &[0, 1 << 40, 1]);
        assert_eq!(op("DFT").one(&[&empty]).shape(), [0, 1 << 40, 2]);
        let none = Tensor::zeros(DType::F32, &[3, 0, 1]);
        assert_eq!(op("DFT").one(&[&none]).shape(), [3, 0, 2]);
        assert_close(&op("DFT").one(&[&none, &number(1)]), &[3, 1, 2], &[0.0; 6], 0.0);
    }
}
