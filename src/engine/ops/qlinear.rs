//! What the quantised operators share: 8-bit codes, their scales and zero points, and the integer product over threads.

use super::axes::around;
use super::product::flops;
use crate::engine::dtype::{DType, Element};
use crate::engine::kernels::integer::{padded, product};
use crate::engine::op::{Context, OpError};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

/// The 8-bit integer types.
pub(crate) const CODES: &[DType] = &[DType::U8, DType::I8];

/// An integer type that a number can be quantised to.
pub(crate) trait Code: Element + Copy {
    /// The value.
    fn get(self) -> i32;
    /// The nearest value in the range.
    fn saturate(value: i32) -> Self;
}

macro_rules! codes {
    ($($t:ty),*) => {$(
        impl Code for $t {
            #[inline(always)]
            fn get(self) -> i32 { i32::from(self) }
            #[inline(always)]
            fn saturate(value: i32) -> Self { value.clamp(i32::from(<$t>::MIN), i32::from(<$t>::MAX)) as Self }
        }
    )*};
}
codes!(u8, i8, u16, i16);

/// Runs `$body` with the alias `$t` bound to an 8-bit integer type; another type is an error.
macro_rules! with_code {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::engine::dtype::DType::U8 => {
                type $t = u8;
                $body
            }
            $crate::engine::dtype::DType::I8 => {
                type $t = i8;
                $body
            }
            other => Err($crate::engine::op::OpError::Type(format!("uint8 or int8 is needed where {other} is given"))),
        }
    };
}
pub(crate) use with_code;

/// Checks that a given input is of one of `types`.
pub(crate) fn expect_type(inputs: &[Option<Kind>], index: usize, types: &[DType]) -> Result<(), OpError> {
    match inputs.get(index).and_then(Option::as_ref) {
        Some(kind) if kind.dtype().is_none_or(|dtype| !types.contains(&dtype)) => {
            let names: Vec<_> = types.iter().map(|t| t.name()).collect();
            Err(OpError::Type(format!("input {index} is {kind}; {} is needed", names.join(" or "))))
        }
        _ => Ok(()),
    }
}

/// Checks that inputs, as far as they are given, have one type.
pub(crate) fn expect_same(inputs: &[Option<Kind>], a: usize, b: usize) -> Result<(), OpError> {
    match (inputs.get(a).and_then(Option::as_ref), inputs.get(b).and_then(Option::as_ref)) {
        (Some(a), Some(b)) if a != b => Err(OpError::Type(format!("the inputs must have one element type; they have {a} and {b}"))),
        _ => Ok(()),
    }
}

/// The nearest integer, ties to even; what is beyond i32 saturates, and NaN is taken for the smallest, as onnxruntime and the
/// reference take it.
#[inline(always)]
pub(crate) fn nearest(value: f32) -> i32 {
    if value.is_nan() { i32::MIN } else { value.round_ties_even() as i32 }
}

/// The code of a number that has been divided by the scale.
#[inline(always)]
pub(crate) fn encode<T: Code>(value: f32, zero: i32) -> T {
    T::saturate(nearest(value).saturating_add(zero))
}

/// The elements of an integer operand as `i32`.
pub(crate) fn codes(view: View<'_>) -> Result<Vec<i32>, OpError> {
    with_code!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|v| v.get()).collect()))
}

/// The one element of an operand that must be a scalar, or of one element.
fn only<T: Copy>(values: &[T], what: &str) -> Result<T, OpError> {
    match values {
        [value] => Ok(*value),
        _ => Err(OpError::shape(format!("{what} has {} elements; it must be a scalar", values.len()))),
    }
}

/// A scalar zero point; zero if it is not given.
pub(crate) fn zero_point(view: Option<View<'_>>) -> Result<i32, OpError> {
    view.map_or(Ok(0), |view| only(&codes(view)?, "a zero point"))
}

/// A scalar f32 scale.
pub(crate) fn scale(view: View<'_>) -> Result<f32, OpError> {
    only(view.slice::<f32>()?, "a scale")
}

/// A value per tensor, or per row of each matrix, or per column of each matrix.
#[derive(Clone, Debug)]
pub(crate) struct Levels<T> {
    values: Vec<T>,
    matrix: usize,
    element: usize,
}

impl<T: Copy> Levels<T> {
    /// The same value everywhere.
    pub(crate) fn one(value: T) -> Self {
        Self { values: vec![value], matrix: 0, element: 0 }
    }

    /// The values of an operand of `shape`, one per line along `axis` (counted from the end: 2 for rows, 1 for columns) of
    /// matrices of shape `of`.
    pub(crate) fn new(values: Vec<T>, shape: &[usize], of: &[usize], axis: usize) -> Result<Self, OpError> {
        if values.len() == 1 {
            return Ok(Self { values, matrix: 0, element: 0 });
        }
        let lines = if of.len() >= axis { of[of.len() - axis] } else { 1 };
        let others = |skip: usize| shape.iter().enumerate().all(|(i, &n)| i == skip || n == 1);
        let line_at = if shape.len() == 1 { Some(0) } else { shape.len().checked_sub(axis) };
        if values.len() == lines && line_at.is_some_and(|at| shape.get(at) == Some(&lines) && others(at)) {
            return Ok(Self { values, matrix: 0, element: 1 });
        }
        let mut lined = of.to_vec();
        if let Some(across) = lined.len().checked_sub(3 - axis).filter(|&i| i < of.len()) {
            lined[across] = 1;
        }
        if shape == lined {
            return Ok(Self { values, matrix: lines, element: 1 });
        }
        Err(OpError::shape(format!("scales or zero points of shape {shape:?} for an operand of shape {of:?}")))
    }

    /// The value of line `line` of matrix `matrix`.
    #[inline(always)]
    pub(crate) fn at(&self, matrix: usize, line: usize) -> T {
        self.values[matrix * self.matrix + line * self.element]
    }

    /// The value that is the same everywhere.
    pub(crate) fn only(&self) -> Option<T> {
        (self.matrix == 0 && self.element == 0).then(|| self.values[0])
    }

    /// Whether all matrices have the same values.
    pub(crate) fn shared(&self) -> bool {
        self.matrix == 0
    }
}

/// Zero points of a matrix operand; zero if they are not given.
pub(crate) fn zero_levels(view: Option<View<'_>>, of: &[usize], axis: usize) -> Result<Levels<i32>, OpError> {
    view.map_or_else(|| Ok(Levels::one(0)), |view| Levels::new(codes(view)?, view.shape(), of, axis))
}

/// Rows of integers less their zero points, padded for the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    /// Numbers per row without the padding.
    pub(crate) k: usize,
    pub(crate) data: Vec<i16>,
}

impl Rows {
    /// The rows of matrix `matrix` of `[m, k]` codes.
    pub(crate) fn of<T: Code>(codes: &[T], (m, k): (usize, usize), zero: impl Fn(usize) -> i32) -> Self {
        let mut data = vec![0; if k == 0 { 0 } else { m * padded(k) }];
        for (i, (to, from)) in data.chunks_exact_mut(padded(k).max(1)).zip(codes.chunks_exact(k.max(1))).enumerate() {
            let zero = zero(i) as i16;
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.get() as i16 - zero);
        }
        Self { count: m, k, data }
    }

    /// The columns of a matrix of `[k, n]` codes.
    pub(crate) fn of_columns<T: Code>(codes: &[T], (k, n): (usize, usize), zero: impl Fn(usize) -> i32) -> Self {
        let len = padded(k);
        let mut data = vec![0_i16; if k == 0 { 0 } else { n * len }];
        // Blocks of columns, so that what is written stays in the cache.
        const BLOCK: usize = 32;
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            let zeros: Vec<i16> = (start..end).map(|j| zero(j) as i16).collect();
            for (p, row) in codes.chunks_exact(n).enumerate() {
                for ((j, code), zero) in (start..end).zip(&row[start..end]).zip(&zeros) {
                    data[j * len + p] = code.get() as i16 - zero;
                }
            }
        }
        Self { count: n, k, data }
    }

    /// The matrix at `matrix` of a `[.., m, k]` operand, row by row.
    pub(crate) fn left(
        view: View<'_>,
        range: std::ops::Range<usize>,
        sizes: (usize, usize),
        zero: impl Fn(usize) -> i32,
    ) -> Result<Self, OpError> {
        with_code!(view.dtype(), T => Ok(Self::of(&view.slice::<T>()?[range], sizes, zero)))
    }

    /// A matrix of a `[.., k, n]` operand, column by column.
    pub(crate) fn right(
        view: View<'_>,
        range: std::ops::Range<usize>,
        sizes: (usize, usize),
        zero: impl Fn(usize) -> i32,
    ) -> Result<Self, OpError> {
        with_code!(view.dtype(), T => Ok(Self::of_columns(&view.slice::<T>()?[range], sizes, zero)))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}

/// `a[m, k] · b[n, k]ᵀ`, on as many threads as it is worth.
pub(crate) fn multiply(a: &Rows, b: &Rows, ctx: &Context<'_>) -> Vec<i32> {
    let (m, n, len) = (a.count, b.count, padded(a.k));
    let mut c = vec![0; m * n];
    if c.is_empty() || a.k == 0 {
        return c;
    }
    let parts = ctx.threads.parts(flops(m, a.k, n));
    let isa = ctx.isa;
    if parts <= 1 {
        product(isa, &a.data, &b.data, len, (m, n), &mut c);
    } else if m >= 4 * parts {
        let rows = m.div_ceil(parts);
        let items = a.data.chunks(rows * len).zip(c.chunks_mut(rows * n));
        ctx.threads.for_each(items, |(a, c)| product(isa, a, &b.data, len, (a.len() / len, n), c));
    } else {
        let width = n.div_ceil(parts);
        let mut strips: Vec<Vec<i32>> = b.data.chunks(width * len).map(|b| vec![0; m * (b.len() / len)]).collect();
        let items = b.data.chunks(width * len).zip(&mut strips);
        ctx.threads.for_each(items, |(b, strip)| product(isa, &a.data, b, len, (m, b.len() / len), strip));
        for (part, strip) in strips.iter().enumerate() {
            let count = strip.len() / m;
            for (row, values) in strip.chunks_exact(count).enumerate() {
                c[row * n + part * width..][..count].copy_from_slice(values);
            }
        }
    }
    c
}

/// How the elements of a tensor share scales: as runs of elements with one scale, or with as many scales as elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    outer: usize,
    axis: usize,
    inner: usize,
    /// Elements along the axis that share a scale; 0 if all outer indices share the scales of the axis.
    block: usize,
}

/// A run of elements; its scales begin at `scale`, and advance with the elements or stay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) scale: usize,
    pub(crate) moves: bool,
}

impl Sharing {
    /// Scales of shape `scale` for a tensor of shape `x`: one, one per index of the axis, or one per block along it.
    pub(crate) fn new(x: &[usize], scale: &[usize], axis: i64, block: usize) -> Result<Self, OpError> {
        let one = Self { outer: 1, axis: 1, inner: x.iter().product(), block: 0 };
        if scale.is_empty() || (scale == [1] && block == 0) {
            return Ok(one);
        }
        let axis = super::axes::axis(axis, x.len())?;
        let refused = || OpError::shape(format!("scales of shape {scale:?} for a tensor of shape {x:?}, axis {axis}, blocks of {block}"));
        let (outer, size, inner) = if x.contains(&0) { (0, 0, 0) } else { around(x, axis) };
        if block == 0 {
            return if scale == [x[axis]] { Ok(Self { outer, axis: size, inner, block }) } else { Err(refused()) };
        }
        let mut wanted = x.to_vec();
        wanted[axis] = x[axis].div_ceil(block);
        if scale == wanted { Ok(Self { outer, axis: size, inner, block }) } else { Err(refused()) }
    }

    /// Calls `f` with every run, in order.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Run)) {
        self.visit(&mut f);
    }

    /// Behind a pointer, so that it is compiled once: every pair of types has closures of its own.
    fn visit(&self, f: &mut dyn FnMut(Run)) {
        let Self { outer, axis, inner, block } = *self;
        if outer == 0 || axis == 0 || inner == 0 {
            return;
        }
        let blocks = axis.div_ceil(block.max(1));
        for o in 0..outer {
            match (block, inner) {
                (0, 1) => f(Run { start: o * axis, len: axis, scale: 0, moves: axis > 1 }),
                (0, _) => (0..axis).for_each(|i| f(Run { start: (o * axis + i) * inner, len: inner, scale: i, moves: false })),
                (_, 1) => (0..blocks).for_each(|i| {
                    let len = block.min(axis - i * block);
                    f(Run { start: o * axis + i * block, len, scale: o * blocks + i, moves: false });
                }),
                _ => (0..axis).for_each(|i| {
                    let scale = (o * blocks + i / block) * inner;
                    f(Run { start: (o * axis + i) * inner, len: inner, scale, moves: true });
                }),
            }
        }
    }
}
