//! AffineGrid and CenterCropPad: grids of positions, and tensors cut or filled up around their center.

use super::ANY;
use super::axes::{axes, ints, offsets, require, size, strides};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "AffineGrid", domain: "", opsets: 20..=ANY, types: types::FLOATS, build: |a| {
        Ok(Box::new(AffineGrid { align_corners: a.bool_or("align_corners", false)? }))
    } },
    OpDef { name: "CenterCropPad", domain: "", opsets: 18..=ANY, types: types::ALL, build: center_crop_pad },
];

/// Positions of an even grid, each multiplied by an affine matrix per sample.
#[derive(Debug)]
struct AffineGrid {
    /// -1 and 1 are the centers of the outermost positions, not their outer edges.
    align_corners: bool,
}

impl AffineGrid {
    fn shape(theta: &[usize], wanted: &[i64]) -> Result<Shape, OpError> {
        let wanted: Shape = wanted.iter().map(|&n| size(n)).collect::<Result<_, _>>()?;
        let spatial = wanted.len().saturating_sub(2);
        if !(2..=3).contains(&spatial) || theta != [wanted[0], spatial, spatial + 1] {
            return Err(OpError::shape(format!("matrices of shape {theta:?} do not fit the size {wanted:?}")));
        }
        Ok([wanted[0]].into_iter().chain(wanted[2..].iter().copied()).chain([spatial]).collect())
    }

    /// The coordinate of position `at` of `n`.
    fn coordinate(&self, at: usize, n: usize) -> f64 {
        match (self.align_corners, n) {
            (true, 1) => -1.0,
            (true, _) => 2.0 * at as f64 / (n as f64 - 1.0) - 1.0,
            (false, _) => (2.0 * at as f64 + 1.0) / n as f64 - 1.0,
        }
    }

    fn fill<T: Number>(&self, theta: &[T], shape: &[usize], y: &mut [T]) {
        let (batch, spatial) = (shape[0], shape.len() - 2);
        let dims = &shape[1..=spatial];
        if y.is_empty() {
            return;
        }
        let along: Vec<Vec<f64>> = dims.iter().map(|&n| (0..n).map(|at| self.coordinate(at, n)).collect()).collect();
        let matrix = spatial * (spatial + 1);
        for (theta, y) in theta.chunks_exact(matrix).zip(y.chunks_exact_mut(dims.iter().product::<usize>() * spatial)).take(batch) {
            let theta: Vec<f64> = theta.iter().map(|v| v.to_f64()).collect();
            for (i, y) in y.chunks_exact_mut(spatial).enumerate() {
                for (row, y) in theta.chunks_exact(spatial + 1).zip(y) {
                    let (mut rest, mut sum) = (i, row[spatial]);
                    // The last dimension is x, the first coordinate.
                    for (d, factor) in (0..spatial).rev().zip(row) {
                        sum += factor * along[d][rest % dims[d]];
                        rest /= dims[d];
                    }
                    *y = T::from_f64(sum);
                }
            }
        }
    }
}

impl Op for AffineGrid {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![Self::shape(inputs.shape(0)?, &inputs.ints(1)?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (theta, y) = (inputs.at(0)?, outputs.at(0)?);
        let shape = Self::shape(theta.shape(), &ints(inputs.at(1)?)?)?;
        with_float!(theta.dtype(), T => {
            self.fill::<T>(theta.slice()?, &shape, y.slice()?);
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, theta.dtype())))
    }
}

/// The middle of a tensor, or a tensor in the middle of zeros, per axis.
#[derive(Debug)]
struct CenterCropPad {
    along: Option<Vec<i64>>,
}

fn center_crop_pad(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(CenterCropPad { along: attrs.ints("axes")? }))
}

impl CenterCropPad {
    fn shape(&self, shape: &[usize], wanted: &[i64]) -> Result<Shape, OpError> {
        let along = match &self.along {
            Some(list) => axes(list, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        if wanted.len() != along.len() {
            return Err(OpError::shape(format!("{} sizes are given for {} axes", wanted.len(), along.len())));
        }
        let mut out = Shape::from_slice(shape);
        for (&d, &n) in along.iter().zip(wanted) {
            out[d] = size(n)?;
        }
        Ok(out)
    }
}

/// Copies the common middle of two tensors; the rest of `y` becomes zeros.
fn copy_middle<T: Element>(x: View<'_>, shape: &[usize], y: &mut [T]) -> Result<(), OpError> {
    let from = x.shape();
    let x = x.slice::<T>()?;
    y.fill(T::default());
    let common: Vec<usize> = from.iter().zip(shape).map(|(&a, &b)| a.min(b)).collect();
    if common.contains(&0) {
        return Ok(());
    }
    let (x_steps, y_steps) = (strides(from), strides(shape));
    let start = |dims: &[usize], steps: &[usize]| -> usize { dims.iter().zip(&common).zip(steps).map(|((&n, &c), s)| (n - c) / 2 * s).sum() };
    let (x_start, y_start) = (start(from, &x_steps), start(shape, &y_steps));
    let (row, outer) = common.split_last().map_or((1, &[][..]), |(row, outer)| (*row, outer));
    // Both are walked at once; a second walk remembers where the rows of the input begin.
    let mut rows = Vec::with_capacity(outer.iter().product());
    let signed = |steps: &[usize]| -> Vec<isize> { steps[..outer.len()].iter().map(|&s| s as isize).collect() };
    offsets(outer, &signed(&x_steps), x_start as isize, |at| rows.push(at as usize));
    let mut rows = rows.into_iter();
    offsets(outer, &signed(&y_steps), y_start as isize, |at| {
        if let Some(source) = rows.next() {
            y[at as usize..at as usize + row].clone_from_slice(&x[source..source + row]);
        }
    });
    Ok(())
}

impl Op for CenterCropPad {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![self.shape(inputs.shape(0)?, &inputs.ints(1)?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let shape = self.shape(x.shape(), &ints(inputs.at(1)?)?)?;
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => copy_middle::<T>(x, &shape, y.slice()?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn the_identity_is_an_even_grid() {
        let theta = tensor(&[1, 2, 3], &[1.0_f32, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let y = op("AffineGrid").one(&[&theta, &list(&[1, 1, 1, 2])]);
        assert_close(&y, &[1, 1, 2, 2], &[-0.5, 0.0, 0.5, 0.0], 1e-7);
        let y = op("AffineGrid").attr("align_corners", 1_i64).one(&[&theta, &list(&[1, 9, 2, 2])]);
        assert_close(&y, &[1, 2, 2, 2], &[-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0], 1e-7);
        let solid = tensor(&[1, 3, 4], &[0.0_f64, 0.0, 1.0, 5.0, 0.0, 1.0, 0.0, 6.0, 1.0, 0.0, 0.0, 7.0]);
        let y = op("AffineGrid").attr("align_corners", 1_i64).one(&[&solid, &list(&[1, 1, 2, 1, 1])]);
        assert_eq!(y.slice::<f64>().unwrap(), [4.0, 5.0, 6.0, 6.0, 5.0, 6.0]);
        for wanted in [&[1_i64, 1, 2][..], &[2, 1, 1, 1], &[1, 1, 1, 1, 1], &[]] {
            assert!(matches!(op("AffineGrid").error(&[&theta, &list(wanted)]), OpError::Shape(_)), "{wanted:?}");
        }
        assert!(matches!(op("AffineGrid").error(&[&theta, &list(&[1, 1, -1, 1])]), OpError::Value(_)));
        assert_eq!(op("AffineGrid").one(&[&theta, &list(&[1, 1, 0, 3])]).shape(), [1, 0, 3, 2]);
    }

    #[test]
    fn the_middle_is_cut_or_filled_up() {
        let x = tensor(&[5], &[1_i64, 2, 3, 4, 5]);
        assert_eq!(op("CenterCropPad").one(&[&x, &list(&[2])]), list(&[2, 3]));
        assert_eq!(op("CenterCropPad").one(&[&x, &list(&[8])]), list(&[0, 1, 2, 3, 4, 5, 0, 0]));
        assert_eq!(op("CenterCropPad").one(&[&x, &list(&[0])]).shape(), [0]);
        let matrix = tensor(&[2, 3], &[1_u8, 2, 3, 4, 5, 6]);
        let y = op("CenterCropPad").one(&[&matrix, &list(&[3, 1])]);
        assert_eq!(y, tensor(&[3, 1], &[2_u8, 5, 0]));
        let last = op("CenterCropPad").attr("axes", &[-1_i64][..]).one(&[&matrix, &list(&[4])]);
        assert_eq!(last, tensor(&[2, 4], &[1_u8, 2, 3, 0, 4, 5, 6, 0]));
        let words = tensor(&[1], &["a".to_owned()]);
        assert_eq!(op("CenterCropPad").one(&[&words, &list(&[2])]), tensor(&[2], &["a".to_owned(), String::new()]));
        assert!(matches!(op("CenterCropPad").error(&[&x, &list(&[-1])]), OpError::Value(_)));
        assert!(matches!(op("CenterCropPad").error(&[&x, &list(&[1, 1])]), OpError::Shape(_)));
        assert!(op("CenterCropPad").attr("axes", &[i64::MIN][..]).run(&[&x, &list(&[1])]).is_err());
    }
}
