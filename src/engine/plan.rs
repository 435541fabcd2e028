//! A plan: everything about a run that follows from the shapes of its inputs, decided before data arrives.
//!
//! The plan knows each value's shape and where its elements live. Values are given typed slots; a slot is reused as soon
//! as nobody reads its value any more, so the memory of a run is known beforehand ([`Plan::bytes`]). Steps whose shapes
//! depend on data are dynamic: they allocate while running, and everything around them stays planned.

use smallvec::SmallVec;

use super::dtype::DType;
use super::error::RunError;
use super::evaluate::evaluate;
use super::graph::{Graph, Node, ValueId};
use super::kernels::isa::Isa;
use super::kernels::limits::Arithmetic;
use super::op::{Context, Fact, Facts, OpError, Scratch, Shape, checked_len};
use super::tensor::{Kind, Tensor};
use super::threads::Threads;

/// Where the elements of a value live during a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// The plan does not use the value.
    Nowhere,
    /// In the request's input of this position.
    Input(usize),
    /// In the graph's constant.
    Constant(ValueId),
    /// Known while planning: it follows from shapes.
    Computed(Tensor),
    /// In the session's slot of this number.
    Slot(usize),
    /// In a value of its own that a dynamic step allocates.
    Dynamic,
}

/// One node to run.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Position of the node in the graph.
    pub(crate) node: usize,
    /// Whether the outputs are allocated while running.
    pub(crate) dynamic: bool,
    /// The input whose slot becomes the slot of output 0.
    pub(crate) in_place: Option<usize>,
    /// Dynamic values that nobody reads after this step.
    pub(crate) drops: SmallVec<[ValueId; 2]>,
}

/// What a step has to do at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions of its sums; 0 where they are not counted.
    pub flops: u64,
    /// What the sums are of.
    pub arithmetic: Arithmetic,
    /// Bytes of its operands and results, each once, as far as the plan knows their shapes.
    pub bytes: u64,
}

/// Storage for values of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotSpec {
    pub(crate) dtype: DType,
    /// Elements of the largest value that it holds.
    pub(crate) len: usize,
}

/// How to run a graph on inputs of given shapes.
#[derive(Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) places: Vec<Place>,
    pub(crate) shapes: Vec<Option<Shape>>,
    pub(crate) slots: Vec<SlotSpec>,
    /// Floating-point operations per step.
    pub(crate) flops: Vec<u64>,
    dynamic: bool,
    bytes: usize,
    work: u64,
}

/// Values up to this many elements are computed while planning if they follow from shapes: enough for any shape
/// arithmetic, too little to move a model's real work into planning.
const COMPUTED_ELEMENTS: usize = 4096;

/// Name, operator and operands of a node for an error message.
pub(crate) fn node_error(node: &Node, operands: &str, source: OpError) -> RunError {
    if source == OpError::Deadline {
        return RunError::Deadline { node: node.name.clone(), op: node.op_type() };
    }
    RunError::Node { node: node.name.clone(), op: node.op_type(), operands: operands.to_owned(), source }
}

fn describe(facts: &[Option<&Fact>]) -> String {
    let one = |fact: &Option<&Fact>| match fact {
        None => "-".to_owned(),
        Some(Fact { kind, shape: Some(shape), .. }) => format!("{kind}{:?}", shape.as_slice()),
        Some(Fact { kind, .. }) => format!("{kind}[…]"),
    };
    facts.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Plan {
    /// Plans `graph` for inputs of `shapes`, in the order of the graph's inputs; the shape of one that is no tensor does not
    /// matter. If `unplanned`, every step decides its shapes while running and allocates its results itself.
    ///
    /// # Errors
    /// If a node does not take operands of these shapes, or the run needs more than `memory_limit` bytes.
    pub fn new(graph: &Graph, shapes: &[Shape], memory_limit: usize, isa: Isa, unplanned: bool) -> Result<Self, RunError> {
        for (id, shape) in graph.inputs.iter().zip(shapes) {
            // Operators multiply dimensions of their inputs, also where others are zero.
            let size = graph.values[id.index()].kind.as_ref().and_then(Kind::dtype).map_or(0, DType::size);
            if checked_len(shape, size, usize::MAX).is_err() {
                let need = shape.iter().fold(size as u128, |bytes, &n| bytes.saturating_mul(n.max(1) as u128));
                return Err(RunError::Memory { need, limit: memory_limit });
            }
        }
        let mut planner = Planner::new(graph, shapes, memory_limit, isa);
        planner.unplanned = unplanned;
        for position in 0..graph.nodes.len() {
            planner.add(position)?;
        }
        let plan = planner.finish();
        let need: u128 = plan.slots.iter().map(|slot| slot.len as u128 * slot.dtype.size() as u128).sum();
        if need > memory_limit as u128 {
            return Err(RunError::Memory { need, limit: memory_limit });
        }
        Ok(plan)
    }

    /// Bytes of the slots that a session needs for this plan, beside weights and working memory of single operators.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether every value's memory is known before the run.
    pub fn is_static(&self) -> bool {
        !self.dynamic
    }

    /// Each step's node, by position in `graph`, which the plan is of, with what it has to do at least.
    pub fn steps<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = (usize, Work)> + 'a {
        let bytes = |id: ValueId| {
            let size = graph.values[id.index()].kind.as_ref().and_then(Kind::dtype).map_or(0, DType::size);
            self.shape(id).map_or(0, |shape| shape.iter().fold(size as u64, |bytes, &n| bytes.saturating_mul(n as u64)))
        };
        self.steps.iter().zip(&self.flops).map(move |(step, &flops)| {
            let node = &graph.nodes[step.node];
            // Others than products may need a part of a constant only: some lines of a table.
            let read = |id: &ValueId| flops > 0 || !matches!(self.places[id.index()], Place::Constant(_));
            let values = node.operands().filter(read).chain(node.results()).map(bytes).fold(0, u64::saturating_add);
            let packed = node.op.packed_bytes() as u64;
            (step.node, Work { flops, arithmetic: node.op.arithmetic(), bytes: values.saturating_add(packed) })
        })
    }

    /// Floating-point operations of all steps.
    pub(crate) fn work(&self) -> u64 {
        self.work
    }

    /// The shape of a value, if it does not depend on data.
    pub fn shape(&self, id: ValueId) -> Option<&[usize]> {
        self.shapes[id.index()].as_deref()
    }
}

struct Planner<'g> {
    graph: &'g Graph,
    facts: Vec<Option<Fact>>,
    places: Vec<Place>,
    /// For each value the value whose storage it shares: itself, or what it is an alias of.
    roots: Vec<ValueId>,
    steps: Vec<Step>,
    flops: Vec<u64>,
    memory_limit: usize,
    isa: Isa,
    scratch: Scratch,
    threads: Threads,
    unplanned: bool,
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Graph, shapes: &[Shape], memory_limit: usize, isa: Isa) -> Self {
        let count = graph.values.len();
        let mut facts: Vec<Option<Fact>> = vec![None; count];
        let mut places = vec![Place::Nowhere; count];
        for (&id, tensor) in &graph.constants {
            facts[id.index()] = Some(Fact::constant(tensor.clone()));
            places[id.index()] = Place::Constant(id);
        }
        for (position, (&id, shape)) in graph.inputs.iter().zip(shapes).enumerate() {
            let kind = graph.values[id.index()].kind.clone().expect("a verified graph knows its kinds");
            let is_tensor = kind.dtype().is_some();
            facts[id.index()] = Some(Fact { kind, shape: is_tensor.then(|| shape.clone()), value: None });
            // What is no tensor is given to the session as a value, as a dynamic step would make it.
            places[id.index()] = if is_tensor { Place::Input(position) } else { Place::Dynamic };
        }
        let roots = (0..count).map(|i| ValueId(i as u32)).collect();
        let threads = Threads::single();
        Self {
            graph,
            facts,
            places,
            roots,
            steps: Vec::new(),
            flops: Vec::new(),
            memory_limit,
            isa,
            scratch: Scratch::default(),
            threads,
            unplanned: false,
        }
    }

    fn add(&mut self, position: usize) -> Result<(), RunError> {
        let graph = self.graph;
        let node = &graph.nodes[position];
        let known: SmallVec<[Option<Fact>; 4]> = node.inputs.iter().map(|id| id.and_then(|id| self.facts[id.index()].clone())).collect();
        let inputs: SmallVec<[Option<&Fact>; 4]> = known.iter().map(Option::as_ref).collect();
        let facts = Facts(&inputs);
        let kinds: SmallVec<[Option<Kind>; 2]> =
            node.outputs.iter().map(|id| id.and_then(|id| graph.values[id.index()].kind.clone())).collect();
        let tensors_only = kinds.iter().flatten().all(|kind| kind.dtype().is_some());
        let fail = |error| Err(node_error(node, &describe(&inputs), error));

        let shapes = match node.op.shapes(&facts) {
            Ok(shapes) if tensors_only && !self.unplanned => shapes.into_iter().map(Some).collect(),
            Ok(_) | Err(OpError::Unknown) => vec![None; node.outputs.len()],
            Err(error) => return fail(error),
        };
        for (shape, kind) in shapes.iter().zip(&kinds) {
            let (Some(shape), Some(dtype)) = (shape, kind.as_ref().and_then(Kind::dtype)) else { continue };
            if let Err(error) = checked_len(shape, dtype.size(), self.memory_limit) {
                return fail(error);
            }
        }
        let dynamic = shapes.iter().any(Option::is_none);
        let values = if dynamic { None } else { self.compute(node, facts, &shapes) };
        let values = match values {
            None => None,
            Some(Ok(values)) => Some(values),
            Some(Err(error)) => return fail(error),
        };
        let flops = if dynamic { 0 } else { node.op.flops(&facts) };

        let alias = node.op.alias().filter(|_| !dynamic && node.outputs.len() == 1).and_then(|i| node.inputs[i]);
        for (i, id) in node.outputs.iter().enumerate() {
            let Some(id) = *id else { continue };
            let kind = kinds[i].clone().expect("a verified graph knows its kinds");
            let value = values.as_ref().map(|values| values[i].clone());
            self.places[id.index()] = match (&value, alias) {
                (Some(tensor), _) => Place::Computed(tensor.clone()),
                (None, Some(source)) if self.places[source.index()] != Place::Dynamic => {
                    self.roots[id.index()] = self.roots[source.index()];
                    self.places[source.index()].clone()
                }
                (None, _) if dynamic => Place::Dynamic,
                // The number is given once all lifetimes are known.
                (None, _) => Place::Slot(usize::MAX),
            };
            self.facts[id.index()] = Some(Fact { kind, shape: shapes[i].clone(), value });
        }
        let elided = values.is_some() || alias.is_some_and(|source| self.places[source.index()] != Place::Dynamic);
        if !elided {
            self.steps.push(Step { node: position, dynamic, in_place: None, drops: SmallVec::new() });
            self.flops.push(flops);
        }
        Ok(())
    }

    /// The outputs, if they are small and follow from constants and shapes.
    fn compute(&mut self, node: &Node, facts: Facts<'_>, shapes: &[Option<Shape>]) -> Option<Result<Vec<Tensor>, OpError>> {
        if let Some(values) = node.op.values_from_shapes(&facts) {
            return Some(Ok(values));
        }
        let shapes: Vec<Shape> = shapes.iter().cloned().collect::<Option<_>>()?;
        if node.inputs.is_empty()
            || !node.op.deterministic()
            || shapes.iter().any(|shape| shape.iter().product::<usize>() > COMPUTED_ELEMENTS)
        {
            return None;
        }
        let inputs: Vec<Option<&Tensor>> =
            facts.0.iter().map(|fact| fact.map_or(Some(None), |fact| fact.value.as_ref().map(Some))).collect::<Option<_>>()?;
        let kinds: Vec<Kind> = node.outputs.iter().map(|id| self.graph.values[(*id)?.index()].kind.clone()).collect::<Option<_>>()?;
        let mut ctx =
            Context { scratch: &mut self.scratch, threads: &self.threads, isa: self.isa, budget: self.memory_limit, deadline: None };
        Some(evaluate(&*node.op, &inputs, &kinds, &shapes[..kinds.len()], self.memory_limit, &mut ctx))
    }

    /// Gives every value that needs storage a slot, reusing a slot once its value is dead.
    fn finish(mut self) -> Plan {
        const ALWAYS: usize = usize::MAX;
        let count = self.graph.values.len();
        let mut last_use = vec![0_usize; count];
        for (position, step) in self.steps.iter().enumerate() {
            let node = &self.graph.nodes[step.node];
            // A result that nobody reads still needs storage while its node runs.
            for id in node.operands().chain(node.results()) {
                last_use[self.roots[id.index()].index()] = position;
            }
        }
        for id in &self.graph.outputs {
            last_use[self.roots[id.index()].index()] = ALWAYS;
        }

        let mut slots: Vec<SlotSpec> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slot_of: Vec<Option<usize>> = vec![None; count];
        for position in 0..self.steps.len() {
            let node = &self.graph.nodes[self.steps[position].node];
            let mut moved = None;
            for (i, id) in node.outputs.iter().enumerate() {
                let Some(id) = *id else { continue };
                if self.places[id.index()] != Place::Slot(usize::MAX) || self.roots[id.index()] != id {
                    continue;
                }
                let spec = self.spec(id);
                let taken = if i == 0 { self.in_place_source(node, position, spec, &last_use, &slot_of) } else { None };
                let slot = match taken {
                    Some((input, source)) => {
                        self.steps[position].in_place = Some(input);
                        moved = Some(source);
                        slot_of[source.index()].expect("the source has a slot")
                    }
                    None => allocate(&mut slots, &mut free, spec),
                };
                slot_of[id.index()] = Some(slot);
            }
            let mut dead: SmallVec<[ValueId; 8]> = node.operands().chain(node.results()).map(|id| self.roots[id.index()]).collect();
            dead.sort_unstable();
            dead.dedup();
            for root in dead {
                if last_use[root.index()] != position || moved == Some(root) {
                    continue;
                }
                match (slot_of[root.index()], &self.places[root.index()]) {
                    (Some(slot), _) => free.push(slot),
                    (None, Place::Dynamic) => self.steps[position].drops.push(root),
                    (None, _) => {}
                }
            }
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            if matches!(place, Place::Slot(_)) {
                *place = Place::Slot(slot_of[self.roots[index].index()].expect("every planned value has a slot"));
            }
        }
        let shapes = self.facts.into_iter().map(|fact| fact.and_then(|fact| fact.shape)).collect();
        let dynamic = self.places.iter().any(|place| matches!(place, Place::Dynamic));
        // A plan of more than this is refused by whoever asked for it.
        let bytes = slots.iter().fold(0_usize, |bytes, slot| bytes.saturating_add(slot.len.saturating_mul(slot.dtype.size())));
        let work = self.flops.iter().copied().fold(0, u64::saturating_add);
        Plan { steps: self.steps, places: self.places, shapes, slots, flops: self.flops, dynamic, bytes, work }
    }

    fn spec(&self, id: ValueId) -> SlotSpec {
        let fact = self.facts[id.index()].as_ref().expect("a planned value has a fact");
        let dtype = fact.kind.dtype().expect("a slot holds a tensor");
        SlotSpec { dtype, len: fact.shape.as_ref().expect("a slot's shape is known").iter().product() }
    }

    /// The input whose slot output 0 may take over: same type and length, read here for the last time, and only once.
    fn in_place_source(
        &self,
        node: &Node,
        position: usize,
        spec: SlotSpec,
        last_use: &[usize],
        slot_of: &[Option<usize>],
    ) -> Option<(usize, ValueId)> {
        node.op.in_place().iter().find_map(|&input| {
            let id = (*node.inputs.get(input)?)?;
            let root = self.roots[id.index()];
            slot_of[root.index()]?;
            let readers = node.operands().filter(|other| self.roots[other.index()] == root).count();
            (last_use[root.index()] == position && readers == 1 && self.spec(id) == spec).then_some((input, root))
        })
    }
}

/// A free slot of the type that wastes least, the largest free one made larger if none is large enough, or a new one.
fn allocate(slots: &mut Vec<SlotSpec>, free: &mut Vec<usize>, want: SlotSpec) -> usize {
    let of_type = |slots: &[SlotSpec], i: &usize| slots[*i].dtype == want.dtype;
    let fitting = free.iter().copied().filter(|i| of_type(slots, i) && slots[*i].len >= want.len).min_by_key(|&i| slots[i].len);
    let chosen = fitting.or_else(|| free.iter().copied().filter(|i| of_type(slots, i)).max_by_key(|&i| slots[i].len));
    match chosen {
        Some(slot) => {
            free.retain(|&i| i != slot);
            slots[slot].len = slots[slot].len.max(want.len);
            slot
        }
        None => {
            slots.push(want);
            slots.len() - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::evaluate::evaluate_values;
    use crate::engine::op::Kinds;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::optimize::testing::{graph, run};
    use crate::engine::optimize::{PASSES, testing::Builder};
    use crate::engine::tensor::Value;

    /// A node of a random graph: which operator, and which of the values so far it reads.
    type Choice = (usize, usize, usize);

    /// The graph that the choices make, and the names of its values.
    fn build(choices: &[Choice]) -> (Builder, Vec<String>) {
        let mut builder = graph().input("a", DType::F32, &[2, 3]).input("b", DType::F32, &[1, 3]);
        let mut names = vec!["a".to_owned(), "b".to_owned()];
        for (i, &(op, x, y)) in choices.iter().enumerate() {
            let (x, y, output) = (names[x % names.len()].clone(), names[y % names.len()].clone(), format!("v{i}"));
            builder = match op % 8 {
                0 => builder.node("Add", &[&x, &y], &output),
                1 => builder.node("Sub", &[&x, &y], &output),
                2 => builder.node("Max", &[&x, &y], &output),
                3 => builder.node("Neg", &[&x], &output),
                4 => builder.node("Abs", &[&x], &output),
                5 => builder.node("Identity", &[&x], &output),
                // An alias of the value that it reads, as Identity is.
                6 => builder.node_with("Flatten", &[("axis", Attr::Int(1))], &[&x], &output),
                _ => builder.node_with("Concat", &[("axis", Attr::Int(1))], &[&x, &x], &format!("{output}_wide")).node_with(
                    "ReduceMax",
                    &[("keepdims", Attr::Int(1))],
                    &[&format!("{output}_wide")],
                    &output,
                ),
            };
            names.push(output);
        }
        (builder, names)
    }

    /// The outputs of the graph, each node evaluated on its own into fresh storage.
    fn node_by_node(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
        let (mut scratch, threads) = (Scratch::default(), Threads::single());
        let mut known: HashMap<ValueId, Value> = HashMap::new();
        known.extend(graph.inputs.iter().zip(inputs).map(|(&id, tensor)| (id, Value::Tensor(tensor.clone()))));
        known.extend(graph.constants.iter().map(|(&id, tensor)| (id, Value::Tensor(tensor.clone()))));
        for node in &graph.nodes {
            let operands: Vec<Option<&Value>> = node.inputs.iter().map(|id| id.map(|id| &known[&id])).collect();
            let kinds: Kinds = node.results().map(|id| graph.values[id.index()].kind.clone().unwrap()).collect();
            let mut ctx = Context { scratch: &mut scratch, threads: &threads, isa: Isa::best(), budget: 1 << 30, deadline: None };
            let results = evaluate_values(&*node.op, &operands, &kinds, 1 << 20, &mut ctx).unwrap();
            known.extend(node.results().zip(results));
        }
        graph.outputs.iter().map(|id| known[id].tensor().unwrap().clone()).collect()
    }

    proptest! {
        /// Were two live values given one slot, the later would overwrite the earlier and the answers would differ.
        #[test]
        fn no_two_live_values_share_a_slot(choices in prop::collection::vec((0_usize..8, 0_usize..99, 0_usize..99), 1..24), kept in 0_usize..99) {
            let (builder, names) = build(&choices);
            let last = names.last().unwrap().clone();
            let graph = builder.outputs(&[&last, &names[kept % names.len()]]);
            let inputs = [tensor(&[2, 3], &noise(6, 1)), tensor(&[1, 3], &noise(3, 2))];
            let want = node_by_node(&graph, &inputs);
            let all: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
            prop_assert_eq!(&run(&graph, &inputs, &all), &want);
            prop_assert_eq!(&run(&graph, &inputs, &[]), &want);
        }
    }

    #[test]
    fn a_slot_is_used_again_once_its_value_is_dead() {
        let mut builder = graph().input("x", DType::F32, &[-1, 8]);
        let mut last = "x".to_owned();
        for i in 0..6 {
            builder = builder.node_with("Transpose", &[("perm", Attr::Ints(vec![0, 1]))], &[&last], &format!("t{i}"));
            last = format!("t{i}");
        }
        let plan = Plan::new(&builder.outputs(&[&last]), &[Shape::from_slice(&[4, 8])], 1 << 20, Isa::best(), false).unwrap();
        assert_eq!((plan.steps.len(), plan.slots.len(), plan.bytes()), (6, 2, 2 * 4 * 8 * 4));
    }

    #[test]
    fn a_run_beyond_the_memory_limit_is_refused() {
        let graph = graph().input("x", DType::F32, &[-1, 8]).node("Neg", &["x"], "y").outputs(&["y"]);
        let plan = |rows, limit| Plan::new(&graph, &[Shape::from_slice(&[rows, 8])], limit, Isa::best(), false);
        assert!(plan(4, 128).is_ok());
        assert!(matches!(plan(5, 128), Err(RunError::Node { .. } | RunError::Memory { .. })));
    }

    #[test]
    fn a_shape_whose_sizes_cannot_be_multiplied_is_refused() {
        let graph = graph().input("x", DType::F32, &[-1, -1, -1]).node("Flatten", &["x"], "y").outputs(&["y"]);
        let plan = |shape: &[usize]| Plan::new(&graph, &[Shape::from_slice(shape)], 128, Isa::best(), false);
        assert!(plan(&[0, 1 << 20, 1 << 20]).is_ok());
        assert!(matches!(plan(&[0, 1 << 40, 1 << 40]), Err(RunError::Memory { .. })));
    }

    /// A chain of transformer-like layers with shape arithmetic in between. An optimised build plans it in some milliseconds
    /// (`benches/record`); what this finds is work that grows with the square of the nodes.
    #[test]
    fn two_thousand_nodes_are_planned_at_once() {
        let mut builder = graph().input("x", DType::F32, &[-1, -1, 16]).constant("w", tensor(&[16, 16], &noise(256, 1)));
        for (name, values) in [("zero", &[0_i64][..]), ("one", &[1]), ("heads", &[2, 8]), ("width", &[16])] {
            builder = builder.constant(name, Tensor::vector(values.to_vec()));
        }
        let axis = |axis: i64| [("axis", Attr::Int(axis))];
        let mut last = "x".to_owned();
        for layer in 0..100 {
            let name = |part: &str| format!("{part}{layer}");
            let [q, s, b, t, to, heads, turned, back, sum, y] = ["q", "s", "b", "t", "to", "heads", "turned", "back", "sum", "y"].map(name);
            builder = builder.node("MatMul", &[&last, "w"], &q).node("Shape", &[&q], &s);
            builder = builder.node_with("Gather", &axis(0), &[&s, "zero"], &b).node_with("Gather", &axis(0), &[&s, "one"], &t);
            builder = builder.node_with("Concat", &axis(0), &[&b, &t, "heads"], &to).node("Reshape", &[&q, &to], &heads);
            builder = builder.node_with("Transpose", &[("perm", Attr::Ints(vec![0, 2, 1, 3]))], &[&heads], &turned);
            for step in 0..9 {
                let (from, made) =
                    if step == 0 { (turned.clone(), name("e0_")) } else { (name(&format!("e{}_", step - 1)), name(&format!("e{step}_"))) };
                builder = builder.node(["Sqrt", "Exp", "Softmax"][step % 3], &[&from], &made);
            }
            builder = builder.node_with(
                "Transpose",
                &[("perm", Attr::Ints(vec![0, 2, 1, 3]))],
                &[&name("e8_")],
                &turned.replace("turned", "again"),
            );
            let width = name("width_");
            builder = builder.node_with("Concat", &axis(0), &[&b, &t, "width"], &width);
            builder =
                builder.node("Reshape", &[&name("again"), &width], &back).node("Add", &[&back, &last], &sum).node("Relu", &[&sum], &y);
            last = y;
        }
        let graph = builder.outputs(&[&last]);
        assert!(graph.nodes.len() >= 2000, "{}", graph.nodes.len());
        let plan = || {
            let start = std::time::Instant::now();
            let plan = Plan::new(&graph, &[Shape::from_slice(&[3, 5, 16])], 1 << 20, Isa::best(), false).unwrap();
            (start.elapsed(), plan.slots.len())
        };
        // Others may use the machine: the fastest of some counts.
        let (fastest, slots) = (0..5).map(|_| plan()).min().unwrap();
        assert!(slots < 10, "{slots}");
        assert!(fastest < std::time::Duration::from_millis(500), "{fastest:?}");
    }

    #[test]
    fn random_numbers_are_not_drawn_while_planning() {
        let graph = graph().input("x", DType::F32, &[2]).node("RandomUniformLike", &["x"], "y").outputs(&["y"]);
        let mut planner = Planner::new(&graph, &[Shape::from_slice(&[2])], 128, Isa::best());
        planner.facts[graph.inputs[0].index()] = Some(Fact::constant(tensor(&[2], &[0.0_f32; 2])));
        planner.add(0).unwrap();
        assert_eq!(planner.steps.len(), 1);
    }
}
