//! The formats beside ONNX against who wrote them: every folder of `tests/fixtures/formats` holds a model as `transformers` or
//! PyTorch save it, and samples with the answers that these gave.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndserve::engine::{Isa, LoadOptions, Model, PASSES, Precision, Session, Tensor, Threads, Value, find_model_file, onnx};

/// What is computed may differ from what is recorded by this, absolute or relative.
const TOLERANCE: f32 = 1e-4;
const LIMIT: usize = 1 << 26;

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).unwrap_or_else(|e| panic!("{}: {e}", of.display()));
    let mut folders: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

fn models() -> Vec<PathBuf> {
    folders(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats"))
}

fn load(folder: &Path, isa: Isa, disabled_passes: Vec<String>) -> Arc<Model> {
    let file = find_model_file(folder).unwrap_or_else(|| panic!("{}: no model file", folder.display()));
    let options = LoadOptions { isa, disabled_passes, memory_limit: LIMIT, ..LoadOptions::default() };
    Arc::new(Model::load(&file, &options).unwrap_or_else(|e| panic!("{}: {e}", folder.display())))
}

fn session(model: &Arc<Model>, threads: usize) -> Session {
    Session::new(Arc::clone(model), Arc::new(Threads::new(threads).unwrap()))
}

/// Recorded inputs and outputs.
struct Sample {
    name: String,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

fn samples(folder: &Path) -> Vec<Sample> {
    let read = |folder: &Path, prefix: &str| -> Vec<Tensor> {
        let path = |i: usize| folder.join(format!("{prefix}_{i}.pb"));
        (0..).map(path).take_while(|p| p.is_file()).map(|p| onnx::read_tensor(&std::fs::read(p).unwrap(), LIMIT).unwrap().1).collect()
    };
    let sample = |f: PathBuf| Sample { name: f.display().to_string(), inputs: read(&f, "input"), outputs: read(&f, "output") };
    let samples: Vec<Sample> = folders(folder).into_iter().map(sample).filter(|sample| !sample.inputs.is_empty()).collect();
    assert!(samples.iter().all(|sample| !sample.outputs.is_empty()) && !samples.is_empty(), "{} has no sample", folder.display());
    samples
}

fn close(found: &[f32], want: &[f32], tolerance: f32) -> bool {
    found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1.0))
}

fn check(found: &[Value], sample: &Sample) {
    assert_eq!(found.len(), sample.outputs.len(), "{}: number of outputs", sample.name);
    for (i, (found, want)) in found.iter().zip(&sample.outputs).enumerate() {
        let found = found.tensor().unwrap();
        assert_eq!(found.shape(), want.shape(), "{} output {i}", sample.name);
        let same = close(found.slice().unwrap(), want.slice().unwrap(), TOLERANCE);
        assert!(same, "{} output {i}: {found:?} against {want:?}", sample.name);
    }
}

#[test]
fn outputs_are_those_that_were_recorded() {
    let models = models();
    assert!(models.len() >= 25, "{} folders", models.len());
    for folder in models {
        for isa in Isa::available() {
            let model = load(&folder, isa, vec![]);
            for sample in samples(&folder) {
                for threads in [1, 2] {
                    check(&session(&model, threads).run(&sample.inputs).unwrap_or_else(|e| panic!("{}: {e}", sample.name)), &sample);
                }
            }
        }
    }
}

#[test]
fn without_any_pass_the_outputs_are_the_same() {
    let names: Vec<String> = PASSES.iter().map(|pass| pass.name.to_owned()).collect();
    for folder in models() {
        let model = load(&folder, Isa::best(), names.clone());
        for sample in samples(&folder) {
            check(&session(&model, 1).run(&sample.inputs).unwrap(), &sample);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    for folder in models() {
        let model = load(&folder, Isa::best(), vec![]);
        assert!(model.signature().batchable, "{}", folder.display());
        let mut session = session(&model, 1);
        for sample in samples(&folder) {
            let together = session.run(&sample.inputs).unwrap();
            for row in 0..model.signature().rows(&sample.inputs).unwrap() {
                let alone: Vec<Tensor> = sample.inputs.iter().map(|t| t.rows(row..row + 1)).collect();
                let part: Vec<Value> = together.iter().map(|v| Value::Tensor(v.tensor().unwrap().rows(row..row + 1))).collect();
                assert_eq!(session.run(&alone).unwrap(), part, "{} row {row}", sample.name);
            }
        }
    }
}

#[test]
fn rounded_weights_keep_what_is_recorded_near_and_rows_to_the_bit() {
    /// The norm of the differences over that of what is recorded. The models are random and small: with short sums errors cancel little.
    const BOUNDS: [(Precision, f32); 2] = [(Precision::Int8Weights, 0.03), (Precision::Int4Weights, 0.6)];
    // Those of layers have matrices that are smaller than a panel.
    for folder in models().into_iter().filter(|folder| !folder.file_name().unwrap().to_str().unwrap().starts_with("layers")) {
        let file = find_model_file(&folder).unwrap();
        let full = load(&folder, Isa::best(), vec![]).summary().weight_bytes;
        for (precision, bound) in BOUNDS {
            let options = LoadOptions { precision, memory_limit: LIMIT, ..LoadOptions::default() };
            let model = Arc::new(Model::load(&file, &options).unwrap());
            assert!(model.summary().weight_bytes < full, "{} at {precision}: no weight is smaller", folder.display());
            let [mut one, mut two] = [1, 2].map(|threads| session(&model, threads));
            let (mut off, mut size) = (0.0, 0.0);
            for sample in samples(&folder) {
                let together = one.run(&sample.inputs).unwrap();
                assert_eq!(two.run(&sample.inputs).unwrap(), together, "{} at {precision} on two threads", sample.name);
                for (found, want) in together.iter().zip(&sample.outputs) {
                    let (found, want) = (found.tensor().unwrap().slice::<f32>().unwrap(), want.slice::<f32>().unwrap());
                    off += found.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                    size += want.iter().map(|v| v.powi(2)).sum::<f32>();
                }
                for row in 0..model.signature().rows(&sample.inputs).unwrap() {
                    let alone: Vec<Tensor> = sample.inputs.iter().map(|t| t.rows(row..row + 1)).collect();
                    let part: Vec<Value> = together.iter().map(|v| Value::Tensor(v.tensor().unwrap().rows(row..row + 1))).collect();
                    assert_eq!(one.run(&alone).unwrap(), part, "{} row {row} at {precision}", sample.name);
                }
            }
            let off = (off / size).sqrt();
            assert!(off > 0.0 && off <= bound, "{} at {precision}: {off}", folder.display());
        }
    }
}

#[test]
fn padding_changes_no_token() {
    let mut compared = 0;
    for folder in models() {
        let Some(sample) = samples(&folder).into_iter().find(|sample| sample.name.ends_with("padded")) else { continue };
        let model = load(&folder, Isa::best(), vec![]);
        let mut session = session(&model, 1);
        let together = session.run(&sample.inputs).unwrap();
        let mask = model.signature().input("attention_mask").unwrap();
        for row in 0..sample.inputs[0].shape()[0] {
            let mask = sample.inputs[mask].rows(row..row + 1);
            let length = mask.slice::<i64>().unwrap().iter().filter(|&&m| m == 1).count();
            let cut = |t: &Tensor| Tensor::new(&[1, length], t.rows(row..row + 1).slice::<i64>().unwrap()[..length].to_vec()).unwrap();
            let alone: Vec<Tensor> = sample.inputs.iter().map(cut).collect();
            for (alone, together) in session.run(&alone).unwrap().iter().zip(&together) {
                let (alone, together) = (alone.tensor().unwrap(), together.tensor().unwrap().rows(row..row + 1));
                let (alone, together) = (alone.slice::<f32>().unwrap(), together.slice::<f32>().unwrap());
                assert!(close(alone, &together[..alone.len()], 1e-5), "{} row {row}", sample.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn names_and_labels_are_those_of_the_configuration() {
    let of = |name: &str| load(&models().into_iter().find(|f| f.ends_with(name)).unwrap(), Isa::best(), vec![]);
    let ports = |model: &Model| {
        let signature = model.signature();
        let port = |port: &ndserve::engine::Port| format!("{}: {} {}", port.name, port.kind, port.dims_text());
        (
            signature.inputs.iter().map(port).collect::<Vec<_>>().join("; "),
            signature.outputs.iter().map(port).collect::<Vec<_>>().join("; "),
        )
    };
    let (inputs, outputs) = ports(&of("bert"));
    let tokens = "input_ids: int64 [batch, sequence]; attention_mask: int64 [batch, sequence]";
    assert_eq!(inputs, format!("{tokens}; token_type_ids: int64 [batch, sequence]"));
    assert_eq!(outputs, "last_hidden_state: float32 [batch, sequence, 16]; pooler_output: float32 [batch, 16]");
    assert_eq!(ports(&of("gpt2-words")), (tokens.to_owned(), "logits: float32 [batch, sequence, 40]".to_owned()));
    assert_eq!(ports(&of("minilm-mean")).1, "sentence_embedding: float32 [batch, 16]");
    let mlp = ("features: float32 [batch, 6]".to_owned(), "probabilities: float32 [batch, 3]".to_owned());
    assert_eq!(ports(&of("layers-mlp")), mlp);
    assert_eq!(of("roberta-sequence").metadata().labels, ["no", "maybe", "yes"]);
    assert!(of("bert-f16").metadata().labels.is_empty(), "LABEL_0 is no name");
}
