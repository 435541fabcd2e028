//! Occlusion: what covering a part of the input with the background takes from the answer. An element that several positions
//! of the window cover gets their mean. After Zeiler and Fergus, Visualizing and understanding convolutional networks, 2014.

use std::ops::Range;

use super::Explanation;
use super::explainer::{Given, Work};
use crate::engine::{Tensor, Value};
use crate::error::Error;

/// The positions of a window in one input: every one, the last ones cut off at the edge.
#[derive(Debug)]
struct Positions {
    shape: Vec<usize>,
    window: Vec<usize>,
    stride: Vec<usize>,
    /// How many positions there are in each dimension.
    counts: Vec<usize>,
    /// The input's first element.
    start: usize,
}

impl Positions {
    fn new(shape: &[usize], window: Vec<usize>, stride: Vec<usize>, start: usize) -> Self {
        let counts = (0..shape.len()).map(|axis| (shape[axis] - window[axis]).div_ceil(stride[axis]) + 1).collect();
        Self { shape: shape.to_vec(), window, stride, counts, start }
    }

    fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// The elements that a position covers, ascending. Not kept: together they may be far more than the input.
    fn covered(&self, position: usize) -> Vec<usize> {
        let (mut rest, mut from) = (position, vec![0; self.shape.len()]);
        for axis in (0..self.shape.len()).rev() {
            from[axis] = rest % self.counts[axis] * self.stride[axis];
            rest /= self.counts[axis];
        }
        let mut elements = vec![0];
        for (axis, &size) in self.shape.iter().enumerate() {
            let places = from[axis]..(from[axis] + self.window[axis]).min(size);
            elements = elements.iter().flat_map(|element| places.clone().map(move |place| element * size + place)).collect();
        }
        elements.iter_mut().for_each(|element| *element += self.start);
        elements
    }
}

#[derive(Debug)]
pub(super) struct Occlusion {
    inputs: Vec<Positions>,
    /// Positions of all inputs together.
    positions: usize,
    rows: usize,
    /// Of each row the sum of what is lost, over the positions that cover an element.
    lost: Vec<Vec<f64>>,
    /// How many positions cover each element, of those taken so far.
    counts: Vec<usize>,
}

impl Occlusion {
    pub(super) fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
        let mut inputs = Vec::new();
        for (name, shape, range) in given.layout.inputs() {
            let window = given.options.window.clone().unwrap_or_else(|| fitting(shape));
            let stride = given.options.stride.clone().unwrap_or_else(|| window.clone());
            check("window", &window, shape, shape, name)?;
            check("stride", &stride, shape, &window, name)?;
            inputs.push(Positions::new(shape, window, stride, range.start));
        }
        let positions = inputs.iter().map(Positions::len).sum();
        let rows = given.rows.saturating_mul(given.samples).saturating_mul(positions);
        let elements = given.layout.len();
        Ok(Box::new(Self { inputs, positions, rows, lost: vec![vec![0.0; elements]; given.rows], counts: vec![0; elements] }))
    }

    /// The elements that a position covers, of those of all inputs one after the other.
    fn covered(&self, mut position: usize) -> Vec<usize> {
        for input in &self.inputs {
            if position < input.len() {
                return input.covered(position);
            }
            position -= input.len();
        }
        Vec::new()
    }
}

fn check(what: &str, sizes: &[usize], shape: &[usize], most: &[usize], name: &str) -> Result<(), Error> {
    if sizes.len() == shape.len() && sizes.iter().zip(most).all(|(size, most)| (1..=*most).contains(size)) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} is {sizes:?}; input `{name}` wants {} sizes from 1 to those of {most:?}", shape.len())))
}

/// An eighth of each dimension of an image, with all channels; one element of anything else.
fn fitting(shape: &[usize]) -> Vec<usize> {
    match super::picture::Plane::of(shape) {
        None => vec![1; shape.len()],
        Some(plane) => (0..shape.len()).map(|axis| if plane.is_channel(axis) { shape[axis] } else { shape[axis].div_ceil(8) }).collect(),
    }
}

impl Work for Occlusion {
    fn rows(&self) -> usize {
        self.rows
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        for at in rows {
            let (row, sample, position) = given.place(at, self.positions);
            built.push(&given.inputs, row);
            self.covered(position).into_iter().for_each(|element| built.set(element, &given.background, sample));
        }
        built.tensors()
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        let found = given.explained(outputs, rows.clone().map(|at| given.place(at, self.positions).0))?;
        for (at, covered) in rows.zip(found) {
            let (row, sample, position) = given.place(at, self.positions);
            let lost = (given.answer(row) - covered) / given.samples as f64;
            // Each pair of rows has the same positions: the first one counts them.
            let count = usize::from((row, sample) == (0, 0));
            for element in self.covered(position) {
                self.lost[row][element] += lost;
                self.counts[element] += count;
            }
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        let mean = |lost: Vec<f64>| lost.into_iter().zip(&self.counts).map(|(lost, &count)| lost / count.max(1) as f64).collect();
        let lost = std::mem::take(&mut self.lost);
        lost.into_iter().enumerate().map(|(row, lost)| given.explanation(row, mean(lost))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ExplainSettings, Explainer, Method, Options, Question, Subject};
    use super::*;
    use crate::engine::{DType, Dim, Kind, Port, Signature};

    #[test]
    fn windows_cover_everything_and_are_cut_at_the_edge() {
        let covers = |shape: &[usize], window: &[usize], stride: &[usize], start| {
            let positions = Positions::new(shape, window.to_vec(), stride.to_vec(), start);
            (0..positions.len()).map(|position| positions.covered(position)).collect::<Vec<_>>()
        };
        assert_eq!(covers(&[2, 3], &[2, 2], &[1, 1], 10), [vec![10, 11, 13, 14], vec![11, 12, 14, 15]]);
        assert_eq!(covers(&[5], &[2], &[2], 0), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(covers(&[], &[], &[], 3), [vec![3]]);
    }

    /// All elements of all positions are half a terabyte here, and whoever asks only hears that it takes too many evaluations.
    #[test]
    fn what_is_covered_is_not_listed_before_it_is_evaluated() {
        let port = |name: &str, dims: &[usize]| {
            let dims = std::iter::once(Dim::Free("batch".into())).chain(dims.iter().map(|&dim| Dim::Fixed(dim))).collect();
            Port { name: name.into(), kind: Kind::Tensor(DType::F32), dims: Some(dims) }
        };
        let signature = Signature {
            inputs: vec![port("image", &[1, 1024, 1024])],
            outputs: vec![port("score", &[1])],
            batchable: true,
            ..Signature::default()
        };
        let subject =
            Subject { signature: &signature, labels: &[], settings: &ExplainSettings::default(), background: None, has_trees: false };
        let options = Options { window: Some(vec![1, 512, 512]), stride: Some(vec![1; 3]), ..Options::default() };
        let inputs = vec![Tensor::zeros(DType::F32, &[1, 1, 1024, 1024])];
        let question = Question { inputs, method: Some(Method::Occlusion), options, ..Question::default() };
        assert_eq!(Explainer::new(&subject, question).unwrap().evaluations(), 2 + 513 * 513);
    }

    #[test]
    fn the_window_fits_the_input() {
        assert_eq!(fitting(&[3, 224, 100]), [3, 28, 13]);
        assert_eq!(fitting(&[16, 24, 3]), [2, 3, 3]);
        assert_eq!(fitting(&[30]), [1]);
        assert!(check("window", &[3], &[2], &[2], "x").unwrap_err().message().contains("window is [3]; input `x` wants 1 sizes"));
        assert!(check("stride", &[2], &[4], &[1], "x").is_err());
    }
}
