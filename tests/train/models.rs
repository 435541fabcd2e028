//! The models of the repository are what their configurations make.

use std::path::{Path, PathBuf};

use crate::fixture::{Folder, ndserve};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// Files of a model's folder in a folder of the test.
fn copied(name: &str, files: &[&str]) -> Folder {
    let folder = Folder::new();
    files.iter().fold(folder, |folder, file| folder.with(file, std::fs::read(shipped(name).join(file)).unwrap()))
}

/// The user's loop: a thousand epochs over five rows, all of them right.
#[test]
fn two_features_learns_its_five_rows() {
    let report = copied("two-features", &["train.toml", "data.csv"]).done("two-features");
    assert_eq!((report.history.len(), report.train.1), (1000, 1.0));
    assert!(report.train.0 < 1e-3, "the loss is {}", report.train.0);
}

#[test]
fn breast_cancer_is_told_in_five_folds() {
    let report = copied("breast-cancer", &["train.toml", "data.csv.gz"]).done("breast-cancer");
    let mean = report.folds.iter().sum::<f64>() / report.folds.len() as f64;
    assert!(report.folds.len() == 5 && mean >= 0.96, "{:?}", report.folds);
}

/// Most of what ridge regression comes to, which is an R² of about 0.48.
#[test]
fn diabetes_is_foretold() {
    let report = copied("diabetes", &["train.toml", "data.csv.gz"]).done("diabetes");
    let mean = report.folds.iter().sum::<f64>() / report.folds.len() as f64;
    assert!(report.folds.len() == 5 && mean >= 0.42, "{:?}", report.folds);
}

/// What the models that lie there answer, not what was written down when they were made.
#[test]
fn the_models_that_are_shipped_are_as_good_as_is_said() {
    let evaluated = |name: &str, data: &str, target: &str| -> serde_json::Value {
        let [model, data] = [shipped(name), shipped(name).join(data)].map(|path| path.to_string_lossy().into_owned());
        let (code, out, errors) = ndserve(&["evaluate", &model, &data, "--target", target, "--json", "--bootstrap", "10"]);
        assert_eq!(code, Some(0), "{name}: {errors}");
        serde_json::from_str(&out).unwrap()
    };
    for (name, data, target, measure, least) in [
        ("digits", "held-out.npz", "label", "accuracy", 0.985),
        ("breast-cancer", "data.csv.gz", "tumour", "accuracy", 0.96),
        ("diabetes", "data.csv.gz", "progression", "r2", 0.42),
        ("two-features", "data.csv", "class", "accuracy", 1.0),
    ] {
        let found = evaluated(name, data, target);
        let value = found[measure].as_f64().unwrap();
        assert!(value >= least, "{name}: {measure} {value}");
        let card = std::fs::read_to_string(shipped(name).join("README.md")).unwrap();
        // The card of the digits tells this very number.
        assert!(name != "digits" || card.contains(&format!("accuracy {value:.4} |")), "{value}: {card}");
    }
    let loss = evaluated("two-features", "data.csv", "class")["log_loss"].as_f64().unwrap();
    assert!(loss < 1e-3, "two-features: the loss is {loss}");
}

/// What lies there was made of the configuration and the data that lie there: the hash of both is inside the model.
#[test]
fn the_models_are_of_their_configurations() {
    for name in ["digits", "breast-cancer", "diabetes", "two-features"] {
        let read = |file: &str| std::fs::read(shipped(name).join(file)).unwrap();
        let card = String::from_utf8(read("README.md")).unwrap();
        let hash =
            card.lines().find_map(|line| line.strip_prefix("| configuration and data | `")).unwrap().trim_end_matches("` |").to_owned();
        let model = read("1/model.onnx");
        assert!(model.windows(hash.len()).any(|bytes| bytes == hash.as_bytes()), "{name}: the model is not of {hash}");
        let (config, text) = ndserve::train::Config::read(&shipped(name).join("train.toml")).unwrap();
        assert_eq!(ndserve::train::hash(&config, &text).unwrap(), hash, "{name}: train.toml or the data changed since");
        assert!(card.contains(&format!("ndserve train models/{name}/train.toml")), "{name}");
    }
}
