//! Resize and Upsample: tensors sampled at more or fewer positions along some of their axes.
//!
//! Interpolation is separable, so a tensor is resized along one axis after the other: the shrinking ones first, so that
//! nothing in between is larger than the input or the output.

mod axis;
mod planes;

use axis::{Axis, Filter, Nearest, Transform};

use super::ANY;
use super::axes::{Axes, axes, require};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::View;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Resize", domain: "", opsets: 10..=10, types: types::ALL, build: |a| build(a, Operands { scales: Some(1), ..NONE }) },
    OpDef { name: "Resize", domain: "", opsets: 11..=ANY, types: types::ALL, build: resize },
    OpDef { name: "Upsample", domain: "", opsets: 1..=6, types: types::ALL, build: |a| {
        let height = a.required("height_scale", a.float("height_scale")?)?;
        let width = a.required("width_scale", a.float("width_scale")?)?;
        build(a, Operands { fixed: Some(vec![1.0, 1.0, height, width]), ..NONE })
    } },
    OpDef { name: "Upsample", domain: "", opsets: 7..=8, types: types::ALL, build: |a| {
        build(a, Operands { fixed: Some(a.required("scales", a.floats("scales")?)?), ..NONE })
    } },
    OpDef { name: "Upsample", domain: "", opsets: 9..=ANY, types: types::ALL, build: |a| build(a, Operands { scales: Some(1), ..NONE }) },
];

/// Where an operator of this family finds its operands.
#[derive(Debug)]
struct Operands {
    roi: Option<usize>,
    scales: Option<usize>,
    sizes: Option<usize>,
    /// Scales that are an attribute.
    fixed: Option<Vec<f32>>,
}

const NONE: Operands = Operands { roi: None, scales: None, sizes: None, fixed: None };

/// What the attribute `keep_aspect_ratio_policy` makes of `sizes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aspect {
    Stretch,
    NotLarger,
    NotSmaller,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Nearest(Nearest),
    Weighted { filter: Filter, antialias: bool, exclude_outside: bool },
}

#[derive(Debug)]
struct Resize {
    operands: Operands,
    /// The axes that the operands speak of; all if not given.
    along: Option<Vec<i64>>,
    aspect: Aspect,
    transform: Transform,
    mode: Mode,
    extrapolation: f32,
}

fn unknown(name: &str, value: &str) -> OpError {
    OpError::Attribute(format!("attribute `{name}` is `{value}`"))
}

/// The forms that know neither coordinates nor rounding as attributes.
fn build(attrs: &Attrs, operands: Operands) -> Result<Box<dyn Op>, OpError> {
    let mode = match attrs.string_or("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest(Nearest::Simple),
        "linear" | "bilinear" => Mode::Weighted { filter: Filter::Linear, antialias: false, exclude_outside: false },
        other => return Err(unknown("mode", other)),
    };
    let (aspect, transform) = (Aspect::Stretch, Transform::Asymmetric);
    Ok(Box::new(Resize { operands, along: None, aspect, transform, mode, extrapolation: 0.0 }))
}

fn resize(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let newer = attrs.opset >= 18;
    let aspect = match attrs.string_or("keep_aspect_ratio_policy", "stretch")?.as_str() {
        "stretch" => Aspect::Stretch,
        "not_larger" if newer => Aspect::NotLarger,
        "not_smaller" if newer => Aspect::NotSmaller,
        other => return Err(unknown("keep_aspect_ratio_policy", other)),
    };
    Ok(Box::new(Resize {
        operands: Operands { roi: Some(1), scales: Some(2), sizes: Some(3), fixed: None },
        along: if newer { attrs.ints("axes")? } else { None },
        aspect,
        transform: transform(attrs)?,
        mode: mode(attrs)?,
        extrapolation: attrs.float_or("extrapolation_value", 0.0)?,
    }))
}

fn transform(attrs: &Attrs) -> Result<Transform, OpError> {
    Ok(match attrs.string_or("coordinate_transformation_mode", "half_pixel")?.as_str() {
        "half_pixel" => Transform::HalfPixel,
        "half_pixel_symmetric" => Transform::HalfPixelSymmetric,
        "pytorch_half_pixel" => Transform::PytorchHalfPixel,
        "align_corners" => Transform::AlignCorners,
        "asymmetric" => Transform::Asymmetric,
        "tf_half_pixel_for_nn" if attrs.opset < 13 => Transform::TfHalfPixelForNn,
        "tf_crop_and_resize" => Transform::TfCropAndResize,
        other => return Err(unknown("coordinate_transformation_mode", other)),
    })
}

fn mode(attrs: &Attrs) -> Result<Mode, OpError> {
    let nearest = match attrs.string_or("nearest_mode", "round_prefer_floor")?.as_str() {
        "round_prefer_floor" | "" => Nearest::RoundPreferFloor,
        "round_prefer_ceil" => Nearest::RoundPreferCeil,
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        other => return Err(unknown("nearest_mode", other)),
    };
    let antialias = attrs.opset >= 18 && attrs.bool_or("antialias", false)?;
    let exclude_outside = attrs.bool_or("exclude_outside", false)?;
    let a = f64::from(attrs.float_or("cubic_coeff_a", -0.75)?);
    let filter = match attrs.string_or("mode", "nearest")?.as_str() {
        "nearest" if antialias => return Err(OpError::Attribute("`antialias` is for the modes linear and cubic".into())),
        "nearest" => return Ok(Mode::Nearest(nearest)),
        "linear" => Filter::Linear,
        "cubic" if a.is_finite() => Filter::Cubic(a),
        "cubic" => return Err(OpError::Attribute(format!("attribute `cubic_coeff_a` is {a}"))),
        other => return Err(unknown("mode", other)),
    };
    Ok(Mode::Weighted { filter, antialias, exclude_outside })
}

/// The numbers that say how large the output is.
enum Wanted {
    Scales(Vec<f32>),
    Sizes(Vec<i64>),
}

/// The elements of a float operand.
fn floats(view: View<'_>) -> Result<Vec<f64>, OpError> {
    with_float!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|v| v.to_f64()).collect()),
        else Err(OpError::wrong_type(DType::F32, view.dtype())))
}

/// One element of `value`; zero, false or an empty text in a type that does not compute.
fn constant(dtype: DType, value: f32) -> Result<Tensor, OpError> {
    with_number!(dtype, T => Ok(Tensor::vector(vec![<T as Number>::from_f64(f64::from(value))])), else Ok(Tensor::zeros(dtype, &[1])))
}

impl Resize {
    /// Scales or sizes, whichever is given; an operand without elements counts as omitted.
    fn wanted<'a>(&self, operand: impl Fn(usize) -> Result<Option<View<'a>>, OpError>) -> Result<Wanted, OpError> {
        if let Some(scales) = &self.operands.fixed {
            return Ok(Wanted::Scales(scales.clone()));
        }
        let given = |index: Option<usize>| Ok(index.map(&operand).transpose()?.flatten().filter(|view| !view.is_empty()));
        match (given(self.operands.scales)?, given(self.operands.sizes)?) {
            (Some(scales), None) => Ok(Wanted::Scales(scales.slice::<f32>()?.to_vec())),
            (None, Some(sizes)) => Ok(Wanted::Sizes(sizes.slice::<i64>()?.to_vec())),
            (Some(_), Some(_)) => Err(OpError::shape("both scales and sizes are given")),
            (None, None) => Err(OpError::shape("neither scales nor sizes are given")),
        }
    }

    /// Every axis of a tensor of `shape`, without its region of interest.
    fn axes(&self, shape: &[usize], wanted: &Wanted) -> Result<Vec<Axis>, OpError> {
        let along = self.along(shape.len())?;
        let count = match wanted {
            Wanted::Scales(scales) => scales.len(),
            Wanted::Sizes(sizes) => sizes.len(),
        };
        if count != along.len() {
            return Err(OpError::shape(format!("{count} scales or sizes are given for {} axes", along.len())));
        }
        let same = |&n: &usize| Axis { input: n, output: n, scale: 1.0, transform: self.transform, roi: (0.0, 1.0) };
        let mut all: Vec<Axis> = shape.iter().map(same).collect();
        match wanted {
            Wanted::Scales(scales) => {
                for (&d, &scale) in along.iter().zip(scales) {
                    if !(scale.is_finite() && scale > 0.0) {
                        return Err(OpError::value(format!("{scale} is not a scale")));
                    }
                    // In f32, as the standard's shape inference has it.
                    all[d].output = (shape[d] as f32 * scale).floor() as usize;
                    all[d].scale = f64::from(scale);
                }
            }
            Wanted::Sizes(sizes) => {
                for (&d, &size) in along.iter().zip(sizes) {
                    all[d].output = super::axes::size(size)?;
                    all[d].scale = if all[d].output == shape[d] { 1.0 } else { size as f64 / shape[d] as f64 };
                }
                self.keep_aspect(&mut all, &along);
            }
        }
        if let Some(axis) = all.iter().find(|axis| axis.input == 0 && axis.output > 0) {
            return Err(OpError::shape(format!("{} elements cannot be made from an axis without any", axis.output)));
        }
        Ok(all)
    }

    fn along(&self, rank: usize) -> Result<Axes, OpError> {
        match &self.along {
            Some(list) => axes(list, rank),
            None => Ok((0..rank).collect()),
        }
    }

    /// One scale for all of the axes `along`.
    fn keep_aspect(&self, all: &mut [Axis], along: &[usize]) {
        let scales = along.iter().map(|&d| all[d].scale);
        let scale = match self.aspect {
            Aspect::Stretch => return,
            Aspect::NotLarger => scales.fold(f64::INFINITY, f64::min),
            Aspect::NotSmaller => scales.fold(0.0, f64::max),
        };
        for &d in along {
            all[d].scale = scale;
            all[d].output = (scale * all[d].input as f64 + 0.5).floor() as usize;
        }
    }

    /// Sets the region of interest of each axis.
    fn focus(&self, all: &mut [Axis], inputs: &Inputs<'_>) -> Result<(), OpError> {
        if self.transform != Transform::TfCropAndResize {
            return Ok(());
        }
        let roi = match self.operands.roi.and_then(|i| inputs.get(i)) {
            Some(view) => floats(view)?,
            None => return Err(OpError::shape("a region of interest is needed for tf_crop_and_resize")),
        };
        let along = self.along(all.len())?;
        if roi.len() != 2 * along.len() {
            return Err(OpError::shape(format!("the region of interest has {} numbers for {} axes", roi.len(), along.len())));
        }
        for (i, &d) in along.iter().enumerate() {
            all[d].roi = (roi[i], roi[i + along.len()]);
        }
        Ok(())
    }
}

impl Op for Resize {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        let kind = inputs[0].clone().ok_or_else(|| OpError::missing_input(0))?;
        let computes = kind.dtype().is_some_and(|d| types::NUMBERS.contains(&d));
        if !computes && matches!(self.mode, Mode::Weighted { .. }) {
            return Err(OpError::unsupported(format!("interpolation of {kind}; such a tensor is resized by mode nearest only")));
        }
        Ok(Kinds::from_iter([kind]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let operand = |i| inputs.get(i).map(|fact| fact.value.as_ref().map(Tensor::view).ok_or(OpError::Unknown)).transpose();
        // An operand that is known to be empty counts as omitted even if it is computed.
        let operand = |i| match inputs.get(i) {
            Some(fact) if fact.shape.as_deref() == Some(&[0]) => Ok(None),
            _ => operand(i),
        };
        let axes = self.axes(shape, &self.wanted(operand)?)?;
        Ok(vec![axes.iter().map(|axis| axis.output).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let mut all = self.axes(x.shape(), &self.wanted(|i| Ok(inputs.get(i)))?)?;
        if y.data().is_empty() {
            return Ok(());
        }
        self.focus(&mut all, inputs)?;
        match self.mode {
            Mode::Nearest(nearest) => {
                let fill = constant(x.dtype(), self.extrapolation)?;
                let (x, fill, y) = (x.bits(), fill.view().bits(), &mut y.bits());
                with_bits!(x.dtype(), T => planes::pick::<T>(&all, nearest, x.slice()?, &fill.slice::<T>()?[0], y.slice()?, ctx));
                Ok(())
            }
            Mode::Weighted { filter, antialias, exclude_outside } => {
                let how = (filter, antialias, exclude_outside);
                planes::weigh(&all, how, self.extrapolation, x, y, ctx)
            }
        }
    }
}

#[cfg(test)]
mod tests;
