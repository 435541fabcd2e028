//! predict, check, bench, healthcheck.

use std::io::Write;
use std::process::Stdio;

use ndserve::engine::Tensor;
use ndserve::engine::onnx::write_value;
use serde_json::Value;

use crate::fixture::{Folder, Node, Ran, models, onnx, two_relus, unknown_everywhere, with_default};

fn rows(values: [f32; 4]) -> Tensor {
    Tensor::new(&[2, 2], values.to_vec()).unwrap()
}

/// A folder with the model of [`two_relus`] and its inputs.
fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("model.onnx", two_relus());
    folder.write_tensor("in/input_0.pb", rows([-1.0, 2.0, 3.0, -4.0]));
    folder.write_tensor("in/input_1.pb", rows([5.0, -6.0, -7.0, 8.0]));
    folder
}

const PREDICT: &[&str] = &["predict", "--model", "model.onnx", "--inputs", "in", "--outputs", "out"];

#[test]
fn help_and_version() {
    let folder = Folder::new();
    let help = folder.run(&["--help"]).ok().out;
    for command in ["serve", "predict", "check", "bench", "healthcheck", "train", "evaluate", "explain", "deploy"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    let version = folder.run(&["--version"]).ok().out;
    assert!(version.starts_with(&format!("ndserve {} (", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(["scalar", "avx2", "avx512", "amx"].iter().any(|isa| version.contains(isa)), "{version}");
    folder.run(&["predict"]).fails(2, &["--model"]);
    folder.run(&["teleport"]).fails(2, &["teleport"]);
    folder.run(&["--teleport"]).fails(2, &["--teleport"]);
}

#[test]
fn predict_reads_and_writes_tensors() {
    let folder = prepared();
    let ran = folder.run(PREDICT).ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    assert_eq!(folder.read_tensor("out/output_0.pb"), ("p".into(), rows([0.0, 2.0, 3.0, 0.0])));
    assert_eq!(folder.read_tensor("out/output_1.pb"), ("q".into(), rows([5.0, 0.0, 0.0, 8.0])));
    let left = std::fs::read_dir(folder.path("out")).unwrap().count();
    assert_eq!(left, 2, "no temporary file is left");
}

#[test]
fn predict_takes_named_files_by_name() {
    let folder = prepared();
    let named = |name: &str, x: f32| write_value(name, &Tensor::new(&[1, 2], vec![x, x]).unwrap().into());
    folder.write("in/input_0.pb", named("b", 2.0));
    folder.write("in/input_1.pb", named("a", 1.0));
    folder.run(PREDICT).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb").1, Tensor::new(&[1, 2], vec![1.0_f32, 1.0]).unwrap());
}

#[test]
fn predict_goes_through_npz() {
    let folder = prepared();
    folder.run(&["predict", "--model", "model.onnx", "--inputs", "in", "--outputs", "y.npz"]).ok();
    // The outputs of one model are the inputs of the next, by name.
    folder.write("next.onnx", onnx(&[Node("Identity", &["q"], &["s"]), Node("Identity", &["p"], &["r"])], &["p", "q"], &["r", "s"]));
    folder.run(&["predict", "--model", "next.onnx", "--inputs", "y.npz", "--outputs", "out"]).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb"), ("r".into(), rows([0.0, 2.0, 3.0, 0.0])));
    folder
        .run(&["predict", "--model", "model.onnx", "--inputs", "y.npz", "--outputs", "out"])
        .fails(1, &["y.npz", "there is no array named `a`; there are `p`, `q`"]);
}

#[test]
fn an_initialiser_that_is_an_input_is_optional() {
    let folder = Folder::new();
    folder.write("model.onnx", with_default());
    folder.write_tensor("in/input_0.pb", rows([1.0, 2.0, 3.0, 4.0]));
    folder.run(PREDICT).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb").1, rows([11.0, 22.0, 13.0, 24.0]));
    folder.write("in/input_1.pb", write_value("w", &rows([1.0; 4]).into()));
    folder.run(PREDICT).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb").1, rows([2.0, 3.0, 4.0, 5.0]));
    folder.write("next.onnx", onnx(&[Node("Identity", &["x"], &["w"]), Node("Neg", &["x"], &["x2"])], &["x"], &["w", "x2"]));
    folder.run(&["predict", "--model", "next.onnx", "--inputs", "in", "--outputs", "in.npz"]).fails(1, &["the model has 1 inputs: `x`"]);
    std::fs::remove_file(folder.path("in/input_1.pb")).unwrap();
    folder.write("next.onnx", onnx(&[Node("Neg", &["a"], &["w"]), Node("Identity", &["a"], &["x"])], &["a"], &["w", "x"]));
    folder.run(&["predict", "--model", "next.onnx", "--inputs", "in", "--outputs", "in.npz"]).ok();
    folder.run(&["predict", "--model", "model.onnx", "--inputs", "in.npz", "--outputs", "out"]).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb").1, rows([0.0; 4]));
    folder.write("request.json", r#"{"inputs": {"x": [[1, 2]], "w": [[5, 5]]}}"#);
    let answer = folder.run(&["predict", "--model", "model.onnx", "--json", "request.json"]).ok().out;
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["outputs"], serde_json::json!([[6.0, 7.0]]));

    let text = folder.run(&["check", "model.onnx"]).ok().out;
    assert!(text.contains("optional    w: float32 [batch, 2]"), "{text}");
    let json = folder.run(&["check", "model.onnx", "--json"]).ok().out;
    let reports: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(reports[0]["optional_inputs"][0]["name"], "w");
    assert_eq!(reports[0]["inputs"].as_array().unwrap().len(), 1);
}

#[test]
fn predict_names_what_is_wrong() {
    let folder = prepared();
    let predict = |args: [&str; 2]| folder.run(&["predict", "--model", args[0], "--inputs", args[1], "--outputs", "out"]);
    predict(["nothing.onnx", "in"]).fails(1, &["nothing.onnx", "no such file or folder"]);
    predict(["model.onnx", "nothing"]).fails(1, &["nothing", "no such folder"]);
    predict(["in", "in"]).fails(1, &["in: there is no model file in it or in a <version> folder: model.onnx or model.safetensors"]);
    folder.write("broken.onnx", b"not a model");
    predict(["broken.onnx", "in"]).fails(1, &["broken.onnx: not an ONNX model"]);
    folder.write("model.pickle", b"");
    predict(["model.pickle", "in"]).fails(1, &["model.pickle: unknown kind of model file"]);

    folder.write("in/input_1.pb", b"\xff\xff");
    folder.run(PREDICT).fails(1, &["input_1.pb: not a TensorProto"]);
    folder.write_tensor("in/input_1.pb", Tensor::new(&[2, 3], vec![0.0_f32; 6]).unwrap());
    folder.run(PREDICT).fails(1, &["input `b` wants shape [batch, 2], got [2, 3]"]);
    folder.write_tensor("in/input_1.pb", Tensor::new(&[2, 2], vec![0_i64; 4]).unwrap());
    folder.run(PREDICT).fails(1, &["input `b` wants element type float32, got int64"]);
    folder.write_tensor("in/input_1.pb", Tensor::new(&[1, 2], vec![0.0_f32; 2]).unwrap());
    folder.run(PREDICT).fails(1, &["dimension `batch` is 2 in input `a` and 1 in input `b`"]);
    std::fs::remove_file(folder.path("in/input_1.pb")).unwrap();
    folder.run(PREDICT).fails(1, &["input_1.pb: input 1 of the model, `b`"]);
    assert!(!folder.path("out").exists(), "nothing is written if anything is wrong");

    let folder = prepared();
    folder.write_tensor("in/input_2.pb", rows([0.0; 4]));
    folder.run(PREDICT).fails(1, &["input_2.pb: the model has 2 inputs: `a`, `b`"]);
    std::fs::remove_file(folder.path("in/input_2.pb")).unwrap();
    folder.write("out", b"a file where the folder should be");
    folder.run(PREDICT).fails(1, &["out: "]);
}

#[test]
fn predict_answers_json() {
    let folder = prepared();
    folder.write("request.json", r#"{"inputs": {"a": [[-1, 2]], "b": [[3, -4]]}}"#);
    let answer = folder.run(&["predict", "--model", "model.onnx", "--json", "request.json"]).ok().out;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["outputs"]["p"], serde_json::json!([[0.0, 2.0]]), "{answer}");
    assert_eq!(answer["outputs"]["q"], serde_json::json!([[3.0, 0.0]]), "{answer}");

    folder.write("one.onnx", onnx(&[Node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    let mut child = folder
        .command(&["predict", "--model", "one.onnx", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"instances": [[1, -1], [-2, 2]]}"#).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap()).ok();
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["predictions"], serde_json::json!([[1.0, 0.0], [0.0, 2.0]]), "{answer}");

    for (request, want) in [("{", "request.json"), (r#"{"instances": [[1, 2, 3]]}"#, "x"), (r#"{"inputs": {"z": [[1, 2]]}}"#, "z")] {
        folder.write("request.json", request);
        folder.run(&["predict", "--model", "one.onnx", "--json", "request.json"]).fails(1, &[want]);
    }
}

#[test]
fn check_tells_what_is_in_a_model() {
    let folder = prepared();
    let text = folder.run(&["check", "model.onnx"]).ok().out;
    for part in ["a: float32 [batch, 2]", "q: float32 [batch, 2]", "2 × Relu (opset 20)", "per run of 64 rows", "  ok\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = folder.run(&["check", "model.onnx", "--json", "--max-batch-rows", "8"]).ok().out;
    let reports: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(reports[0]["servable"], true);
    assert_eq!(reports[0]["operators"][0]["nodes"], 2);
    assert_eq!(reports[0]["memory"][1]["rows"], 8);
    assert_eq!(reports[0]["inputs"][1]["name"], "b");
}

#[test]
fn check_tells_why_a_pass_did_or_did_not() {
    let folder = Folder::new();
    folder.write("erf.onnx", onnx(&[Node("Identity", &["x"], &["a"]), Node("Erf", &["a"], &["y"])], &["x"], &["y"]));
    let text = folder.run(&["check", "erf.onnx", "--why"]).ok().out;
    for part in ["  pass identity: 1 Identity gone\n", "  pass fuse-attention: nothing\n", "(Erf): around it is no product of"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = folder.run(&["check", "erf.onnx", "--why", "--json"]).ok().out;
    let reports: Value = serde_json::from_str(&json).unwrap();
    let passes = reports[0]["passes"].as_array().unwrap();
    let gelu = passes.iter().find(|pass| pass["pass"] == "fuse-gelu").unwrap();
    assert_eq!((&gelu["left"][0]["operator"], &gelu["removed"]), (&"Erf".into(), &serde_json::json!({})));
    assert!(!folder.run(&["check", "erf.onnx"]).ok().out.contains("pass identity"));
}

#[test]
fn check_joins_the_steps_of_a_pipeline() {
    let folder = Folder::new();
    folder.write("models/relu/1/model.onnx", onnx(&[Node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    folder.write("models/right/model.toml", "[[step]]\nmodel = 'relu'\n");
    folder.write("models/wrong/model.toml", "[[step]]\nmodel = 'relu'\ninputs = { z = 'a' }\n");
    folder.write("models/golden/model.toml", "[[step]]\nmodel = 'relu'\n");
    for name in ["input_0", "output_0"] {
        folder.write_tensor(&format!("models/golden/golden/{name}.pb"), Tensor::new(&[1, 2], vec![-1.0_f32, 1.0]).unwrap());
    }
    let ran = folder.run(&["check", "models", "--json"]);
    assert_eq!(ran.code, Some(1));
    let reports: Value = serde_json::from_str(&ran.out).unwrap();
    let report = |name: &str| reports.as_array().unwrap().iter().find(|report| report["name"] == name).unwrap().clone();
    let right = report("right");
    assert_eq!((&right["servable"], &right["inputs"][0]["name"], &right["format"]), (&true.into(), &"x".into(), &"pipeline".into()));
    for (name, want) in [("wrong", "the model has no input `z`"), ("golden", "the golden samples are not reproduced")] {
        let report = report(name);
        assert!(report["servable"] == false && report["error"].as_str().unwrap().contains(want), "{report}");
    }
}

#[test]
fn check_names_every_unsupported_node() {
    let folder = Folder::new();
    let nodes = [Node("Flux", &["x"], &["y"]), Node("Relu", &["y"], &["z"]), Node("Teleport", &["z"], &["out"])];
    folder.write("model.onnx", onnx(&nodes, &["x"], &["out"]));
    let ran = folder.run(&["check", "model.onnx"]);
    assert_eq!(ran.code, Some(1));
    for part in ["2 nodes are not supported", "`node-0`: Flux of ai.onnx (opset 20)", "`node-2`: Teleport of ai.onnx (opset 20)"] {
        assert!(ran.out.contains(part), "{ran:?}");
    }
    let reports: Value = serde_json::from_str(&folder.run(&["check", "--json", "model.onnx"]).out).unwrap();
    assert_eq!(reports[0]["servable"], false);
    assert_eq!(reports[0]["unsupported"][1]["operator"], "Teleport");
}

/// What the file says of itself is told of a model that cannot be loaded too, and what would fail is told wherever it is: in
/// the graph, in bodies, in functions.
#[test]
fn check_looks_into_bodies_and_functions() {
    let folder = Folder::new();
    folder.write("model.onnx", unknown_everywhere());
    let ran = folder.run(&["check", "model.onnx"]);
    assert_eq!(ran.code, Some(1));
    for part in [
        "ONNX 10, opset ai.onnx 20, local 3, made by a test",
        "description two lines of words",
        "property    author = nobody",
        "property    version = 7",
        "  input       x: float32 [batch, 2]\n",
        "  input       list: sequence of float32\n",
        "  output      maybe: optional int64\n",
        "FAILED: 5 nodes are not supported",
        ": InGraph of ai.onnx (opset 20)",
        ": InThen of ai.onnx (opset 20)",
        ": InElse of ai.onnx (opset 20)",
        ": InLoop of ai.onnx (opset 20)",
        ": InFunction of ai.onnx (opset 20)",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    let reports: Value = serde_json::from_str(&folder.run(&["check", "--json", "model.onnx"]).out).unwrap();
    assert_eq!(reports[0]["properties"]["version"], "7");
    assert_eq!(reports[0]["inputs"].as_array().unwrap().len(), 4);
    assert_eq!(reports[0]["unsupported"].as_array().unwrap().len(), 5);
    assert_eq!(reports[0].get("parameters"), None, "what only a loaded model tells");
    // Of what is no model nothing can be told.
    folder.write("broken.onnx", b"\x08\xff");
    let broken = folder.run(&["check", "broken.onnx"]);
    assert!(broken.code == Some(1) && broken.out.contains("FAILED: not an ONNX model"), "{broken:?}");
}

#[test]
fn check_goes_through_a_repository() {
    let folder = Folder::new();
    let relu = onnx(&[Node("Relu", &["x"], &["y"])], &["x"], &["y"]);
    for name in ["good", "wrong", "labels", "key", "empty"] {
        folder.write(&format!("repo/{name}/README.md"), "");
    }
    folder.write("repo/.hidden/x", "");
    for name in ["good", "wrong", "labels", "key"] {
        folder.write(&format!("repo/{name}/1/model.onnx"), &relu);
        folder.write_tensor(&format!("repo/{name}/golden/input_0.pb"), rows([-1.0, 1.0, 2.0, -2.0]));
        let recorded = if name == "wrong" { 9.0 } else { 1.0 };
        folder.write_tensor(&format!("repo/{name}/golden/output_0.pb"), rows([0.0, recorded, 2.0, 0.0]));
    }
    // The newest version counts: the old one could not be loaded.
    folder.write("repo/good/2/model.onnx", &relu);
    folder.write("repo/good/1/model.onnx", b"old");
    folder.write("repo/labels/model.toml", "labels = ['one', 'two', 'three']");
    folder.write("repo/key/model.toml", "max_batch = 3");
    let ran = folder.run(&["check", "--json", "repo"]);
    assert_eq!(ran.code, Some(1));
    let reports: Value = serde_json::from_str(&ran.out).unwrap();
    let errors: Vec<(&str, &str)> =
        reports.as_array().unwrap().iter().map(|r| (r["name"].as_str().unwrap(), r["error"].as_str().unwrap_or("ok"))).collect();
    let want = [
        ("empty", "there is no model file in it or in a <version> folder"),
        ("good", "ok"),
        ("key", "unknown field `max_batch`"),
        ("labels", "3 labels"),
        ("wrong", "element 1: F32([1.0]) is computed, F32([9.0]) is recorded"),
    ];
    assert_eq!(errors.len(), want.len(), "{errors:?}");
    for ((name, error), (want_name, want_error)) in errors.into_iter().zip(want) {
        assert_eq!(name, want_name);
        assert!(error.contains(want_error), "{name}: {error}");
    }
    assert_eq!(reports[1]["golden_rows"], 2);
    folder.run(&["check", "repo/good"]).ok();
    folder.run(&["check", "nothing"]).fails(1, &["nothing: no such file or folder"]);
}

#[test]
fn a_folder_as_downloaded_is_taken_as_it_is() {
    let folder = Folder::new();
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    let (bert, layers) = (fixture.join("bert-sequence"), fixture.join("layers-mlp"));
    let sample = bert.join("padded");
    folder.run(&["predict", "--model", bert.to_str().unwrap(), "--inputs", sample.to_str().unwrap(), "--outputs", "out"]).ok();
    assert_eq!(folder.read_tensor("out/output_0.pb").1.shape(), [3, 3]);
    folder.write("request.json", r#"{"inputs": {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]]}}"#);
    let answer = folder.run(&["predict", "--model", bert.to_str().unwrap(), "--json", "request.json"]).ok().out;
    assert!(answer.contains("maybe"), "the labels of config.json: {answer}");
    let text = folder.run(&["check", bert.to_str().unwrap()]).ok().out;
    assert!(text.contains("safetensors, opset ai.onnx 21, made by transformers 5.") && text.contains("share a run"), "{text}");
    // Settings and layers in one file: `max_batch_rows` is the server's, `layers` the engine's.
    let text = folder.run(&["check", layers.to_str().unwrap()]).ok().out;
    assert!(text.contains("features: float32 [batch, 6]") && text.contains("per run of 8 rows"), "{text}");
}

#[test]
fn the_projects_own_models_can_be_served() {
    let text = Folder::new().run(&["check", models().to_str().unwrap()]).ok().out;
    assert_eq!(text.matches("  ok\n").count(), 4, "{text}");
    assert_eq!(text.matches("recorded rows reproduced").count(), 4, "{text}");
}

#[test]
fn bench_prints_what_the_comparison_script_reads() {
    let folder = prepared();
    let bench = ["bench", "--model", "model.onnx", "--inputs", "in", "--threads", "1", "--seconds", "0.01"];
    let json = folder.run(&[&bench[..], &["--precision", "f32", "--json"]].concat()).ok();
    assert_eq!(json.err, "", "quiet in a pipe");
    let measured: Value = serde_json::from_str(&json.out).unwrap();
    assert!(!measured["runs_ms"].as_array().unwrap().is_empty());
    for key in ["load_ms", "first_ms", "rss_peak_mib"] {
        assert!(measured[key].is_f64(), "{key}: {measured}");
    }
    let table = folder.run(&bench).ok().out;
    assert!(table.contains("median") && table.contains("\nRelu "), "{table}");
    assert!(table.contains("\nlimits of 1 threads: ") && table.contains(" GFLOP/s in f32, "), "{table}");
    let nodes = folder.run(&[&bench[..], &["--by", "node"]].concat()).ok().out;
    let line = nodes.lines().find(|line| line.starts_with("Relu ")).unwrap();
    assert!(line.contains("% ") && line.contains("] → ["), "{nodes}");
    for precision in ["bf16", "int8", "int8-weights", "int4-weights"] {
        assert!(folder.run(&[&bench[..], &["--precision", precision]].concat()).ok().out.contains(&format!(" · {precision} · ")));
    }
    folder.run(&[&bench[..], &["--precision", "f16"]].concat()).fails(2, &["precision `f16` is not supported"]);
    folder.run(&["bench", "--model", "model.onnx", "--batch", "4", "--seconds", "0"]).ok();
}

#[test]
fn healthcheck_without_a_server_fails() {
    let folder = Folder::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/readyz");
    folder.run(&["healthcheck", "--url", &url]).fails(1, &[&url, "refused"]);
    let listen = format!("0.0.0.0:{port}");
    Ran::from(folder.command(&["healthcheck"]).env("NDSERVE_LISTEN", listen).output().unwrap()).fails(1, &[&url]);
}
