//! Explanations by gradients: integrated on the way from a baseline, or at the row alone.

use std::ops::Range;

use super::Explanation;
use super::explainer::{Given, Program, Work, floats};
use super::layout::{Layout, number};
use super::quadrature::gauss_legendre;
use crate::engine::{DType, Slice, Tensor, Value};
use crate::error::Error;

/// Points of the integral where a request does not say.
const STEPS: usize = 50;
/// More points than this are no more exact, and take long to find.
const STEPS_MAX: usize = 1000;

impl Layout {
    /// The first input that is not of floating-point numbers.
    pub(super) fn not_float(&self) -> Option<(&str, DType)> {
        self.types().find(|(_, dtype)| !dtype.is_float())
    }
}

/// The mean over the background of the integral of the gradient from a background row to the row, times their difference.
#[derive(Debug)]
pub(super) struct IntegratedGradients {
    points: Vec<(f64, f64)>,
    rows: usize,
    found: Vec<Vec<f64>>,
}

impl IntegratedGradients {
    pub(super) fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
        let steps = given.options.steps.unwrap_or(STEPS);
        if !(1..=STEPS_MAX).contains(&steps) {
            return Err(Error::invalid(format!("steps is {steps}; a number from 1 to {STEPS_MAX} is wanted")));
        }
        let rows = given.rows.saturating_mul(given.samples).saturating_mul(steps);
        let found = vec![vec![0.0; given.layout.len()]; given.rows];
        Ok(Box::new(Self { points: gauss_legendre(steps), rows, found }))
    }
}

impl Work for IntegratedGradients {
    fn program(&self) -> Program {
        Program::Gradient
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let each = given.inputs.iter().zip(&given.background);
        let tensor = |(x, base): (&Tensor, &Tensor)| {
            let size: usize = x.shape()[1..].iter().product();
            let mut values = Vec::with_capacity(rows.len() * size);
            for at in rows.clone() {
                let (row, sample, point) = given.place(at, self.points.len());
                let alpha = self.points[point].0;
                for i in 0..size {
                    let (from, to) = (element(base.data(), sample * size + i), element(x.data(), row * size + i));
                    values.push(from + alpha * (to - from));
                }
            }
            floats(x.dtype(), &[&[rows.len()], &x.shape()[1..]].concat(), &values)
        };
        let mut tensors: Vec<Tensor> = each.map(tensor).collect();
        tensors.push(given.weights(rows.clone().map(|at| given.place(at, self.points.len()).0), true));
        tensors
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        for (at, taken) in rows.enumerate() {
            let (row, sample, point) = given.place(taken, self.points.len());
            let weight = self.points[point].1 / given.samples as f64;
            for (input, (name, _, range)) in given.layout.inputs().enumerate() {
                let gradient = gradient(outputs, input, name)?;
                let (x, base) = (given.inputs[input].data(), given.background[input].data());
                let size = range.len();
                for (i, found) in self.found[row][range].iter_mut().enumerate() {
                    let difference = element(x, row * size + i) - element(base, sample * size + i);
                    *found += weight * difference * element(gradient, at * size + i);
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        std::mem::take(&mut self.found).into_iter().enumerate().map(|(row, found)| given.complete(row, found)).collect()
    }
}

/// The gradient at the row, times its difference to the mean of the background.
#[derive(Debug)]
pub(super) struct GradientInput {
    found: Vec<Vec<f64>>,
}

impl GradientInput {
    pub(super) fn begin(given: &Given) -> Box<dyn Work> {
        Box::new(Self { found: vec![Vec::new(); given.rows] })
    }
}

impl Work for GradientInput {
    fn program(&self) -> Program {
        Program::Gradient
    }

    fn rows(&self) -> usize {
        self.found.len()
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        rows.clone().for_each(|row| built.push(&given.inputs, row));
        let mut tensors = built.tensors();
        tensors.push(given.weights(rows, true));
        tensors
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        for (at, row) in rows.enumerate() {
            for (input, (name, _, range)) in given.layout.inputs().enumerate() {
                let gradient = gradient(outputs, input, name)?;
                let (x, base, size) = (given.inputs[input].data(), given.background[input].data(), range.len());
                for i in 0..size {
                    let mean = (0..given.samples).map(|sample| element(base, sample * size + i)).sum::<f64>() / given.samples as f64;
                    self.found[row].push((element(x, row * size + i) - mean) * element(gradient, at * size + i));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        std::mem::take(&mut self.found).into_iter().enumerate().map(|(row, found)| given.complete(row, found)).collect()
    }
}

/// The gradient with respect to an input.
fn gradient<'o>(outputs: &'o [Value], input: usize, name: &str) -> Result<Slice<'o>, Error> {
    let tensor = outputs.get(input).and_then(Value::tensor);
    tensor.map(Tensor::data).ok_or_else(|| Error::internal("the gradient is missing", format!("of input `{name}`")))
}

/// An element; those that are no numbers do not come here.
fn element(slice: Slice<'_>, at: usize) -> f64 {
    match slice {
        Slice::F32(values) => values[at].into(),
        other => number(other, at).unwrap_or(f64::NAN),
    }
}
