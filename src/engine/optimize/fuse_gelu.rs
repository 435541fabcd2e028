//! Recognises the two forms of GELU that exporters write out in basic operators, and puts the operator in their place.
//!
//! Both end in a product of three factors that may be multiplied in any order and grouping: the input, a number, and one
//! plus the error function (or the hyperbolic tangent) of the input. So the product is taken apart into a number and
//! factors, and those are compared, not the shape of the graph.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::pattern::{self, Links};
use crate::engine::attrs::Attr;
use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::vector::Binary;
use crate::engine::model::LoadOptions;
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    let links = Links::of(graph);
    for position in 0..graph.nodes.len() {
        let pattern = Pattern { graph, links: &links };
        if let Some((x, approximate)) = pattern.gelu(position) {
            put(&mut graph.nodes[position], x, approximate);
        }
    }
    // What is left of the pattern still reads the input, and would keep it from joining the product that gives it.
    super::dead_code::run(graph, options);
}

/// Makes the node a Gelu of `x`.
fn put(node: &mut Node, x: ValueId, approximate: &str) {
    // The operator is of opset 20; the pass needs no opset of the model.
    let attributes = [("approximate".to_owned(), Attr::String(approximate.into()))].into_iter().collect();
    pattern::put(node, ("", "Gelu", 20), attributes, vec![Some(x)]).expect("the table has Gelu with this attribute");
}

/// A number times values.
#[derive(Debug, Default)]
struct Product {
    number: f64,
    factors: Vec<ValueId>,
}

struct Pattern<'g> {
    graph: &'g Graph,
    links: &'g Links,
}

/// Whether two numbers are one up to rounding: some exporters write few digits, and those change the function.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

impl Pattern<'_> {
    /// The input of the Gelu that the node computes, and the attribute that names its form.
    fn gelu(&self, position: usize) -> Option<(ValueId, &'static str)> {
        let [Some(result)] = self.graph.nodes[position].outputs[..] else { return None };
        if self.arithmetic(result)?.0 != Binary::Mul || self.graph.values[result.index()].kind != Some(Kind::Tensor(DType::F32)) {
            return None;
        }
        let Product { number, factors } = self.product(result);
        let [a, b] = factors[..] else { return None };
        if !same(number, 0.5) {
            return None;
        }
        [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
            let inner = self.one_plus(gate)?;
            let (name, argument) = self.function(inner)?;
            match name {
                "Erf" => self.is_power(self.product(argument), FRAC_1_SQRT_2, x, 1).then_some((x, "none")),
                "Tanh" => self.is_tanh_argument(x, argument).then_some((x, "tanh")),
                _ => None,
            }
        })
    }

    /// `sqrt(2 / pi) * (x + 0.044715 * x^3)`, or with `x` before the bracket.
    fn is_tanh_argument(&self, x: ValueId, argument: ValueId) -> bool {
        const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
        const CUBIC: f64 = 0.044_715;
        let Product { number, factors } = self.product(argument);
        let inside = match factors[..] {
            [sum] => self.sum(sum).is_some_and(|[a, b]| {
                [(a, b), (b, a)].into_iter().any(|(linear, cubic)| linear == x && self.is_power(self.product(cubic), CUBIC, x, 3))
            }),
            [a, b] => [(a, b), (b, a)].into_iter().any(|(linear, sum)| {
                linear == x && self.one_plus(sum).is_some_and(|square| self.is_power(self.product(square), CUBIC, x, 2))
            }),
            _ => false,
        };
        inside && same(number, SQRT_2_OVER_PI)
    }

    fn is_power(&self, product: Product, number: f64, x: ValueId, power: usize) -> bool {
        same(product.number, number) && product.factors.len() == power && product.factors.iter().all(|&factor| factor == x)
    }

    fn node(&self, id: ValueId) -> Option<&Node> {
        Some(&self.graph.nodes[self.links.producer(id)?])
    }

    /// The operation that gives a value, and its operands.
    fn arithmetic(&self, id: ValueId) -> Option<(Binary, [ValueId; 2])> {
        let node = self.node(id)?;
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        Some((node.op.downcast::<Arithmetic>()?.0, [a, b]))
    }

    fn sum(&self, id: ValueId) -> Option<[ValueId; 2]> {
        self.arithmetic(id).filter(|(op, _)| *op == Binary::Add).map(|(_, operands)| operands)
    }

    /// What 1 is added to.
    fn one_plus(&self, id: ValueId) -> Option<ValueId> {
        let [a, b] = self.sum(id)?;
        match (self.number(a), self.number(b)) {
            (Some(1.0), None) => Some(b),
            (None, Some(1.0)) => Some(a),
            _ => None,
        }
    }

    /// The name and operand of a function of one value.
    fn function(&self, id: ValueId) -> Option<(&'static str, ValueId)> {
        let node = self.node(id)?;
        let [Some(x)] = node.inputs[..] else { return None };
        node.def.domain.is_empty().then_some((node.def.name, x))
    }

    /// A constant that is one number and adds nothing to the rank of what it is combined with.
    fn number(&self, id: ValueId) -> Option<f64> {
        let constant = self.graph.constants.get(&id)?;
        match (constant.shape(), constant.slice::<f32>()?) {
            ([], &[number]) => Some(number.into()),
            _ => None,
        }
    }

    /// A value as a product; what is none is a product of itself.
    fn product(&self, id: ValueId) -> Product {
        // More factors than any form has.
        const FACTORS: usize = 8;
        let mut product = Product { number: 1.0, factors: Vec::new() };
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if let Some(number) = self.number(id) {
                product.number *= number;
                continue;
            }
            match self.arithmetic(id) {
                _ if open.len() + product.factors.len() > FACTORS => product.factors.push(id),
                Some((Binary::Mul, operands)) => open.extend(operands),
                Some((Binary::Div, [a, b])) if self.number(b).is_some_and(|number| number != 0.0) => {
                    product.number /= self.number(b).unwrap_or(1.0);
                    open.push(a);
                }
                _ => match self.power(id) {
                    Some((x, power)) => open.extend(std::iter::repeat_n(x, power)),
                    None => product.factors.push(id),
                },
            }
        }
        product
    }

    /// A square or a cube.
    fn power(&self, id: ValueId) -> Option<(ValueId, usize)> {
        let node = self.node(id)?;
        let [Some(x), Some(exponent)] = node.inputs[..] else { return None };
        let power = [2, 3].into_iter().find(|&power| self.number(exponent) == Some(power as f64))?;
        (node.def.name == "Pow").then_some((x, power))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph};
    use super::*;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::tensor::Tensor;

    const PASS: &str = "fuse-gelu";

    fn start() -> Builder {
        let numbers = [
            ("half", 0.5),
            ("one", 1.0),
            ("root2", std::f32::consts::SQRT_2),
            ("inverse", std::f32::consts::FRAC_1_SQRT_2),
            ("cubic", 0.044_715),
            ("three", 3.0),
            ("slope", 0.797_884_6),
        ];
        let start = graph().input("x", DType::F32, &[-1, 3]);
        numbers.into_iter().fold(start, |graph, (name, number)| graph.constant(name, Tensor::scalar(number)))
    }

    fn x() -> Tensor {
        tensor(&[2, 3], &noise(6, 9))
    }

    fn becomes_gelu(graph: &Builder) {
        let graph = graph.clone().outputs(&["y"]);
        assert_eq!(after(&graph, PASS), "y = Gelu(x)\n", "{}", graph.dump());
        agrees(&graph, &[x()]);
    }

    #[test]
    fn the_error_function_as_exporters_write_it() {
        // PyTorch: x * (erf(x / sqrt 2) + 1) * 0.5.
        let gate = |from: Builder| from.node("Div", &["x", "root2"], "a").node("Erf", &["a"], "e").node("Add", &["e", "one"], "g");
        becomes_gelu(&gate(start()).node("Mul", &["x", "g"], "h").node("Mul", &["h", "half"], "y"));
        becomes_gelu(&gate(start()).node("Mul", &["x", "half"], "h").node("Mul", &["h", "g"], "y"));
        // TensorFlow: the half on the gate, and a factor instead of a divisor.
        let gate = start().node("Mul", &["inverse", "x"], "a").node("Erf", &["a"], "e").node("Add", &["one", "e"], "g");
        becomes_gelu(&gate.node("Mul", &["half", "g"], "h").node("Mul", &["h", "x"], "y"));
    }

    #[test]
    fn the_tangent_as_exporters_write_it() {
        let tail = |from: Builder| {
            from.node("Tanh", &["u"], "t").node("Add", &["t", "one"], "g").node("Mul", &["x", "half"], "h").node("Mul", &["h", "g"], "y")
        };
        let pow = start().node("Pow", &["x", "three"], "c").node("Mul", &["c", "cubic"], "q").node("Add", &["x", "q"], "p");
        becomes_gelu(&tail(pow.node("Mul", &["p", "slope"], "u")));
        let products = start().node("Mul", &["x", "cubic"], "a").node("Mul", &["a", "x"], "b").node("Mul", &["b", "x"], "q");
        becomes_gelu(&tail(products.node("Add", &["q", "x"], "p").node("Mul", &["slope", "p"], "u")));
        let before = start().node("Mul", &["x", "x"], "s").node("Mul", &["s", "cubic"], "q").node("Add", &["q", "one"], "p");
        becomes_gelu(&tail(before.node("Mul", &["x", "slope"], "k").node("Mul", &["k", "p"], "u")));
    }

    #[test]
    fn it_joins_the_product_before_it() {
        let weights = tensor(&[3, 4], &noise(12, 3));
        let graph =
            start().constant("w", weights).node("MatMul", &["x", "w"], "h").node("Div", &["h", "root2"], "a").node("Erf", &["a"], "e");
        let graph = graph.node("Add", &["e", "one"], "g").node("Mul", &["h", "g"], "m").node("Mul", &["m", "half"], "y").outputs(&["y"]);
        let mut optimised = graph.clone();
        super::super::run(&mut optimised, &LoadOptions::default()).expect("valid after every pass");
        assert_eq!(optimised.dump(), "y = MatMul(x, w)\n");
        agrees(&graph, &[x()]);
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        let gate = |from: Builder, divisor: &str, one: &str| {
            from.node("Div", &["x", divisor], "a").node("Erf", &["a"], "e").node("Add", &["e", one], "g").node("Mul", &["x", "g"], "h")
        };
        let other_numbers = [
            gate(start(), "three", "one").node("Mul", &["h", "half"], "y"),
            gate(start(), "root2", "half").node("Mul", &["h", "half"], "y"),
            gate(start(), "root2", "one").node("Mul", &["h", "three"], "y"),
            gate(start(), "root2", "one").node("Mul", &["h", "x"], "y"),
        ];
        // Another number of dimensions than the input's.
        let wide = gate(start().constant("wide", Tensor::new(&[1, 1, 1], vec![0.5_f32]).unwrap()), "root2", "one").node(
            "Mul",
            &["h", "wide"],
            "y",
        );
        for graph in other_numbers.into_iter().chain([wide]) {
            let graph = graph.outputs(&["y"]);
            assert!(!after(&graph, PASS).contains("Gelu"), "{}", graph.dump());
            agrees(&graph, &[x()]);
        }
    }
}
