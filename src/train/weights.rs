//! Which constants of a model are weights: those that an operator has as such, however they reach it.
//!
//! Exporters put a weight in front of its operator as it is, or leave operators between them: a transposition, the parts that an LSTM
//! takes in another order, a product of two small matrices. Constants that are no weights (the scale of an attention, an epsilon, a
//! mask, a shape) are told from them by where they stand.

use std::collections::{HashMap, HashSet};

use super::error::{Error, Result};
use super::network::Role;
use crate::engine::{DType, Graph, Kind, Node, Tensor, ValueId};

/// What training makes of a model's constants.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Those that are trained.
    pub trained: Vec<(ValueId, Role)>,
    /// Those that stay, by name, and why.
    pub kept: Vec<(String, Why)>,
}

/// Why a constant stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The configuration says so.
    Frozen,
    /// A mean or variance that a batch norm has learnt.
    Statistic,
    /// It is a weight of another type, or what an operator without a gradient makes of one.
    Fixed,
    /// No operator has it as a weight.
    Constant,
}

impl Why {
    const ALL: [Self; 4] = [Self::Frozen, Self::Statistic, Self::Fixed, Self::Constant];

    fn text(self) -> &'static str {
        match self {
            Self::Frozen => "by `base.freeze`",
            Self::Statistic => "statistics of batch norms",
            Self::Fixed => "that are no constants of FP32",
            Self::Constant => "that no operator has as weights (`base.train` names those that are)",
        }
    }
}

/// Operators with weights: which operands are weights, and which biases.
const WEIGHTS: &[(&str, &[usize], &[usize])] = &[
    ("Conv", &[1], &[2]),
    ("ConvTranspose", &[1], &[2]),
    ("Gemm", &[0, 1], &[2]),
    ("MatMul", &[0, 1], &[]),
    ("Gather", &[0], &[]),
    ("BatchNormalization", &[], &[1, 2]),
    ("LayerNormalization", &[], &[1, 2]),
    ("RMSNormalization", &[], &[1]),
    ("SimplifiedLayerNormalization", &[], &[1]),
    ("PRelu", &[], &[1]),
    ("LSTM", &[1, 2], &[3, 7]),
    ("GRU", &[1, 2], &[3]),
    ("RNN", &[1, 2], &[3]),
];

/// Operators whose sum with a constant has it as a bias.
const PRODUCTS: &[&str] = &["MatMul", "Gemm", "Conv", "ConvTranspose"];

/// Operators through which a constant is followed to the weight that it becomes: by which operands (all, if none is named).
const PLACED: &[(&str, &[usize])] = &[
    ("Identity", &[0]),
    ("Cast", &[0]),
    ("Transpose", &[0]),
    ("Reshape", &[0]),
    ("Flatten", &[0]),
    ("Squeeze", &[0]),
    ("Unsqueeze", &[0]),
    ("Expand", &[0]),
    ("Tile", &[0]),
    ("Pad", &[0]),
    ("Slice", &[0]),
    ("Split", &[0]),
    ("Gather", &[0]),
    ("GatherElements", &[0]),
    ("GatherND", &[0]),
    ("Concat", &[]),
];

/// As [`PLACED`], where a weight is computed of others: their scalars are factors, and masks stay.
const COMPUTED: &[(&str, &[usize])] =
    &[("Add", &[]), ("Sub", &[]), ("Mul", &[]), ("Div", &[0]), ("Neg", &[0]), ("MatMul", &[]), ("Gemm", &[]), ("Sum", &[])];

/// A value, or one that it is made of by what [`PLACED`] and [`COMPUTED`] list.
struct Leaf {
    id: ValueId,
    /// Whether arithmetic lies between.
    computed: bool,
}

/// What is asked of a graph.
struct Finder<'a> {
    graph: &'a Graph,
    producers: HashMap<ValueId, usize>,
    /// Values that the input changes, and not by its shape alone.
    live: Vec<bool>,
    /// Values behind an operator with weights.
    behind: Vec<bool>,
    /// Nodes with weights.
    weighted: Vec<bool>,
    found: Vec<(ValueId, Role)>,
    kept: Vec<(ValueId, Why)>,
}

/// The constants that `end` needs, those that match `freeze` left out and those that match `train` taken in.
///
/// # Errors
/// The pattern that is of none, with the names that there are.
pub fn find(graph: &Graph, end: ValueId, freeze: &[String], train: &[String]) -> Result<Weights> {
    let mut finder = Finder::new(graph);
    let needed = needed(graph, end);
    for &at in &needed {
        finder.visit(at);
    }
    needed.iter().for_each(|&at| finder.keep(&graph.nodes[at]));
    let Finder { mut found, mut kept, .. } = finder;
    let named = |id: ValueId, patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, graph.name(id)));
    let each = |key: &str, what: &str, patterns: &[String], ids: &[ValueId]| match patterns
        .iter()
        .find(|pattern| !ids.iter().any(|id| fits(pattern, graph.name(*id))))
    {
        None => Ok(()),
        Some(pattern) => {
            let names: Vec<String> = ids.iter().map(|id| format!("`{}`", graph.name(*id))).collect();
            let there = if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
            Err(Error(format!("`base.{key}`: {pattern:?} is no {what}; {there}")))
        }
    };
    let others: Vec<ValueId> = kept.iter().filter(|(_, why)| *why == Why::Constant).map(|(id, _)| *id).collect();
    each("train", "constant that is kept", train, &others)?;
    found.extend(others.iter().filter(|id| named(**id, train)).map(|id| (*id, Role::Bias)));
    kept.retain(|(id, why)| *why != Why::Constant || !named(*id, train));
    let weights: Vec<ValueId> = found.iter().map(|(id, _)| *id).collect();
    each("freeze", "weight", freeze, &weights)?;
    let (frozen, trained) = found.into_iter().partition::<Vec<_>, _>(|(id, _)| named(*id, freeze));
    let kept = frozen.into_iter().map(|(id, _)| (id, Why::Frozen)).chain(kept);
    Ok(Weights { trained, kept: kept.map(|(id, why)| (graph.name(id).to_owned(), why)).collect() })
}

impl Weights {
    /// How many are trained, and which are kept and why, in a line.
    pub fn text(&self) -> String {
        /// Names that a reader bears.
        const NAMED: usize = 8;
        let kept = Why::ALL.iter().filter_map(|why| {
            let names: Vec<String> = self.kept.iter().filter(|(_, w)| w == why).map(|(name, _)| format!("`{name}`")).collect();
            let more = names.len().saturating_sub(NAMED);
            let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
            let listed = names[..names.len() - more].join(", ");
            (!names.is_empty()).then(|| format!("{} {}: {listed}{rest}", names.len(), why.text()))
        });
        let kept: Vec<String> = kept.collect();
        let kept = if kept.is_empty() { "none kept".to_owned() } else { format!("kept {}", kept.join("; ")) };
        format!("{} weights trained on, {kept}", self.trained.len())
    }
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph) -> Self {
        let results = graph.nodes.iter().enumerate().flat_map(|(at, node)| node.results().map(move |id| (id, at)));
        let mut live = vec![false; graph.values.len()];
        graph.inputs.iter().for_each(|id| live[id.index()] = true);
        for node in &graph.nodes {
            if !["Shape", "Size"].contains(&node.def.name) && node.operands().any(|id| live[id.index()]) {
                node.results().for_each(|id| live[id.index()] = true);
            }
        }
        let (behind, weighted) = (vec![false; graph.values.len()], vec![false; graph.nodes.len()]);
        Self { graph, producers: results.collect(), live, behind, weighted, found: Vec::new(), kept: Vec::new() }
    }

    /// Takes the weights of a node, which comes behind those whose results it reads.
    fn visit(&mut self, at: usize) {
        let node = &self.graph.nodes[at];
        // Of what no input changes nothing is a weight by itself: it may become one.
        if node.results().any(|id| self.live[id.index()]) {
            let known = self.found.len();
            if let Some((_, weights, biases)) = WEIGHTS.iter().find(|(op, ..)| named(node, op)) {
                weights.iter().for_each(|&slot| self.take(operand(node, slot), Role::Weight));
                biases.iter().for_each(|&slot| self.take(operand(node, slot), Role::Bias));
                let slots = || weights.iter().chain(*biases).filter_map(|&slot| operand(node, slot));
                let of = slots().any(|id| self.leaves(id).iter().any(|leaf| self.is_found(leaf.id)));
                self.weighted[at] = of;
            }
            self.vector(node);
            let behind = self.weighted[at] || self.found.len() > known || node.operands().any(|id| self.behind[id.index()]);
            node.results().for_each(|id| self.behind[id.index()] = behind);
        }
    }

    /// The constant of a sum or product with what lies behind a weight: a bias, or the scale of a norm that is not one operator.
    fn vector(&mut self, node: &Node) {
        let (sum, product) = (named(node, "Add"), named(node, "Mul"));
        let (Some(a), Some(b)) = (operand(node, 0), operand(node, 1)) else { return };
        if !(sum || product) {
            return;
        }
        for (value, constant) in [(a, b), (b, a)] {
            if !self.behind[value.index()]
                || self.live[constant.index()]
                || self.graph.values[value.index()].kind != Some(Kind::Tensor(DType::F32))
            {
                continue;
            }
            let weighted =
                self.producers.get(&value).is_some_and(|&at| self.weighted[at] && PRODUCTS.contains(&self.graph.nodes[at].def.name));
            let to_softmax = || {
                let reads = |other: &Node| {
                    ["Softmax", "LogSoftmax"].contains(&other.def.name) && other.operands().any(|id| node.results().any(|r| r == id))
                };
                self.graph.nodes.iter().any(reads)
            };
            let leaves = self.leaves(constant);
            let vectors = leaves.iter().all(|leaf| self.graph.constants.get(&leaf.id).is_some_and(is_vector));
            if (sum && weighted) || (vectors && !to_softmax()) {
                for leaf in leaves.iter().filter(|leaf| !is_mask(self.graph, leaf.id)) {
                    self.add(leaf, Role::Bias);
                }
            }
        }
    }

    /// The constants that an operand is made of become parameters.
    fn take(&mut self, id: Option<ValueId>, role: Role) {
        let Some(id) = id.filter(|id| !self.live[id.index()]) else { return };
        for leaf in self.leaves(id) {
            self.add(&leaf, role);
        }
    }

    fn add(&mut self, leaf: &Leaf, role: Role) {
        match self.graph.constants.get(&leaf.id) {
            Some(tensor) if tensor.dtype() == DType::F32 => {
                let factor = leaf.computed && (tensor.len() < 2 || is_mask(self.graph, leaf.id));
                if !factor && !self.is_found(leaf.id) {
                    self.found.push((leaf.id, role));
                }
            }
            _ => self.keeps(leaf.id, Why::Fixed),
        }
    }

    fn is_found(&self, id: ValueId) -> bool {
        self.found.iter().any(|(known, _)| *known == id)
    }

    /// What a value that no input changes is made of: constants, and what comes from operators that are not listed.
    fn leaves(&self, id: ValueId) -> Vec<Leaf> {
        let (mut leaves, mut seen, mut left) = (Vec::new(), HashSet::new(), vec![(id, false)]);
        while let Some((id, computed)) = left.pop() {
            if self.live[id.index()] || !seen.insert(id) {
                continue;
            }
            let node = self.producers.get(&id).map(|&at| &self.graph.nodes[at]);
            let row = |table: &'static [(&str, &'static [usize])]| {
                node.and_then(|node| table.iter().find(|(op, _)| named(node, op))).map(|(_, operands)| *operands)
            };
            let (operands, computed) = match (row(PLACED), row(COMPUTED)) {
                (Some(operands), _) => (operands, computed),
                (None, Some(operands)) => (operands, true),
                (None, None) => {
                    leaves.push(Leaf { id, computed });
                    continue;
                }
            };
            let given = node.into_iter().flat_map(|node| node.inputs.iter().enumerate());
            let follow = given.filter(|(slot, _)| operands.is_empty() || operands.contains(slot)).filter_map(|(_, id)| *id);
            // The first operand is found first.
            let at = left.len();
            left.extend(follow.map(|id| (id, computed)));
            left[at..].reverse();
        }
        leaves
    }

    fn keeps(&mut self, id: ValueId, why: Why) {
        if self.kept.iter().all(|(known, _)| *known != id) {
            self.kept.push((id, why));
        }
    }

    /// Notes the constants of a node that stay.
    fn keep(&mut self, node: &Node) {
        // What these read beside their first operand says how, not what.
        const HOW: &[&str] = &["Resize", "Upsample", "Clip", "Pad"];
        for (slot, id) in node.inputs.iter().enumerate().filter_map(|(slot, id)| id.map(|id| (slot, id))) {
            let float =
                matches!(self.graph.values[id.index()].kind, Some(Kind::Tensor(DType::F32 | DType::F64 | DType::F16 | DType::BF16)));
            let Some(tensor) = self.graph.constants.get(&id).filter(|_| float && !self.is_found(id)) else { continue };
            if named(node, "BatchNormalization") && slot >= 3 {
                self.keeps(id, Why::Statistic);
            } else if tensor.len() > 1 && !(slot > 0 && HOW.contains(&node.def.name)) {
                self.keeps(id, Why::Constant);
            }
        }
    }
}

/// Gives each reader of a constant with one number throughout its own copy.
///
/// Exporters write equal constants once, however many weights they are. Of a matrix of random numbers that is one weight in several
/// places; biases and scales that are all zeros or ones are equal because they have not been trained yet.
pub fn separate(graph: &mut Graph) {
    let uniform = |tensor: &Tensor| {
        let values = tensor.slice::<f32>().filter(|_| !tensor.shape().is_empty());
        values.is_some_and(|values| values.windows(2).all(|pair| pair[0] == pair[1]))
    };
    let mut names: HashSet<String> = graph.values.iter().map(|value| value.name.clone()).collect();
    // A copy that the file has under a name of its own is a constant of this name.
    let mut copies = Vec::new();
    graph.nodes.retain(|node| {
        let copied = operand(node, 0).filter(|_| named(node, "Identity")).and_then(|id| graph.constants.get(&id)).filter(|t| uniform(t));
        let copy = copied.zip(node.results().next()).map(|(tensor, id)| (id, tensor.clone()));
        let keep = copy.is_none();
        copies.extend(copy);
        keep
    });
    graph.constants.extend(copies);
    let mut read: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    for at in 0..graph.nodes.len() {
        for slot in 0..graph.nodes[at].inputs.len() {
            let Some(id) = graph.nodes[at].inputs[slot] else { continue };
            let Some(tensor) = graph.constants.get(&id).filter(|tensor| uniform(tensor)).cloned() else { continue };
            if read.insert(id) {
                continue;
            }
            let info = graph.values[id.index()].clone();
            let name = (2..).map(|n| format!("{}.{n}", info.name)).find(|name| !names.contains(name)).expect("numbers do not end");
            names.insert(name.clone());
            let copy = graph.add_value(name, info.kind, info.dims);
            graph.constants.insert(copy, tensor);
            graph.nodes[at].inputs[slot] = Some(copy);
        }
    }
}

fn operand(node: &Node, slot: usize) -> Option<ValueId> {
    node.inputs.get(slot).copied().flatten()
}

/// Whether a node is of an operator, by the domains in which its name means that.
fn named(node: &Node, op: &str) -> bool {
    node.def.name == op && ["", "com.microsoft"].contains(&node.def.domain)
}

/// Whether a constant only lets through or shuts: zeros beside ones or beside what is as good as infinite.
fn is_mask(graph: &Graph, id: ValueId) -> bool {
    /// What exporters put where nothing shall pass begins here.
    const SHUT: f32 = 1e4;
    let Some(values) = graph.constants.get(&id).and_then(|tensor| tensor.slice::<f32>()) else { return false };
    let mark = |v: f32| v == 0.0 || v == 1.0 || v.abs() >= SHUT;
    values.iter().any(|v| !v.is_finite()) || (values.iter().all(|&v| mark(v)) && values.iter().any(|v| *v != values[0]))
}

/// Whether all but one dimension are 1.
fn is_vector(tensor: &Tensor) -> bool {
    tensor.shape().iter().filter(|&&n| n != 1).count() == 1
}

/// The nodes that `end` needs, in the order of the graph.
fn needed(graph: &Graph, end: ValueId) -> Vec<usize> {
    let mut wanted = vec![false; graph.values.len()];
    wanted[end.index()] = true;
    let mut nodes = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if node.results().any(|id| wanted[id.index()]) {
            node.operands().for_each(|id| wanted[id.index()] = true);
            nodes.push(at);
        }
    }
    nodes.reverse();
    nodes
}

/// Whether a name is of a pattern in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Appender, Emit};

    #[test]
    fn names_are_of_patterns() {
        for (pattern, name, fit) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.bc", true),
            ("*", "", true),
            ("*.weight", "conv.1.weight", true),
            ("conv*.weight", "conv.1.bias", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    /// A vision transformer's parts, in little: what stands where says what is a weight.
    #[test]
    fn constants_are_weights_by_where_they_stand() {
        let mut graph = Graph::default();
        let x = graph.add_value("x", Some(Kind::Tensor(DType::F32)), None);
        graph.inputs.push(x);
        let mut emit = Appender::new(&mut graph, "");
        let constant = |emit: &mut Appender<'_>, name: &str, shape: &[usize], values: &[f32]| {
            let values = values.iter().copied().cycle().take(shape.iter().product()).collect::<Vec<_>>();
            let id = emit.constant(Tensor::new(shape, values).unwrap());
            name.clone_into(&mut emit.graph.values[id.index()].name);
            id
        };
        let steps = |emit: &mut Appender<'_>, steps: &[(&str, &str, &[usize], &[f32])]| {
            steps.iter().fold(x, |x, (op, name, shape, values)| {
                let mut operand = constant(emit, name, shape, values);
                let dynamic: &mut dyn Emit = emit;
                if *op == "MatMul" {
                    operand = dynamic.op("Transpose", &[operand]).unwrap();
                }
                dynamic.op(op, &[x, operand]).unwrap()
            })
        };
        let some = [0.5, -0.25, 0.125];
        let scores = steps(
            &mut emit,
            &[
                ("Sub", "mean", &[4], &some),
                ("Mul", "size", &[4], &some),
                ("MatMul", "first", &[4, 4], &some),
                ("Add", "bias", &[4], &some),
                ("Mul", "factor", &[], &some),
                ("Mul", "gamma", &[4], &some),
                ("Mul", "rotation", &[4, 4], &some),
                ("Mul", "shut", &[4], &[1.0, 0.0]),
                ("MatMul", "unread", &[4, 4], &some),
                ("Add", "far", &[4], &[0.0, -1e9]),
                ("Add", "mask", &[4, 4], &[0.0, f32::NEG_INFINITY]),
            ],
        );
        let end = (&mut emit as &mut dyn Emit).op("Softmax", &[scores]).unwrap();
        let find = |freeze: &[&str], train: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            find(&graph, end, &own(freeze), &own(train)).map(|found| {
                let trained: Vec<String> = found.trained.iter().map(|(id, _)| graph.name(*id).to_owned()).collect();
                (trained.join(" "), found.text())
            })
        };
        let constants = "that no operator has as weights (`base.train` names those that are)";
        let names = "`mean`, `size`, `rotation`, `shut`, `far`, `mask`";
        assert_eq!(
            find(&[], &[]).unwrap(),
            ("first bias gamma unread".into(), format!("4 weights trained on, kept 6 {constants}: {names}"))
        );
        let (trained, said) = find(&["first", "g*"], &["rot*"]).unwrap();
        assert_eq!(trained, "bias unread rotation");
        assert!(said.starts_with(&format!("3 weights trained on, kept 2 by `base.freeze`: `first`, `gamma`; 5 {constants}: ")), "{said}");
        assert_eq!(
            find(&["mask"], &[]).unwrap_err().0,
            "`base.freeze`: \"mask\" is no weight; there are `first`, `bias`, `gamma`, `unread`"
        );
        assert!(find(&[], &["first"]).unwrap_err().0.starts_with("`base.train`: \"first\" is no constant that is kept; there are `mean`,"));
    }

    /// Two norms of a model that was never trained have one scale in the file; trained, each has its own.
    #[test]
    fn equal_weights_that_are_written_once_are_separate() {
        let mut graph = Graph::default();
        let x = graph.add_value("x", Some(Kind::Tensor(DType::F32)), None);
        graph.inputs.push(x);
        let mut emit = Appender::new(&mut graph, "");
        let (ones, tied) = (
            emit.constant(Tensor::vector(vec![1.0_f32; 3])),
            emit.constant(Tensor::new(&[3, 3], [0.5_f32, 0.25, 0.75].repeat(3)).unwrap()),
        );
        let emit: &mut dyn Emit = &mut emit;
        let named = emit.op("Identity", &[ones]).unwrap();
        let mut y = x;
        for scale in [ones, named, ones] {
            y = emit.op("MatMul", &[y, tied]).unwrap();
            y = emit.op("Mul", &[y, scale]).unwrap();
        }
        separate(&mut graph);
        graph.outputs.push(y);
        graph.verify().unwrap();
        let trained = find(&graph, y, &[], &[]).unwrap().trained;
        let names: HashSet<&str> = trained.iter().map(|(id, _)| graph.name(*id)).collect();
        let copy = format!("{}.2", graph.name(ones));
        assert_eq!(names, HashSet::from([graph.name(tied), graph.name(ones), graph.name(named), &copy]));
    }
}
