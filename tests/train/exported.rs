//! Models as exporters write them: all their weights are trained, however they reach their operators.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use ndserve::engine::npz;

use crate::fixture::Folder;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training").join(name)).unwrap()
}

fn exported(member: &str) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(Cursor::new(fixture("exported.zip"))).unwrap();
    let mut bytes = Vec::new();
    archive.by_name(member).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A training on from `name`, with more keys of `[base]`.
fn begun(name: &str, more: &str) -> Folder {
    let config = format!(
        "[data]\npath = \"data.npz\"\ntarget = \"label\"\ntask = \"classify\"\n[train]\nepochs = 25\nbatch = 64\nlearning_rate = 0.05\n\
         optimizer = {{ kind = \"sgd\", momentum = 0.9 }}\n[base]\npath = \"{name}.onnx\"\n{more}\n"
    );
    Folder::new()
        .with("data.npz", fixture("data.npz"))
        .with(&format!("{name}.onnx"), exported(&format!("{name}.onnx")))
        .with("train.toml", config)
}

/// What the card says of the base.
fn said(folder: &Folder) -> String {
    let card = fs::read_to_string(folder.0.join("model/README.md")).unwrap();
    card.lines().find(|line| line.starts_with("| begun with")).unwrap().to_owned()
}

/// The mean cross-entropy of what the exported file answers.
fn answered(folder: &Folder) -> f64 {
    let data = npz::read(Cursor::new(fixture("data.npz")), 1 << 24).unwrap();
    let answers = folder.answer("model", &[data["image"].clone()]);
    let labels = data["label"].slice::<i64>().unwrap();
    let loss = |(row, &label): (&[f32], &i64)| -f64::from(row[label as usize].ln());
    answers.chunks_exact(10).zip(labels).map(loss).sum::<f64>() / labels.len() as f64
}

#[test]
fn weights_behind_transpositions_slices_and_copies_are_trained_as_pytorch_trains_them() {
    let curves: serde_json::Value = serde_json::from_slice(&exported("losses.json")).unwrap();
    let statistics = "4 statistics of batch norms: `norm.running_mean`, `norm.running_var`, `other.running_mean`, `other.running_var`";
    let mask = "1 that no operator has as weights (`base.train` names those that are): `mask`";
    for (name, more, trained, kept) in [
        ("lstm-script", "", 10, "none kept"),
        ("gru-script", "", 6, "none kept"),
        ("encoder-script", "", 16, "none kept"),
        ("encoder-script-folded", "", 16, "none kept"),
        ("encoder-dynamo", "", 16, "none kept"),
        ("attention-script-opset13", "train = [\"positions\"]", 12, &format!("kept {mask}")),
        ("attention-dynamo", "train = [\"positions\"]", 12, &format!("kept {mask}")),
        ("convolutions-script", "", 11, &format!("kept {statistics}")),
        ("convolutions-dynamo", "", 11, &format!("kept {statistics}")),
    ] {
        let folder = begun(name, more);
        let report = folder.done("model");
        assert_eq!(said(&folder), format!("| begun with | `{name}.onnx`: {trained} weights trained on, {kept} |"));
        let want: Vec<f64> = curves[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(report.history.len(), want.len());
        for (step, (found, want)) in report.history.iter().zip(&want).enumerate() {
            // Sums are taken in another order.
            assert!((found.loss - want).abs() < 1e-5 * want.max(0.1), "{name}, step {step}: {} is not {want}", found.loss);
        }
        let answered = answered(&folder);
        assert!((answered - report.train.0).abs() < 1e-5, "{name}: the file loses {answered}, the training {}", report.train.0);
    }
}

#[test]
fn what_is_frozen_stays_and_a_training_of_nothing_is_refused() {
    let folder = begun("encoder-script", "freeze = [\"layer.*\"]");
    folder.done("model");
    assert!(
        said(&folder).contains("4 weights trained on, kept 12 by `base.freeze`: `layer.self_attn.in_proj_weight`, "),
        "{}",
        said(&folder)
    );
    assert!(said(&folder).ends_with(" and 4 more |"), "{}", said(&folder));
    let error = begun("encoder-script", "freeze = [\"*\"]").train("model", false, 0, 1).unwrap_err();
    assert!(error.contains("nothing is trained"), "{error}");
    let error = begun("attention-dynamo", "train = [\"position\"]").train("model", false, 0, 1).unwrap_err();
    assert!(error.contains("`base.train`: \"position\" is no constant that is kept; there are `positions`, `mask`"), "{error}");
}
