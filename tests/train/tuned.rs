//! Models that are trained on, and searches.

use std::fs;

use ndserve::engine::{LoadOptions, Tensor, read_graph};
use ndserve::train::Ended;

use crate::fixture::Folder;
use crate::runs::{TABLE, pictures, table};

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

/// Numbers on a line, and a search for how they are learnt; `more` are keys of `[data]`, `values` those of the search.
fn line(more: &str, values: &str) -> Folder {
    let rows: String = (0..80).map(|i| format!("{},{}\n", i, 1000 + 3 * i)).collect();
    let config = format!(
        "[data]\npath = \"data.csv\"\ntarget = \"y\"\nstratify = false\n{more}\n[[layer]]\nkind = \"dense\"\nunits = 2\nactivation = \"tanh\"\n\
         [train]\nepochs = 6\nbatch = 16\nlearning_rate = 0.05\n[search.values]\n{values}\n"
    );
    Folder::new().with("data.csv", format!("x,y\n{rows}")).with("train.toml", config)
}

#[test]
fn a_search_that_was_stopped_in_its_trials_goes_on_to_the_same_bits() {
    for more in ["validation = 0.25", "folds = 2"] {
        let folder = line(more, "\"train.learning_rate\" = [0.01, 0.03]");
        let whole = folder.done("whole/model");
        assert_eq!(folder.train_until("parts/model", "trial 1 "), Ended::Stopped);
        assert!(folder.0.join("parts/model/search.txt").is_file() && !folder.0.join("parts/model/checkpoint.npz").exists());
        let Ended::Done(parts) = folder.train("parts/model", true, 0, 1).unwrap() else { panic!("it was not stopped") };
        assert_eq!((parts.trials, parts.history), (whole.trials, whole.history), "{more}");
        assert!(folder.model("whole/model") == folder.model("parts/model"), "{more}: going on gives other bits");
    }
}

#[test]
fn folds_that_are_done_are_not_trained_again() {
    let config = TABLE.replace("test = 0.2\n", "test = 0.2\nfolds = 3\n").replace("epochs = 30", "epochs = 4");
    let folder = Folder::new().with("data.csv", table()).with("train.toml", config);
    let whole = folder.done("whole/model");
    assert_eq!(folder.train_until("parts/model", "fold 1 of 3"), Ended::Stopped);
    let kept = folder.0.join("parts/model/folds.txt");
    let text = fs::read_to_string(&kept).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    // No fold comes to this.
    fs::write(&kept, format!("{}\n7.5\n", text.lines().next().unwrap())).unwrap();
    let Ended::Done(parts) = folder.train("parts/model", true, 0, 1).unwrap() else { panic!("it was not stopped") };
    assert_eq!((parts.folds[0], &parts.folds[1..], parts.history), (7.5, &whole.folds[1..], whole.history));
    assert!(!kept.exists() && folder.model("whole/model") == folder.model("parts/model"), "going on gives other bits");
}

/// The bar moves in trials and folds too, and shows the metric beside the loss.
#[test]
fn every_step_of_trials_and_folds_is_told_with_loss_and_metric() {
    let parts = |told: &[(String, crate::fixture::Step)]| {
        let mut parts: Vec<String> = told.iter().map(|(part, _)| part.clone()).collect();
        parts.dedup();
        parts
    };
    let values = "\"train.learning_rate\" = [0.01, 0.03]";
    let told = line("folds = 2", values).told("model");
    let folds = |trial: usize| (1..=2).map(move |fold| format!("trial {trial} of 2, fold {fold} of 2"));
    let own = ["fold 1 of 2", "fold 2 of 2", "training"].map(str::to_owned);
    assert_eq!(parts(&told), folds(1).chain(folds(2)).chain(own).collect::<Vec<_>>());
    let told = line("validation = 0.25", values).told("model");
    assert_eq!(parts(&told), ["trial 1 of 2", "trial 2 of 2", "training"]);
    // 60 rows by 16 are 4 steps, in 6 epochs.
    for of_part in told.chunks(24) {
        assert!(of_part.iter().enumerate().all(|(at, (part, step))| *part == of_part[0].0 && (step.step, step.steps) == (at + 1, 24)));
        for (at, (_, step)) in of_part.iter().enumerate() {
            assert!(step.loss.is_finite() && step.value.is_finite() && step.metric == "R²", "{step:?}");
            assert_eq!(step.validation.is_some(), at >= 4, "behind the first epoch: {step:?}");
        }
    }
    let (first, last) = (told[48].1, told[71].1);
    assert!(first.value < 0.5 && last.value > 0.8 && last.validation.unwrap() > 0.8, "{first:?} {last:?}");
}

#[test]
fn a_trial_with_folds_whose_loss_is_no_number_is_not_the_best() {
    let report = line("folds = 2", "\"train.learning_rate\" = [1e30, 0.03]").done("model");
    assert_eq!(report.trials.unwrap().2, "train.learning_rate = 0.03");
}

#[test]
fn a_trial_has_its_own_loss_and_what_it_freezes() {
    let folder = line("validation = 0.25", "\"train.loss\" = [{ kind = \"huber\", delta = 0.1 }]");
    let found = folder.done("found").history;
    let config = fs::read_to_string(folder.0.join("train.toml")).unwrap();
    let (direct, _) = config.split_once("[search").unwrap();
    let folder = folder.with("train.toml", direct.replace("[train]\n", "[train]\nloss = { kind = \"huber\", delta = 0.1 }\n"));
    assert_eq!(found, folder.done("direct").history);
    // The layers of a base that a trial freezes are those of the base.
    let layers = direct.find("[[layer]]").unwrap()..direct.find("[train]").unwrap();
    let on = direct.replace(&direct[layers], "");
    let search = "[base]\npath = \"direct\"\n[search.values]\n\"base.freeze\" = [[\"dense_1.*\"]]\n";
    let folder = folder.with("train.toml", format!("{on}{search}"));
    folder.done("on");
    let of = |model: &str, name: &str| weights(&folder, model).into_iter().find(|(n, _)| n.ends_with(name)).unwrap().1;
    for (name, same) in [("dense_1.weight", true), ("dense_2.weight", false)] {
        assert_eq!(of("direct", name) == of("on", name), same, "{name}");
    }
}

#[test]
fn a_setting_that_is_the_same_for_all_trials_is_refused() {
    for (key, value) in [
        ("data.features", "[[\"x\"]]"),
        ("data.path", "[\"data.csv\"]"),
        ("data.task", "[\"regress\"]"),
        ("data.labels", "[[\"a\"]]"),
        ("base.path", "[\"first\"]"),
    ] {
        let error = line("validation = 0.25", &format!("\"{key}\" = {value}")).train("model", false, 0, 1).unwrap_err();
        assert!(error.contains(&format!("`search.values.{key}`")), "{key}: {error}");
    }
    line("validation = 0.25", "\"data.validation\" = [0.2, 0.3]\n\"data.stratify\" = [false]").done("model");
}

/// A base with another number of outputs has a layer behind it, to which numbers are given in one size as ever.
#[test]
fn numbers_behind_a_base_of_other_outputs_are_brought_to_one_size() {
    let rows: String = (0..60).map(|i| format!("{i},{},{}\n", if i < 30 { "low" } else { "high" }, 1000 + 3 * i)).collect();
    let config = |target: &str| {
        format!(
            "[data]\npath = \"data.csv\"\ntarget = \"{target}\"\nfeatures = [\"x\"]\n[train]\nepochs = 3\nbatch = 16\nlearning_rate = 0.01\n"
        )
    };
    let folder = Folder::new().with("data.csv", format!("x,kind,y\n{rows}")).with("train.toml", config("kind"));
    folder.done("first");
    let folder = folder.with("train.toml", config("y") + "[base]\npath = \"first\"\n");
    // Of targets with a mean of 0 and a variance of 1 a layer as it begins loses about 1; of those around 1088 a million.
    let loss = folder.done("second").history[0].loss;
    assert!(loss < 10.0, "{loss}");
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
