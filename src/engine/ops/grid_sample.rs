//! GridSample: a tensor sampled at positions that another tensor gives, over any number of spatial dimensions.
//!
//! The weights of a position are found once for all channels.

use super::ANY;
use super::axes::{require, strides};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{Slice, View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "GridSample", domain: "", opsets: 16..=ANY, types: types::ALL, build: grid_sample },
    OpDef { name: "GridSample", domain: "com.microsoft", opsets: 1..=ANY, types: types::FLOATS, build: grid_sample },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

impl Mode {
    /// Neighbours per dimension.
    fn taps(self) -> usize {
        match self {
            Self::Nearest => 1,
            Self::Linear => 2,
            Self::Cubic => 4,
        }
    }
}

/// What lies outside the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

#[derive(Debug)]
struct GridSample {
    mode: Mode,
    padding: Padding,
    /// -1 and 1 are the centers of the outermost elements, not their outer edges.
    align_corners: bool,
}

fn grid_sample(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let mode = match attrs.string_or("mode", "linear")?.as_str() {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return Err(OpError::Attribute(format!("attribute `mode` is `{other}`"))),
    };
    let padding = match attrs.string_or("padding_mode", "zeros")?.as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(OpError::Attribute(format!("attribute `padding_mode` is `{other}`"))),
    };
    Ok(Box::new(GridSample { mode, padding, align_corners: attrs.bool_or("align_corners", false)? }))
}

/// Spatial dimensions at most: cubic sampling takes 4 neighbours along each.
const MOST_DIMENSIONS: usize = 4;

fn output_shape(x: &[usize], grid: &[usize]) -> Result<Shape, OpError> {
    let fits = x.len() >= 3 && grid.len() == x.len() && grid[0] == x[0] && grid[grid.len() - 1] == x.len() - 2;
    if !fits {
        return Err(OpError::shape(format!("a grid of shape {grid:?} does not fit a tensor of shape {x:?}")));
    }
    if x.len() - 2 > MOST_DIMENSIONS {
        return Err(OpError::unsupported(format!("sampling over {} spatial dimensions", x.len() - 2)));
    }
    let shape: Shape = x[..2].iter().chain(&grid[1..grid.len() - 1]).copied().collect();
    if x.contains(&0) && !shape.contains(&0) {
        return Err(OpError::shape(format!("nothing can be sampled from shape {x:?}")));
    }
    Ok(shape)
}

/// A neighbour of a sampled position: an element of a channel and its weight.
type Tap = (usize, f64);

/// What is known of a block of positions.
#[derive(Default)]
struct Found {
    coordinates: Vec<f64>,
    taps: Vec<Tap>,
    ends: Vec<usize>,
}

/// Output positions whose neighbours are found before the channels are gone through.
const BLOCK: usize = 256;

impl GridSample {
    /// Where a normalised coordinate lies along a dimension of `length` elements, in the precision of the grid.
    fn coordinate(&self, normalised: f64, length: usize, wide: bool) -> f64 {
        let length = length as f64;
        if wide {
            return if self.align_corners { (normalised + 1.0) / 2.0 * (length - 1.0) } else { ((normalised + 1.0) * length - 1.0) / 2.0 };
        }
        let (n, length) = (normalised as f32, length as f32);
        f64::from(if self.align_corners { (n + 1.0) / 2.0 * (length - 1.0) } else { ((n + 1.0) * length - 1.0) / 2.0 })
    }

    /// The coordinate reflected at both ends until it is inside.
    fn reflect(&self, x: f64, length: usize) -> f64 {
        let (low, high) = if self.align_corners { (0.0, length as f64 - 1.0) } else { (-0.5, length as f64 - 0.5) };
        let range = high - low;
        let beyond = if x < low { low - x } else { x - high };
        if (low..=high).contains(&x) || range <= 0.0 {
            return if range <= 0.0 { low } else { x };
        }
        let rest = beyond % range;
        let even = (beyond / range).trunc() % 2.0 == 0.0;
        if (x < low) == even { low + rest } else { high - rest }
    }

    /// The element that neighbour `at` is; none for a zero.
    fn element(&self, at: f64, length: usize) -> Option<usize> {
        let last = length as f64 - 1.0;
        match self.padding {
            Padding::Zeros => (0.0..=last).contains(&at).then_some(at as usize),
            Padding::Border => Some(at.clamp(0.0, last) as usize),
            Padding::Reflection => Some(self.reflect(at, length).clamp(0.0, last) as usize),
        }
    }

    /// The neighbours along one dimension.
    fn along(&self, normalised: f64, length: usize, wide: bool) -> [(Option<usize>, f64); 4] {
        let mut x = self.coordinate(normalised, length, wide);
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        let (low, high) = if self.align_corners { (0.0, length as f64 - 1.0) } else { (-0.5, length as f64 - 0.5) };
        if x < low || x > high {
            x = match self.padding {
                Padding::Zeros => x,
                // As PyTorch and ONNX Runtime have it: neighbours are moved to the border one by one, and keep their weights.
                Padding::Border if self.mode == Mode::Cubic => x,
                Padding::Border => x.clamp(0.0, length as f64 - 1.0),
                Padding::Reflection => self.reflect(x, length),
            };
        }
        let (floor, r) = (x.floor(), x - x.floor());
        let mut taps = [(None, 0.0); 4];
        match self.mode {
            Mode::Nearest => taps[0] = (self.element(x, length), 1.0),
            Mode::Linear => {
                taps[0] = (self.element(floor, length), 1.0 - r);
                taps[1] = (self.element(floor + 1.0, length), r);
            }
            Mode::Cubic => {
                for (i, (tap, weight)) in taps.iter_mut().zip(cubic(r)).enumerate() {
                    *tap = (self.element(floor + i as f64 - 1.0, length), weight);
                }
            }
        }
        taps
    }

    /// Appends the neighbours of one position, whose coordinates are given from the innermost dimension on.
    fn taps(&self, position: &[f64], (dims, strides): (&[usize], &[usize]), wide: bool, taps: &mut Vec<Tap>) {
        let (start, count) = (taps.len(), self.mode.taps());
        taps.push((0, 1.0));
        for ((normalised, &length), stride) in position.iter().rev().zip(dims).zip(strides) {
            let along = self.along(*normalised, length, wide);
            let before = taps.split_off(start);
            for (offset, weight) in before {
                for &(element, w) in &along[..count] {
                    taps.extend(element.map(|element| (offset + element * stride, weight * w)));
                }
            }
        }
    }

    /// The neighbours of every position of a block, and where those of each end.
    fn block(&self, positions: Slice<'_>, dims: &[usize], steps: &[usize], found: &mut Found) -> Result<(), OpError> {
        let Found { coordinates, taps, ends } = found;
        coordinates.clear();
        taps.clear();
        ends.clear();
        let dtype = positions.dtype();
        with_float!(dtype, G => coordinates.extend(G::slice(&positions).ok_or(OpError::Unknown)?.iter().map(|v| v.to_f64())),
            else return Err(OpError::wrong_type(DType::F32, dtype)));
        for position in coordinates.chunks_exact(dims.len()) {
            self.taps(position, (dims, steps), dtype == DType::F64, taps);
            ends.push(taps.len());
        }
        Ok(())
    }

    /// Computes every output element as `sum` of a channel's elements and the neighbours of its position.
    fn sample<T: Element>(
        &self,
        (x, grid): (View<'_>, View<'_>),
        y: &mut ViewMut<'_>,
        ctx: &Context<'_>,
        sum: impl Fn(&[T], &[Tap]) -> T + Send + Sync,
    ) -> Result<(), OpError> {
        if !grid.dtype().is_float() {
            return Err(OpError::wrong_type(DType::F32, grid.dtype()));
        }
        let (channels, dims) = (x.shape()[1], &x.shape()[2..]);
        let steps = strides(dims);
        let from: usize = dims.iter().product();
        let to: usize = y.shape()[2..].iter().product();
        let (x, grid, y) = (x.slice::<T>()?, grid.data(), y.slice::<T>()?);
        // A part is some channels of one sample.
        let work = (y.len() as u64).saturating_mul(16 * self.mode.taps() as u64);
        let per_part = channels.div_ceil(ctx.threads.parts(work)).max(1);
        let samples = x.chunks_exact(channels * from).zip(y.chunks_exact_mut(channels * to)).enumerate();
        let items = samples
            .flat_map(|(n, (x, y))| x.chunks(per_part * from).zip(y.chunks_mut(per_part * to)).map(move |(x, y)| (n, x, y)));
        ctx.threads.for_each(items, |(n, x, y)| {
            let mut found = Found::default();
            for start in (0..to).step_by(BLOCK) {
                let positions = n * to + start..n * to + to.min(start + BLOCK);
                let positions = grid.range(positions.start * dims.len()..positions.end * dims.len());
                self.block(positions, dims, &steps, &mut found).expect("the grid holds floats");
                for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
                    let mut first = 0;
                    for (y, &end) in y[start..].iter_mut().zip(&found.ends) {
                        *y = sum(x, &found.taps[first..end]);
                        first = end;
                    }
                }
            }
        });
        Ok(())
    }
}

/// The weights of the neighbours -1, 0, 1 and 2 at distance `r` behind neighbour 0.
fn cubic(r: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(r + 1.0), near(r), near(1.0 - r), far(2.0 - r)]
}

/// The one neighbour, or the type's zero.
fn nearest<T: Element>(x: &[T], taps: &[Tap]) -> T {
    taps.first().map_or_else(T::default, |&(at, _)| x[at].clone())
}

impl Op for GridSample {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        let kind = inputs[0].clone().ok_or_else(|| OpError::missing_input(0))?;
        let computes = kind.dtype().is_some_and(|d| types::NUMBERS.contains(&d));
        if !computes && self.mode != Mode::Nearest {
            return Err(OpError::unsupported(format!("interpolation of {kind}; such a tensor is sampled by mode nearest only")));
        }
        Ok(Kinds::from_iter([kind]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![output_shape(inputs.shape(0)?, inputs.shape(1)?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, grid, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        if y.data().is_empty() {
            return Ok(());
        }
        let operands = (x, grid);
        if self.mode == Mode::Nearest {
            let (operands, y) = ((x.bits(), grid), &mut y.bits());
            return with_bits!(x.bits().dtype(), T => self.sample::<T>(operands, y, ctx, nearest));
        }
        with_number!(x.dtype(), T => self.sample::<T>(operands, y, ctx, |x, taps| {
            <T as Number>::from_f64(taps.iter().map(|&(at, weight)| Number::to_f64(x[at]) * weight).sum())
        }), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn sampled(case: Case, values: &[f32], at: &[f32]) -> Vec<f32> {
        let x = tensor(&[1, 1, values.len()], values);
        let y = case.one(&[&x, &tensor(&[1, at.len(), 1], at)]);
        y.slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn one_dimension_by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let case = |mode: &str, padding: &str, corners: i64| op("GridSample").attr("mode", mode).attr("padding_mode", padding).attr("align_corners", corners);
        // Without aligned corners -1 is half an element outside.
        assert_eq!(sampled(case("linear", "zeros", 0), &x, &[-1.0, 0.0, 1.0, 2.0]), [0.5, 2.5, 2.0, 0.0]);
        assert_eq!(sampled(case("linear", "zeros", 1), &x, &[-1.0, 0.0, 1.0, 2.0]), [1.0, 2.5, 4.0, 0.0]);
        assert_eq!(sampled(case("linear", "border", 0), &x, &[-1.0, 2.0, -9.0]), [1.0, 4.0, 1.0]);
        assert_eq!(sampled(case("linear", "reflection", 1), &x, &[-1.0 - 2.0 / 3.0, 3.0]), [2.0, 1.0]);
        assert_eq!(sampled(case("nearest", "reflection", 0), &x, &[-1.25, 1.25, 2.25]), [1.0, 4.0, 2.0]);
        // Halves go to the even neighbour.
        assert_eq!(sampled(case("nearest", "zeros", 0), &x, &[0.0, -0.5, -1.0]), [3.0, 1.0, 1.0]);
        assert_eq!(sampled(case("cubic", "border", 0), &x, &[0.0]), [2.5]);
    }

    #[test]
    fn beyond_the_border_cubic_weights_stay() {
        let case = op("GridSample").attr("mode", "cubic").attr("padding_mode", "border");
        // At 1.125 the coordinate is 3.75: the last two elements weigh far(1.75) = -0.035156 and the rest. PyTorch says the same.
        let last = sampled(case, &[1.0, 2.0, 3.0, 4.0], &[1.125])[0];
        assert!((last - 4.035_156).abs() < 1e-5, "{last}");
    }

    #[test]
    fn coordinates_without_bounds_are_no_index() {
        let huge = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN];
        for mode in ["nearest", "linear", "cubic"] {
            for padding in ["zeros", "border", "reflection"] {
                for corners in [0_i64, 1] {
                    let case = op("GridSample").attr("mode", mode).attr("padding_mode", padding).attr("align_corners", corners);
                    assert_eq!(sampled(case, &[1.0], &huge).len(), 5);
                }
            }
        }
    }

    #[test]
    fn dimensions_are_named_from_the_innermost() {
        let x = tensor(&[2, 3, 4, 5, 6], &noise(720, 1));
        // The identity grid.
        let mut grid = vec![];
        for i in 0..2 * 4 * 5 * 6 {
            let at = |i: usize, n: usize| 2.0 * i as f32 / (n - 1) as f32 - 1.0;
            grid.extend([at(i % 6, 6), at(i / 6 % 5, 5), at(i / 30 % 4, 4)]);
        }
        let grid = tensor(&[2, 4, 5, 6, 3], &grid);
        for mode in ["nearest", "linear", "cubic"] {
            let y = op("GridSample").attr("mode", mode).attr("align_corners", 1_i64).one(&[&x, &grid]);
            assert_close(&y, &[2, 3, 4, 5, 6], x.slice().unwrap(), 1e-5);
        }
    }

    #[test]
    fn types_of_both_operands() {
        let grid = tensor(&[1, 1, 1, 2], &[0.5_f64, 0.5]);
        let words = tensor(&[1, 1, 1, 1], &["a".to_owned()]);
        assert_eq!(op("GridSample").attr("mode", "nearest").one(&[&words, &grid]), words);
        assert!(matches!(op("GridSample").error(&[&words, &grid]), OpError::Unsupported(_)));
        let bytes = tensor(&[1, 1, 1, 2], &[100_u8, 203]);
        // 0.75 · 100 + 0.25 · 203 = 125.75: cast, not rounded.
        let grid = tensor(&[1, 1, 1, 2], &[-0.25_f32, 0.0]);
        assert_eq!(op("GridSample").one(&[&bytes, &grid]), tensor(&[1, 1, 1, 1], &[125_u8]));
        let older = op("GridSample").opset(16).attr("mode", "bilinear");
        assert_eq!(older.one(&[&bytes, &grid]), tensor(&[1, 1, 1, 1], &[125_u8]));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        for (x, grid) in [
            (&[1, 1, 2, 2][..], &[1, 1, 1, 3][..]),
            (&[1, 1, 2, 2], &[2, 1, 1, 2]),
            (&[1, 1, 2, 2], &[1, 1, 2]),
            (&[1, 1, 0, 2], &[1, 1, 1, 2]),
            (&[1, 1], &[1, 0]),
        ] {
            assert!(matches!(op("GridSample").error(&[&zeros(x), &zeros(grid)]), OpError::Shape(_)), "{x:?} {grid:?}");
        }
        assert_eq!(op("GridSample").one(&[&zeros(&[0, 1, 2, 2]), &zeros(&[0, 3, 1, 2])]).shape(), [0, 1, 3, 1]);
        assert!(matches!(op("GridSample").attr("padding_mode", "wrap").error(&[&zeros(&[1, 1, 1, 1]), &zeros(&[1, 1, 1, 2])]), OpError::Attribute(_)));
    }
}
