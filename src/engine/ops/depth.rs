//! DepthToSpace and SpaceToDepth: blocks of an image as channels, and back.

use super::ANY;
use super::axes::{offsets, strides};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Op, OpDef, OpError, Outputs, Shape, types};

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: 1..=ANY, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("DepthToSpace", |a| Ok(Box::new(Blocks { to_space: true, ..blocks(a, 11)? }))),
    def("SpaceToDepth", |a| Ok(Box::new(Blocks { to_space: false, ..blocks(a, 28)? }))),
];

/// Elements moved between the channels and blocks of `size` × `size`.
#[derive(Debug)]
struct Blocks {
    to_space: bool,
    size: usize,
    /// Whether the place within a block is the innermost part of a channel's number, not the outermost (mode CRD).
    column_first: bool,
}

/// Reads the attributes; `mode` exists from an opset on.
fn blocks(attrs: &Attrs, mode_since: u16) -> Result<Blocks, OpError> {
    let size = attrs.required("blocksize", attrs.int("blocksize")?)?;
    let size = usize::try_from(size).ok().filter(|&n| n > 0).ok_or_else(|| OpError::Attribute(format!("attribute `blocksize` is {size}")))?;
    let mode = if attrs.opset >= mode_since { attrs.string_or("mode", "DCR")? } else { "DCR".into() };
    let column_first = match mode.as_str() {
        "DCR" => false,
        "CRD" => true,
        other => return Err(OpError::Attribute(format!("attribute `mode` is `{other}`"))),
    };
    Ok(Blocks { to_space: true, size, column_first })
}

impl Blocks {
    /// The shape of the output, and the input as six dimensions in the order of the output's elements, with their strides.
    fn plan(&self, shape: &[usize]) -> Result<(Shape, [usize; 6], [isize; 6]), OpError> {
        let &[n, c, h, w] = shape else { return Err(OpError::shape(format!("a tensor of shape {shape:?}; its rank must be 4"))) };
        let b = self.size;
        let square = b.checked_mul(b);
        let uneven = || OpError::shape(format!("a tensor of shape {shape:?} in blocks of {b}"));
        let (from, to): ([usize; 6], [usize; 6]);
        if self.to_space {
            let depth = square.filter(|&square| c.is_multiple_of(square)).map(|square| c / square).ok_or_else(uneven)?;
            // Output: sample, channel, row, row in the block, column, column in the block.
            (from, to) = if self.column_first { ([n, depth, b, b, h, w], [0, 1, 4, 2, 5, 3]) } else { ([n, b, b, depth, h, w], [0, 3, 4, 1, 5, 2]) };
            let large = || OpError::shape("the output is too large");
            let output = [n, depth, h.checked_mul(b).ok_or_else(large)?, w.checked_mul(b).ok_or_else(large)?];
            return Ok((output.as_slice().into(), to.map(|d| from[d]), Self::steps(&from, to)));
        }
        if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Err(uneven());
        }
        from = [n, c, h / b, b, w / b, b];
        to = if self.column_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
        let depth = square.and_then(|square| square.checked_mul(c)).ok_or_else(uneven)?;
        Ok(([n, depth, h / b, w / b].as_slice().into(), to.map(|d| from[d]), Self::steps(&from, to)))
    }

    fn steps(from: &[usize; 6], to: [usize; 6]) -> [isize; 6] {
        let strides = strides(from);
        to.map(|d| strides[d] as isize)
    }
}

fn copy<T: Element>(x: &[T], dims: &[usize; 6], steps: &[isize; 6], y: &mut [T]) {
    let (width, step) = (dims[5], steps[5] as usize);
    if y.is_empty() {
        return;
    }
    let mut rows = y.chunks_exact_mut(width);
    offsets(&dims[..5], &steps[..5], 0, |start| {
        if let Some(row) = rows.next() {
            row.iter_mut().zip(x[start as usize..].iter().step_by(step)).for_each(|(y, x)| y.clone_from(x));
        }
    });
}

impl Op for Blocks {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![self.plan(inputs.shape(0)?)?.0])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (_, dims, steps) = self.plan(x.shape())?;
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => {
            copy::<T>(x.slice()?, &dims, &steps, y.slice()?);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::dtype::DType;
    use crate::engine::tensor::Tensor;

    #[test]
    fn channels_become_blocks_and_back() {
        let x = tensor(&[1, 8, 1, 2], &(0..16).collect::<Vec<i16>>());
        let to_space = |mode: &str| op("DepthToSpace").attr("blocksize", 2_i64).attr("mode", mode);
        let y = to_space("DCR").one(&[&x]);
        assert_eq!(y, tensor(&[1, 2, 2, 4], &[0_i16, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15]));
        assert_eq!(op("DepthToSpace").opset(1).attr("blocksize", 2_i64).one(&[&x]), y);
        assert_eq!(op("SpaceToDepth").attr("blocksize", 2_i64).one(&[&y]), x);
        let y = to_space("CRD").one(&[&x]);
        assert_eq!(y, tensor(&[1, 2, 2, 4], &[0_i16, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]));
        assert_eq!(op("SpaceToDepth").opset(28).attr("blocksize", 2_i64).attr("mode", "CRD").one(&[&y]), x);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = tensor(&[1, 4, 1, 3], &[0_u8; 12]);
        for size in [0_i64, -2, i64::MIN] {
            assert!(matches!(op("DepthToSpace").attr("blocksize", size).error(&[&x]), OpError::Attribute(_)));
        }
        assert!(matches!(op("DepthToSpace").error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(op("DepthToSpace").attr("blocksize", 2_i64).attr("mode", "D").error(&[&x]), OpError::Attribute(_)));
        for size in [3_i64, i64::MAX] {
            assert!(matches!(op("DepthToSpace").attr("blocksize", size).error(&[&x]), OpError::Shape(_)));
        }
        assert!(matches!(op("SpaceToDepth").attr("blocksize", 2_i64).error(&[&x]), OpError::Shape(_)));
        assert!(matches!(op("SpaceToDepth").attr("blocksize", 1_i64).attr("mode", "CRD").error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(op("SpaceToDepth").attr("blocksize", 1_i64).error(&[&tensor(&[2], &[1.0_f32; 2])]), OpError::Shape(_)));
        let empty = Tensor::zeros(DType::F32, &[0, 4, 2, 2]);
        assert_eq!(op("DepthToSpace").attr("blocksize", 2_i64).one(&[&empty]).shape(), [0, 1, 4, 4]);
        assert_eq!(op("SpaceToDepth").attr("blocksize", 2_i64).one(&[&empty]).shape(), [0, 16, 1, 1]);
    }
}
