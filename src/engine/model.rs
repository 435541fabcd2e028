//! A loaded model: optimised, prepacked, immutable, shared by the sessions that run it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::error::{LoadError, RunError};
use super::graph::{Dim, Graph, ValueId};
use super::kernels::isa::Isa;
use super::kernels::weights::Precision;
use super::load::{self, Loaded, Metadata};
use super::op::Shape;
use super::optimize::{self, PassReport};
use super::overrides::Overrides;
use super::plan::Plan;
use super::portions::Portions;
use super::program::Program;
use super::signature::{Port, Signature};
use super::tensor::{Kind, Tensor};
use super::threads::Threads;
use super::weight_cache::{KeptWeights, WeightCache, WeightCachePlace};

/// What the caller decides about loading.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The instruction set to use; the machine's best by default.
    pub isa: Isa,
    /// The arithmetic of products with constant weights.
    pub precision: Precision,
    /// Bytes that one run may use for values, and one constant may take.
    pub memory_limit: usize,
    /// How long one run may take: what stops a loop without end. Only operators that repeat a body look at it.
    pub run_limit: Option<Duration>,
    /// Passes to leave out, by name, to find out what a pass does.
    pub disabled_passes: Vec<String>,
    /// Whether weights stay in the order of the file, and each run packs what its kernels want in another.
    pub no_prepack: bool,
    /// Where packed weights are kept for the next process, if they are.
    pub weight_cache: Option<WeightCachePlace>,
    /// Whether every step of a run allocates its results by itself, to find out what the plan does.
    pub unplanned: bool,
    /// The threads that read and pack weights.
    pub threads: Arc<Threads>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            isa: Isa::best(),
            precision: Precision::F32,
            memory_limit: 8 << 30,
            run_limit: Some(Duration::from_secs(60)),
            disabled_passes: Vec::new(),
            no_prepack: false,
            weight_cache: None,
            unplanned: false,
            threads: Arc::new(Threads::single()),
        }
    }
}

impl LoadOptions {
    /// The same for what is made later, on the thread of a request: without the threads of the load, which may be gone by then.
    pub(crate) fn for_later(&self) -> Self {
        Self { threads: Arc::new(Threads::single()), ..self.clone() }
    }
}

/// A model ready to run.
#[derive(Debug)]
pub struct Model {
    program: Program,
    signature: Signature,
    metadata: Metadata,
    summary: Summary,
    run_limit: Option<Duration>,
    overrides: Option<Overrides>,
    portions: Portions,
    /// Of each file that weights were packed from, if what they became is kept.
    kept: Vec<Arc<WeightCache>>,
}

/// Counts of what was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Elements of all initialisers.
    pub parameters: usize,
    /// Bytes of the constants that the model holds, packed and unpacked.
    pub weight_bytes: usize,
    /// How many nodes of each operator the file has, by the operator's full name and opset.
    pub operators: Vec<(String, u16, usize)>,
}

impl Model {
    /// Loads the model at `path`, whatever its format.
    ///
    /// # Errors
    /// If the file cannot be read, is malformed, or has nodes that the engine cannot run (all of them are named).
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let loaded = load::open_unread(path, options)?;
        let files = loaded.files();
        if let Some(place) = &options.weight_cache {
            let label = format!("{}-{}", options.isa, options.precision);
            for file in &files {
                let io = |source| LoadError::Io { path: file.path().to_owned(), source };
                file.use_cache(place, &label, &options.threads).map_err(io)?;
            }
        }
        let mut model = Self::build(loaded, options)?;
        model.kept = files.iter().filter_map(|file| file.cache().cloned()).collect();
        model.kept.iter().filter(|cache| !cache.is_incomplete()).for_each(|cache| cache.forget());
        Ok(model)
    }

    /// Bytes of packed weights that were found in files of an earlier process.
    pub fn found_bytes(&self) -> usize {
        self.kept.iter().map(|cache| cache.found_bytes()).sum()
    }

    /// What is wrong with a file of packed weights that was found; what it should have had was packed.
    pub fn damaged_weights(&self) -> Option<String> {
        self.kept.iter().find_map(|cache| cache.damage())
    }

    /// Whether [`Model::keep_weights`] has something to write.
    pub fn lacks_kept_weights(&self) -> bool {
        self.kept.iter().any(|cache| cache.is_incomplete())
    }

    /// Writes what the files of packed weights lack, once: see [`LoadOptions::weight_cache`]. It takes as long as to read the model, and to
    /// write it.
    ///
    /// # Errors
    /// For each file why it was not written.
    pub fn keep_weights(&self) -> Vec<Result<KeptWeights, String>> {
        self.kept.iter().filter_map(|cache| cache.write()).collect()
    }

    /// What each pass does to the model at `path`, in the order of the passes.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn passes(path: &Path, options: &LoadOptions) -> Result<Vec<PassReport>, LoadError> {
        let mut graph = load::open(path, options)?.graph;
        optimize::run_and_tell(&mut graph, options).map_err(|(pass, error)| LoadError::Format(format!("after the pass `{pass}`: {error}")))
    }

    /// Makes a model of a graph that was read or built.
    ///
    /// # Errors
    /// If the graph breaks an invariant.
    pub fn build(loaded: Loaded, options: &LoadOptions) -> Result<Self, LoadError> {
        let files = loaded.files();
        let Loaded { mut graph, metadata } = loaded;
        let invalid = |context: &str, error: super::graph::Invalid| LoadError::Format(format!("{context}: {error}"));
        graph.verify().map_err(|error| invalid("the graph is not valid", error))?;
        let mut summary = count(&graph);
        let ports = |ids: &[ValueId], graph: &Graph| -> Vec<Port> { ids.iter().map(|&id| port(graph, id)).collect() };
        let (inputs, optional, outputs) = (ports(&graph.inputs, &graph), ports(&graph.defaults, &graph), ports(&graph.outputs, &graph));
        let mut signature = Signature { inputs, optional, outputs, batchable: false };
        let overrides = Overrides::of(&graph, options);
        optimize::run(&mut graph, options).map_err(|(pass, error)| invalid(&format!("after the pass `{pass}`"), error))?;
        // They are for writing graphs; what runs needs them no more.
        graph.nodes.iter_mut().for_each(|node| node.attributes = Arc::default());
        optimize::prepack(&mut graph, options);
        graph.verify().map_err(|error| invalid("after prepacking", error))?;
        load::finish(&files, &options.threads)?;

        probe_outputs(&graph, &mut signature, options);
        let program = Program::new(graph, options);
        summary.weight_bytes = program.weight_bytes() + overrides.as_ref().map_or(0, |overrides| overrides.weight_bytes(&program));
        Ok(Self {
            program,
            signature,
            metadata,
            summary,
            run_limit: options.run_limit,
            overrides,
            portions: Portions::default(),
            kept: Vec::new(),
        })
    }

    /// What the model takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Counts of what was loaded.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The optimised graph.
    pub fn graph(&self) -> &Graph {
        self.program.graph()
    }

    /// The instruction set that the weights were packed for.
    pub fn isa(&self) -> Isa {
        self.program.isa()
    }

    /// Bytes that one run may use for values.
    pub fn memory_limit(&self) -> usize {
        self.program.memory_limit()
    }

    /// How long one run may take.
    pub(crate) fn run_limit(&self) -> Option<Duration> {
        self.run_limit
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// How initialisers are replaced, if there are any that may be.
    pub(crate) fn overrides(&self) -> Option<&Overrides> {
        self.overrides.as_ref()
    }

    /// The plan for inputs of these shapes, from the cache or made now.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, shapes: &[Shape]) -> Result<Arc<Plan>, RunError> {
        self.program.plan(shapes)
    }

    /// How many rows of inputs of these shapes `threads` threads compute together.
    pub(crate) fn rows_together(&self, shapes: &[Shape], threads: usize) -> Result<usize, RunError> {
        if self.signature.batchable { self.portions.rows_together(&self.program, shapes, threads) } else { Ok(usize::MAX) }
    }

    /// The input shapes of a batch of `rows`, if every other dimension is fixed.
    pub fn batch_shapes(&self, rows: usize) -> Option<SmallVec<[Shape; 4]>> {
        self.signature.batch_shapes(rows)
    }
}

fn port(graph: &Graph, id: ValueId) -> Port {
    let value = &graph.values[id.index()];
    let kind = value.kind.clone().expect("a verified graph knows its kinds");
    Port { name: value.name.clone(), kind, dims: value.dims.clone() }
}

fn count(graph: &Graph) -> Summary {
    let mut operators: Vec<(String, u16, usize)> = Vec::new();
    for node in &graph.nodes {
        let name = node.op_type();
        match operators.iter_mut().find(|(known, opset, _)| *known == name && *opset == node.opset) {
            Some((.., n)) => *n += 1,
            None => operators.push((name, node.opset, 1)),
        }
    }
    operators.sort();
    Summary { parameters: graph.constants.values().map(Tensor::len).sum(), weight_bytes: 0, operators }
}

/// Plans the graph at two batch sizes to learn what the file may not declare: the outputs' dimensions, and whether
/// dimension 0 of every output follows the batch.
fn probe_outputs(graph: &Graph, signature: &mut Signature, options: &LoadOptions) {
    let free_batch = |port: &Port| matches!(port.dims.as_deref(), Some([Dim::Free(_), ..]));
    let batch_name = |port: &Port| match port.dims.as_deref() {
        Some([Dim::Free(name), ..]) => name.clone(),
        _ => String::new(),
    };
    let candidate = !signature.inputs.is_empty() && signature.inputs.iter().all(free_batch) && {
        let mut names: Vec<String> = signature.inputs.iter().map(batch_name).filter(|name| !name.is_empty()).collect();
        names.dedup();
        names.len() <= 1
    };
    // A size for free dimensions other than the batch: large enough for common kernels and pools.
    const PROBE: usize = 32;
    let shapes = |batch: usize| -> Option<Vec<Shape>> {
        let shape = |port: &Port| {
            let dims = port.dims.as_ref()?;
            let first = batch_name(port);
            Some(
                dims.iter()
                    .enumerate()
                    .map(|(i, dim)| match dim {
                        Dim::Fixed(n) => *n,
                        Dim::Free(name) if i == 0 || (!name.is_empty() && *name == first) => batch,
                        Dim::Free(_) => PROBE,
                    })
                    .collect::<Shape>(),
            )
        };
        signature.inputs.iter().map(shape).collect()
    };
    let plan = |batch| Plan::new(graph, &shapes(batch)?, options.memory_limit, options.isa, false).ok();
    let (Some(two), Some(three)) = (plan(2), plan(3)) else { return };
    let mut follows = candidate;
    for (port, &id) in signature.outputs.iter_mut().zip(&graph.outputs) {
        let (Some(a), Some(b)) = (two.shape(id), three.shape(id)) else {
            follows = false;
            continue;
        };
        let is_tensor = matches!(port.kind, Kind::Tensor(_));
        follows &= is_tensor && a.len() == b.len() && a.first() == Some(&2) && b.first() == Some(&3) && a[1..] == b[1..];
        if port.dims.as_ref().is_none_or(|dims| dims.len() != a.len()) && a.len() == b.len() {
            let all_fixed = signature
                .inputs
                .iter()
                .all(|port| port.dims.as_ref().is_some_and(|dims| dims.iter().skip(1).all(|d| matches!(d, Dim::Fixed(_)))));
            let dim = |(&a, &b): (&usize, &usize)| if a == b && all_fixed { Dim::Fixed(a) } else { Dim::Free(String::new()) };
            port.dims = Some(a.iter().zip(b).map(dim).collect());
        }
    }
    signature.batchable = follows;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::load::Metadata;
    use crate::engine::optimize::testing::graph;

    #[test]
    fn a_scalar_input_is_no_batch() {
        let graph = graph().input("x", crate::engine::dtype::DType::F32, &[]).node("Neg", &["x"], "y").outputs(&["y"]);
        let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions::default()).unwrap();
        assert!(!model.signature().batchable);
    }
}
