//! ReverseSequence: the first steps of each sample of a batch in the opposite order.

use super::ANY;
use super::axes::{around, ints, require, same_type};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "ReverseSequence", domain: "", opsets: 10..=ANY, types: types::ALL, build }];

#[derive(Debug)]
struct ReverseSequence {
    /// Whether the batch is the first axis and time the second, or the other way round.
    batch_first: bool,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    match (attrs.int_or("batch_axis", 1)?, attrs.int_or("time_axis", 0)?) {
        (0, 1) => Ok(Box::new(ReverseSequence { batch_first: true })),
        (1, 0) => Ok(Box::new(ReverseSequence { batch_first: false })),
        axes => Err(OpError::Attribute(format!("attributes `batch_axis` and `time_axis` are {axes:?}; one must be 0 and the other 1"))),
    }
}

impl ReverseSequence {
    fn run_typed<T: Element>(&self, x: View<'_>, lengths: &[usize], y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (first, second, inner) = around(x.shape(), 1);
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        for a in 0..first {
            for b in 0..second {
                let (sample, step) = if self.batch_first { (a, b) } else { (b, a) };
                let source = if step < lengths[sample] { lengths[sample] - 1 - step } else { step };
                let from = if self.batch_first { a * second + source } else { source * second + b };
                y[(a * second + b) * inner..][..inner].clone_from_slice(&x[from * inner..][..inner]);
            }
        }
        Ok(())
    }

    /// The numbers of samples and of steps.
    fn sizes(&self, shape: &[usize]) -> Result<(usize, usize), OpError> {
        match *shape {
            [batch, time, ..] if self.batch_first => Ok((batch, time)),
            [time, batch, ..] => Ok((batch, time)),
            _ => Err(OpError::shape(format!("{shape:?} has no axes of a batch and of time"))),
        }
    }
}

impl Op for ReverseSequence {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (shape, lengths) = (inputs.shape(0)?, inputs.shape(1)?);
        match self.sizes(shape)? {
            (batch, _) if lengths == [batch] => Ok(vec![shape.into()]),
            (batch, _) => Err(OpError::shape(format!("lengths of shape {lengths:?} for {batch} samples"))),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        if x.is_empty() {
            return Ok(());
        }
        let (_, time) = self.sizes(x.shape())?;
        let length = |&n: &i64| match usize::try_from(n) {
            Ok(n) if n <= time => Ok(n),
            _ => Err(OpError::value(format!("a length of {n} in a sequence of {time}"))),
        };
        let lengths: Vec<usize> = ints(inputs.at(1)?)?.iter().map(length).collect::<Result<_, _>>()?;
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => self.run_typed::<T>(x, &lengths, y))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;

    fn reverse(batch: i64, time: i64) -> Case {
        op("ReverseSequence").attr("batch_axis", batch).attr("time_axis", time)
    }

    #[test]
    fn the_first_steps_are_reversed() {
        let x = tensor(&[2, 3], &[1_i64, 2, 3, 4, 5, 6]);
        assert_eq!(reverse(0, 1).one(&[&x, &tensor(&[2], &[2_i64, 3])]), tensor(&[2, 3], &[2_i64, 1, 3, 6, 5, 4]));
        let columns = tensor(&[3], &[2_i64, 0, 1]);
        assert_eq!(op("ReverseSequence").one(&[&x, &columns]), tensor(&[2, 3], &[4_i64, 2, 3, 1, 5, 6]));
        let pairs = tensor(&[1, 2, 2], &["a", "b", "c", "d"].map(str::to_owned));
        let swapped = tensor(&[1, 2, 2], &["c", "d", "a", "b"].map(str::to_owned));
        assert_eq!(reverse(0, 1).one(&[&pairs, &tensor(&[1], &[2_i64])]), swapped);
        assert_eq!(reverse(0, 1).one(&[&tensor::<f32>(&[2, 0], &[]), &tensor(&[2], &[0_i64, 0])]).shape(), [2, 0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = tensor(&[2, 3], &[0.0_f32; 6]);
        for bad in [-1, 4, i64::MIN] {
            assert!(matches!(reverse(0, 1).error(&[&x, &tensor(&[2], &[0, bad])]), OpError::Value(_)), "{bad}");
        }
        assert!(matches!(reverse(0, 1).error(&[&x, &tensor(&[3], &[0_i64; 3])]), OpError::Shape(_)));
        assert!(matches!(reverse(0, 1).error(&[&tensor(&[2], &[0.0_f32; 2]), &tensor(&[2], &[0_i64; 2])]), OpError::Shape(_)));
        assert!(matches!(reverse(1, 1).error(&[&x, &tensor(&[2], &[0_i64; 2])]), OpError::Attribute(_)));
    }
}
