//! Models that are trained on, and searches.

use std::fs;

use ndserve::engine::{LoadOptions, Tensor, read_graph};
use ndserve::train::Ended;

use crate::fixture::Folder;
use crate::runs::pictures;

const CONVOLUTIONS: &str = "[data]\npath = \"data.npz\"\ntarget = \"label\"\nlabels = [\"row\", \"column\"]\ntest = 0.25\n[prepare]\nscale = \"min_max\"\n\
     [[layer]]\nkind = \"conv\"\nfilters = 6\nkernel = 3\npadding = \"same\"\n[[layer]]\nkind = \"batch_norm\"\n[[layer]]\nkind = \"activation\"\nfunction = \"relu\"\n\
     [[layer]]\nkind = \"residual\"\nlayers = [{ kind = \"conv\", filters = 8, kernel = 2, stride = 2 }, { kind = \"activation\", function = \"tanh\" }]\n\
     shortcut = [{ kind = \"average_pool\", kernel = 2 }, { kind = \"conv\", filters = 8, kernel = 1 }]\n[[layer]]\nkind = \"flatten\"\n\
     [train]\nepochs = 25\nbatch = 12\nlearning_rate = 0.02\nseed = 5\n[model]\ninput = \"image\"\n";

/// The weights of a model by their names.
fn weights(folder: &Folder, model: &str) -> Vec<(String, Vec<f32>)> {
    let loaded = read_graph(&folder.0.join(model).join("1/model.onnx"), &LoadOptions::default()).unwrap();
    let constants = loaded.graph.constants.iter();
    let mut all: Vec<_> = constants.filter_map(|(id, t)| Some((loaded.graph.name(*id).to_owned(), t.slice::<f32>()?.to_vec()))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_model_is_trained_on_with_layers_frozen() {
    let folder = Folder::new().with("data.npz", pictures()).with("train.toml", CONVOLUTIONS);
    let first = folder.done("first");
    assert!(first.test.unwrap().1 >= 0.9, "{first:?}");
    // Whole: it begins where the first ended.
    let start = "\n[base]\npath = \"first\"\nfreeze = [\"conv_*\", \"batch_norm_1.*\"]\n";
    let head = CONVOLUTIONS.find("[[layer]]").unwrap();
    let without_layers = format!("{}{}", &CONVOLUTIONS[..head], &CONVOLUTIONS[CONVOLUTIONS.find("[train]").unwrap()..])
        .replace("[prepare]\nscale = \"min_max\"\n", "")
        .replace("epochs = 25", "epochs = 2")
        .replace("0.02", "0.0001");
    let folder = folder.with("train.toml", format!("{without_layers}{start}"));
    let second = folder.done("second");
    assert!((second.history[0].loss - first.train.0).abs() < 0.05, "{} after {}", second.history[0].loss, first.train.0);
    let (before, after) = (weights(&folder, "first"), weights(&folder, "second"));
    let find = |all: &[(String, Vec<f32>)], name: &str| all.iter().find(|(n, _)| n.ends_with(name)).map(|(_, v)| v.clone()).unwrap();
    for (name, same) in [("conv_1.weight", true), ("conv_3.bias", true), ("dense_1.weight", false), ("dense_1.bias", false)] {
        assert_eq!(find(&before, name) == find(&after, name), same, "{name}");
    }
    let image = Tensor::new(&[1, 1, 6, 6], (0..36).map(|p| if p / 6 == 2 { 200.0 } else { 10.0 }).collect::<Vec<f32>>()).unwrap();
    assert!(folder.answer("second", &[image])[0] > 0.5);
    // In part, with a head of its own.
    let graph = read_graph(&folder.0.join("first/1/model.onnx"), &LoadOptions::default()).unwrap().graph;
    let flat = graph.nodes.iter().find(|node| node.op_type() == "Flatten").unwrap();
    let until = graph.name(flat.outputs[0].unwrap()).to_owned();
    let layers = "[[layer]]\nkind = \"dense\"\nunits = 4\nactivation = \"relu\"\n";
    let part = format!("{without_layers}{layers}[base]\npath = \"first/1/model.onnx\"\nuntil = \"{until}\"\nfreeze = [\"*\"]\n");
    let folder = folder.with("train.toml", part.replace("epochs = 2", "epochs = 40").replace("0.0001", "0.02"));
    let third = folder.done("third");
    assert!(third.train.1 >= 0.9, "{third:?}");
    let after = weights(&folder, "third");
    assert!(find(&before, "conv_2.weight") == find(&after, "conv_2.weight"), "frozen weights moved");
    for (base, message) in [
        ("[base]\npath = \"none\"\n", "there is no model file"),
        ("[base]\npath = \"first\"\nfreeze = [\"conf*\"]\n", "`base.freeze`: \"conf*\" is no weight; there are `"),
        ("[base]\npath = \"first\"\nuntil = \"nowhere\"\n", "`base.until`: there is no value `nowhere`"),
        ("[base]\npath = \"first\"\nkeep = 1\n", "keep"),
    ] {
        fs::write(folder.0.join("train.toml"), format!("{without_layers}{base}")).unwrap();
        let error = folder.train("fourth", false, 0, 1).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn a_search_trains_the_best_of_its_trials() {
    let rows: String = (0..80).map(|i| format!("{},{}\n", i, 1000 + 3 * i)).collect();
    let config = "[data]\npath = \"data.csv\"\ntarget = \"y\"\nvalidation = 0.25\nstratify = false\n[[layer]]\nkind = \"dense\"\nunits = 2\nactivation = \"tanh\"\n\
                  [train]\nepochs = 30\nbatch = 16\nlearning_rate = 0.05\n\
                  [search.values]\n\"train.learning_rate\" = [1e30, 0.00001, 0.03]\n\"layer.1.units\" = [4]\n";
    let folder = Folder::new().with("data.csv", format!("x,y\n{rows}")).with("train.toml", config);
    let report = folder.done("model");
    let (trials, score, settings) = report.trials.clone().unwrap();
    assert_eq!((trials, settings.as_str()), (3, "layer.1.units = 4, train.learning_rate = 0.03"));
    assert_eq!(
        report.history.iter().filter_map(|e| e.validation).fold(f64::INFINITY, f64::min),
        score,
        "the training is that of the trial"
    );
    let read = |name: &str| fs::read_to_string(folder.0.join("model").join(name)).unwrap();
    assert!(
        read("best.toml").contains("learning_rate = 0.03")
            && read("train.toml") == config
            && read("README.md").contains("best of 3 trials")
    );
    assert!(!folder.0.join("model/search.txt").exists());
    // By chance, with folds; stopped and gone on with.
    let random = config.split("[search").next().unwrap().replace("validation = 0.25", "folds = 2").to_owned()
        + "[search]\nkind = \"random\"\ntrials = 3\nvalues.\"train.learning_rate\" = { from = 1e-4, to = 0.1, log = true }\n";
    let folder = folder.with("train.toml", random);
    let whole = folder.done("whole/model").trials;
    assert_eq!(folder.train("parts/model", false, 3, 1).unwrap(), Ended::Stopped, "in the training of the best");
    let Ended::Done(parts) = folder.train("parts/model", true, 0, 1).unwrap() else { panic!("it was not stopped") };
    assert_eq!(parts.trials, whole);
    assert!(folder.model("whole/model") == folder.model("parts/model"));
    let folder = folder.with("train.toml", config.replace("layer.1.units", "layer.2.units"));
    assert!(folder.train("model", false, 0, 1).unwrap_err().contains("`search.values.layer.2.units`"));
    let folder = folder.with("train.toml", config.replace("validation = 0.25\n", ""));
    assert!(folder.train("model", false, 0, 1).unwrap_err().contains("a search needs rows"));
}

/// From the same weights and batches the losses are PyTorch's, for a hundred steps.
#[test]
fn a_hundred_steps_lose_what_pytorch_loses() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training");
    let read = |name: &str| fs::read(fixtures.join(name)).unwrap();
    let curves: serde_json::Value = serde_json::from_slice(&read("losses.json")).unwrap();
    for (name, optimizer) in [
        ("sgd", "optimizer = { kind = \"sgd\", momentum = 0.9, nesterov = true }\nlearning_rate = 0.05"),
        ("adam", "optimizer = { kind = \"adam\" }\nlearning_rate = 0.003"),
        ("adamw", "optimizer = { kind = \"adamw\" }\nlearning_rate = 0.003\nl2 = 0.01"),
    ] {
        let config = format!(
            "[data]\npath = \"data.npz\"\ntarget = \"label\"\ntask = \"classify\"\n[train]\nepochs = 100\nbatch = 64\n{optimizer}\n[base]\npath = \"model.onnx\"\n"
        );
        let folder = Folder::new().with("data.npz", read("data.npz")).with("model.onnx", read("model.onnx")).with("train.toml", config);
        let found = folder.done("model").history;
        let want: Vec<f64> = curves[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        for (step, (found, want)) in found.iter().zip(&want).enumerate() {
            // Rounding grows along the way: by the sums of another order alone.
            assert!((found.loss - want).abs() < 1e-4 * want.max(0.1), "{name}, step {step}: {} is not {want}", found.loss);
        }
        assert_eq!(found.len(), want.len());
    }
}
