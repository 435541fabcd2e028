//! Occlusion: what covering a part of the input with the background takes from the answer. An element that several positions
//! of the window cover gets their mean. After Zeiler and Fergus, Visualizing and understanding convolutional networks, 2014.

use std::ops::Range;

use super::Explanation;
use super::explainer::{Given, Work};
use crate::engine::{Tensor, Value};
use crate::error::Error;

#[derive(Debug)]
pub(super) struct Occlusion {
    /// The elements that each position covers.
    covers: Vec<Vec<usize>>,
    rows: usize,
    /// Of each row the sum of what is lost, over the positions that cover an element.
    lost: Vec<Vec<f64>>,
    /// How many positions cover each element.
    counts: Vec<usize>,
}

impl Occlusion {
    pub(super) fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
        let (mut covers, mut counts) = (Vec::new(), vec![0; given.layout.len()]);
        for (name, shape, range) in given.layout.inputs() {
            let window = given.options.window.clone().unwrap_or_else(|| fitting(shape));
            let stride = given.options.stride.clone().unwrap_or_else(|| window.clone());
            check("window", &window, shape, shape, name)?;
            check("stride", &stride, shape, &window, name)?;
            positions(shape, &window, &stride, range.start, &mut covers);
        }
        covers.iter().flatten().for_each(|&element| counts[element] += 1);
        let rows = given.rows.saturating_mul(given.samples).saturating_mul(covers.len());
        Ok(Box::new(Self { covers, rows, lost: vec![vec![0.0; given.layout.len()]; given.rows], counts }))
    }

    /// The row, the background row and the position that are evaluated at `at`.
    fn place(&self, given: &Given, at: usize) -> (usize, usize, usize) {
        let covers = self.covers.len();
        (at / covers / given.samples, at / covers % given.samples, at % covers)
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

/// Every position of a window, the last ones cut off at the edge.
fn positions(shape: &[usize], window: &[usize], stride: &[usize], start: usize, covers: &mut Vec<Vec<usize>>) {
    let counts: Vec<usize> = (0..shape.len()).map(|axis| (shape[axis] - window[axis]).div_ceil(stride[axis]) + 1).collect();
    let all: usize = counts.iter().product();
    for position in 0..all {
        let mut elements = vec![start];
        let (mut rest, mut inner, mut from) = (position, 1, vec![0; shape.len()]);
        for axis in (0..shape.len()).rev() {
            from[axis] = rest % counts[axis] * stride[axis];
            rest /= counts[axis];
        }
        for axis in (0..shape.len()).rev() {
            let places = from[axis]..(from[axis] + window[axis]).min(shape[axis]);
            elements = places.flat_map(|place| elements.iter().map(move |element| element + place * inner)).collect();
            inner *= shape[axis];
        }
        elements.sort_unstable();
        covers.push(elements);
    }
}

impl Work for Occlusion {
    fn rows(&self) -> usize {
        self.rows
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        for at in rows {
            let (row, sample, position) = self.place(given, at);
            built.push(&given.inputs, row);
            self.covers[position].iter().for_each(|&element| built.set(element, &given.background, sample));
        }
        built.tensors()
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        let found = given.explained(outputs, rows.clone().map(|at| self.place(given, at).0))?;
        for (at, covered) in rows.zip(found) {
            let (row, _, position) = self.place(given, at);
            let lost = (given.answer(row) - covered) / given.samples as f64;
            self.covers[position].iter().for_each(|&element| self.lost[row][element] += lost);
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
    use super::*;

    #[test]
    fn windows_cover_everything_and_are_cut_at_the_edge() {
        let mut covers = Vec::new();
        positions(&[2, 3], &[2, 2], &[1, 1], 10, &mut covers);
        assert_eq!(covers, [vec![10, 11, 13, 14], vec![11, 12, 14, 15]]);
        covers.clear();
        positions(&[5], &[2], &[2], 0, &mut covers);
        assert_eq!(covers, [vec![0, 1], vec![2, 3], vec![4]]);
        covers.clear();
        positions(&[], &[], &[], 3, &mut covers);
        assert_eq!(covers, [vec![3]]);
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
