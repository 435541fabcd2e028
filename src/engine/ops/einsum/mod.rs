//! Einsum: sums of products over labelled dimensions.
//!
//! Operands are contracted two by two, the pair with the smallest result first. Each contraction is a batch of matrix
//! products: labels of both operands that remain are the batch, the other remaining ones the rows and the columns.

mod contract;
mod equation;

use contract::{Operand, contract, reduced};
use equation::{Equation, Label, Labelled};

use super::ANY;
use super::axes::same_type;
use super::matmul::narrow;
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const DEFS: &[OpDef] =
    &[OpDef { name: "Einsum", domain: "", opsets: 12..=ANY, types: types::NUMBERS, build: einsum }];

#[derive(Debug)]
struct Einsum {
    equation: Equation,
}

fn einsum(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let equation = attrs.required("equation", attrs.string("equation")?)?;
    Ok(Box::new(Einsum { equation: Equation::parse(&equation)? }))
}

impl Einsum {
    fn labelled(&self, inputs: &Facts<'_>) -> Result<Labelled, OpError> {
        let shapes = (0..inputs.len()).map(|i| inputs.shape(i)).collect::<Result<Vec<_>, _>>()?;
        self.equation.label(&shapes)
    }
}

impl Op for Einsum {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, inputs.len().max(1), 0..inputs.len())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let labelled = self.labelled(inputs)?;
        Ok(vec![labelled.dims(&labelled.output).into_iter().collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let views = (0..inputs.len()).map(|i| inputs.at(i)).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = views.iter().map(|view| view.shape()).collect();
        let labelled = self.equation.label(&shapes)?;
        let y = outputs.at(0)?;
        match y.dtype() {
            DType::F16 | DType::BF16 => {
                let wide = views.iter().map(|&view| super::matmul::widened(view)).collect::<Result<Vec<_>, _>>()?;
                let slices: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
                let mut sums = vec![0.0; y.data().len()];
                evaluate::<f32>(&labelled, &slices, &shapes, &mut sums, ctx)?;
                narrow(&sums, y)
            }
            DType::F32 => native::<f32>(&labelled, &views, &shapes, y.slice()?, ctx),
            DType::F64 => native::<f64>(&labelled, &views, &shapes, y.slice()?, ctx),
            DType::I64 => native::<i64>(&labelled, &views, &shapes, y.slice()?, ctx),
            // Sums and products that wrap at 64 bits have the lower bits of those that wrap earlier.
            dtype => with_number!(dtype, T => {
                let widened = |view: &View<'_>| Ok(view.slice::<T>()?.iter().map(|v| v.to_i64()).collect::<Vec<_>>());
                let wide = views.iter().map(widened).collect::<Result<Vec<_>, OpError>>()?;
                let slices: Vec<&[i64]> = wide.iter().map(Vec::as_slice).collect();
                let mut sums = vec![0; y.data().len()];
                evaluate::<i64>(&labelled, &slices, &shapes, &mut sums, ctx)?;
                y.slice::<T>()?.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::from_i64(sum));
                Ok(())
            }, else Err(OpError::wrong_type(DType::F32, dtype))),
        }
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        self.labelled(inputs).map_or(0, |labelled| labelled.volume().saturating_mul(inputs.len() as u64))
    }
}

/// Computes the whole equation in the type that the tensors have.
fn native<T: contract::Multiply>(
    labelled: &Labelled,
    views: &[View<'_>],
    shapes: &[&[usize]],
    y: &mut [T],
    ctx: &mut Context<'_>,
) -> Result<(), OpError> {
    let slices = views.iter().map(|view| view.slice::<T>()).collect::<Result<Vec<_>, _>>()?;
    evaluate::<T>(labelled, &slices, shapes, y, ctx)
}

/// Computes the whole equation into `y`.
fn evaluate<T: contract::Multiply>(
    labelled: &Labelled,
    slices: &[&[T]],
    shapes: &[&[usize]],
    y: &mut [T],
    ctx: &mut Context<'_>,
) -> Result<(), OpError> {
    if y.is_empty() {
        return Ok(());
    }
    if labelled.volume() == 0 {
        // A sum over nothing.
        y.fill(T::ZERO);
        return Ok(());
    }
    let full: Vec<Vec<Label>> = labelled.inputs.iter().zip(shapes).map(|(labels, shape)| contract::full(labelled, labels, shape)).collect();
    let mut operands: Vec<Operand<'_, T>> = Vec::new();
    for (i, (&data, labels)) in slices.iter().zip(&labelled.inputs).enumerate() {
        let elsewhere = |label: Label| {
            labelled.output.contains(&label) || full.iter().enumerate().any(|(j, other)| j != i && other.contains(&label))
        };
        operands.push(reduced(labelled, data, labels, shapes[i], elsewhere, ctx.budget)?);
    }
    while operands.len() > 1 {
        let (i, j) = cheapest(labelled, &operands);
        let right = operands.remove(j);
        let left = operands.remove(i);
        let wanted = |label: Label| labelled.output.contains(&label) || operands.iter().any(|other| other.labels.contains(&label));
        let product = contract(labelled, left, right, wanted, operands.is_empty().then_some(&labelled.output[..]), ctx)?;
        operands.insert(i, product);
    }
    let Some(result) = operands.pop() else { return Err(OpError::missing_input(0)) };
    result.write(labelled, &labelled.output, y);
    Ok(())
}

/// The pair of operands whose product is smallest; the first of equals.
fn cheapest<T: Number>(labelled: &Labelled, operands: &[Operand<'_, T>]) -> (usize, usize) {
    let mut best = (0, 1);
    if operands.len() == 2 {
        return best;
    }
    let mut least = f64::INFINITY;
    for i in 0..operands.len() {
        for j in i + 1..operands.len() {
            let others = || operands.iter().enumerate().filter(|(o, _)| *o != i && *o != j);
            let stays = |label: &Label| labelled.output.contains(label) || others().any(|(_, other)| other.labels.contains(label));
            let right = operands[j].labels.iter().filter(|label| !operands[i].labels.contains(label));
            let labels = operands[i].labels.iter().chain(right).filter(|label| stays(label));
            let size: f64 = labels.map(|&label| labelled.size(label) as f64).product();
            if size < least {
                (least, best) = (size, (i, j));
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::bf16;

    fn equation(text: &str) -> Case {
        op("Einsum").attr("equation", text)
    }

    /// Every element by the definition, for equations of single letters with an explicit output.
    fn naive(text: &str, inputs: &[&Tensor]) -> Tensor {
        let (terms, output) = text.split_once("->").unwrap();
        let terms: Vec<&[u8]> = terms.split(',').map(str::as_bytes).collect();
        let mut sizes = [1_usize; 128];
        for (term, input) in terms.iter().zip(inputs) {
            term.iter().zip(input.shape()).for_each(|(&l, &n)| sizes[l as usize] = sizes[l as usize].max(n));
        }
        let mut labels: Vec<u8> = output.bytes().chain(terms.concat()).collect();
        let mut seen = vec![];
        labels.retain(|l| !seen.contains(l) && { seen.push(*l); true });
        let dims: Vec<usize> = labels.iter().map(|&l| sizes[l as usize]).collect();
        let shape: Vec<usize> = output.bytes().map(|l| sizes[l as usize]).collect();
        let mut sums = vec![0.0_f64; shape.iter().product()];
        for n in 0..dims.iter().product() {
            let mut at = [0; 128];
            let mut rest = n;
            for (&l, &d) in labels.iter().zip(&dims).rev() {
                (at[l as usize], rest) = (rest % d, rest / d);
            }
            let place = |term: &[u8], shape: &[usize]| term.iter().zip(shape).fold(0, |p, (&l, &d)| p * d + at[l as usize].min(d - 1));
            let factors = terms.iter().zip(inputs).map(|(t, x)| f64::from(x.slice::<f32>().unwrap()[place(t, x.shape())]));
            sums[place(output.as_bytes(), &shape)] += factors.product::<f64>();
        }
        tensor(&shape, &sums.iter().map(|&v| v as f32).collect::<Vec<_>>())
    }

    #[test]
    fn equations_agree_with_the_definition() {
        for (text, shapes) in [
            ("ij,jk->ik", &[&[3, 4][..], &[4, 5]][..]),
            ("ij,jk->ki", &[&[3, 4], &[4, 5]]),
            ("ji,kj->ik", &[&[4, 3], &[5, 4]]),
            ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 5]]),
            ("bhid,bhjd->bhij", &[&[2, 3, 4, 5], &[2, 3, 6, 5]]),
            ("bihd,bjhd->bhij", &[&[2, 4, 3, 5], &[2, 6, 3, 5]]),
            ("bhij,bjhd->bihd", &[&[2, 3, 4, 6], &[2, 6, 3, 5]]),
            ("i,i->", &[&[7], &[7]]),
            ("i,j->ij", &[&[3], &[4]]),
            ("i,j->ji", &[&[3], &[4]]),
            ("ij->ji", &[&[3, 4]]),
            ("ij->i", &[&[3, 4]]),
            ("ijk->j", &[&[3, 4, 5]]),
            ("ii->i", &[&[3, 3]]),
            ("ii->", &[&[3, 3]]),
            ("iij,ij->j", &[&[3, 3, 4], &[3, 4]]),
            ("ij,kl,jk->il", &[&[3, 4], &[5, 6], &[4, 5]]),
            ("a,a,a->a", &[&[4], &[4], &[4]]),
            ("ab,cd->", &[&[2, 3], &[4, 5]]),
            ("ab,ab->ab", &[&[2, 3], &[1, 3]]),
            ("ab,ab->", &[&[2, 3], &[2, 1]]),
            ("ab,bc->", &[&[2, 3], &[1, 4]]),
            ("abc,cd->bad", &[&[2, 3, 4], &[4, 5]]),
            ("Ab,bA->A", &[&[2, 3], &[3, 2]]),
        ] {
            let inputs: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| tensor(s, &noise(s.iter().product(), i as u32))).collect();
            let refs: Vec<&Tensor> = inputs.iter().collect();
            let want = naive(text, &refs);
            assert_close(&equation(text).one(&refs), want.shape(), want.slice().unwrap(), 1e-5);
        }
    }

    #[test]
    fn ellipses_broadcast() {
        let (a, b) = (tensor(&[2, 1, 3, 4], &noise(24, 1)), tensor(&[5, 4, 6], &noise(120, 2)));
        let want = op("MatMul").one(&[&a, &b]);
        for text in ["...ij,...jk->...ik", "...ij,...jk", " ...i j, ...j k -> ...ik "] {
            let y = equation(text).one(&[&a, &b]);
            assert_close(&y, want.shape(), want.slice().unwrap(), 1e-5);
        }
        // What the output does not name is summed.
        let ones = tensor(&[2, 3], &[1.0_f32; 6]);
        assert_close(&equation("i...->").one(&[&ones]), &[], &[6.0], 0.0);
        assert_close(&equation("...").one(&[&ones]), &[2, 3], &[1.0; 6], 0.0);
        // Upper case comes first in an implicit output.
        assert_close(&equation("aB").one(&[&tensor(&[1, 2], &[1.0_f32, 2.0])]), &[2, 1], &[1.0, 2.0], 0.0);
    }

    #[test]
    fn other_types() {
        let x = tensor(&[2], &[200_u8, 100]);
        assert_eq!(equation("i,i->").one(&[&x, &x]).slice::<u8>().unwrap(), [80]);
        let wide = tensor(&[2], &[1.5_f64, 2.0]);
        assert_eq!(equation("i,i->i").one(&[&wide, &wide]).slice::<f64>().unwrap(), [2.25, 4.0]);
        let brain = tensor(&[2], &[bf16::from_f32(3.0), bf16::from_f32(4.0)]);
        assert_eq!(equation("i->").one(&[&brain]), tensor(&[], &[bf16::from_f32(7.0)]));
        assert_eq!(equation("i->").one(&[&tensor(&[2], &[i64::MAX, 1])]), tensor(&[], &[i64::MIN]));
    }

    #[test]
    fn sums_over_nothing_are_zero() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert_close(&equation("ij,jk->ik").one(&[&zeros(&[2, 0]), &zeros(&[0, 1])]), &[2, 1], &[0.0; 2], 0.0);
        assert_eq!(equation("ij,jk->ik").one(&[&zeros(&[0, 1 << 40]), &zeros(&[1 << 40, 0])]).shape(), [0, 0]);
        assert_close(&equation("i->").one(&[&zeros(&[0])]), &[], &[0.0], 0.0);
    }

    #[test]
    fn large_products_are_the_same_on_two_threads() {
        let (a, b) = (tensor(&[4, 90, 80], &noise(4 * 90 * 80, 1)), tensor(&[4, 100, 80], &noise(4 * 100 * 80, 2)));
        equation("bij,bkj->bik").one(&[&a, &b]);
        equation("bij,bkj->ik").one(&[&a, &b]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let x = tensor(&[2, 3], &noise(6, 1));
        for bad in ["i1->", "ij->ii", "ij->k", "i..j", "......", "ij->i->j", "é"] {
            assert!(matches!(equation(bad).error(&[&x]), OpError::Attribute(_)), "{bad}");
        }
        for bad in ["i", "ijk", "ij,jk", "ii"] {
            assert!(matches!(equation(bad).error(&[&x]), OpError::Shape(_)), "{bad}");
        }
        assert!(matches!(equation("ij,ik").error(&[&x, &tensor(&[4, 1], &noise(4, 1))]), OpError::Shape(_)));
        assert!(matches!(equation("ij,ij").error(&[&x, &Tensor::zeros(DType::F64, &[2, 3])]), OpError::Type(_)));
        // The result is one number; on the way there would be a product of everything with everything.
        let long = tensor(&[1 << 17], &vec![1.0_f32; 1 << 17]);
        assert_close(&equation("i,j->").one(&[&long, &long]), &[], &[(1_u64 << 34) as f32], 0.0);
    }
}
