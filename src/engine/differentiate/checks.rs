//! Every rule against central differences in f64, table by table: a rule without a check fails a test.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::engine::attrs::{Attr, Attrs};
use crate::engine::graph::Dim;
use crate::engine::load::{Loaded, Metadata};
use crate::engine::model::{LoadOptions, Model};
use crate::engine::session::Session;
use crate::engine::tensor::{Tensor, Value};
use crate::engine::threads::Threads;

/// From where the values of an operand are drawn.
#[derive(Clone, Copy, Debug)]
enum Draw {
    /// (-2, 2).
    Any,
    /// (0.5, 2.5).
    Positive,
    /// (-0.9, 0.9).
    Unit,
    /// (1.25, 3).
    AboveOne,
    /// 0.
    Zero,
}

#[derive(Clone, Debug)]
enum Operand {
    /// Differentiated by.
    Real(Vec<usize>, Draw),
    /// Not differentiated by.
    Fixed(Tensor),
    Omitted,
}

#[derive(Clone, Debug)]
struct Check {
    op: &'static str,
    domain: &'static str,
    opset: u16,
    attrs: BTreeMap<String, Attr>,
    inputs: Vec<Operand>,
    outputs: usize,
    /// The outputs that count.
    counted: Vec<usize>,
}

fn check(op: &'static str) -> Check {
    Check { op, domain: "", opset: 21, attrs: BTreeMap::new(), inputs: Vec::new(), outputs: 1, counted: vec![0] }
}

impl Check {
    fn x(mut self, shape: &[usize]) -> Self {
        self.inputs.push(Operand::Real(shape.into(), Draw::Any));
        self
    }

    fn drawn(mut self, shape: &[usize], draw: Draw) -> Self {
        self.inputs.push(Operand::Real(shape.into(), draw));
        self
    }

    fn fixed(mut self, tensor: Tensor) -> Self {
        self.inputs.push(Operand::Fixed(tensor));
        self
    }

    fn ints(self, values: &[i64]) -> Self {
        self.fixed(Tensor::vector(values.to_vec()))
    }

    fn omitted(mut self) -> Self {
        self.inputs.push(Operand::Omitted);
        self
    }

    fn attr(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.insert(name.into(), value.into());
        self
    }

    fn opset(self, opset: u16) -> Self {
        Self { opset, ..self }
    }

    fn domain(self, domain: &'static str) -> Self {
        Self { domain, ..self }
    }

    fn outputs(self, outputs: usize, counted: &[usize]) -> Self {
        Self { outputs, counted: counted.into(), ..self }
    }
}

/// Numbers with few bits, so that they and their neighbours at the distance of a step are numbers of f32 too: some operators hold
/// parameters in f32.
fn draw(shape: &[usize], draw: Draw, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 24) as f64
    };
    let (low, width) = match draw {
        Draw::Any => (-2.0, 4.0),
        Draw::Positive => (0.5, 2.0),
        Draw::Unit => (-0.9, 1.8),
        Draw::AboveOne => (1.25, 1.75),
        Draw::Zero => return vec![0.0; shape.iter().product()],
    };
    (0..shape.iter().product::<usize>()).map(|_| ((low + width * next()) * 1024.0).round() / 1024.0 + 1.0 / 4096.0).collect()
}

/// 2^-17: behind the 12 bits of the numbers, and near the cube root of what f64 resolves.
const STEP: f64 = 1.0 / 131_072.0;

/// A graph whose first output is `Σ weights · outputs`, with the values of its inputs and which of them are differentiated by.
fn graph(check: &Check, seed: u64) -> (Graph, Vec<Tensor>, ValueId) {
    let mut graph = Graph::default();
    let mut values = Vec::new();
    let mut ids = Vec::new();
    for (i, operand) in check.inputs.iter().enumerate() {
        ids.push(match operand {
            Operand::Omitted => None,
            Operand::Fixed(tensor) => {
                let id = graph.add_value(format!("fixed{i}"), Some(Kind::Tensor(tensor.dtype())), None);
                graph.constants.insert(id, tensor.clone());
                Some(id)
            }
            Operand::Real(shape, from) => {
                let dims = shape.iter().map(|&n| Dim::Fixed(n)).collect();
                let id = graph.add_value(format!("x{i}"), Some(Kind::Tensor(DType::F64)), Some(dims));
                graph.inputs.push(id);
                values.push(Tensor::new(shape, draw(shape, *from, seed + i as u64)).unwrap());
                Some(id)
            }
        });
    }
    let def = ops::find(check.domain, check.op, check.opset).unwrap_or_else(|reason| panic!("{}: {reason}", check.op));
    let given = ids.iter().map(Option::is_some).collect();
    let attrs = Attrs::new(check.attrs.clone(), check.opset, given, vec![true; check.outputs]);
    let op = (def.build)(&attrs).unwrap_or_else(|error| panic!("{}: {error}", check.op));
    assert!(attrs.unread().is_empty(), "{}: {:?}", check.op, attrs.unread());
    let outputs: Vec<ValueId> = (0..check.outputs).map(|i| graph.add_value(format!("y{i}"), None, None)).collect();
    let attributes = Arc::new(check.attrs.clone());
    let node = Node {
        name: check.op.into(),
        def,
        opset: check.opset,
        op: op.into(),
        attributes,
        inputs: ids,
        outputs: outputs.iter().copied().map(Some).collect(),
    };
    graph.nodes.push(node);
    let failed = graph.infer_kinds();
    assert!(failed.is_empty(), "{}: {failed:?}", check.op);
    graph.outputs = outputs.clone();
    let found = run(&graph, &values);
    let mut emit = Appender::new(&mut graph, "");
    let emit: &mut dyn Emit = &mut emit;
    let mut loss = None;
    for &i in &check.counted {
        let shape = found[i].shape().to_vec();
        let weights = emit.constant(Tensor::new(&shape, draw(&shape, Draw::Any, seed + 100 + i as u64)).unwrap());
        let product = emit.op("Mul", &[outputs[i], weights]).unwrap();
        let sum = emit.with("ReduceSum", &[("keepdims", Attr::Int(0))], &[product]).unwrap();
        loss = Some(match loss {
            None => sum,
            Some(loss) => emit.op("Add", &[loss, sum]).unwrap(),
        });
    }
    let loss = loss.expect("an output counts");
    graph.outputs = vec![loss];
    (graph, values, loss)
}

fn session(graph: &Graph) -> Session {
    let loaded = Loaded { graph: graph.clone(), metadata: Metadata::default() };
    let model = Model::build(loaded, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}\n{}", graph.dump()));
    Session::new(Arc::new(model), Arc::new(Threads::single()))
}

fn run(graph: &Graph, values: &[Tensor]) -> Vec<Tensor> {
    let outputs = session(graph).run(values).unwrap_or_else(|error| panic!("{error}\n{}", graph.dump()));
    outputs
        .into_iter()
        .map(|value| match value {
            Value::Tensor(tensor) => tensor,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// What is wrong with the gradients: an error of more than 1e-6, relative to the greatest of a gradient's elements or to 1.
fn wrong(check: &Check) -> Option<String> {
    let (graph, values, loss) = graph(check, 7);
    let wrt = graph.inputs.clone();
    let gradients = gradient(&graph, loss, &wrt).unwrap_or_else(|error| panic!("{}: {error}", check.op));
    gradients.verify().unwrap();
    let found = run(&gradients, &values);
    let mut forward = session(&graph);
    for (i, found) in found.iter().enumerate() {
        assert_eq!(found.shape(), values[i].shape(), "{}: the gradient of input {i}", check.op);
        let x = values[i].slice::<f64>().unwrap();
        let found = found.slice::<f64>().unwrap();
        let size = found.iter().fold(1.0_f64, |size, g| size.max(g.abs()));
        for at in 0..x.len() {
            let mut at_distance = |step: f64| {
                let mut moved = values.clone();
                let mut x = x.to_vec();
                x[at] += step;
                moved[i] = Tensor::new(values[i].shape(), x).unwrap();
                forward.run(&moved).unwrap()[0].tensor().unwrap().slice::<f64>().unwrap()[0]
            };
            let want = (at_distance(STEP) - at_distance(-STEP)) / (2.0 * STEP);
            let error = (found[at] - want).abs() / size;
            if error.is_nan() || error >= 1e-6 {
                return Some(format!(
                    "{} {:?}: element {at} of the gradient of input {i} is {}, not {want}",
                    check.op, check.attrs, found[at]
                ));
            }
        }
    }
    None
}

/// All that is wrong, together.
fn hold(checks: &[Check]) {
    let wrong: Vec<String> = checks.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn floats(values: &[f64]) -> Tensor {
    Tensor::vector(values.to_vec())
}

#[rustfmt::skip]
fn elementwise() -> Vec<Check> {
    let one = |name, from| check(name).opset(24).drawn(&[2, 3, 2], from);
    let mut all: Vec<Check> = ["Abs", "Neg", "Erf", "Exp", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Sign", "Floor", "Ceil", "Round",
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Swish", "Elu", "Selu", "Celu", "ThresholdedRelu", "Shrink",
        "Softplus", "Softsign", "Mish", "Identity"].map(|name| one(name, Draw::Any)).into();
    all.extend(["Log", "Sqrt", "Reciprocal"].map(|name| one(name, Draw::Positive)));
    all.extend(["Asin", "Acos", "Atanh"].map(|name| one(name, Draw::Unit)));
    let old = |name| check(name).opset(9).x(&[3, 4]);
    all.extend([
        one("Acosh", Draw::AboveOne),
        one("Gelu", Draw::Any).attr("approximate", "tanh"),
        one("Swish", Draw::Any).attr("alpha", 0.5_f32),
        one("LeakyRelu", Draw::Any).attr("alpha", -0.25_f32),
        one("Elu", Draw::Any).attr("alpha", 2.0_f32),
        one("Celu", Draw::Any).attr("alpha", 0.5_f32),
        one("Shrink", Draw::Any).attr("bias", 0.5_f32).attr("lambd", 1.0_f32),
        old("Affine").attr("alpha", 2.0_f32),
        old("ScaledTanh").attr("alpha", 2.0_f32).attr("beta", 0.5_f32),
        old("ParametricSoftplus").attr("alpha", 2.0_f32).attr("beta", 0.5_f32),
        old("Clip").attr("min", -1.0_f32).attr("max", 0.5_f32),
        check("Clip").x(&[3, 4]).fixed(Tensor::scalar(-0.5)).fixed(Tensor::scalar(1.0)),
        check("Clip").x(&[3, 4]).omitted().fixed(Tensor::scalar(1.0)),
        check("PRelu").x(&[2, 3, 4]).x(&[3, 1]),
        check("Cast").attr("to", i64::from(DType::F64.onnx())).x(&[3]),
        check("CastLike").x(&[3]).fixed(Tensor::scalar(1.0)),
        check("Where").fixed(Tensor::new(&[2, 1, 2], vec![true, false, false, true]).unwrap()).x(&[2, 3, 2]).x(&[2]),
        check("CumSum").x(&[2, 3, 2]).fixed(Tensor::scalar(1_i64)),
        check("CumSum").attr("exclusive", 1_i64).attr("reverse", 1_i64).x(&[2, 3]).fixed(Tensor::scalar(-1_i64)),
        check("Dropout").attr("seed", 3_i64).x(&[4, 5]).fixed(Tensor::scalar(0.25)).fixed(Tensor::scalar(true)).outputs(2, &[0]),
        check("Dropout").attr("seed", 3_i64).x(&[4, 5]).omitted().fixed(Tensor::scalar(false)).outputs(2, &[0]),
        check("Dropout").x(&[4, 5]),
    ]);
    for name in ["Add", "Sub", "Mul", "Div"] {
        all.push(check(name).x(&[2, 3]).drawn(&[2, 3], Draw::Positive));
        all.push(check(name).x(&[2, 1, 3]).drawn(&[4, 1], Draw::Positive));
        all.push(check(name).x(&[3]).drawn(&[], Draw::Positive));
    }
    for name in ["Min", "Max", "Sum", "Mean"] {
        all.push(check(name).x(&[2, 3]).x(&[3]).x(&[2, 1]));
        all.push(check(name).x(&[2, 3]));
    }
    all.extend([
        check("Pow").drawn(&[2, 3], Draw::Positive).x(&[3]),
        check("Pow").x(&[2, 3]).ints(&[2, 0, 3]),
        check("Mod").attr("fmod", 1_i64).x(&[2, 3]).drawn(&[3], Draw::Unit),
    ]);
    all
}

#[rustfmt::skip]
fn products() -> Vec<Check> {
    let mut all: Vec<Check> = [
        (&[3, 4][..], &[4, 2][..]), (&[4], &[4]), (&[4], &[4, 2]), (&[3, 4], &[4]), (&[2, 3, 4], &[4, 2]), (&[2, 3, 4], &[2, 4, 2]), (&[3, 4], &[2, 4, 2]),
        (&[2, 1, 3, 4], &[3, 4, 2]), (&[2, 3, 4], &[4]), (&[4], &[2, 4, 3]),
    ].map(|(a, b)| check("MatMul").x(a).x(b)).into();
    for (trans_a, trans_b) in [(0_i64, 0_i64), (0, 1), (1, 0), (1, 1)] {
        let (a, b): ([usize; 2], [usize; 2]) = (if trans_a == 1 { [4, 3] } else { [3, 4] }, if trans_b == 1 { [2, 4] } else { [4, 2] });
        let gemm = || check("Gemm").attr("transA", trans_a).attr("transB", trans_b).attr("alpha", 0.5_f32).attr("beta", 2.0_f32).x(&a).x(&b);
        all.extend([gemm(), gemm().x(&[2]), gemm().x(&[3, 1]), gemm().x(&[])]);
    }
    let ints = |values: &[i64]| Attr::Ints(values.to_vec());
    all.extend([
        check("Conv").x(&[2, 3, 6]).x(&[4, 3, 3]).x(&[4]),
        check("Conv").attr("strides", ints(&[2])).attr("dilations", ints(&[2])).attr("pads", ints(&[2, 1])).x(&[2, 2, 7]).x(&[3, 2, 3]),
        check("Conv").x(&[2, 2, 4, 5]).x(&[3, 2, 2, 3]).x(&[3]),
        check("Conv").attr("strides", ints(&[2, 1])).attr("pads", ints(&[1, 0, 1, 2])).x(&[5, 2, 5, 4]).x(&[2, 2, 3, 3]).x(&[2]),
        check("Conv").attr("group", 2_i64).attr("dilations", ints(&[1, 2])).x(&[2, 4, 4, 5]).x(&[6, 2, 2, 2]),
        check("Conv").attr("group", 4_i64).attr("auto_pad", "SAME_UPPER").x(&[1, 4, 3, 3]).x(&[4, 1, 3, 3]).x(&[4]),
        check("Conv").x(&[1, 2, 3, 3, 2]).x(&[2, 2, 2, 2, 2]),
        check("SoftmaxCrossEntropyLoss").x(&[3, 4]).ints(&[1, 0, 3]),
        check("SoftmaxCrossEntropyLoss").attr("reduction", "none").x(&[2, 3, 2]).fixed(Tensor::new(&[2, 2], vec![1_i64, 0, 2, 2]).unwrap()),
        check("SoftmaxCrossEntropyLoss").attr("reduction", "sum").attr("ignore_index", 0_i64).x(&[3, 4]).ints(&[1, 0, 3]).fixed(floats(&[1.0, 0.5, 2.0, 0.25])),
        check("NegativeLogLikelihoodLoss").x(&[3, 4]).ints(&[1, 0, 3]).fixed(floats(&[1.0, 0.5, 2.0, 0.25])),
        check("NegativeLogLikelihoodLoss").attr("reduction", "none").x(&[3, 4]).ints(&[1, 0, 3]),
    ]);
    all
}

#[rustfmt::skip]
fn windows_and_norms() -> Vec<Check> {
    let ints = |values: &[i64]| Attr::Ints(values.to_vec());
    let mut all = Vec::new();
    for name in ["MaxPool", "AveragePool", "LpPool"] {
        let pool = |kernel: &[i64]| check(name).attr("kernel_shape", ints(kernel));
        all.extend([
            pool(&[2, 2]).attr("strides", ints(&[2, 2])).x(&[2, 3, 4, 4]),
            pool(&[3, 2]).attr("pads", ints(&[1, 0, 1, 1])).x(&[1, 2, 4, 3]),
            pool(&[3]).attr("strides", ints(&[2])).attr("ceil_mode", 1_i64).x(&[2, 1, 6]),
        ]);
    }
    all.extend([
        check("AveragePool").attr("kernel_shape", ints(&[3, 3])).attr("pads", ints(&[1, 1, 1, 1])).attr("count_include_pad", 1_i64).x(&[1, 2, 4, 4]),
        check("LpPool").attr("p", 3_i64).attr("kernel_shape", ints(&[2])).x(&[1, 2, 5]),
        check("GlobalMaxPool").x(&[2, 3, 2, 2]),
        check("GlobalAveragePool").x(&[2, 3, 2, 2]),
        check("GlobalLpPool").x(&[2, 3, 4]),
        check("BatchNormalization").x(&[4, 3, 2]).x(&[3]).x(&[3]).x(&[3]).drawn(&[3], Draw::Positive),
        check("BatchNormalization").attr("training_mode", 1_i64).x(&[4, 3, 2]).x(&[3]).x(&[3]).x(&[3]).drawn(&[3], Draw::Positive).outputs(3, &[0]),
        check("BatchNormalization").attr("training_mode", 1_i64).x(&[5, 2]).x(&[2]).x(&[2]).x(&[2]).drawn(&[2], Draw::Positive).outputs(3, &[0]),
        check("BatchNormalization").opset(7).attr("spatial", 0_i64).x(&[2, 3]).x(&[3]).x(&[3]).x(&[3]).drawn(&[3], Draw::Positive),
        check("LayerNormalization").attr("stash_type", 11_i64).x(&[2, 3, 4]).x(&[4]).x(&[4]),
        check("LayerNormalization").attr("stash_type", 11_i64).attr("axis", 1_i64).attr("epsilon", 0.125_f32).x(&[2, 3, 4]).x(&[3, 4]),
        check("RMSNormalization").opset(23).attr("stash_type", 11_i64).x(&[2, 3, 4]).x(&[4]),
        check("SimplifiedLayerNormalization").attr("stash_type", 11_i64).x(&[3, 4]).x(&[4]),
        check("SimplifiedLayerNormalization").domain("com.microsoft").opset(1).attr("stash_type", 11_i64).x(&[3, 4]).x(&[4]),
    ]);
    for name in ["Softmax", "LogSoftmax"] {
        all.extend([check(name).x(&[2, 3, 4]), check(name).attr("axis", 1_i64).x(&[2, 3, 4]), check(name).opset(11).x(&[2, 3, 4])]);
    }
    all.push(check("Hardmax").x(&[2, 3]));
    for name in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"] {
        let reduce = || check(name).drawn(&[2, 3, 4], Draw::Positive);
        all.extend([
            reduce().ints(&[1]),
            reduce().ints(&[0, -1]).attr("keepdims", 0_i64),
            reduce(),
            reduce().attr("keepdims", 0_i64),
            reduce().opset(11).attr("axes", ints(&[2])),
            reduce().attr("noop_with_empty_axes", 1_i64),
        ]);
    }
    all
}

#[rustfmt::skip]
fn movers() -> Vec<Check> {
    let ints = |values: &[i64]| Attr::Ints(values.to_vec());
    let matrix = |rows: usize, values: &[i64]| Tensor::new(&[rows, values.len() / rows], values.to_vec()).unwrap();
    vec![
        check("Reshape").x(&[2, 3, 4]).ints(&[0, -1]),
        check("Flatten").attr("axis", 2_i64).x(&[2, 3, 4]),
        check("Squeeze").x(&[2, 1, 3]).ints(&[1]),
        check("Unsqueeze").x(&[2, 3]).ints(&[0, 2]),
        check("Transpose").x(&[2, 3, 4]),
        check("Transpose").attr("perm", ints(&[1, 2, 0])).x(&[2, 3, 4]),
        check("Concat").attr("axis", 1_i64).x(&[2, 1]).x(&[2, 3]).x(&[2, 2]),
        check("Concat").attr("axis", -2_i64).x(&[1, 2]).x(&[3, 2]),
        check("Split").attr("axis", 1_i64).x(&[2, 5]).ints(&[2, 3]).outputs(2, &[0, 1]),
        check("Split").attr("num_outputs", 3_i64).x(&[5, 2]).outputs(3, &[0, 2]),
        check("Expand").x(&[3, 1]).ints(&[2, 3, 4]),
        check("Tile").x(&[2, 3]).ints(&[3, 2]),
        check("Gather").x(&[4, 3]).fixed(matrix(2, &[0, 2, -1, 2])),
        check("Gather").attr("axis", 1_i64).x(&[2, 3, 2]).fixed(Tensor::scalar(1_i64)),
        check("GatherElements").attr("axis", 1_i64).x(&[2, 3]).fixed(matrix(2, &[0, 0, 2, 1])),
        check("GatherND").x(&[2, 3, 2]).fixed(matrix(3, &[0, 1, 1, 2, 0, 1])),
        check("Slice").x(&[4, 5]).ints(&[1, -1]).ints(&[4, 0]).ints(&[0, 1]).ints(&[2, -2]),
        check("Slice").x(&[4, 5]).ints(&[1]).ints(&[3]),
        check("Slice").opset(9).attr("starts", ints(&[1])).attr("ends", ints(&[3])).attr("axes", ints(&[1])).x(&[2, 4]),
        check("Pad").x(&[2, 3]).ints(&[1, 0, 0, 2]),
        check("Pad").attr("mode", "reflect").x(&[3, 4]).ints(&[1, 2, 2, 1]),
        check("Pad").attr("mode", "edge").x(&[2, 3]).ints(&[1, 2, 0, 1]),
        check("Pad").attr("mode", "wrap").x(&[2, 3]).ints(&[1, 2, 0, 1]),
        check("Pad").x(&[2, 5]).ints(&[-1, -2]).omitted().ints(&[1]),
        check("Pad").opset(10).attr("pads", ints(&[0, 1, 1, 0])).x(&[2, 3]),
    ]
}

fn recurrent() -> Vec<Check> {
    let (steps, batch, input, hidden) = (3, 2, 3, 2);
    let mut all = Vec::new();
    for (name, gates, outputs) in [("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)] {
        for (direction, d) in [("forward", 1), ("reverse", 1), ("bidirectional", 2)] {
            let layer = |x: [usize; 3]| {
                let rows = gates * hidden;
                check(name).attr("direction", direction).attr("hidden_size", hidden as i64).x(&x).x(&[d, rows, input]).x(&[d, rows, hidden])
            };
            let counted: Vec<usize> = (0..outputs).collect();
            let full =
                || layer([steps, batch, input]).x(&[d, 2 * gates * hidden]).fixed(Tensor::vector(vec![3_i32, 2])).x(&[d, batch, hidden]);
            let full = || if name == "LSTM" { full().x(&[d, batch, hidden]) } else { full() };
            all.push(full().outputs(outputs, &counted));
            all.push(layer([steps, batch, input]).outputs(outputs, &[1]));
            all.push(layer([batch, steps, input]).attr("layout", 1_i64).outputs(outputs, &counted));
            if name == "GRU" {
                all.push(full().attr("linear_before_reset", 1_i64).outputs(outputs, &counted));
            }
        }
    }
    all
}

fn all() -> Vec<Check> {
    [elementwise(), products(), windows_and_norms(), movers(), recurrent()].concat()
}

#[test]
fn elementwise_rules_agree_with_differences() {
    hold(&elementwise());
}

#[test]
fn rules_of_products_and_losses_agree_with_differences() {
    hold(&products());
}

#[test]
fn rules_of_windows_norms_and_reductions_agree_with_differences() {
    hold(&windows_and_norms());
}

#[test]
fn rules_of_movers_agree_with_differences() {
    hold(&movers());
}

#[test]
fn rules_of_recurrent_layers_agree_with_differences() {
    hold(&recurrent());
}

#[test]
fn a_gradient_that_is_not_the_difference_is_found() {
    // At its corner, Relu has the slope 0 by its rule and half the weight by the difference.
    assert!(wrong(&check("Relu").drawn(&[1], Draw::Zero)).is_some());
}

#[test]
fn every_rule_has_a_check() {
    let all = all();
    let unchecked: Vec<&str> = ops::rules()
        .filter(|rule| !all.iter().any(|check| check.op == rule.name && check.domain == rule.domain))
        .map(|rule| rule.name)
        .collect();
    assert!(unchecked.is_empty(), "{unchecked:?}");
    for rule in ops::rules() {
        assert!(ops::all().any(|def| def.name == rule.name && def.domain == rule.domain), "{} is no operator", rule.name);
        assert_eq!(ops::rules().filter(|other| other.name == rule.name && other.domain == rule.domain).count(), 1, "{}", rule.name);
    }
}

#[test]
fn several_readers_add_up_and_what_nothing_depends_on_has_no_gradient() {
    let mut graph = Graph::default();
    let mut input = |name: &str| {
        let id = graph.add_value(name, Some(Kind::Tensor(DType::F64)), Some(vec![Dim::Fixed(2)]));
        graph.inputs.push(id);
        id
    };
    let (x, free) = (input("x"), input("free"));
    let mut emit = Appender::new(&mut graph, "");
    let emit: &mut dyn Emit = &mut emit;
    let square = emit.op("Mul", &[x, x]).unwrap();
    let y = emit.op("Add", &[square, x]).unwrap();
    let gradients = gradient(&graph, y, &[x, free, square]).unwrap();
    let found = run(&gradients, &[floats(&[3.0, -1.0]), floats(&[0.0, 0.0])]);
    assert_eq!(found, [floats(&[7.0, -1.0]), floats(&[0.0, 0.0]), floats(&[1.0, 1.0])]);
}

#[test]
fn operators_without_a_rule_are_named() {
    let mut graph = Graph::default();
    let x = graph.add_value("x", Some(Kind::Tensor(DType::F32)), Some(vec![Dim::Fixed(2), Dim::Fixed(2)]));
    graph.inputs.push(x);
    let mut emit = Appender::new(&mut graph, "net");
    let emit: &mut dyn Emit = &mut emit;
    let det = emit.op("Det", &[x]).unwrap();
    let indices = emit.op("NonZero", &[x]).unwrap();
    match gradient(&graph, det, &[x]) {
        Err(LoadError::Unsupported(nodes)) => {
            assert_eq!((nodes.len(), nodes[0].op.as_str(), nodes[0].reason.as_str()), (1, "Det", "the operator has no gradient"));
            assert!(nodes[0].node.contains("net/Det"), "{}", nodes[0].node);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(gradient(&graph, indices, &[x]), Err(LoadError::Format(_))));
}
