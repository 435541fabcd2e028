//! The geometry that convolution and pooling share: kernel, strides, dilations and padding per spatial axis.

use std::ops::Range;

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

/// How padding is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AutoPad {
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

    /// The dilations as the attribute gives them.
    pub(crate) fn dilations(&self) -> Option<&[usize]> {
        self.dilations.as_deref()
    }

    /// The strides, if they are given.
    pub(crate) fn strides(&self) -> Option<&[usize]> {
        self.strides.as_deref()
    }

    /// The window over an input of `spatial` dimensions.
    ///
    /// # Errors
    /// If the attributes are for another number of dimensions, or the kernel is larger than the padded input.
    pub(crate) fn over(&self, spatial: &[usize], kernel: &[usize]) -> Result<AxisList, OpError> {
        self.bare(spatial, kernel)?.into_iter().map(|axis| self.axis(axis)).collect()
    }

    /// The axes with what the attributes say, automatic padding and output sizes still missing.
    ///
    /// # Errors
    /// If the attributes are for another number of dimensions, or a size is out of range.
    pub(crate) fn bare(&self, spatial: &[usize], kernel: &[usize]) -> Result<AxisList, OpError> {
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
        let axis = |d: usize| {
            if spatial[d] > LARGEST || kernel[d] > LARGEST || kernel[d] == 0 {
                return Err(OpError::shape(format!("a kernel of {} over {} elements", kernel[d], spatial[d])));
            }
            let pads = match self.auto_pad {
                AutoPad::NotSet => (get(&self.pads, d, 0), get(&self.pads, d + rank, 0)),
                _ => (0, 0),
            };
            let (stride, dilation) = (get(&self.strides, d, 1), get(&self.dilations, d, 1));
            Ok(Axis { input: spatial[d], output: 0, kernel: kernel[d], stride, dilation, pad_begin: pads.0, pad_end: pads.1 })
        };
        (0..rank).map(axis).collect()
    }

    /// Whether and how padding is automatic.
    pub(crate) fn auto_pad(&self) -> AutoPad {
        self.auto_pad
    }

    /// The axis with its output size, and its padding where that is automatic.
    fn axis(&self, mut axis: Axis) -> Result<Axis, OpError> {
        let extent = axis.extent();
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
    /// What the kernel spans; kernels and dilations are at most [`LARGEST`].
    pub(crate) fn extent(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// The kernel taps that meet the input at output position `at`, each with the input position that it meets.
    pub(crate) fn taps(&self, at: usize) -> impl Iterator<Item = (usize, usize)> {
        let (axis, start) = (*self, at * self.stride);
        let first = axis.pad_begin.saturating_sub(start).div_ceil(axis.dilation);
        let end = (axis.input + axis.pad_begin).saturating_sub(start).div_ceil(axis.dilation).min(axis.kernel);
        (first..end).map(move |tap| (tap, start + tap * axis.dilation - axis.pad_begin))
    }

    /// How many taps at output position `at` lie inside the input and its padding.
    pub(crate) fn covered(&self, at: usize) -> usize {
        let end = self.input + self.pad_begin + self.pad_end;
        end.saturating_sub(at * self.stride).div_ceil(self.dilation).min(self.kernel)
    }

    /// Calls `f` with runs of output positions that one tap meets: the tap, the positions, and the input position that the
    /// first of them meets; the others follow in steps of the stride. The taps of a position come in ascending order.
    pub(crate) fn passes(&self, mut f: impl FnMut(usize, Range<usize>, usize)) {
        if self.kernel <= self.input {
            for tap in 0..self.kernel {
                let shift = tap * self.dilation;
                let first = self.pad_begin.saturating_sub(shift).div_ceil(self.stride);
                let end = (self.input + self.pad_begin).saturating_sub(shift).div_ceil(self.stride).min(self.output);
                if first < end {
                    f(tap, first..end, first * self.stride + shift - self.pad_begin);
                }
            }
            return;
        }
        // More taps than elements: most of them meet none.
        for at in 0..self.output {
            self.taps(at).for_each(|(tap, position)| f(tap, at..at + 1, position));
        }
    }
}

/// A kernel tap and the input element that it meets, each counted in row-major order over all axes.
pub(crate) type Meeting = (usize, usize);

/// What a window meets: those of 7 × 7 taps lie on the stack.
pub(crate) type MeetingList = SmallVec<[Meeting; 49]>;

/// What is told of an output position: its number, its coordinates, and what its window meets.
type Visit<'f> = dyn FnMut(usize, &[usize], &[Meeting]) + 'f;

/// Fills `list` with what the taps of a window meet at output position `at`, in row-major order.
pub(crate) fn meetings(axes: &[Axis], at: &[usize], list: &mut MeetingList) {
    list.clear();
    list.push((0, 0));
    for (axis, &at) in axes.iter().zip(at) {
        let wide: MeetingList = list
            .iter()
            .flat_map(|&(tap, element)| axis.taps(at).map(move |(t, position)| (tap * axis.kernel + t, element * axis.input + position)))
            .collect();
        *list = wide;
    }
}

/// Calls `f` with every output position in row-major order: its number, its coordinates, and what its window meets.
pub(crate) fn windows(axes: &[Axis], mut f: impl FnMut(usize, &[usize], &[Meeting])) {
    windows_from(axes, 0, usize::MAX, &mut f);
}

/// As [`windows`], for the positions from number `first` on, `count` at most.
pub(crate) fn windows_from(axes: &[Axis], first: usize, count: usize, f: &mut Visit<'_>) {
    let total: usize = axes.iter().map(|axis| axis.output).product();
    if first >= total {
        return;
    }
    let mut at: SmallVec<[usize; 4]> = SmallVec::from_elem(0, axes.len());
    let mut rest = first;
    for d in (0..axes.len()).rev() {
        at[d] = rest % axes[d].output;
        rest /= axes[d].output;
    }
    let mut list = MeetingList::new();
    for number in first..first.saturating_add(count).min(total) {
        meetings(axes, &at, &mut list);
        f(number, &at, &list);
        for d in (0..axes.len()).rev() {
            at[d] += 1;
            if at[d] < axes[d].output {
                break;
            }
            at[d] = 0;
        }
    }
}

/// Input elements and output elements of one channel of one sample.
pub(crate) fn planes(axes: &[Axis]) -> (usize, usize) {
    (axes.iter().map(|a| a.input).product(), axes.iter().map(|a| a.output).product())
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
        assert!(over(&[], &[4], &[0]).is_err());
    }

    #[test]
    fn taps_are_those_inside_the_input() {
        let axis = Axis { input: 4, output: 4, kernel: 3, stride: 1, dilation: 1, pad_begin: 1, pad_end: 1 };
        assert_eq!(axis.taps(0).collect::<Vec<_>>(), [(1, 0), (2, 1)]);
        assert_eq!(axis.taps(3).collect::<Vec<_>>(), [(0, 2), (1, 3)]);
        assert_eq!(axis.covered(0), 3);
    }

    /// However they are listed, the same taps meet the same elements.
    #[test]
    fn passes_and_windows_agree_with_taps() {
        for (input, kernel, stride, dilation, pad) in [(7, 3, 2, 1, 1), (7, 2, 3, 3, 2), (3, 5, 1, 2, 4), (4, 1, 2, 1, 0), (1, 3, 1, 1, 1)]
        {
            let attrs = [("strides", ints(&[stride])), ("dilations", ints(&[dilation])), ("pads", ints(&[pad, pad]))];
            let axis = window(&attrs).unwrap().over(&[input], &[kernel]).unwrap()[0];
            let mut want = Vec::new();
            for at in 0..axis.output {
                for tap in 0..kernel {
                    let position = at as i64 * stride + tap as i64 * dilation - pad;
                    if (0..input as i64).contains(&position) {
                        want.push((at, tap, position as usize));
                    }
                }
            }
            let mut by_taps = Vec::new();
            windows(&[axis], |at, _, list| by_taps.extend(list.iter().map(|&(tap, element)| (at, tap, element))));
            assert_eq!(by_taps, want);
            let mut by_passes = Vec::new();
            axis.passes(|tap, outputs, first| {
                by_passes.extend(outputs.enumerate().map(|(i, at)| (at, tap, first + i * axis.stride)));
            });
            by_passes.sort_unstable();
            assert_eq!(by_passes, want);
        }
    }
}
