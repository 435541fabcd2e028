//! evaluate, explain, deploy: what a model is worth, why it answers so, and how it comes into service.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::process::Command;

use ndserve::engine::{Tensor, npz};
use serde_json::Value;

use crate::fixture::{Folder, models};
use crate::server::Server;

/// Rows of `two-features`, and what is right.
const ROWS: &str = "a,b,kind,class\n1,2,x,0\n2,3,x,0\n3,4,y,1\n4,5,y,1\n5,6,x,1\n0,1,y,0\n";

fn model(name: &str) -> String {
    models().join(name).display().to_string()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

#[test]
fn evaluate_tells_measures_intervals_slices_and_a_comparison() {
    let folder = Folder::new();
    folder.write("rows.csv", ROWS);
    let two = model("two-features");
    let base = ["evaluate", &two, "rows.csv", "--target", "class", "--features", "a,b"];
    let more = ["--slice", "kind", "--against", &two, "--bootstrap", "50", "--html", "page.html"];
    let text = folder.run(&[&base[..], &more[..]].concat()).ok().out;
    for part in ["accuracy           1.000000", "roc_auc            1.000000", "kind = x: 3 rows", "beside ", "accuracy: p = 1.000000"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let page = fs::read_to_string(folder.path("page.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && page.contains("kind = y"), "{page}");
    let json: Value = serde_json::from_str(&folder.run(&[&base[..], &["--json"]].concat()).ok().out).unwrap();
    assert_eq!((json["accuracy"].as_f64(), json["confusion"][0][0].as_u64()), (Some(1.0), Some(3)));
    assert_eq!(json["intervals"]["accuracy"]["low"].as_f64(), Some(1.0));
    folder.run(&[&base[..], &["--slice", "nope"]].concat()).fails(1, &["there is no column `nope`"]);
    folder.run(&[&base[..], &["--confidence", "2"]].concat()).fails(1, &["--confidence 2 is not between 0 and 1"]);
}

/// Of a model without labels, too, rows need not be of every class.
#[test]
fn rows_of_some_of_a_models_classes_are_evaluated() {
    let folder = Folder::new();
    let from = models().join("digits");
    fs::create_dir_all(folder.path("digits/1")).unwrap();
    fs::copy(from.join("1/model.onnx"), folder.path("digits/1/model.onnx")).unwrap();
    let held = npz::read(fs::File::open(from.join("held-out.npz")).unwrap(), 1 << 24).unwrap();
    let known = held["label"].slice::<i64>().unwrap();
    let rows: Vec<usize> = (0..known.len()).filter(|&row| [3, 8].contains(&known[row])).collect();
    let images: Vec<f32> = rows.iter().flat_map(|&row| &held["image"].slice::<f32>().unwrap()[row * 64..][..64]).copied().collect();
    let images = Tensor::new(&[rows.len(), 1, 8, 8], images).unwrap();
    let labels = Tensor::vector(rows.iter().map(|&row| known[row]).collect::<Vec<_>>());
    folder.write("some.npz", npz::write(&[("image", &images), ("label", &labels)]).unwrap());
    let out = folder.run(&["evaluate", "digits", "some.npz", "--target", "label", "--json", "--bootstrap", "10"]).ok().out;
    let found: Value = serde_json::from_str(&out).unwrap();
    assert!(found["accuracy"].as_f64().unwrap() > 0.95, "{out}");
    assert_eq!(found["confusion"].as_array().unwrap().len(), 10);
    assert_eq!(
        found["confusion"][3].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>(),
        rows.iter().filter(|&&row| known[row] == 3).count() as u64
    );
}

#[test]
fn a_pipeline_is_refused_with_its_models() {
    let folder = Folder::new();
    folder.write("rows.csv", ROWS);
    folder.write("chain/model.toml", "[[step]]\nmodel = \"first\"\n[[step]]\nmodel = \"second\"\n");
    for command in ["evaluate", "explain"] {
        folder.run(&[command, "chain", "rows.csv", "--target", "class"]).fails(1, &["chain: it is a pipeline, first → second: "]);
    }
    folder.run(&["deploy", "chain", "--to", "served"]).fails(1, &["chain: it is a pipeline"]);
}

#[test]
fn explain_tells_contributions() {
    let folder = Folder::new();
    folder.write("rows.csv", ROWS);
    let two = model("two-features");
    let base = ["explain", &two, "rows.csv", "--target", "class", "--features", "a,b", "--background", "rows.csv"];
    let text = folder.run(&[&base[..], &["--rows", "1"]].concat()).ok().out;
    assert!(text.starts_with("shapley, background: 6 rows of request, "), "{text}");
    assert!(
        text.contains("row 1: ") && text.contains("  x2 = 2") && text.contains("completeness error") && !text.contains("row 2: "),
        "{text}"
    );
    let json: Value = serde_json::from_str(&folder.run(&[&base[..], &["--json"]].concat()).ok().out).unwrap();
    assert_eq!(json["explanations"].as_array().unwrap().len(), 6);
    let text = folder.run(&[&base[..], &["--method", "permutation_importance"]].concat()).ok().out;
    assert!(text.contains("accuracy of ") && text.contains(": 1.000000") && text.contains(" ± "), "{text}");
    folder.run(&[&base[..], &["--method", "tree_shap"]].concat()).fails(1, &["0 nodes of trees"]);
    folder.run(&[&base[..], &["--method", "lime"]].concat()).fails(2, &["is `lime`; known are integrated_gradients"]);
    // The file was named twice, and the columns without those that were taken already.
    let error = folder.run(&["explain", &two, "none.csv"]).fails(1, &["error: none.csv: no such file or folder"]).err;
    assert_eq!(error.matches("none.csv").count(), 1, "{error}");
    folder.run(&["explain", &two, "rows.csv", "--features", "a,z"]).fails(1, &["there is no column `z`; there are `a`, `b`"]);
}

#[test]
fn explain_paints_heat_maps() {
    let folder = Folder::new();
    let digits = model("digits");
    let held_out = models().join("digits/held-out.npz").display().to_string();
    let args = ["explain", &digits, &held_out, "--rows", "2", "--heat-maps", "maps", "--top", "3", "--steps", "8"];
    let text = folder.run(&args).ok().out;
    assert!(text.starts_with("integrated_gradients, background: 1 rows of zeros") && text.contains("image[0,"), "{text}");
    let pictures = ["maps/row-1.png", "maps/row-2.png"].map(|name| fs::read(folder.path(name)).unwrap());
    assert!(pictures.iter().all(|png| png.starts_with(b"\x89PNG")));
    // As the server's answer: with the pictures, unless they are written.
    let json = |more: &[&str]| -> Value {
        let args = ["explain", &digits, &held_out, "--rows", "1", "--steps", "8", "--json"];
        serde_json::from_str(&folder.run(&[&args[..], more].concat()).ok().out).unwrap()
    };
    assert!(json(&[])["explanations"][0]["heat_maps"]["image"]["b64"].as_str().is_some_and(|png| png.starts_with("iVBOR")));
    assert!(json(&["--heat-maps", "maps"])["explanations"][0].get("heat_maps").is_none());
}

/// Pictures that a model was trained on, in files of another size, and an array that is the only one but has another name.
#[test]
fn pictures_and_unnamed_arrays_are_evaluated_and_explained() {
    let folder = Folder::new();
    let digits = model("digits");
    for (class, name) in [(0, "zero"), (1, "one")] {
        fs::create_dir_all(folder.path(&format!("pictures/{name}"))).unwrap();
        let pixel = |x: u32, y: u32| image::Luma([if (x + y) % 20 < 10 + class { 255 } else { 0 }]);
        image::GrayImage::from_fn(20, 30, pixel).save(folder.path(&format!("pictures/{name}/1.png"))).unwrap();
    }
    let text = folder.run(&["explain", &digits, "pictures", "--heat-maps", "maps", "--steps", "8", "--top", "1"]).ok().out;
    assert!(text.contains("row 2: probabilities ") && folder.path("maps/row-2.png").is_file(), "{text}");
    folder.run(&["explain", &digits, "pictures", "--target", "label"]).fails(1, &["pictures have no column `label`"]);
    let out = folder.run(&["evaluate", &digits, "pictures", "--target", "class"]).fails(1, &["none of the labels `0`, `1`"]).err;
    assert!(out.contains("pictures: row 1: "), "{out}");
    let arrays = npz::read(fs::File::open(models().join("digits/held-out.npz")).unwrap(), 1 << 24).unwrap();
    let (pixels, labels) = (&arrays["image"], &arrays["label"]);
    fs::write(folder.path("unnamed.npz"), npz::write(&[("x", pixels), ("label", labels)]).unwrap()).unwrap();
    let out = folder.run(&["evaluate", &digits, "unnamed.npz", "--target", "label", "--bootstrap", "0"]).ok().out;
    assert!(out.starts_with("accuracy           0.99"), "{out}");
    folder.run(&["explain", &digits, "unnamed.npz", "--target", "label", "--rows", "1", "--steps", "8"]).ok();
    fs::write(folder.path("several.npz"), npz::write(&[("x", pixels), ("z", labels), ("label", labels)]).unwrap()).unwrap();
    folder.run(&["evaluate", &digits, "several.npz", "--target", "label"]).fails(1, &["there is no array `image`; there are"]);
}

#[test]
fn deploy_verifies_and_adds_a_version() {
    let folder = Folder::new();
    let two = model("two-features");
    let out = folder.run(&["deploy", &two, "--to", "served"]).ok().out;
    assert!(out.contains("its golden samples are reproduced") && out.contains("served/two-features/1 is version 1"), "{out}");
    assert!(folder.path("served/two-features/model.toml").is_file());
    assert!(folder.path("served/two-features/1/golden/output_0.pb").is_file());
    let out = folder.run(&["deploy", &two, "--to", "served"]).ok().out;
    assert!(out.contains("is version 2 of `two-features`"), "{out}");
    folder.run(&["check", "served"]).ok();
    let out = folder.run(&["deploy", &two, "--to", "served", "--canary", "10"]).ok().out;
    assert!(out.contains("is version 3"), "{out}");
    let settings = fs::read_to_string(folder.path("served/two-features/model.toml")).unwrap();
    assert!(settings.starts_with("version_labels = { default = { split = { 2 = 90, 3 = 10 } } }\n"), "{settings}");
    folder.run(&["check", "served"]).ok();
    let left: Vec<_> = fs::read_dir(folder.path("served")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["two-features"], "nothing temporary is left");
}

/// `held-out.npz` and `train.npz` lie in its folder, and are no part of what is served.
#[test]
fn deploy_leaves_the_data_of_a_training_behind() {
    let folder = Folder::new();
    folder.run(&["deploy", &model("digits"), "--to", "served"]).ok();
    let mut found: Vec<_> = fs::read_dir(folder.path("served/digits")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, ["1", "README.md", "curves.svg", "model.toml", "train.toml"]);
    // Rows that the settings name are.
    copy(&models().join("digits"), &folder.path("digits"));
    let settings = fs::read_to_string(folder.path("digits/model.toml")).unwrap();
    folder.write("digits/model.toml", settings + "[explain]\nbackground = \"rows.npz\"\n");
    fs::copy(folder.path("digits/held-out.npz"), folder.path("digits/rows.npz")).unwrap();
    folder.run(&["deploy", "digits", "--to", "other"]).ok();
    assert!(folder.path("other/digits/rows.npz").is_file() && !folder.path("other/digits/held-out.npz").exists());
}

#[test]
fn deploy_refuses_what_is_wrong_or_worse() {
    let folder = Folder::new();
    let two = model("two-features");
    copy(&models().join("two-features"), &folder.path("two-features"));
    // Its golden output is its input: not what it answers.
    fs::copy(folder.path("two-features/golden/input_0.pb"), folder.path("two-features/golden/output_0.pb")).unwrap();
    folder.run(&["deploy", "two-features", "--to", "served"]).fails(1, &["the golden samples are not reproduced"]);
    assert!(!folder.path("served/two-features").exists());
    folder.run(&["deploy", &two, "--to", "served", "--canary", "10"]).fails(1, &["there is none in"]);
    folder.run(&["deploy", &two, "--to", "served"]).ok();
    folder.run(&["deploy", &model("digits"), "--to", "served", "--name", "two-features"]).fails(1, &["are not those of the model"]);
    folder.write("rows.csv", ROWS);
    let judged = ["deploy", &two, "--to", "served", "--data", "rows.csv", "--target", "class", "--features", "a,b"];
    let out = folder.run(&judged).ok().out;
    assert!(out.contains("accuracy: 1.000000 there, 1.000000 now"), "{out}");
    folder.run(&["deploy", &two, "--to", "http://127.0.0.1:1", "--canary", "10"]).fails(1, &["--canary needs the folder of the models"]);
    folder.run(&["deploy", &two, "--to", "http://127.0.0.1:1"]).fails(1, &["http://127.0.0.1:1: "]);
    folder.run(&["deploy", &two, "--to", "https://127.0.0.1:1"]).fails(1, &["only http:// can be asked"]);
}

/// A disk that takes no more, by a limit on the size of files.
#[cfg(unix)]
#[test]
fn a_deploy_that_failed_leaves_no_empty_folders() {
    let folder = Folder::new();
    let repository = folder.path("new/served");
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
    let digits = model("digits");
    let deploy = || {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_ndserve"), "deploy", &digits, "--to"]).arg(&repository);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && errors.contains("served/.digits."), "{errors}");
    };
    deploy();
    assert!(!folder.path("new").exists());
    // A folder that was there before stays, with what is in it.
    folder.write("new/kept", "");
    deploy();
    assert!(!repository.exists() && folder.path("new/kept").exists());
    fs::create_dir(&repository).unwrap();
    deploy();
    assert_eq!(fs::read_dir(&repository).unwrap().count(), 0);
}

#[test]
fn a_deploy_removes_what_one_that_was_killed_long_ago_left() {
    let folder = Folder::new();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600);
    for (name, old) in [(".two-features.17", true), (".two-features.18", false), (".two-features.x", true), (".other.17", true)] {
        folder.write(&format!("served/{name}/1/model.onnx"), "half");
        if old {
            fs::File::open(folder.path(&format!("served/{name}"))).unwrap().set_modified(long_ago).unwrap();
        }
    }
    folder.run(&["deploy", &model("two-features"), "--to", "served"]).ok();
    let mut left: Vec<String> =
        fs::read_dir(folder.path("served")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".other.17", ".two-features.18", ".two-features.x", "two-features"]);
}

/// Of the repository's own `two-features` one that has learnt the opposite, and one that was trained for as long.
#[test]
fn deploy_refuses_what_is_worse_than_in_a_folder_or_on_a_server() {
    let folder = Folder::new();
    copy(&models().join("two-features"), &folder.path("served/two-features"));
    folder.write("rows.csv", ROWS);
    let text = fs::read_to_string(models().join("two-features/train.toml")).unwrap();
    folder.write("worse/train.toml", &text);
    folder.write("worse/data.csv", "x1,x2,class\n1,2,1\n2,3,1\n3,4,0\n4,5,0\n5,6,0\n");
    folder.run(&["train", "worse/train.toml", "--output", "two-features"]).ok();
    folder.run(&["deploy", &model("two-features"), "--to", "other"]).ok();
    let worse = ["deploy", "two-features", "--to", "other", "--data", "rows.csv", "--target", "class", "--features", "a,b"];
    folder.run(&worse).fails(1, &["the model is worse than the one that is there (accuracy: 1.000000 there, 0.000000 now"]);
    assert!(!folder.path("other/two-features/2").exists());
    folder.run(&[&worse[..], &["--force"]].concat()).ok();
    assert!(folder.path("other/two-features/2").is_dir());
    let mut server = Server::start(&folder, &["--models", "served"]);
    server.until("try: curl");
    let url = format!("http://{}", server.address);
    let answer = || server.ask("POST", "/v1/models/two-features:predict", r#"{"instances": [[5, 6]]}"#);
    let before = answer();
    assert_eq!(before.0, 200, "{}", before.1);
    let deploy = |model: &str, more: &[&str]| {
        let judged = ["deploy", model, "--to", &url, "--data", "rows.csv", "--target", "class", "--features", "a,b"];
        folder.run(&[&judged[..], more].concat())
    };
    deploy("two-features", &[]).fails(1, &["the model is worse than the one that is there (accuracy: 1.000000 there, 0.000000 now"]);
    let digits = model("digits");
    folder.run(&["deploy", &digits, "--to", &url, "--name", "two-features"]).fails(1, &["are not those of the model that is there"]);
    assert_eq!(answer(), before, "nothing was loaded");
    let out = deploy(&model("two-features"), &[]).ok().out;
    assert!(out.contains("accuracy: 1.000000 there, 1.000000 now") && out.contains("is loaded into http://"), "{out}");
    let out = deploy("two-features", &["--force"]).ok().out;
    assert!(out.contains("accuracy: 1.000000 there, 0.000000 now"), "{out}");
    assert_ne!(answer(), before);
}

/// The files of a deployed model come with a request; explanations by gradients and trees read them again. They go with the server.
#[test]
fn what_was_deployed_to_a_server_is_explained_by_gradients_and_trees() {
    let folder = Folder::new();
    for name in ["served", "tmp"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/explain/cases.zip");
    let mut cases = zip::ZipArchive::new(fs::File::open(cases).unwrap()).unwrap();
    let mut case = |name: &str| {
        let mut bytes = Vec::new();
        cases.by_name(&format!("forest-regressor/{name}")).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    folder.write("trees/1/model.onnx", case("model.onnx"));
    let data = npz::read(Cursor::new(case("data.npz")), 1 << 24).unwrap();
    let features = data["x"].shape()[1];
    let mut command = folder.command(&["serve", "--listen", "127.0.0.1:0", "--models", "served", "--allow-no-models"]);
    let server = Server::spawn(command.env("TMPDIR", folder.path("tmp")));
    let url = format!("http://{}", server.address);
    for (model, row) in [(model("two-features"), vec![5.0, 6.0]), ("trees".to_owned(), vec![0.5; features])] {
        let name = Path::new(&model).file_name().unwrap().to_str().unwrap().to_owned();
        folder.run(&["deploy", &model, "--to", &url]).ok();
        let methods: &[&str] = if name == "trees" { &["tree_shap"] } else { &["integrated_gradients", "gradient_input"] };
        for method in methods {
            let body = serde_json::json!({"instances": [row], "method": method}).to_string();
            let (status, answer) = server.ask("POST", &format!("/v1/models/{name}:explain"), &body);
            assert!(status == 200 && answer.contains("\"contributions\""), "{method}: {status} {answer}");
        }
    }
    assert_eq!(fs::read_dir(folder.path("tmp")).unwrap().count(), 2);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.end().code, Some(0));
    assert_eq!(fs::read_dir(folder.path("tmp")).unwrap().count(), 0);
}

#[test]
fn a_model_with_rounded_weights_passes_only_within_the_tolerance_that_it_declares() {
    let folder = Folder::new();
    copy(&models().join("diabetes"), &folder.path("repo/diabetes"));
    let check = |precision| folder.run(&["check", "repo", "--precision", precision, "--json"]);
    for precision in ["int8-weights", "int4-weights"] {
        let ran = check(precision);
        assert!(ran.code == Some(1) && ran.out.contains("the golden samples are not reproduced"), "{ran:?}");
    }
    let settings = fs::read_to_string(folder.path("repo/diabetes/model.toml")).unwrap();
    folder.write("repo/diabetes/model.toml", format!("golden_relative_tolerance = 0.05\n{settings}"));
    let [full, eight, four] = ["f32", "int8-weights", "int4-weights"].map(|precision| {
        let out = check(precision).ok().out;
        let reports: Value = serde_json::from_str(&out).unwrap();
        let report = &reports[0];
        (report["golden_difference"].as_f64().unwrap_or(0.0), report["weight_bytes"].as_u64().unwrap_or_else(|| panic!("{out}")))
    });
    assert!(full.0 < 1e-5 && full.0 < eight.0 && eight.0 < 0.002 && eight.0 < four.0 && four.0 < 0.02, "{full:?}, {eight:?}, {four:?}");
    assert!(eight.1 > four.1, "{full:?}, {eight:?}, {four:?}");
}
