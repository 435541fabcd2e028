//! Shapley values of trees: the program computes them; here they are given their names.

use std::ops::Range;

use super::Explanation;
use super::explainer::{Given, Program, Work};
use crate::engine::{Tensor, Value};
use crate::error::Error;

#[derive(Debug)]
pub(super) struct Trees {
    rows: usize,
    samples: usize,
    found: Vec<Explanation>,
}

impl Trees {
    pub(super) fn begin(given: &Given) -> Box<dyn Work> {
        Box::new(Self { rows: given.rows, samples: given.samples, found: Vec::new() })
    }
}

impl Work for Trees {
    fn program(&self) -> Program {
        Program::Trees
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn evaluations(&self) -> usize {
        self.rows.saturating_mul(self.samples)
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        rows.clone().for_each(|row| built.push(&given.inputs, row));
        let mut tensors = built.tensors();
        tensors.extend(given.background.iter().cloned());
        tensors.push(given.weights(rows, false));
        tensors
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        let values = |at: usize| outputs.get(at).and_then(Value::tensor).and_then(|tensor| tensor.slice::<f64>());
        let (Some(found), Some(scores)) = (values(0), values(1)) else {
            return Err(Error::internal("the explanation failed", "the program of trees has other outputs"));
        };
        let width = given.layout.len();
        for (at, row) in rows.enumerate() {
            let explanation = given.explanation(row, found[at * width..(at + 1) * width].to_vec());
            let (value, base_value) = (Some(scores[2 * at]), Some(scores[2 * at + 1]));
            self.found.push(Explanation { value, base_value, ..explanation }.complete());
        }
        Ok(())
    }

    fn finish(&mut self, _: &Given) -> Vec<Explanation> {
        std::mem::take(&mut self.found)
    }
}
