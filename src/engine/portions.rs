//! How many rows of a batch run together.
//!
//! Whole batches of images do not fit in the caches: what one operator writes comes back from memory for the next. Where each row of a
//! batch is computed by itself, a run takes it in portions instead, as many rows at once as make the least traffic to memory: few enough
//! that what goes from operator to operator stays in the last-level cache, and as many as that allows, for each portion reads the weights.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::error::RunError;
use super::graph::{Graph, ValueId};
use super::kernels::cache::caches;
use super::op::{Fact, Facts, Shape};
use super::plan::{Place, Plan};
use super::program::Program;

/// What was found out of rows of some shapes, by those shapes.
#[derive(Debug, Default)]
pub(crate) struct Portions {
    known: Mutex<HashMap<Vec<Shape>, Option<Traffic>>>,
}

impl Portions {
    /// Shapes that are remembered; more of them are forgotten all at once.
    const CAPACITY: usize = 64;

    /// How many rows of inputs of `shapes`, whose first dimensions are all the same number of rows, `threads` threads compute together:
    /// at most all of them, which is the answer for all whose rows are not known to be computed each by itself.
    ///
    /// # Errors
    /// If there is no plan for the inputs.
    pub(crate) fn rows_together(&self, program: &Program, shapes: &[Shape], threads: usize) -> Result<usize, RunError> {
        let Some(rows) = shapes.first().and_then(|shape| shape.first().copied()).filter(|rows| *rows > 1) else { return Ok(1) };
        let cache = in_cache();
        // What fits as a whole needs no portions.
        if program.plan(shapes)?.bytes() <= cache {
            return Ok(rows);
        }
        let row: Vec<Shape> = shapes.iter().map(|shape| shape[1..].into()).collect();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let choose = |found: &Option<Traffic>| found.as_ref().map_or(rows, |found| found.rows_together(rows, threads, cache as u64));
        if let Some(found) = lock().get(&row) {
            return Ok(choose(found));
        }
        let found = Traffic::find(program, &row);
        let answer = choose(&found);
        let mut known = lock();
        if known.len() >= Self::CAPACITY {
            known.clear();
        }
        known.insert(row, found);
        Ok(answer)
    }
}

/// Bytes of what an operator reads and writes up to which the next one finds it in the last-level cache: half of it, for there is more to
/// keep, and no more than 16 MiB, for large ones are shared with other processes (MobileNetV2 with a cache of 32 MiB: 9.8 ms a row with
/// operators of 11 MiB, 10.3 with 22, 12.0 with 45).
fn in_cache() -> usize {
    (caches().third / 2).min(16 << 20)
}

/// What the operators of a program read and write.
#[derive(Debug)]
struct Traffic {
    /// Bytes for each row, of each operator.
    row: Vec<u64>,
    /// Bytes of weights, however many rows.
    weights: u64,
    /// Floating-point operations for each row.
    flops: u64,
}

impl Traffic {
    /// `None` if a row may depend on those beside it, or the shapes of some values are not known before the run.
    fn find(program: &Program, row: &[Shape]) -> Option<Traffic> {
        let plan = |rows: usize| {
            let shapes: Vec<Shape> = row.iter().map(|row| std::iter::once(rows).chain(row.iter().copied()).collect()).collect();
            program.plan(&shapes).ok().filter(|plan| plan.is_static())
        };
        let (one, two, three) = (plan(1)?, plan(2)?, plan(3)?);
        let graph = program.graph();
        if !row_wise(graph, &[&one, &two, &three]) {
            return None;
        }
        let mut found = Traffic { row: Vec::new(), weights: 0, flops: three.work().saturating_sub(two.work()) };
        for ((_, two), (_, three)) in two.steps(graph).zip(three.steps(graph)) {
            let row = three.bytes.saturating_sub(two.bytes);
            found.row.push(row);
            found.weights = found.weights.saturating_add(two.bytes.saturating_sub(row.saturating_mul(2)));
        }
        Some(found)
    }

    /// Bytes between caches and memory for each row, if some run together.
    fn of(&self, rows: u64, cache: u64) -> u64 {
        self.row.iter().filter(|row| row.saturating_mul(rows) > cache).fold(self.weights / rows, |sum, row| sum.saturating_add(*row))
    }

    fn rows_together(&self, rows: usize, threads: usize, cache: u64) -> usize {
        /// Floating-point operations in the time of a byte from memory.
        const FLOPS_OF_A_BYTE: u64 = 8;
        /// The least share of the time that is worth it.
        const SHARE: u64 = 20;
        let whole = self.of(rows as u64, cache);
        let fewer = std::iter::successors(Some(1_usize), |rows| rows.checked_mul(2)).take_while(|some| *some < rows);
        // Each thread has a row at least.
        let found = fewer.filter(|some| *some >= threads).map(|some| (self.of(some as u64, cache), some));
        let found = found.min_by_key(|(bytes, some)| (*bytes, std::cmp::Reverse(*some)));
        let saved = |bytes: u64| whole.saturating_sub(bytes).saturating_mul(FLOPS_OF_A_BYTE * SHARE);
        match found {
            // The same number of portions, as equal as may be.
            Some((bytes, some)) if bytes < whole && saved(bytes) >= self.flops => rows.div_ceil(rows.div_ceil(some)),
            _ => rows,
        }
    }
}

/// Whether row `i` of every value, along its first dimension, follows from row `i` of the inputs alone. `plans` are those of one, two and
/// three rows.
fn row_wise(graph: &Graph, plans: &[&Plan; 3]) -> bool {
    // Values that follow the rows: in each plan the same but for the first dimension, which is the number of rows.
    let follows = |id: ValueId| {
        let mut shapes = plans.iter().map(|plan| plan.shape(id)).zip(1..);
        let rest = plans[0].shape(id).and_then(|shape| shape.get(1..));
        shapes.all(|(shape, rows)| shape.is_some_and(|shape| shape.first() == Some(&rows) && shape.get(1..) == rest))
    };
    let computed = |id: ValueId| plans.iter().all(|plan| matches!(plan.places[id.index()], Place::Computed(_) | Place::Constant(_)));
    // Also such as are computed from shapes must not tell how many rows there are.
    let same = |id: ValueId| plans.iter().all(|plan| plan.places[id.index()] == plans[0].places[id.index()]);
    // What follows from the number of rows alone is no answer to a row: it may count them.
    if graph.outputs.iter().any(|id| computed(*id) || !follows(*id)) {
        return false;
    }
    graph.nodes.iter().all(|node| {
        if node.results().all(computed) {
            return true;
        }
        // The same elements in the same order under another shape: rows stay rows if their number does.
        let alias = node.op.alias();
        let position = |id: ValueId| node.inputs.iter().position(|input| *input == Some(id));
        let operand = |id: ValueId| match computed(id) {
            true => same(id) || alias.is_some_and(|source| position(id) != Some(source)),
            false => follows(id),
        };
        if !node.operands().all(operand) || !node.results().all(follows) {
            return false;
        }
        let fact = |id: &ValueId| {
            let value = match &plans[1].places[id.index()] {
                Place::Constant(constant) => graph.constants.get(constant).cloned(),
                Place::Computed(tensor) => Some(tensor.clone()),
                _ => None,
            };
            Some(Fact { kind: graph.values[id.index()].kind.clone()?, shape: plans[1].shape(*id).map(Shape::from), value })
        };
        let facts: Vec<Option<Fact>> = node.inputs.iter().map(|id| id.as_ref().and_then(fact)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        alias.is_some() || node.op.row_wise(&Facts(&facts))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::dtype::DType;
    use crate::engine::load::{Loaded, Metadata};
    use crate::engine::model::{LoadOptions, Model};
    use crate::engine::optimize::testing::{Builder, graph};
    use crate::engine::session::Session;
    use crate::engine::tensor::{Tensor, Value};
    use crate::engine::threads::Threads;

    fn traffic(row: &[u64], weights: u64, flops: u64) -> Traffic {
        Traffic { row: row.to_vec(), weights, flops }
    }

    #[test]
    fn portions_are_as_large_as_the_cache_allows() {
        // Operators of 5 and 1 MiB for each row, and few weights.
        let images = traffic(&[5 << 20, 1 << 20], 1 << 20, 1 << 20);
        for (rows, threads, want) in [(8, 1, 2), (8, 2, 2), (8, 3, 8), (7, 1, 2), (9, 1, 2), (3, 1, 2), (2, 1, 2), (1, 1, 1)] {
            assert_eq!(images.rows_together(rows, threads, 12 << 20), want, "{rows} rows, {threads} threads");
        }
        assert_eq!(traffic(&[3 << 20], 0, 0).rows_together(9, 1, 12 << 20), 3, "of those that fit the largest");
        assert_eq!(traffic(&[3 << 20], 1 << 20, 0).rows_together(5, 1, 12 << 20), 3, "two of nearly the same size, not 4 and 1");
    }

    #[test]
    fn weights_that_are_read_again_count_too() {
        assert_eq!(traffic(&[5 << 20], 100 << 20, 1 << 20).rows_together(8, 1, 12 << 20), 8);
        assert_eq!(traffic(&[5 << 20], 4 << 20, 1 << 20).rows_together(8, 1, 12 << 20), 2);
    }

    #[test]
    fn what_computes_long_is_not_taken_apart_for_a_little_memory() {
        assert_eq!(traffic(&[5 << 20], 1 << 20, 10 << 30).rows_together(8, 1, 12 << 20), 8);
    }

    fn model(graph: Builder, output: &str) -> Model {
        Model::build(Loaded { graph: graph.outputs(&[output]), metadata: Metadata::default() }, &LoadOptions::default()).expect("a model")
    }

    fn input() -> Builder {
        graph().input("x", DType::F32, &[-1, 4])
    }

    /// `y = op(x, of)`, with a constant second operand or none.
    fn one(op: &str, attrs: &[(&str, Attr)], constant: Option<Tensor>) -> Model {
        let inputs: &[&str] = if constant.is_some() { &["x", "c"] } else { &["x"] };
        let graph = constant.into_iter().fold(input(), |graph, constant| graph.constant("c", constant));
        model(graph.node_with(op, attrs, inputs, "y"), "y")
    }

    #[test]
    fn only_operators_that_compute_each_row_by_itself_are_taken_apart() {
        let axis = |axis: i64| [("axis", Attr::Int(axis))];
        let shape = |dims: &[i64]| Some(Tensor::vector(dims.to_vec()));
        let matrix = || Some(Tensor::new(&[4, 4], vec![0.5_f32; 16]).expect("a matrix"));
        let cases = [
            ("Relu", one("Relu", &[], None), true),
            ("Softmax over a row", one("Softmax", &axis(1), None), true),
            ("Softmax over a column", one("Softmax", &axis(0), None), false),
            ("Concat beside", model(input().node_with("Concat", &axis(1), &["x", "x"], "y"), "y"), true),
            ("Concat below", model(input().node_with("Concat", &axis(0), &["x", "x"], "y"), "y"), false),
            ("Reshape of rows", one("Reshape", &[], shape(&[0, 2, 2])), true),
            ("Reshape over rows", one("Reshape", &[], shape(&[-1, 2])), false),
            ("Reshape to two", one("Reshape", &[], shape(&[2, -1])), false),
            ("MatMul", one("MatMul", &[], matrix()), true),
            ("Gemm", one("Gemm", &[], matrix()), true),
            ("ReduceMean", one("ReduceMean", &[("keepdims", Attr::Int(1))], shape(&[0])), false),
            ("Add of a constant", one("Add", &[], Some(Tensor::vector(vec![1.0_f32; 4]))), true),
            ("Mul of two", model(input().node("Sigmoid", &["x"], "s").node("Mul", &["x", "s"], "y"), "y"), true),
            // Times the number of rows, which follows from the shape alone.
            (
                "Mul by the number of rows",
                model(
                    input()
                        .constant("zero", Tensor::vector(vec![0_i64]))
                        .node("Shape", &["x"], "shape")
                        .node("Gather", &["shape", "zero"], "rows")
                        .node_with("Cast", &[("to", Attr::Int(1))], &["rows"], "factor")
                        .node("Mul", &["x", "factor"], "y"),
                    "y",
                ),
                false,
            ),
            (
                "Slice as long as there are rows",
                model(
                    input()
                        .constant("places", Tensor::vector((0..9).collect::<Vec<i64>>()))
                        .constant("zero", Tensor::vector(vec![0_i64]))
                        .node("Shape", &["x"], "shape")
                        .node("Gather", &["shape", "zero"], "rows")
                        .node("Slice", &["places", "zero", "rows"], "y"),
                    "y",
                ),
                false,
            ),
            // The last dimension is as long as there are rows where there are four.
            ("MatMul with its transposed", model(input().node("Transpose", &["x"], "t").node("MatMul", &["x", "t"], "y"), "y"), false),
        ];
        for (name, model, want) in cases {
            assert_eq!(Traffic::find(model.program(), &[Shape::from_slice(&[4])]).is_some(), want, "{name}");
        }
    }

    #[test]
    fn rows_have_the_same_bits_in_portions_as_alone() {
        // Two rows fit in a cache of 4 MiB, and all in none.
        const ROWS: usize = 40;
        const ROW: usize = 4 * 128 * 256;
        let weights = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let model = Arc::new(model(
            graph()
                .input("x", DType::F32, &[-1, 4, 128, 256])
                .constant("scale", Tensor::new(&[4, 1, 1], weights(4)).expect("four"))
                .constant("w", Tensor::new(&[4, 3], weights(12)).expect("a matrix"))
                .node("Mul", &["x", "scale"], "scaled")
                .node("Relu", &["scaled"], "above")
                .node("GlobalAveragePool", &["above"], "mean")
                .node("Flatten", &["mean"], "flat")
                .node("Gemm", &["flat", "w"], "y"),
            "y",
        ));
        let image = |seed: usize, rows: usize| {
            let values = (0..rows * ROW).map(|i| ((i + seed * ROW) as f32 * 0.011).sin()).collect();
            Tensor::new(&[rows, 4, 128, 256], values).expect("images")
        };
        let whole = model.plan(&[Shape::from_slice(&[ROWS, 4, 128, 256])]).expect("a plan").bytes();
        let alone: Vec<Value> = {
            let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::single()));
            (0..ROWS).flat_map(|row| session.run(&[image(row, 1)]).expect("a run")).collect()
        };
        let bits = |values: &[Value]| -> Vec<u32> {
            let one = |value: &Value| value.tensor().and_then(|tensor| tensor.slice::<f32>().map(<[f32]>::to_vec)).expect("numbers");
            values.iter().flat_map(one).map(f32::to_bits).collect()
        };
        for threads in [Threads::single(), Threads::new(2).expect("two threads")] {
            let mut session = Session::new(Arc::clone(&model), Arc::new(threads));
            let together = session.run(&[image(0, ROWS)]).expect("a run");
            assert_eq!(together[0].tensor().expect("a tensor").shape(), [ROWS, 3]);
            assert_eq!(bits(&together), bits(&alone));
            assert!(session.bytes() < whole / 2, "{} bytes of {whole}", session.bytes());
            let (first, second) = ([image(0, 17)], [image(17, ROWS - 17)]);
            let requests = session.run_rows(&[&first, &second]).expect("a run");
            assert_eq!(
                requests.iter().map(|outputs| outputs[0].tensor().expect("a tensor").shape()[0]).collect::<Vec<_>>(),
                [17, ROWS - 17]
            );
            assert_eq!(requests.iter().flat_map(|outputs| bits(outputs)).collect::<Vec<_>>(), bits(&alone));
        }
    }
}
