//! Arithmetic of two or more operands with broadcasting: Add, Sub, Mul, Div, Pow, Mod, and the variadic Min, Max, Sum, Mean.

pub(crate) mod gradient;

use super::ANY;
use super::axes::{require, same_type};
use super::broadcast::{self, Broadcast, map, zip};
use super::legacy::by_attributes;
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::kernels::vector::{self, Binary, Operand};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

type Build = fn(&Attrs) -> Result<Box<dyn Op>, OpError>;

const fn def(name: &'static str, build: Build) -> OpDef {
    OpDef { name, domain: "", opsets: 7..=ANY, types: types::NUMBERS, build }
}

/// A row for the opsets in which broadcasting is an attribute.
const fn old(name: &'static str, build: Build) -> OpDef {
    OpDef { opsets: 1..=6, ..def(name, build) }
}

/// A row for any number of operands; they broadcast from opset 8 on, which harms none before.
const fn variadic(name: &'static str, types: &'static [DType], build: Build) -> OpDef {
    OpDef { opsets: 1..=ANY, types, ..def(name, build) }
}

pub(crate) const DEFS: &[OpDef] = &[
    old("Add", |a| by_attributes(a, Arithmetic(Binary::Add))),
    old("Sub", |a| by_attributes(a, Arithmetic(Binary::Sub))),
    old("Mul", |a| by_attributes(a, Arithmetic(Binary::Mul))),
    old("Div", |a| by_attributes(a, Arithmetic(Binary::Div))),
    old("Pow", |a| by_attributes(a, Pow)),
    def("Add", |_| Ok(Box::new(Arithmetic(Binary::Add)))),
    def("Sub", |_| Ok(Box::new(Arithmetic(Binary::Sub)))),
    def("Mul", |_| Ok(Box::new(Arithmetic(Binary::Mul)))),
    def("Div", |_| Ok(Box::new(Arithmetic(Binary::Div)))),
    def("Pow", |_| Ok(Box::new(Pow))),
    def("Mod", |a| Ok(Box::new(Mod { truncated: a.bool_or("fmod", false)?, floored_floats: a.opset >= 28 }))),
    variadic("Min", types::NUMBERS, |_| Ok(Box::new(Variadic { operation: Binary::Min, mean: false }))),
    variadic("Max", types::NUMBERS, |_| Ok(Box::new(Variadic { operation: Binary::Max, mean: false }))),
    variadic("Sum", types::FLOATS, |_| Ok(Box::new(Variadic { operation: Binary::Add, mean: false }))),
    variadic("Mean", types::FLOATS, |_| Ok(Box::new(Variadic { operation: Binary::Add, mean: true }))),
];

/// One of the four operations, of two operands.
#[derive(Debug)]
pub(crate) struct Arithmetic(pub(crate) Binary);

/// The operation on one pair of elements.
fn apply<T: Number>(operation: Binary) -> fn(T, T) -> T {
    match operation {
        Binary::Add => T::add,
        Binary::Sub => T::sub,
        Binary::Mul => T::mul,
        Binary::Div => T::div,
        Binary::Max => T::greater,
        Binary::Min => T::smaller,
    }
}

/// A division of an integer by zero has no answer.
fn refuse_zero<T: Number>(divisors: &[T], y: &[T]) -> Result<(), OpError> {
    if !T::FLOAT && !y.is_empty() && divisors.contains(&T::ZERO) {
        return Err(OpError::value("an integer is divided by zero"));
    }
    Ok(())
}

/// An element of the result, in floating-point operations: it is read and written where a product computes.
const OPERATIONS_PER_ELEMENT: u64 = 8;

/// `y = a op b`.
fn combine(operation: Binary, a: View<'_>, b: View<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
    let plan = Broadcast::new(y.shape(), [a.shape(), b.shape()]);
    if let Ok(y) = y.slice::<f32>() {
        let (a, b) = (a.slice()?, b.slice()?);
        let parts = ctx.threads.parts(OPERATIONS_PER_ELEMENT * y.len() as u64);
        plan.side_by_side(y, (ctx.threads, parts), |run, y| {
            let operand = |x, i: usize| side(x, run.from[i], run.moves[i], run.len);
            vector::binary(ctx.isa, operation, operand(a, 0), operand(b, 1), y);
        });
        return Ok(());
    }
    let dtype = y.dtype();
    with_number!(dtype, T => {
        let (b, y) = (b.slice::<T>()?, y.slice::<T>()?);
        if operation == Binary::Div {
            refuse_zero(b, y)?;
        }
        let f = apply::<T>(operation);
        zip(&plan, a.slice::<T>()?, b, y, |&a, &b| f(a, b));
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, dtype)))
}

fn side(x: &[f32], from: usize, moves: bool, len: usize) -> Operand<'_> {
    if moves { Operand::Slice(&x[from..from + len]) } else { Operand::Scalar(x[from]) }
}

/// `y = y op b`.
fn combine_in_place(operation: Binary, b: View<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
    let plan = Broadcast::new(y.shape(), [b.shape()]);
    if let Ok(y) = y.slice::<f32>() {
        let b = b.slice()?;
        let parts = ctx.threads.parts(OPERATIONS_PER_ELEMENT * y.len() as u64);
        plan.side_by_side(y, (ctx.threads, parts), |run, y| {
            vector::binary_in_place(ctx.isa, operation, y, side(b, run.from[0], run.moves[0], run.len));
        });
        return Ok(());
    }
    let dtype = y.dtype();
    with_number!(dtype, T => {
        let (b, y) = (b.slice::<T>()?, y.slice::<T>()?);
        if operation == Binary::Div {
            refuse_zero(b, y)?;
        }
        let f = apply::<T>(operation);
        map(&plan, b, y, |&b, y| *y = f(*y, b));
        Ok(())
    }, else Err(OpError::wrong_type(DType::F32, dtype)))
}

fn two_shapes(inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
    Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?])?])
}

impl Op for Arithmetic {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        two_shapes(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        combine(self.0, inputs.at(0)?, inputs.at(1)?, outputs.at(0)?, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        match self.0 {
            Binary::Add | Binary::Mul => &[0, 1],
            _ => &[0],
        }
    }

    fn run_in_place(&self, index: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        combine_in_place(self.0, inputs.at(1 - index)?, outputs.at(0)?, ctx)
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.rows_in_line()
    }
}

/// An operation folded over any number of operands; `mean` divides by their number.
#[derive(Debug)]
struct Variadic {
    operation: Binary,
    mean: bool,
}

impl Variadic {
    /// Sums of half precision: in f32, rounded once.
    fn fold_wide<T: Number>(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let shape = y.shape();
        let y = y.slice::<T>()?;
        let mut sums: Vec<f32> = y.iter().map(|y| y.to_f64() as f32).collect();
        for i in 1..inputs.len() {
            let x = inputs.at(i)?;
            map(&Broadcast::new(shape, [x.shape()]), x.slice::<T>()?, &mut sums, |x, sum| *sum += x.to_f64() as f32);
        }
        let count = if self.mean { inputs.len() as f32 } else { 1.0 };
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::from_f64(f64::from(sum / count)));
        Ok(())
    }

    /// Folds the operands from the second on into the first, which `y` holds.
    fn fold(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
        match y.dtype() {
            DType::F16 if self.operation == Binary::Add => return self.fold_wide::<half::f16>(inputs, y),
            DType::BF16 if self.operation == Binary::Add => return self.fold_wide::<half::bf16>(inputs, y),
            _ => {}
        }
        for i in 1..inputs.len() {
            combine_in_place(self.operation, inputs.at(i)?, y, ctx)?;
        }
        if self.mean {
            let (dtype, count) = (y.dtype(), inputs.len());
            with_number!(dtype, T => y.slice::<T>()?.iter_mut().for_each(|y| *y = y.div(T::from_f64(count as f64))), else {});
        }
        Ok(())
    }
}

impl Op for Variadic {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, inputs.len().max(1), 0..inputs.len())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shapes: Vec<&[usize]> = (0..inputs.len()).map(|i| inputs.shape(i)).collect::<Result<_, _>>()?;
        Ok(vec![broadcast::shape(shapes)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (first, y) = (inputs.at(0)?, outputs.at(0)?);
        let plan = Broadcast::new(y.shape(), [first.shape()]);
        let dtype = y.dtype();
        with_number!(dtype, T => map(&plan, first.slice::<T>()?, y.slice::<T>()?, |x, y| *y = *x),
            else return Err(OpError::wrong_type(DType::F32, dtype)));
        self.fold(inputs, y, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.fold(inputs, outputs.at(0)?, ctx)
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.rows_in_line()
    }
}

/// A power; the exponent may be of another type, the result is of the base's.
#[derive(Debug)]
struct Pow;

/// The power of two floats; squares and roots, which models write most, without logarithms.
fn power<T: Number>(base: T, exponent: f64) -> T {
    if exponent == 2.0 {
        return base.mul(base);
    }
    // The root of minus infinity and of minus zero is not their power.
    let root = exponent == 0.5 && base > T::ZERO;
    T::from_f64(if root { base.to_f64().sqrt() } else { base.to_f64().powf(exponent) })
}

/// The power with an integer exponent: exact and wrapping for integers.
fn integer_power<T: Number>(base: T, exponent: i64) -> T {
    if T::FLOAT || exponent < 0 {
        return power(base, exponent as f64);
    }
    let (mut result, mut square, mut left) = (T::ONE, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = result.mul(square);
        }
        square = square.mul(square);
        left >>= 1;
    }
    result
}

impl Op for Pow {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        match inputs[1].as_ref().and_then(Kind::dtype) {
            Some(DType::Bool | DType::String) => Err(OpError::Type("the exponent must be a number".into())),
            _ => same_type(inputs, 2, [0]),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        two_shapes(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Number, E: Copy>(x: View<'_>, e: (&[usize], &[E]), y: &mut ViewMut<'_>, f: fn(T, E) -> T) -> Result<(), OpError> {
            let plan = Broadcast::new(y.shape(), [x.shape(), e.0]);
            zip(&plan, x.slice::<T>()?, e.1, y.slice::<T>()?, |&x, &e| f(x, e));
            Ok(())
        }
        let (x, e, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let wrong = |dtype| OpError::wrong_type(DType::F32, dtype);
        if e.dtype().is_float() {
            let exponents: Vec<f64> =
                with_number!(e.dtype(), E => e.slice::<E>()?.iter().map(|v| v.to_f64()).collect(), else return Err(wrong(e.dtype())));
            with_number!(x.dtype(), T => body::<T, f64>(x, (e.shape(), &exponents), y, power), else Err(wrong(x.dtype())))
        } else {
            let exponents: Vec<i64> =
                with_number!(e.dtype(), E => e.slice::<E>()?.iter().map(|v| v.to_i64()).collect(), else return Err(wrong(e.dtype())));
            with_number!(x.dtype(), T => body::<T, i64>(x, (e.shape(), &exponents), y, integer_power), else Err(wrong(x.dtype())))
        }
    }
}

/// The remainder, with the divisor's sign or (`fmod`) the dividend's.
#[derive(Debug)]
struct Mod {
    truncated: bool,
    /// Whether the form that is not truncated is defined for floats too: from opset 28 on.
    floored_floats: bool,
}

impl Op for Mod {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kinds = same_type(inputs, 2, 0..2)?;
        match kinds[0].dtype() {
            Some(dtype) if dtype.is_float() && !self.truncated && !self.floored_floats => {
                Err(OpError::Attribute("attribute `fmod` must be 1 for floating-point types".into()))
            }
            _ => Ok(kinds),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        two_shapes(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let plan = Broadcast::new(y.shape(), [a.shape(), b.shape()]);
        with_number!(a.dtype(), T => {
            let (b, y) = (b.slice::<T>()?, y.slice::<T>()?);
            refuse_zero(b, y)?;
            let f = if self.truncated { <T as Number>::fmod } else { <T as Number>::modulo };
            zip(&plan, a.slice::<T>()?, b, y, |&a, &b| f(a, b));
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, a.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::{bf16, f16};

    #[test]
    fn the_four_operations() {
        let (a, b) = (tensor(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]), tensor(&[2, 2], &[4.0_f32, 3.0, 2.0, 0.5]));
        for (name, want) in [
            ("Add", [5.0, 5.0, 5.0, 4.5]),
            ("Sub", [-3.0, -1.0, 1.0, 3.5]),
            ("Mul", [4.0, 6.0, 6.0, 2.0]),
            ("Div", [0.25, 2.0 / 3.0, 1.5, 8.0]),
        ] {
            assert_close(&op(name).one(&[&a, &b]), &[2, 2], &want, 0.0);
            let half = |t: &Tensor| tensor(&[2, 2], &t.slice::<f32>().unwrap().iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
            let y = op(name).one(&[&half(&a), &half(&b)]);
            assert_eq!(y, tensor(&[2, 2], &want.map(f16::from_f32)));
        }
        let x = tensor(&[1], &[bf16::from_f32(1.5)]);
        assert_eq!(op("Add").one(&[&x, &x]), tensor(&[1], &[bf16::from_f32(3.0)]));
    }

    #[test]
    fn operands_broadcast_in_both_directions() {
        let column = tensor(&[2, 1], &[10.0_f32, 20.0]);
        let row = tensor(&[3], &[1.0_f32, 2.0, 3.0]);
        assert_close(&op("Add").one(&[&column, &row]), &[2, 3], &[11.0, 12.0, 13.0, 21.0, 22.0, 23.0], 0.0);
        assert_close(&op("Sub").one(&[&row, &column]), &[2, 3], &[-9.0, -8.0, -7.0, -19.0, -18.0, -17.0], 0.0);
        let x = tensor(&[2, 3], &noise(6, 1));
        assert_eq!(op("Mul").one(&[&x, &Tensor::scalar(2.0_f32)]), op("Add").one(&[&x, &x]));
        assert_eq!(op("Add").one(&[&tensor::<f32>(&[0, 3], &[]), &row]).shape(), [0, 3]);
        assert!(matches!(op("Add").error(&[&row, &tensor(&[2], &[0.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(op("Add").error(&[&row, &tensor(&[3], &[0_i64; 3])]), OpError::Type(_)));
        assert!(matches!(op("Add").error(&[&row]), OpError::Shape(_)));
    }

    #[test]
    fn integers_wrap_and_division_by_zero_is_an_error() {
        let ints = |v: &[i64]| tensor(&[v.len()], v);
        assert_eq!(op("Add").one(&[&ints(&[i64::MAX]), &ints(&[1])]), ints(&[i64::MIN]));
        assert_eq!(op("Div").one(&[&ints(&[i64::MIN, -7, 7]), &ints(&[-1, 2, -2])]), ints(&[i64::MIN, -3, -3]));
        assert!(matches!(op("Div").error(&[&ints(&[1, 2]), &ints(&[1, 0])]), OpError::Value(_)));
        assert!(matches!(op("Mod").error(&[&ints(&[1, 2]), &ints(&[0])]), OpError::Value(_)));
        assert_eq!(op("Div").one(&[&ints(&[]), &ints(&[0])]), ints(&[]));
        assert_eq!(op("Sub").one(&[&tensor(&[1], &[1_u8]), &tensor(&[1], &[2_u8])]), tensor(&[1], &[255_u8]));
        assert_close(&op("Div").one(&[&tensor(&[1], &[1.0_f32]), &tensor(&[1], &[0.0_f32])]), &[1], &[f32::INFINITY], 0.0);
    }

    #[test]
    fn min_and_max_keep_nan() {
        let (a, b) = (tensor(&[3], &[1.0_f32, f32::NAN, 3.0]), tensor(&[3], &[2.0_f32, 2.0, f32::NAN]));
        assert_close(&op("Max").one(&[&a, &b]), &[3], &[2.0, f32::NAN, f32::NAN], 0.0);
        assert_close(&op("Min").one(&[&a, &b]), &[3], &[1.0, f32::NAN, f32::NAN], 0.0);
    }

    #[test]
    fn variadic_operators_take_any_number() {
        let (a, b, c) = (tensor(&[2], &[1.0_f32, 5.0]), Tensor::scalar(3.0_f32), tensor(&[2, 1], &[0.0_f32, 9.0]));
        assert_close(&op("Sum").one(&[&a]), &[2], &[1.0, 5.0], 0.0);
        assert_close(&op("Sum").one(&[&a, &b, &c]), &[2, 2], &[4.0, 8.0, 13.0, 17.0], 0.0);
        assert_close(&op("Mean").one(&[&a, &b, &c]), &[2, 2], &[4.0 / 3.0, 8.0 / 3.0, 13.0 / 3.0, 17.0 / 3.0], 1e-7);
        let big = tensor(&[1], &[f16::from_f32(60_000.0)]);
        assert_eq!(op("Mean").one(&[&big, &big, &big]), big);
        assert_close(&op("Max").one(&[&a, &b, &c]), &[2, 2], &[3.0, 5.0, 9.0, 9.0], 0.0);
        assert_eq!(op("Min").one(&[&tensor(&[2], &[4_i32, -4]), &Tensor::scalar(0_i32)]), tensor(&[2], &[0_i32, -4]));
        assert!(op("Sum").run(&[]).is_err());
        assert!(op("Sum").run_some(&[Some(&a), None, Some(&b)]).is_err());
    }

    #[test]
    fn powers_of_mixed_types() {
        let x = tensor(&[3], &[1.0_f32, 4.0, 9.0]);
        assert_close(&op("Pow").one(&[&x, &Tensor::scalar(2.0_f32)]), &[3], &[1.0, 16.0, 81.0], 0.0);
        assert_close(&op("Pow").one(&[&x, &Tensor::scalar(0.5_f64)]), &[3], &[1.0, 2.0, 3.0], 0.0);
        assert_close(&op("Pow").one(&[&x, &tensor(&[3], &[0_i64, 1, -1])]), &[3], &[1.0, 4.0, 1.0 / 9.0], 1e-7);
        let ints = tensor(&[3], &[2_i32, -3, 3]);
        assert_eq!(op("Pow").one(&[&ints, &tensor(&[3], &[10_i64, 3, 40])]), tensor(&[3], &[1024, -27, 3_i32.wrapping_pow(40)]));
        assert_eq!(op("Pow").one(&[&ints, &Tensor::scalar(2.0_f32)]), tensor(&[3], &[4_i32, 9, 9]));
        let edges = op("Pow").one(&[&tensor(&[3], &[f32::NEG_INFINITY, -1.0, -0.0]), &Tensor::scalar(0.5_f32)]);
        assert_close(&edges, &[3], &[f32::INFINITY, f32::NAN, 0.0], 0.0);
        assert!(matches!(op("Pow").error(&[&x, &Tensor::scalar(true)]), OpError::Type(_)));
    }

    #[test]
    fn remainders_have_the_sign_that_fmod_says() {
        let (a, b) = (tensor(&[4], &[7_i64, -7, 7, i64::MIN]), tensor(&[4], &[3_i64, 3, -3, -1]));
        assert_eq!(op("Mod").one(&[&a, &b]), tensor(&[4], &[1_i64, 2, -2, 0]));
        assert_eq!(op("Mod").attr("fmod", 1_i64).one(&[&a, &b]), tensor(&[4], &[1_i64, -1, 1, 0]));
        let (a, b) = (tensor(&[2], &[5.5_f32, -5.5]), tensor(&[2], &[2.0_f32, 2.0]));
        assert_close(&op("Mod").attr("fmod", 1_i64).one(&[&a, &b]), &[2], &[1.5, -1.5], 0.0);
        assert!(matches!(op("Mod").error(&[&a, &b]), OpError::Attribute(_)));
        assert_close(&op("Mod").opset(28).one(&[&a, &b]), &[2], &[1.5, 0.5], 0.0);
    }
}
