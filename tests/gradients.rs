//! Gradients of whole networks against PyTorch's autograd: `tests/fixtures/gradients/make.py` wrote networks with their gradients.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndserve::engine::{
    Appender, Attr, DType, Emit, Graph, LoadOptions, Loaded, Model, Session, Tensor, Threads, ValueId, gradient, npz, onnx, read_graph,
};

/// Of the greatest element of a gradient, or of 1.
const BOUND: f32 = 1e-5;

fn fixture(name: &str) -> (PathBuf, BTreeMap<String, Tensor>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gradients").join(format!("{name}.zip"));
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut member = |name: &str| {
        let mut bytes = Vec::new();
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let arrays = npz::read(Cursor::new(member("data.npz")), 1 << 24).unwrap();
    // Tests that run at the same time read the same network.
    static FOLDERS: AtomicUsize = AtomicUsize::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gradients-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.onnx"), member("model.onnx")).unwrap();
    (folder, arrays)
}

fn value(graph: &Graph, name: &str) -> Option<ValueId> {
    graph.values.iter().position(|value| value.name == name).map(|at| ValueId(at as u32))
}

fn run(graph: Graph, loaded: &Loaded, inputs: &[Tensor]) -> Vec<Tensor> {
    let model = Model::build(Loaded { graph, metadata: loaded.metadata.clone() }, &LoadOptions::default()).unwrap();
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    session.run(inputs).unwrap().iter().map(|value| value.tensor().unwrap().clone()).collect()
}

fn compare(what: &str, found: &Tensor, want: &Tensor) {
    assert_eq!(found.shape(), want.shape(), "{what}");
    let (found, want) = (found.slice::<f32>().unwrap(), want.slice::<f32>().unwrap());
    let size = want.iter().fold(1.0_f32, |size, v| size.max(v.abs()));
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        assert!((found - want).abs() <= BOUND * size, "{what}: element {i} is {found}, not {want}");
    }
}

fn agrees(name: &str) {
    let (folder, arrays) = fixture(name);
    let loaded = read_graph(&folder.join("model.onnx"), &LoadOptions::default()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut graph = loaded.graph.clone();
    let output = graph.outputs[0];
    compare(&format!("{name}: y"), &run(loaded.graph.clone(), &loaded, &[arrays["x"].clone()])[0], &arrays["y"]);
    let loss = {
        let mut emit = Appender::new(&mut graph, "loss");
        let emit: &mut dyn Emit = &mut emit;
        let weights = emit.constant(arrays["weights"].clone());
        let product = emit.op("Mul", &[output, weights]).unwrap();
        emit.with("ReduceSum", &[("keepdims", Attr::Int(0))], &[product]).unwrap()
    };
    let wanted: Vec<(&str, &Tensor)> = arrays.iter().filter_map(|(key, tensor)| Some((key.strip_prefix("gradient/")?, tensor))).collect();
    assert!(wanted.len() > 5, "{name}: {} gradients", wanted.len());
    // A constant could be folded away together with what depends on it: what is differentiated by becomes an input.
    let mut inputs = vec![arrays["x"].clone()];
    let mut wrt = Vec::new();
    for (parameter, _) in &wanted {
        let id = value(&graph, parameter).unwrap_or_else(|| panic!("{name}: there is no value `{parameter}`"));
        if let Some(constant) = graph.constants.remove(&id) {
            graph.inputs.push(id);
            inputs.push(constant);
        }
        wrt.push(id);
    }
    let found = run(gradient(&graph, loss, &wrt).unwrap(), &loaded, &inputs);
    for ((parameter, want), found) in wanted.iter().zip(&found) {
        compare(&format!("{name}: the gradient of `{parameter}`"), found, want);
    }
}

#[test]
fn a_perceptron_agrees_with_autograd() {
    agrees("mlp");
}

#[test]
fn a_convolutional_network_agrees_with_autograd() {
    agrees("cnn");
}

#[test]
fn attention_agrees_with_autograd() {
    agrees("attention");
}

#[test]
fn recurrent_layers_agree_with_autograd() {
    agrees("recurrent");
}

/// A graph that was read and written answers with the same bits.
#[test]
fn what_is_written_answers_the_same() {
    for name in ["mlp", "cnn", "attention", "recurrent"] {
        let (folder, arrays) = fixture(name);
        let loaded = read_graph(&folder.join("model.onnx"), &LoadOptions::default()).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let bytes = onnx::write_model(&loaded.graph, &loaded.metadata).unwrap();
        let again = onnx::read_model(&bytes, &LoadOptions::default()).unwrap();
        let mut session = Session::new(Arc::new(again), Arc::new(Threads::single()));
        let found = session.run(&[arrays["x"].clone()]).unwrap();
        let want = run(loaded.graph.clone(), &loaded, &[arrays["x"].clone()]);
        assert_eq!(found[0].tensor(), Some(&want[0]), "{name}");
        assert_eq!(want[0].dtype(), DType::F32);
    }
}
