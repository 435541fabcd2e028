//! Trainings of small data, whole and in parts.

use std::fs;

use ndserve::engine::{Tensor, npz};
use ndserve::train::Ended;

use crate::fixture::{Folder, ndserve};

const TWO_FEATURES: &str = "x1,x2,class\n1,2,0\n2,3,0\n3,4,1\n4,5,1\n5,6,1\n";

/// The loop of a thousand epochs over five rows that everything began with.
#[test]
fn five_rows_are_learnt_in_a_thousand_epochs() {
    let config = "[data]\npath = \"data.csv\"\ntarget = \"class\"\ntask = \"binary\"\n[prepare]\nscale = \"none\"\n\
                  [[layer]]\nkind = \"dense\"\nunits = 4\nactivation = \"sigmoid\"\n\
                  [train]\nepochs = 1000\nbatch = 5\nlearning_rate = 0.1\nseed = 1\n[model]\ninput = \"x\"\noutput = \"probability\"\n";
    let folder = Folder::new().with("data.csv", TWO_FEATURES).with("train.toml", config);
    let report = folder.done("one/model");
    assert_eq!((report.history.len(), report.rows), (1000, [5, 0, 0]));
    assert!(report.train.0 < 1e-3, "the loss is {}", report.train.0);
    assert_eq!(report.train.1, 1.0);
    let x = Tensor::new(&[5, 2], vec![1.0_f32, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0]).unwrap();
    let right: Vec<bool> = folder.answer("one/model", &[x]).iter().map(|&p| p > 0.5).collect();
    assert_eq!(right, [false, false, true, true, true]);
    for file in ["model.toml", "train.toml", "README.md", "curves.svg", "golden/input_0.pb", "golden/output_0.pb"] {
        assert!(folder.0.join("one/model").join(file).is_file(), "{file}");
    }
    assert!(!folder.0.join("one/model/checkpoint.npz").exists());
    // The same bits again, and with more threads.
    folder.train("two/model", false, 0, 2).unwrap();
    assert!(folder.model("one/model") == folder.model("two/model"), "two threads give other bits");
}

/// Rows of two classes around two centres, with texts, missing cells and a useless column.
pub(crate) fn table() -> String {
    let mut text = "size,colour,label,weight\n".to_owned();
    for i in 0..60 {
        let class = i % 2;
        let wobble = f64::from((i * 37) % 23) / 23.0;
        let size = if i % 11 == 3 { String::new() } else { format!("{}", 100.0 * f64::from(class) + 60.0 * wobble) };
        let colour = ["red", "green", "blue"][(class + (i * 7) % 2) as usize];
        text.push_str(&format!("{size},{colour},{},{}\n", ["no", "yes"][class as usize], 5));
    }
    text
}

pub(crate) const TABLE: &str = "[data]\npath = \"data.csv\"\ntarget = \"label\"\nvalidation = 0.2\ntest = 0.2\n\
                     [prepare]\nmissing = \"mean\"\nindicator = true\n[prepare.columns.size]\nclip = [0.0, 1.0]\n\
                     [[layer]]\nkind = \"dense\"\nunits = 8\nactivation = \"relu\"\n[[layer]]\nkind = \"batch_norm\"\n[[layer]]\nkind = \"dropout\"\nrate = 0.2\n\
                     [[layer]]\nkind = \"residual\"\nlayers = [{ kind = \"dense\", units = 8, activation = \"tanh\" }]\n\
                     [train]\nepochs = 30\nbatch = 8\nlearning_rate = 0.02\nl2 = 0.001\nl1 = 0.0001\nclip_norm = 5.0\npatience = 12\nclass_weights = \"balanced\"\n\
                     optimizer = { kind = \"adamw\" }\nschedule = { kind = \"cosine\" }\nwarmup_epochs = 2\nseed = 3\n";

#[test]
fn a_model_takes_raw_rows_with_texts_and_missing_cells() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    let report = folder.done("model");
    assert_eq!(report.rows, [36, 12, 12]);
    assert!(report.test.unwrap().1 >= 0.9, "{report:?}");
    let column = |values: Vec<f32>| Tensor::new(&[values.len(), 1], values).unwrap();
    let colours = Tensor::new(&[3, 1], ["red", "blue", "purple"].map(str::to_owned).to_vec()).unwrap();
    let answer = folder.answer("model", &[column(vec![10.0, 150.0, f32::NAN]), colours, column(vec![5.0; 3])]);
    assert_eq!(answer.len(), 6);
    assert!(answer.chunks(2).all(|row| (row[0] + row[1] - 1.0).abs() < 1e-5), "{answer:?}");
    assert!(answer[0] > 0.5 && answer[3] > 0.5, "{answer:?}");
    let settings = fs::read_to_string(folder.0.join("model/model.toml")).unwrap();
    assert!(settings.contains("labels = [\"no\", \"yes\"]"), "{settings}");
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bits() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    folder.done("whole/model");
    // In the middle of an epoch, which then begins anew; and again behind it.
    assert_eq!(folder.train("parts/model", false, 23, 1).unwrap(), Ended::Stopped);
    assert!(!folder.0.join("parts/model/1/model.onnx").exists());
    assert_eq!(folder.train("parts/model", true, 31, 1).unwrap(), Ended::Stopped);
    assert!(matches!(folder.train("parts/model", true, 0, 1).unwrap(), Ended::Done(_)));
    assert!(folder.model("whole/model") == folder.model("parts/model"), "going on gives other bits");
    // Of another configuration it does not go on.
    assert_eq!(folder.train("other", false, 23, 1).unwrap(), Ended::Stopped);
    let folder = folder.with("train.toml", TABLE.replace("l1 = 0.0001", "l1 = 0.0002"));
    assert!(folder.train("other", true, 0, 1).unwrap_err().contains("another configuration"));
}

/// Sizes of batches take turns, the same for one that is named alone and one in a list.
#[test]
fn batches_of_mixed_sizes_go_on_to_the_same_bits() {
    assert!(TABLE.contains("batch = 8\n"));
    let with = |batch: &str| TABLE.replace("batch = 8\n", &format!("batch = {batch}\n"));
    let folder = Folder::new().with("data.csv", table());
    let of = |name: &str, batch: &str| {
        fs::write(folder.0.join("train.toml"), with(batch)).unwrap();
        folder.done(name).history
    };
    let (one, alone, mixed) = (of("one", "8"), of("alone", "[8]"), of("whole/model", "[4, 16, 8]"));
    assert_eq!(one, alone);
    assert!(one != mixed, "the sizes make no difference");
    let card = fs::read_to_string(folder.0.join("whole/model/README.md")).unwrap();
    assert!(card.contains("| rows of a step, in turn | 4, 16, 8 |\n"), "{card}");
    // 36 rows: 4, 16, 8, 4 and 4 that are left. The eighth step is the third of the second epoch.
    assert_eq!(folder.train("parts/model", false, 8, 1).unwrap(), Ended::Stopped);
    let checkpoint = fs::File::open(folder.0.join("parts/model/checkpoint.npz")).unwrap();
    assert_eq!(npz::read(checkpoint, 1 << 24).unwrap()["history"].shape(), [1, 3]);
    assert!(matches!(folder.train("parts/model", true, 0, 1).unwrap(), Ended::Done(_)));
    assert!(folder.model("whole/model") == folder.model("parts/model"), "going on gives other bits");
}

#[test]
fn a_training_that_was_stopped_in_its_folds_goes_on_to_the_same_bits() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE.replace("test = 0.2", "test = 0.2\nfolds = 3"));
    let whole = folder.done("whole/model");
    assert_eq!(folder.train_until("parts/model", "fold 1 "), Ended::Stopped);
    let Ended::Done(parts) = folder.train("parts/model", true, 0, 1).unwrap() else { panic!("it was not stopped") };
    assert_eq!((parts.folds, parts.history), (whole.folds, whole.history));
    assert!(folder.model("whole/model") == folder.model("parts/model"), "going on gives other bits");
}

/// A kill in the folds left what they came to and no checkpoint, without which nothing was resumed.
#[test]
fn a_training_that_was_killed_in_its_folds_goes_on_to_the_same_bits() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE.replace("test = 0.2", "test = 0.2\nfolds = 3"));
    folder.killed_at("whole/model", "fold 2 ", "parts/model");
    let kept = fs::read_to_string(folder.0.join("parts/model/folds.txt")).unwrap();
    assert_eq!(kept.lines().count(), 2, "the hash and the first fold: {kept}");
    let Ended::Done(report) = folder.train("parts/model", true, 0, 1).unwrap() else { panic!("it was not stopped") };
    assert_eq!(report.folds.len(), 3);
    assert!(folder.model("whole/model") == folder.model("parts/model"), "going on gives other bits");
}

/// Small pictures of a bright row or column.
pub(crate) fn pictures() -> Vec<u8> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for i in 0..48_usize {
        let (class, at) = (i % 2, (i / 2) % 6);
        let bright = |p: usize| if class == 0 { p / 6 == at } else { p % 6 == at };
        pixels.extend((0..36).map(|p| if bright(p) { 200_u8 } else { ((p * 31 + i * 17) % 40) as u8 }));
        labels.push(class as i64);
    }
    let (pixels, labels) = (Tensor::new(&[48, 1, 6, 6], pixels).unwrap(), Tensor::vector(labels));
    npz::write(&[("image", &pixels), ("label", &labels)]).unwrap()
}

#[test]
fn convolutions_learn_pictures_of_an_archive() {
    let config = "[data]\npath = \"data.npz\"\ntarget = \"label\"\nlabels = [\"row\", \"column\"]\ntest = 0.25\nfolds = 2\n[prepare]\nscale = \"min_max\"\n\
                  [[layer]]\nkind = \"conv\"\nfilters = 6\nkernel = 3\npadding = \"same\"\n[[layer]]\nkind = \"batch_norm\"\n[[layer]]\nkind = \"activation\"\nfunction = \"relu\"\n\
                  [[layer]]\nkind = \"max_pool\"\nkernel = 2\n[[layer]]\nkind = \"flatten\"\n\
                  [train]\nepochs = 25\nbatch = 12\nlearning_rate = 0.02\naugment = { shift = 1 }\nseed = 5\n[model]\ninput = \"image\"\n";
    let folder = Folder::new().with("data.npz", pictures()).with("train.toml", config);
    let report = folder.done("model");
    assert_eq!((report.rows, report.folds.len()), ([36, 0, 12], 2));
    assert!(report.test.unwrap().1 >= 0.9, "{report:?}");
    let line: Vec<f32> = (0..36).map(|p| if p / 6 == 2 { 200.0 } else { 10.0 }).collect();
    let answer = folder.answer("model", &[Tensor::new(&[1, 1, 6, 6], line).unwrap()]);
    assert!(answer[0] > 0.5, "{answer:?}");
}

#[test]
fn numbers_come_back_in_their_own_unit() {
    let rows: String = (0..80).map(|i| format!("{},{}\n", i, 1000 + 3 * i)).collect();
    let config = "[data]\npath = \"data.csv\"\ntarget = \"y\"\ntest = 0.2\nstratify = false\n[train]\nepochs = 200\nbatch = 16\nlearning_rate = 0.05\nloss = { kind = \"huber\" }\n\
                  optimizer = { kind = \"sgd\", momentum = 0.9, nesterov = true }\n";
    let folder = Folder::new().with("data.csv", format!("x,y\n{rows}")).with("train.toml", config);
    assert!(folder.done("model").test.unwrap().1 > 0.999);
    let answer = folder.answer("model", &[Tensor::new(&[1, 1], vec![40.0_f32]).unwrap()]);
    assert!((answer[0] - 1120.0).abs() < 2.0, "{answer:?}");
}

/// Each error names row, column or key, and nothing is written.
#[test]
fn what_is_wrong_is_named() {
    let least = "[data]\npath = \"data.csv\"\ntarget = \"class\"\ntask = \"binary\"\n[train]\nepochs = 3\nlearning_rate = 0.1\n";
    for (data, config, message) in [
        ("x1,x2,class\n1,2,0\n2,3\n", least.to_owned(), "line 3: 2 cells where the names are 3"),
        ("x1,x2,class\n1,,0\n2,,1\n", least.to_owned(), "column `x2` has no value in any row"),
        ("x1,x2,class\n1,2,0\n2,,1\n", least.to_owned(), "data.csv: row 2: `x2` is missing; `prepare"),
        ("x1,x2,class\n1,2,0\n2,3,\n", least.to_owned(), "data.csv: row 2: the target `class` is missing"),
        ("x1,x2,class\n1,2,0\n2,3,2\n1,1,1\n", least.to_owned(), "has 3 classes"),
        (TWO_FEATURES, least.replace("\"class\"", "\"clas\""), "there is no column `clas`"),
        (TWO_FEATURES, least.replace("epochs", "epoch"), "epoch"),
        (TWO_FEATURES, least.replace("[train]", "labels = [\"a\", \"a\"]\n[train]"), "`data.labels` has `a` twice"),
        (TWO_FEATURES, format!("{least}[prepare.columns.x3]\nlog = true\n"), "`prepare.columns.x3`"),
        (TWO_FEATURES, format!("{least}[[layer]]\nkind = \"max_pool\"\nkernel = 2\n"), "layer 1: it wants [channels, length]"),
        (TWO_FEATURES, least.replace("binary", "regress").replace("0.1", "1e30"), "the loss is"),
    ] {
        let folder = Folder::new().with("data.csv", data).with("train.toml", &config);
        let error = folder.train("model", false, 0, 1).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
        assert!(!folder.0.join("model/1").exists(), "{message}: a model was written");
    }
}

#[test]
fn the_commands_train_and_evaluate() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    let path = |name: &str| folder.0.join(name).to_string_lossy().into_owned();
    let (code, said, errors) = ndserve(&["train", &path("train.toml")]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.contains("training: loss") && said.contains("test: loss"), "{said}");
    assert!(errors.contains("60 rows, 3 columns") && errors.contains("classes: no 30, yes 30"), "{errors}");
    // The folder of a train.toml is the model's.
    let (code, said, errors) = ndserve(&["evaluate", &path(""), &path("data.csv"), "--target", "label", "--json"]);
    assert_eq!(code, Some(0), "{errors}");
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(found["accuracy"].as_f64().unwrap() > 0.9, "{said}");
    assert_eq!(found["classes"][1]["label"], "yes");
    let (code, said, _) = ndserve(&["evaluate", &path(""), &path("data.csv"), "--target", "label"]);
    assert!(code == Some(0) && said.starts_with("accuracy"), "{said}");
    let (code, _, errors) = ndserve(&["evaluate", &path(""), &path("data.csv"), "--target", "lable"]);
    assert!(code == Some(1) && errors.contains("there is no column `lable`"), "{errors}");
    let (code, _, errors) = ndserve(&["train", &path("train.toml"), "--resume"]);
    assert!(code == Some(1) && errors.contains("checkpoint.npz"), "{errors}");
}
