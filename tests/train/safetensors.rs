//! Models of weights and a description of layers, trained on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndserve::engine::{LoadOptions, Model, Session, Tensor, Threads, npz, read_graph};

use crate::fixture::Folder;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats").join(name)
}

/// Rows of numbers of a shape, and classes that follow from them.
fn data(shape: &[usize], classes: usize) -> (Tensor, Tensor) {
    const ROWS: usize = 24;
    let size: usize = shape.iter().product();
    let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
    let values: Vec<f32> = (0..ROWS * size).map(noise).collect();
    let labels = values.chunks(size).map(|row| (row.iter().sum::<f32>().abs() * 100.0) as i64 % classes as i64).collect();
    (Tensor::new(&[&[ROWS], shape].concat(), values).unwrap(), Tensor::vector::<i64>(labels))
}

/// What a model answers.
fn answer(path: &Path, x: &Tensor) -> Vec<f32> {
    let model = Model::load(path, &LoadOptions::default()).unwrap();
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    session.run(std::slice::from_ref(x)).unwrap()[0].tensor().unwrap().slice::<f32>().unwrap().to_vec()
}

/// The constants of a model by their name, without what is put in front of those of a base.
fn weights(path: &Path) -> Vec<(String, Vec<f32>)> {
    let graph = read_graph(path, &LoadOptions::default()).unwrap().graph;
    let named = graph.constants.iter().filter_map(|(id, t)| Some((graph.name(*id).to_owned(), t.slice::<f32>()?.to_vec())));
    named.map(|(name, values)| (name.trim_start_matches("base/").to_owned(), values)).collect()
}

#[test]
fn a_model_of_safetensors_is_trained_on_from_what_it_answers() {
    let statistics = "2 statistics of batch norms: `1.running_mean`, `1.running_var`";
    for (name, shape, classes, logits, said) in [
        ("layers-mlp", &[6][..], 3, false, format!("6 weights trained on, kept 2 by `base.freeze`: `0.weight`, `0.bias`; {statistics}")),
        ("layers-cnn", &[3, 14, 13], 4, true, format!("8 weights trained on, kept 1 by `base.freeze`: `0.weight`; {statistics}")),
    ] {
        let (x, y) = data(shape, classes);
        let archive = npz::write(&[("x", &x), ("y", &y)]).unwrap();
        // As a folder, and as the file in it.
        let path = model(name).join(if logits { "model.safetensors" } else { "" });
        let config = format!(
            "[data]\npath = \"data.npz\"\ntarget = \"y\"\ntask = \"classify\"\n[train]\nepochs = 30\nbatch = 24\nlearning_rate = 0.01\n\
             [base]\npath = {path:?}\nfreeze = [\"0.*\"]\n"
        );
        let folder = Folder::new().with("data.npz", archive).with("train.toml", config);
        let report = folder.done("tuned");
        let (before, after) = (model(name).join("model.safetensors"), folder.0.join("tuned/1/model.onnx"));
        // The first step, of all rows, loses what the model's answers lose.
        let row_loss = |(row, &label): (&[f32], &i64)| {
            let weight = |v: &f32| if logits { f64::from(*v).exp() } else { f64::from(*v) };
            -(weight(&row[label as usize]) / row.iter().map(weight).sum::<f64>()).ln()
        };
        let losses = answer(&before, &x).chunks_exact(classes).zip(y.slice::<i64>().unwrap()).map(row_loss).sum::<f64>();
        let (want, found) = (losses / 24.0, report.history[0].loss);
        assert!((want - found).abs() < 1e-5, "{name}: {found} is not {want}");
        assert!(report.train.0 < 0.8 * want, "{name}: {} after {want}", report.train.0);
        let card = fs::read_to_string(folder.0.join("tuned/README.md")).unwrap();
        assert!(card.contains(&said), "{name}: {card}");
        let (before, after) = (weights(&before), weights(&after));
        let of = |all: &[(String, Vec<f32>)], name: &str| all.iter().find(|(n, _)| n == name).unwrap().1.clone();
        for (weight, same) in [("0.weight", true), ("1.weight", false), ("1.running_var", true), ("4.weight", false)] {
            assert_eq!(of(&before, weight) == of(&after, weight), same, "{name}: {weight}");
        }
    }
}

/// One of token ids is refused, by what it takes.
#[test]
fn a_model_of_texts_is_refused_as_a_base() {
    let (x, y) = data(&[6], 2);
    let config = format!(
        "[data]\npath = \"data.npz\"\ntarget = \"y\"\ntask = \"classify\"\n[train]\nepochs = 1\nlearning_rate = 0.01\n[base]\npath = {:?}\n",
        model("distilbert-cls")
    );
    let folder = Folder::new().with("data.npz", npz::write(&[("x", &x), ("y", &y)]).unwrap()).with("train.toml", config);
    let error = folder.train("tuned", false, 0, 1).unwrap_err();
    assert!(error.contains("model.safetensors: it has 2 inputs; one is wanted"), "{error}");
}
