//! Comparison, logic and choice with broadcasting: Equal, Less, …, And, Or, Xor, the bitwise operators, Where.

pub(crate) mod gradient;

use super::ANY;
use super::axes::{require, same_type};
use super::broadcast::{self, Broadcast, zip};
use super::legacy::by_attributes;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

const fn def(name: &'static str, from: u16, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types, build }
}

/// A row for the opsets in which broadcasting is an attribute.
const fn old(name: &'static str, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { opsets: 1..=6, ..def(name, 1, types, build) }
}

pub(crate) const INTEGERS: &[DType] =
    &[DType::I8, DType::I16, DType::I32, DType::I64, DType::U8, DType::U16, DType::U32, DType::U64];

pub(crate) const DEFS: &[OpDef] = &[
    old("Equal", types::ALL, |a| by_attributes(a, Compare::Equal)),
    old("Less", types::NUMBERS, |a| by_attributes(a, Compare::Less)),
    old("Greater", types::NUMBERS, |a| by_attributes(a, Compare::Greater)),
    old("And", types::BOOL, |a| by_attributes(a, Logic::And)),
    old("Or", types::BOOL, |a| by_attributes(a, Logic::Or)),
    old("Xor", types::BOOL, |a| by_attributes(a, Logic::Xor)),
    def("Equal", 7, types::ALL, |_| Ok(Box::new(Compare::Equal))),
    def("Less", 7, types::NUMBERS, |_| Ok(Box::new(Compare::Less))),
    def("LessOrEqual", 12, types::NUMBERS, |_| Ok(Box::new(Compare::LessOrEqual))),
    def("Greater", 7, types::NUMBERS, |_| Ok(Box::new(Compare::Greater))),
    def("GreaterOrEqual", 12, types::NUMBERS, |_| Ok(Box::new(Compare::GreaterOrEqual))),
    def("And", 7, types::BOOL, |_| Ok(Box::new(Logic::And))),
    def("Or", 7, types::BOOL, |_| Ok(Box::new(Logic::Or))),
    def("Xor", 7, types::BOOL, |_| Ok(Box::new(Logic::Xor))),
    def("BitwiseAnd", 18, INTEGERS, |_| Ok(Box::new(Logic::And))),
    def("BitwiseOr", 18, INTEGERS, |_| Ok(Box::new(Logic::Or))),
    def("BitwiseXor", 18, INTEGERS, |_| Ok(Box::new(Logic::Xor))),
    def("Where", 9, types::BOOL, |_| Ok(Box::new(Where))),
];

/// A truth value per pair of elements; comparisons with NaN are false.
#[derive(Clone, Copy, Debug)]
enum Compare {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Compare {
    /// A loop for each comparison, for the types that models compare most.
    fn apply<T: Element + PartialOrd>(self, a: View<'_>, b: View<'_>, shape: &[usize], y: &mut [bool]) -> Result<(), OpError> {
        let plan = Broadcast::new(shape, [a.shape(), b.shape()]);
        let (a, b) = (a.slice::<T>()?, b.slice::<T>()?);
        match self {
            Self::Equal => zip(&plan, a, b, y, |a, b| a == b),
            Self::Less => zip(&plan, a, b, y, |a, b| a < b),
            Self::LessOrEqual => zip(&plan, a, b, y, |a, b| a <= b),
            Self::Greater => zip(&plan, a, b, y, |a, b| a > b),
            Self::GreaterOrEqual => zip(&plan, a, b, y, |a, b| a >= b),
        }
        Ok(())
    }

    /// One loop for all comparisons, by the order of the two elements.
    fn apply_by_order<T: Element + PartialOrd>(self, a: View<'_>, b: View<'_>, shape: &[usize], y: &mut [bool]) -> Result<(), OpError> {
        let plan = Broadcast::new(shape, [a.shape(), b.shape()]);
        // Less, equal, greater, and neither.
        let holds = match self {
            Self::Equal => [false, true, false, false],
            Self::Less => [true, false, false, false],
            Self::LessOrEqual => [true, true, false, false],
            Self::Greater => [false, false, true, false],
            Self::GreaterOrEqual => [false, true, true, false],
        };
        zip(&plan, a.slice::<T>()?, b.slice::<T>()?, y, |a, b| holds[a.partial_cmp(b).map_or(3, |order| (order as i8 + 1) as usize)]);
        Ok(())
    }
}

impl Op for Compare {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)?;
        Ok(Kinds::from_iter([Kind::Tensor(DType::Bool)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let shape = y.shape();
        match a.dtype() {
            DType::F32 => self.apply::<f32>(a, b, shape, y.slice()?),
            DType::I64 => self.apply::<i64>(a, b, shape, y.slice()?),
            DType::I32 => self.apply::<i32>(a, b, shape, y.slice()?),
            DType::String => self.apply_by_order::<String>(a, b, shape, y.slice()?),
            DType::Bool => self.apply_by_order::<bool>(a, b, shape, y.slice()?),
            dtype => with_number!(dtype, T => self.apply_by_order::<T>(a, b, shape, y.slice()?), else Err(OpError::wrong_type(DType::F32, dtype))),
        }
    }
}

/// Logic of truth values, or of the bits of integers.
#[derive(Clone, Copy, Debug)]
enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    fn apply<T>(self, a: View<'_>, b: View<'_>, shape: &[usize], y: &mut [T]) -> Result<(), OpError>
    where
        T: Element
            + Copy
            + std::ops::BitAnd<Output = T>
            + std::ops::BitOr<Output = T>
            + std::ops::BitXor<Output = T>,
    {
        let plan = Broadcast::new(shape, [a.shape(), b.shape()]);
        let (a, b) = (a.slice::<T>()?, b.slice::<T>()?);
        match self {
            Self::And => zip(&plan, a, b, y, |&a, &b| a & b),
            Self::Or => zip(&plan, a, b, y, |&a, &b| a | b),
            Self::Xor => zip(&plan, a, b, y, |&a, &b| a ^ b),
        }
        Ok(())
    }
}

impl Op for Logic {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        if a.dtype() != DType::Bool && !INTEGERS.contains(&a.dtype()) {
            return Err(OpError::wrong_type(DType::Bool, a.dtype()));
        }
        let (a, b, shape, mut y) = (a.bits(), b.bits(), y.shape(), y.bits());
        match a.dtype() {
            DType::Bool => self.apply::<bool>(a, b, shape, y.slice()?),
            DType::U8 => self.apply::<u8>(a, b, shape, y.slice()?),
            DType::U16 => self.apply::<u16>(a, b, shape, y.slice()?),
            DType::U32 => self.apply::<u32>(a, b, shape, y.slice()?),
            _ => self.apply::<u64>(a, b, shape, y.slice()?),
        }
    }
}

/// The element of one or the other tensor.
#[derive(Debug)]
struct Where;

impl Op for Where {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, 1..3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?, inputs.shape(2)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (condition, a, b, y) = (inputs.at(0)?, inputs.at(1)?, inputs.at(2)?, outputs.at(0)?);
        let plan = Broadcast::new(y.shape(), [condition.shape(), a.shape(), b.shape()]);
        let condition = condition.slice::<bool>()?;
        let (a, b, y) = (a.bits(), b.bits(), &mut y.bits());
        with_bits!(a.dtype(), T => {
            let (a, b, y) = (a.slice::<T>()?, b.slice::<T>()?, y.slice::<T>()?);
            plan.for_each(|run| {
                let at = |i: usize, step: usize| run.from[i] + if run.moves[i] { step } else { 0 };
                for (step, y) in y[run.start..run.start + run.len].iter_mut().enumerate() {
                    y.clone_from(if condition[at(0, step)] { &a[at(1, step)] } else { &b[at(2, step)] });
                }
            });
            Ok(())
        })
    }
}

/// A number in the place of each that is none, of type f32: the same for all, or one for each position of the last dimension. What
/// `Where(IsNaN(x), fill, x)` computes, in one operator.
#[derive(Debug)]
pub(crate) struct FillNan(pub(crate) Vec<f32>);

impl FillNan {
    fn fill(&self, y: &mut [f32]) {
        if let [fill] = self.0[..] {
            y.iter_mut().filter(|y| y.is_nan()).for_each(|y| *y = fill);
        } else if !self.0.is_empty() {
            let row = |row: &mut [f32]| row.iter_mut().zip(&self.0).filter(|(y, _)| y.is_nan()).for_each(|(y, fill)| *y = *fill);
            y.chunks_exact_mut(self.0.len()).for_each(row);
        }
    }
}

impl Op for FillNan {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?.slice::<f32>()?);
        y.copy_from_slice(x.slice::<f32>()?);
        self.fill(y);
        Ok(())
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        self.fill(outputs.at(0)?.slice::<f32>()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    #[test]
    fn comparisons_of_any_type() {
        let (a, b) = (tensor(&[4], &[1.0_f32, 2.0, 3.0, f32::NAN]), tensor(&[4], &[2.0_f32, 2.0, 2.0, f32::NAN]));
        for (name, want) in [
            ("Equal", [false, true, false, false]),
            ("Less", [true, false, false, false]),
            ("LessOrEqual", [true, true, false, false]),
            ("Greater", [false, false, true, false]),
            ("GreaterOrEqual", [false, true, true, false]),
        ] {
            assert_eq!(op(name).one(&[&a, &b]), tensor(&[4], &want), "{name}");
        }
        let words = tensor(&[2, 1], &["a", "b"].map(str::to_owned));
        assert_eq!(op("Equal").one(&[&words, &tensor(&[1], &["b".to_owned()])]), tensor(&[2, 1], &[false, true]));
        assert_eq!(op("Greater").one(&[&tensor(&[1], &[u64::MAX]), &Tensor::scalar(0_u64)]), tensor(&[1], &[true]));
        assert!(matches!(op("Less").error(&[&a, &tensor(&[4], &[0_i64; 4])]), OpError::Type(_)));
        assert!(matches!(op("Less").error(&[&a, &tensor(&[3], &[0.0_f32; 3])]), OpError::Shape(_)));
    }

    #[test]
    fn logic_of_bools_and_bits() {
        let (a, b) = (tensor(&[2, 1], &[true, false]), tensor(&[2], &[true, false]));
        assert_eq!(op("And").one(&[&a, &b]), tensor(&[2, 2], &[true, false, false, false]));
        assert_eq!(op("Or").one(&[&a, &b]), tensor(&[2, 2], &[true, true, true, false]));
        assert_eq!(op("Xor").one(&[&a, &b]), tensor(&[2, 2], &[false, true, true, false]));
        assert_eq!(op("BitwiseXor").one(&[&tensor(&[1], &[6_u8]), &tensor(&[1], &[3_u8])]), tensor(&[1], &[5_u8]));
        assert!(matches!(op("And").error(&[&tensor(&[1], &[1_i64]), &tensor(&[1], &[1_i64])]), OpError::Type(_)));
    }

    #[test]
    fn where_chooses_with_broadcasting() {
        let condition = tensor(&[2, 1], &[true, false]);
        let y = op("Where").one(&[&condition, &tensor(&[3], &[1_i64, 2, 3]), &Tensor::scalar(0_i64)]);
        assert_eq!(y, tensor(&[2, 3], &[1_i64, 2, 3, 0, 0, 0]));
        let words = |v: &str| tensor(&[1], &[v.to_owned()]);
        assert_eq!(op("Where").one(&[&condition, &words("a"), &words("b")]), tensor(&[2, 1], &["a", "b"].map(str::to_owned)));
        assert!(matches!(op("Where").error(&[&condition, &words("a"), &Tensor::scalar(0_i64)]), OpError::Type(_)));
        assert!(matches!(op("Where").error(&[&condition, &words("a")]), OpError::Shape(_)));
    }
}
