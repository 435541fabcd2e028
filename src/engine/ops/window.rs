//! The geometry that convolution and pooling share: kernel, strides, dilations and padding per spatial axis.

use smallvec::SmallVec;

use crate::engine::attrs::Attrs;
use crate::engine::op::{OpError, Shape};

/// The attributes of a window, as the model gives them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    kernel: Option<Vec<usize>>,
    strides: Option<Vec<usize>>,
    dilations: Option<Vec<usize>>,
    pads: Option<Vec<usize>>,
    auto_pad: AutoPad,
    ceil: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AutoPad {
    #[default]
    NotSet,
    Valid,
    /// As many outputs as strides fit, the odd row of padding behind.
    SameUpper,
    /// The same, the odd row of padding before.
    SameLower,
}

/// A window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) pad_begin: usize,
    pub(crate) pad_end: usize,
}

/// The axes of a window.
pub(crate) type AxisList = SmallVec<[Axis; 3]>;

/// Padding, strides and dilations beyond this are taken for an error: with it, no product of a few of them overflows.
const LARGEST: usize = 1 << 31;

impl Window {
    /// Reads `kernel_shape`, `strides`, `dilations`, `pads` and `auto_pad`.
    pub(crate) fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let auto_pad = match attrs.string_or("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => AutoPad::NotSet,
            "VALID" => AutoPad::Valid,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            other => return Err(OpError::Attribute(format!("attribute `auto_pad` is `{other}`"))),
        };
        let list = |name: &str, least: usize| match attrs.sizes(name)? {
            Some(values) if values.iter().any(|&v| v < least || v > LARGEST) => {
                Err(OpError::Attribute(format!("attribute `{name}` is {values:?}")))
            }
            other => Ok(other),
        };
        Ok(Self {
            kernel: list("kernel_shape", 1)?,
            strides: list("strides", 1)?,
            dilations: list("dilations", 1)?,
            pads: list("pads", 0)?,
            auto_pad,
            ceil: false,
        })
    }

    /// The same with output sizes rounded up.
    pub(crate) fn rounding_up(self, ceil: bool) -> Self {
        Self { ceil, ..self }
    }

    /// The kernel's shape as the attribute gives it.
    pub(crate) fn kernel(&self) -> Option<&[usize]> {
        self.kernel.as_deref()
    }

    /// The window over an input of `spatial` dimensions.
    ///
    /// # Errors
    /// If the attributes are for another number of dimensions, or the kernel is larger than the padded input.
    pub(crate) fn over(&self, spatial: &[usize], kernel: &[usize]) -> Result<AxisList, OpError> {
        let rank = spatial.len();
        let per_axis = |list: &Option<Vec<usize>>, name: &str, length: usize| match list {
            Some(values) if values.len() != length => {
                Err(OpError::shape(format!("attribute `{name}` has {} values for {rank} spatial dimensions", values.len())))
            }
            _ => Ok(()),
        };
        per_axis(&self.strides, "strides", rank)?;
        per_axis(&self.dilations, "dilations", rank)?;
        per_axis(&self.pads, "pads", 2 * rank)?;
        per_axis(&self.kernel, "kernel_shape", rank)?;
        if kernel.len() != rank {
            return Err(OpError::shape(format!("a kernel of shape {kernel:?} over {rank} spatial dimensions")));
        }
        let get = |list: &Option<Vec<usize>>, d: usize, default| list.as_ref().map_or(default, |l| l[d]);
        (0..rank)
            .map(|d| {
                let pads = match self.auto_pad {
                    AutoPad::NotSet => (get(&self.pads, d, 0), get(&self.pads, d + rank, 0)),
                    _ => (0, 0),
                };
                let (stride, dilation) = (get(&self.strides, d, 1), get(&self.dilations, d, 1));
                self.axis(Axis { input: spatial[d], output: 0, kernel: kernel[d], stride, dilation, pad_begin: pads.0, pad_end: pads.1 })
            })
            .collect()
    }

    /// The axis with its output size, and its padding where that is automatic.
    fn axis(&self, mut axis: Axis) -> Result<Axis, OpError> {
        if axis.input > LARGEST || axis.kernel > LARGEST || axis.kernel == 0 {
            return Err(OpError::shape(format!("a kernel of {} over {} elements", axis.kernel, axis.input)));
        }
        let extent = (axis.kernel - 1)
            .checked_mul(axis.dilation)
            .and_then(|e| e.checked_add(1))
            .ok_or_else(|| OpError::shape("the kernel is too large"))?;
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            axis.output = axis.input.div_ceil(axis.stride);
            let covered = (axis.output.max(1) - 1) * axis.stride;
            let total = covered.saturating_add(extent).saturating_sub(axis.input);
            let less = total / 2;
            (axis.pad_begin, axis.pad_end) = if self.auto_pad == AutoPad::SameUpper { (less, total - less) } else { (total - less, less) };
            return Ok(axis);
        }
        let padded = axis.input + axis.pad_begin + axis.pad_end;
        let Some(room) = padded.checked_sub(extent) else {
            return Err(OpError::shape(format!("a kernel that spans {extent} over {padded} elements, padding included")));
        };
        axis.output = if self.ceil { room.div_ceil(axis.stride) } else { room / axis.stride } + 1;
        // A window that would begin in the padding behind the input is left out.
        if self.ceil && (axis.output - 1) * axis.stride >= axis.input + axis.pad_begin {
            axis.output -= 1;
        }
        Ok(axis)
    }
}

/// The shape of an output: batch and channels, then a size per axis.
pub(crate) fn output_shape(batch: usize, channels: usize, axes: &[Axis]) -> Shape {
    [batch, channels].into_iter().chain(axes.iter().map(|axis| axis.output)).collect()
}

impl Axis {
    /// The kernel taps that meet the input at output position `at`, each with the input position that it meets.
    pub(crate) fn taps(&self, at: usize) -> impl Iterator<Item = (usize, usize)> {
        let (axis, start) = (*self, at * self.stride);
        (0..axis.kernel).filter_map(move |tap| {
            let position = (start + tap * axis.dilation).checked_sub(axis.pad_begin)?;
            (position < axis.input).then_some((tap, position))
        })
    }

    /// How many taps at output position `at` lie inside the input and its padding.
    pub(crate) fn covered(&self, at: usize) -> usize {
        let end = self.input + self.pad_begin + self.pad_end;
        (0..self.kernel).filter(|tap| at * self.stride + tap * self.dilation < end).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::attrs::Attr;
    use std::collections::BTreeMap;

    fn window(attrs: &[(&str, Attr)]) -> Result<Window, OpError> {
        let values: BTreeMap<String, Attr> = attrs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        Window::read(&Attrs::new(values, 21, vec![], vec![]))
    }

    fn output(attrs: &[(&str, Attr)], input: usize, kernel: usize, ceil: bool) -> (usize, usize, usize) {
        let axes = window(attrs).unwrap().rounding_up(ceil).over(&[input], &[kernel]).unwrap();
        (axes[0].output, axes[0].pad_begin, axes[0].pad_end)
    }

    fn ints(values: &[i64]) -> Attr {
        Attr::Ints(values.to_vec())
    }

    #[test]
    fn output_sizes_and_padding() {
        let auto = |name: &str| ("auto_pad", Attr::String(name.to_owned()));
        assert_eq!(output(&[], 5, 3, false), (3, 0, 0));
        assert_eq!(output(&[("pads", ints(&[1, 1]))], 5, 3, false), (5, 1, 1));
        assert_eq!(output(&[("strides", ints(&[2]))], 6, 3, false), (2, 0, 0));
        assert_eq!(output(&[("strides", ints(&[2]))], 6, 3, true), (3, 0, 0));
        assert_eq!(output(&[("dilations", ints(&[2]))], 5, 3, false), (1, 0, 0));
        assert_eq!(output(&[auto("SAME_UPPER"), ("strides", ints(&[2]))], 6, 3, false), (3, 0, 1));
        assert_eq!(output(&[auto("SAME_LOWER"), ("strides", ints(&[2]))], 6, 3, false), (3, 1, 0));
        assert_eq!(output(&[auto("VALID"), ("strides", ints(&[2]))], 6, 3, false), (2, 0, 0));
        // The last window would begin behind the input.
        assert_eq!(output(&[("strides", ints(&[2])), ("pads", ints(&[0, 1]))], 2, 1, true), (1, 0, 1));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for bad in [
            ("strides", ints(&[0])),
            ("dilations", ints(&[0])),
            ("pads", ints(&[-1, 0])),
            ("strides", ints(&[i64::MAX])),
            ("auto_pad", Attr::String("SAME".into())),
            ("kernel_shape", ints(&[0])),
        ] {
            assert!(window(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
        let over = |attrs: &[(&str, Attr)], spatial: &[usize], kernel: &[usize]| window(attrs).unwrap().over(spatial, kernel);
        assert!(over(&[], &[2], &[3]).is_err());
        assert!(over(&[("strides", ints(&[1]))], &[4, 4], &[3, 3]).is_err());
        assert!(over(&[("pads", ints(&[1, 1]))], &[4, 4], &[3, 3]).is_err());
        assert!(over(&[], &[4, 4], &[3]).is_err());
        assert!(over(&[("dilations", ints(&[1 << 31]))], &[4], &[1 << 31]).is_err());
    }

    #[test]
    fn taps_are_those_inside_the_input() {
        let axis = Axis { input: 4, output: 4, kernel: 3, stride: 1, dilation: 1, pad_begin: 1, pad_end: 1 };
        assert_eq!(axis.taps(0).collect::<Vec<_>>(), [(1, 0), (2, 1)]);
        assert_eq!(axis.taps(3).collect::<Vec<_>>(), [(0, 2), (1, 3)]);
        assert_eq!(axis.covered(0), 3);
    }
}
