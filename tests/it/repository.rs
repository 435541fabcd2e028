//! The living repository: what clients see while models come, change and go.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use ndserve::api::{Limits, ServerOptions};
use ndserve::engine::onnx::write_value;
use ndserve::engine::{Tensor, Value};
use ndserve::serve::{Label, Mirror, Options, Overrides, Repository, State, Unload, Watch};
use serde_json::json;

use crate::client::{Answer, Client, get, post, request};
use crate::models::{self, Folder, scaled};
use crate::server::Server;

fn serve(options: Options) -> Server {
    let repository = Arc::new(Repository::open(options).unwrap());
    repository.load(|_, _, _, _| {});
    Server::over(repository, Limits::default(), ServerOptions::default())
}

/// Runs a change as a handler would.
fn change<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work)
}

fn load(server: &Server, model: &str) -> Result<(), String> {
    change(server.repository.load_model(model, Overrides::default())).map_err(|error| error.message().to_owned())
}

const BODY: &str = r#"{"instances": [[1,2]]}"#;

/// What answers a row of one and two: the model is a factor.
fn factor(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let start = answer.body.find("[[").unwrap() + 2;
    answer.body[start..].split(',').next().unwrap().to_owned()
}

fn predict(server: &Server, path: &str) -> Answer {
    post(server.address, &format!("/v1/models/{path}:predict"), BODY)
}

fn state(server: &Server, model: &str, version: &str) -> (&'static str, String) {
    let list = server.repository.list();
    let model = list.iter().find(|known| known.name == model).unwrap();
    let status = model.versions.iter().find(|known| known.version == version).unwrap();
    (status.state.name(), status.reason().to_owned())
}

/// Waits until nothing is being unloaded.
fn drained(server: &Server) {
    let unloading = || server.repository.list().iter().flat_map(|model| &model.versions).any(|v| matches!(v.state, State::Unloading));
    while unloading() {
        std::thread::yield_now();
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn every_layout_is_served() {
    let folder = models::new_folder();
    scaled(&folder.join("versions"), "1", 1.0);
    scaled(&folder.join("versions"), "2", 2.0);
    scaled(&folder.join("versions"), "v1.2-beta", 3.0);
    write(&folder.join("versions/model.toml"), "versions = 'all'");
    scaled(&folder, "flat", 4.0);
    scaled(&folder, "once", 5.0);
    std::fs::rename(folder.join("once/model.onnx"), folder.join("file.onnx")).unwrap();
    std::fs::remove_dir(folder.join("once")).unwrap();
    let server = serve(Options::new(&*folder));
    for (path, want) in [
        ("versions", "3.0"),
        ("versions/versions/1", "1.0"),
        ("versions/versions/2", "2.0"),
        ("versions/versions/v1.2-beta", "3.0"),
        ("flat", "4.0"),
        ("file/versions/1", "5.0"),
    ] {
        assert_eq!(factor(&predict(&server, path)), want, "{path}");
    }
    assert_eq!(get(server.address, "/readyz").status, 200);

    // The whole repository may be one model: its file, its folder, or what a model store mounts.
    std::fs::copy(folder.join("file.onnx"), folder.join("mounted")).unwrap();
    for (path, name, want) in
        [("file.onnx", "file", "5.0"), ("flat", "flat", "4.0"), ("flat/model.onnx", "flat", "4.0"), ("mounted", "mounted", "5.0")]
    {
        let server = serve(Options::new(folder.join(path)));
        assert_eq!(factor(&predict(&server, name)), want, "{path}");
        assert_eq!(factor(&post(server.address, "/predict", BODY)), want, "the only model needs no name");
    }
    let named = Options { model_name: Some("iris".into()), ..Options::new(folder.join("mounted")) };
    assert_eq!(factor(&predict(&serve(named), "iris")), "5.0");

    // A configuration names a model whose path says nothing, unless the command line does.
    write(&folder.join("flat/config.pbtxt"), "name: 'iris'");
    assert_eq!(factor(&predict(&serve(Options::new(folder.join("flat"))), "iris")), "4.0");
    let named = Options { model_name: Some("mine".into()), ..Options::new(folder.join("flat")) };
    assert_eq!(factor(&predict(&serve(named), "mine")), "4.0");
    // Among others the folder's name is served.
    assert_eq!(factor(&predict(&serve(Options::new(&*folder)), "flat")), "4.0");
    let mut strict = Options::new(&*folder);
    strict.defaults.strict = true;
    let flat = Repository::open(strict).unwrap().list().into_iter().find(|model| model.name == "flat").unwrap();
    assert!(flat.versions[0].reason().contains("`iris` is configured where the folder is `flat`"), "{flat:?}");
}

#[test]
fn versions_come_and_go_while_the_server_runs() {
    let folder = models::new_folder();
    let model = folder.join("m");
    scaled(&model, "1", 1.0);
    let server = serve(Options::new(&*folder));
    scaled(&model, "2", 2.0);
    load(&server, "m").unwrap();
    drained(&server);
    assert_eq!(factor(&predict(&server, "m")), "2.0");
    assert_eq!(predict(&server, "m/versions/1").status, 404, "the policy is the newest one");

    write(&model.join("model.toml"), "versions = { latest = 2 }");
    load(&server, "m").unwrap();
    assert_eq!((factor(&predict(&server, "m/versions/1")), factor(&predict(&server, "m"))), ("1.0".into(), "2.0".into()));
    write(&model.join("model.toml"), "versions = ['1']");
    load(&server, "m").unwrap();
    assert_eq!(factor(&predict(&server, "m")), "1.0");

    change(server.repository.unload_model("m", Unload::default())).unwrap();
    assert_eq!(predict(&server, "m").status, 404);
    assert_eq!(get(server.address, "/readyz").status, 200, "it was meant to go");
    load(&server, "m").unwrap();
    assert_eq!(factor(&predict(&server, "m")), "1.0");
    assert_eq!(predict(&server, "nobody").status, 404);
}

#[test]
fn a_broken_version_is_told_and_the_old_one_serves() {
    let folder = models::new_folder();
    let model = folder.join("m");
    scaled(&model, "1", 1.0);
    let server = serve(Options::new(&*folder));
    write(&model.join("2/model.onnx"), "not a model");
    let error = load(&server, "m").unwrap_err();
    assert!(error.contains("version 2") && error.contains("not an ONNX model"), "{error}");
    assert_eq!(factor(&predict(&server, "m")), "1.0");
    let (name, reason) = state(&server, "m", "2");
    assert!(name == "failed" && reason.contains("not an ONNX model"), "{reason}");
    assert_eq!(server.metric("ndserve_model_loads_total{model=\"m\",outcome=\"failed\"}"), 1.0);
    assert_eq!(server.metric("ndserve_server_state{state=\"degraded\"}"), 1.0);
    assert_eq!(get(server.address, "/readyz").status, 200, "every model serves");
    assert!(get(server.address, "/v2").body.contains("not an ONNX model"));
}

#[test]
fn a_label_splits_and_mirrors_requests() {
    let folder = models::new_folder();
    let model = folder.join("m");
    scaled(&model, "1", 1.0);
    scaled(&model, "2", 2.0);
    write(&model.join("model.toml"), "versions = 'all'\nversion_labels = { stable = '1', canary = { split = { 1 = 90, 2 = 10 } } }");
    let server = serve(Options::new(&*folder));
    assert_eq!(factor(&predict(&server, "m/versions/stable")), "1.0");
    let new = (0..100).filter(|_| factor(&predict(&server, "m/versions/canary")) == "2.0").count();
    assert!((9..=11).contains(&new), "{new} of 100 requests went to the canary");

    let mirrored = Label { mirror: Some(Mirror { version: "2".into(), share: 1.0 }), ..Label::version("1") };
    server.repository.set_label("m", "default", Some(mirrored)).unwrap();
    let answered =
        |name: &str| server.metric(&format!("ndserve_shadow_requests_total{{model=\"m\",label=\"default\",outcome=\"{name}\"}}"));
    let mut sent = 0.0;
    // Copies run behind the answer; the next one finds a place when one has ended.
    while answered("compared") < 5.0 {
        assert_eq!(factor(&predict(&server, "m")), "1.0", "the client never sees the mirror");
        sent += 1.0;
    }
    while answered("compared") + answered("failed") + answered("skipped") < sent {
        std::thread::yield_now();
    }
    assert_eq!(answered("failed"), 0.0);
    let value = |name: &str| server.metric(&format!("ndserve_shadow_{name}{{model=\"m\",label=\"default\"}}"));
    assert_eq!(value("difference_max"), 2.0, "[1, 2] and [2, 4] are 2 apart");
    assert_eq!((value("rows_total"), value("disagreements_total")), (answered("compared"), 0.0), "both name the second class");
    assert!(server.metric("ndserve_shadow_seconds_sum{model=\"m\",label=\"default\",side=\"shadow\"}") > 0.0);
    // A mirror that is gone costs nobody an answer.
    write(
        &model.join("model.toml"),
        "versions = ['1']\nversion_labels = { canary = { split = { 1 = 90, 7 = 10 }, mirror = { version = '8' } } }",
    );
    server.repository.set_label("m", "default", None).unwrap();
    load(&server, "m").unwrap();
    assert_eq!(factor(&predict(&server, "m/versions/canary")), "1.0");
}

#[test]
fn a_pipeline_runs_its_steps_as_one_request() {
    let folder = models::new_folder();
    scaled(&folder.join("two"), "1", 2.0);
    scaled(&folder.join("three"), "1", 3.0);
    let steps = "[[step]]\nmodel = 'two'\noutputs = { y = 'doubled' }\n[[step]]\nmodel = 'three'\ninputs = { x = 'doubled' }\noutputs = { y = 'result' }\n";
    write(&folder.join("six/model.toml"), steps);
    let nested = "[[step]]\nmodel = 'six'\n[[step]]\nmodel = 'two'\ninputs = { x = 'result' }\noutputs = { y = 'twelve' }\n\
                  [[step]]\nmodel = 'three'\ninputs = { x = 'result' }\noutputs = { y = 'eighteen' }\n";
    write(&folder.join("nested/model.toml"), nested);
    let server = serve(Options::new(&*folder));
    assert_eq!(factor(&predict(&server, "six")), "6.0");
    let metadata = get(server.address, "/v2/models/six").body;
    for part in ["\"name\":\"x\"", "\"name\":\"result\"", "[-1,2]"] {
        assert!(metadata.contains(part), "{part} in {metadata}");
    }
    let answer = predict(&server, "nested");
    assert!(answer.body.contains("12.0") && answer.body.contains("18.0"), "{answer:?}");
    let answer = post(server.address, "/v1/models/six:predict", r#"{"instances": [[1,2,3]]}"#);
    assert_eq!((answer.status, answer.error().contains("[batch, 2]")), (400, true), "{answer:?}");

    // A step that is swapped is so in the pipeline; each step has its own queue and counters.
    scaled(&folder.join("two"), "2", 20.0);
    load(&server, "two").unwrap();
    assert_eq!(factor(&predict(&server, "six")), "60.0");
    let passes = |model: &str| server.repository.get(model, None).unwrap().handle().unwrap().stats().batches();
    assert_eq!(passes("two"), 1);
    assert!(server.repository.get("six", None).unwrap().handle().is_none());

    // Without a step there is no pipeline, and with it again there is.
    change(server.repository.unload_model("three", Unload::default())).unwrap();
    assert_eq!(predict(&server, "six").status, 503);
    assert!(state(&server, "six", "1").1.contains("step `three`: model `three` version 1 is unloaded"));
    load(&server, "three").unwrap();
    assert_eq!(factor(&predict(&server, "six")), "60.0");
    change(server.repository.unload_model("six", Unload { dependents: true })).unwrap();
    assert_eq!((predict(&server, "six").status, predict(&server, "two").status), (404, 404));
}

/// Golden samples in a model's folder: what 1 and 2 become.
fn record(model: &Path, output: f32) {
    for (file, values) in [("input_0.pb", [1.0, 2.0]), ("output_0.pb", [output, 2.0 * output])] {
        let value = Value::Tensor(Tensor::new(&[1, 2], values.to_vec()).unwrap());
        let path = model.join("golden").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, write_value("", &value)).unwrap();
    }
}

#[test]
fn a_pipeline_that_does_not_reproduce_its_golden_samples_does_not_come() {
    let folder = models::new_folder();
    scaled(&folder.join("two"), "1", 2.0);
    scaled(&folder.join("three"), "1", 3.0);
    let steps = |first: &str| {
        format!(
            "[[step]]\nmodel = '{first}'\noutputs = {{ y = 'a' }}\n[[step]]\nmodel = 'three'\ninputs = {{ x = 'a' }}\noutputs = {{ y = 'b' }}\n"
        )
    };
    for pipeline in ["right", "wrong"] {
        write(&folder.join(pipeline).join("model.toml"), &steps("two"));
    }
    record(&folder.join("right"), 6.0);
    record(&folder.join("wrong"), 7.0);
    // At the start.
    let server = serve(Options::new(&*folder));
    assert_eq!(factor(&predict(&server, "right")), "6.0");
    let (name, reason) = state(&server, "wrong", "1");
    assert!(name == "failed" && reason.contains("the golden samples are not reproduced"), "{name} {reason}");
    assert_eq!(predict(&server, "wrong").status, 503);
    // A change of a step does not bring it back; loading it anew with samples that are right does.
    load(&server, "two").unwrap();
    assert_eq!(state(&server, "wrong", "1").0, "failed");
    record(&folder.join("wrong"), 6.0);
    load(&server, "wrong").unwrap();
    assert_eq!(factor(&predict(&server, "wrong")), "6.0");
    // While it serves, what does not reproduce them changes nothing.
    write(&folder.join("right/model.toml"), &steps("three"));
    let error = load(&server, "right").unwrap_err();
    assert!(error.contains("the golden samples are not reproduced"), "{error}");
    assert_eq!(factor(&predict(&server, "right")), "6.0");
    assert!(state(&server, "right", "1").1.contains("the golden samples are not reproduced"));
}

#[test]
fn a_version_that_breaks_a_pipelines_golden_samples_does_not_come() {
    let folder = models::new_folder();
    scaled(&folder.join("two"), "1", 2.0);
    write(&folder.join("inner/model.toml"), "[[step]]\nmodel = 'two'\n");
    write(&folder.join("outer/model.toml"), "[[step]]\nmodel = 'inner'\n");
    record(&folder.join("outer"), 2.0);
    let server = serve(Options::new(&*folder));
    assert_eq!(factor(&predict(&server, "outer")), "2.0");
    // The model has no samples of its own, but the pipeline that it is a part of through another has.
    scaled(&folder.join("two"), "2", 20.0);
    let error = load(&server, "two").unwrap_err();
    assert!(error.contains("pipeline `outer`: the golden samples are not reproduced"), "{error}");
    for model in ["two", "inner", "outer"] {
        assert_eq!(factor(&predict(&server, model)), "2.0", "{model}");
    }
    assert!(state(&server, "two", "2").1.contains("pipeline `outer`"));
    // With samples that are right for it, it comes.
    record(&folder.join("outer"), 20.0);
    load(&server, "two").unwrap();
    assert_eq!(factor(&predict(&server, "outer")), "20.0");
}

#[test]
fn steps_that_do_not_fit_are_refused_at_load() {
    let folder = models::new_folder();
    scaled(&folder.join("two"), "1", 2.0);
    let models = models::folder();
    for name in ["pair", "flags"] {
        std::fs::rename(models.join(name), folder.join(name)).unwrap();
    }
    let step = |model: &str, rest: &str| format!("[[step]]\nmodel = '{model}'\n{rest}\n");
    let cases = [
        ("loop", step("loop", ""), "the pipeline is a part of itself: loop → loop"),
        ("ping", step("pong", ""), "a part of itself: ping → pong → ping"),
        ("pong", step("ping", ""), "a part of itself"),
        (
            "circle",
            step("two", "inputs = { x = 'a' }\noutputs = { y = 'b' }") + &step("two", "inputs = { x = 'b' }\noutputs = { y = 'a' }"),
            "the steps wait for each other",
        ),
        ("types", step("flags", "") + &step("two", "inputs = { x = 'f_out' }"), "input `x` cannot take the value `f_out`: it is a"),
        ("shapes", step("pair", "") + &step("two", "inputs = { x = 'n_out' }"), "input `x` cannot take the value `n_out`"),
        ("input", step("two", "inputs = { z = 'a' }"), "the model has no input `z`"),
        ("output", step("two", "outputs = { z = 'a' }"), "the model has no output `z`"),
        ("twice", step("two", "outputs = { y = 'a' }") + &step("two", "outputs = { y = 'a' }"), "another step makes the value `a`"),
        ("missing", step("nobody", ""), "model `nobody` is not known"),
        ("lost", format!("pipeline_outputs = ['z']\n{}", step("two", "")), "no step makes the output `z`"),
    ];
    for (name, text, _) in &cases {
        write(&folder.join(name).join("model.toml"), text);
    }
    let server = serve(Options::new(&*folder));
    for (name, _, want) in cases {
        let (state, reason) = state(&server, name, "1");
        assert_eq!(state, "failed", "{name}");
        assert!(reason.contains(want), "{name}: {reason}");
        assert_eq!(predict(&server, name).status, 503);
    }
    assert_eq!(get(server.address, "/readyz").status, 503);
}

#[test]
fn a_triton_repository_is_served_as_it_is() {
    let folder = models::new_folder();
    for (name, factor) in [("plain", 2.0), ("batched", 3.0)] {
        scaled(&folder.join(name), "1", factor);
        std::fs::rename(folder.join(name).join("1/model.onnx"), folder.join(name).join("1/net.onnx")).unwrap();
    }
    let ports = |dims: &str| {
        format!(
            "input [ {{ name: \"x\" data_type: TYPE_FP32 dims: {dims} }} ]\noutput {{ name: \"y\" data_type: TYPE_FP32 dims: {dims} label_filename: \"labels.txt\" }}\n"
        )
    };
    let file = "default_model_filename: \"net.onnx\" platform: \"onnxruntime_onnx\"\n";
    write(&folder.join("plain/config.pbtxt"), &format!("name: 'plain' {file}{}", ports("[ -1, 2 ]")));
    let batched = "max_batch_size: 4\ndynamic_batching { max_queue_delay_microseconds: 100 }\ninstance_group [ { count: 2 kind: KIND_CPU } ]\n\
                   model_warmup { name: 'w' batch_size: 2 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 random_data: true } } }\n";
    write(&folder.join("batched/config.pbtxt"), &format!("{file}{batched}{}", ports("[ 2 ]")));
    for name in ["plain", "batched"] {
        write(&folder.join(name).join("labels.txt"), "cat\ndog\n");
    }
    let ensemble = "platform: 'ensemble'\ninput { name: 'IN' data_type: TYPE_FP32 dims: [-1, 2] }\noutput { name: 'OUT' data_type: TYPE_FP32 dims: [-1, 2] }\n\
                    ensemble_scheduling { step [ { model_name: 'plain' model_version: -1 input_map { key: 'x' value: 'IN' } output_map { key: 'y' value: 'mid' } },\n\
                    { model_name: 'batched' model_version: 1 input_map { key: 'x' value: 'mid' } output_map { key: 'y' value: 'OUT' } } ] }\n";
    write(&folder.join("both/config.pbtxt"), ensemble);
    write(&folder.join("misfit/config.pbtxt"), "input { name: 'x' data_type: TYPE_INT8 dims: [-1, 2] }");
    scaled(&folder.join("misfit"), "1", 1.0);
    write(&folder.join("odd/config.pbtxt"), "cuda_magic: 3");
    scaled(&folder.join("odd"), "1", 1.0);
    let server = serve(Options::new(&*folder));
    let answer = predict(&server, "plain");
    assert!(answer.body.contains("dog") && answer.body.contains("4.0"), "{answer:?}");
    let settings = server.repository.get("batched", None).unwrap().settings().clone();
    assert_eq!((settings.max_batch_rows, settings.instances, settings.max_delay.as_micros()), (4, 2, 100));
    let answer =
        post(server.address, "/v2/models/both/infer", r#"{"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1,2], "data": [1,2]}]}"#);
    assert!(answer.status == 200 && answer.body.contains("\"OUT\"") && answer.body.contains("6.0,12.0"), "{answer:?}");
    // What Triton's load generator knows an ensemble by.
    let config: serde_json::Value = serde_json::from_str(&get(server.address, "/v2/models/both/config").body).unwrap();
    assert_eq!((&config["platform"], &config["instance_group"]), (&json!("ensemble"), &json!([])));
    assert_eq!(
        config["ensemble_scheduling"]["step"],
        json!([
            { "model_name": "plain", "model_version": -1, "input_map": { "x": "IN" }, "output_map": { "y": "mid" } },
            { "model_name": "batched", "model_version": 1, "input_map": { "x": "mid" }, "output_map": { "y": "OUT" } },
        ])
    );
    assert!(get(server.address, "/v2/models/both").body.contains("\"platform\":\"ensemble\""));
    assert!(get(server.address, "/v2/models/plain/config").body.contains("\"default_model_filename\":\"net.onnx\""));
    assert!(state(&server, "misfit", "1").1.contains("TYPE_INT8 is configured, the model has TYPE_FP32"));
    assert_eq!(predict(&server, "odd").status, 200, "what is not understood is a warning");

    let mut strict = Options::new(&*folder);
    strict.defaults.strict = true;
    let repository = Repository::open(strict).unwrap();
    let odd = repository.list().into_iter().find(|model| model.name == "odd").unwrap();
    assert!(odd.versions[0].reason().contains("not understood, and the server is strict: cuda_magic"), "{odd:?}");
}

#[test]
fn a_watched_folder_is_followed() {
    let folder = models::new_folder();
    let model = folder.join("m");
    scaled(&model, "1", 1.0);
    let options = Options::new(&*folder);
    let mut watch = Watch::new(&options).unwrap();
    let server = serve(options);
    let mut look = |times: usize| (0..times).for_each(|_| watch.look(&server.repository));
    let loads = |outcome: &str| server.metric(&format!("ndserve_model_loads_total{{model=\"m\",outcome=\"{outcome}\"}}"));
    look(3);
    assert_eq!(loads("ok"), 1.0, "nothing has changed");

    scaled(&model, "2", 2.0);
    look(1);
    assert_eq!(factor(&predict(&server, "m")), "1.0", "it may still be being copied");
    look(1);
    assert_eq!(factor(&predict(&server, "m")), "2.0");
    // While a copy goes on it looks different each time, and a name that starts with a dot is nobody's.
    for size in 1..4 {
        write(&model.join("3/model.onnx"), &"x".repeat(size));
        write(&folder.join(".new/model.onnx"), &"x".repeat(size));
        look(1);
    }
    assert_eq!((loads("ok"), loads("failed")), (2.0, 0.0));
    look(2);
    assert_eq!((loads("failed"), factor(&predict(&server, "m"))), (1.0, "2.0".to_owned()), "a broken version is tried once");
    look(3);
    assert_eq!(loads("failed"), 1.0);
    scaled(&model, "3", 3.0);
    look(2);
    assert_eq!(factor(&predict(&server, "m")), "3.0", "and again once it is mended");

    scaled(&folder.join("n"), "1", 7.0);
    look(2);
    assert_eq!(factor(&predict(&server, "n")), "7.0");
    change(server.repository.unload_model("m", Unload::default())).unwrap();
    scaled(&model, "4", 4.0);
    look(3);
    assert_eq!(predict(&server, "m").status, 404, "what was unloaded stays so until it is loaded");
    std::fs::remove_dir_all(folder.join("n")).unwrap();
    look(2);
    assert_eq!(predict(&server, "n").status, 404);
    assert!(get(server.address, "/v1/models").body.contains(r#"{"models":["m"]}"#));
}

/// The version and the factor of an answer to several rows, all of one factor.
fn whole(answer: &Answer) -> (String, f32) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let data: Vec<f32> = json["outputs"][0]["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let factor = data[0];
    assert!(data.iter().enumerate().all(|(i, &x)| x == factor * (i + 1) as f32), "rows of two versions: {answer:?}");
    (json["model_version"].as_str().unwrap().to_owned(), factor)
}

/// Clients ask without a pause while `change` runs; each answer must be a whole one, and `right` about its version and factor.
fn under_load(server: &Server, clients: usize, right: impl Fn(&str, f32) -> bool + Sync, change: impl FnOnce(&AtomicUsize)) -> usize {
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let body = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4,2], "data": [1,2,3,4,5,6,7,8]}]}"#;
    let bytes = request("POST", "/v2/models/m/infer", &[], body);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::connect(server.address);
                while !done.load(Relaxed) {
                    let (version, factor) = whole(&client.send(&bytes));
                    assert!(right(&version, factor), "version {version} answers with {factor}");
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        change(&answered);
        done.store(true, Relaxed);
    });
    answered.into_inner()
}

/// The small sister of `scripts/swap.py`, which also looks at time and memory.
#[test]
fn a_swap_loses_nothing_under_load() {
    const RELOADS: usize = 20;
    let folder: Folder = models::new_folder();
    let model = folder.join("m");
    scaled(&model, "1", 1.0);
    let server = serve(Options::new(&*folder));
    let progressed = |answered: &AtomicUsize| {
        let before = answered.load(Relaxed);
        while answered.load(Relaxed) < before + 20 {
            std::thread::yield_now();
        }
    };
    // New versions, each with its own factor: the version that an answer names is the one that computed it.
    let own = |version: &str, factor: f32| version.parse::<f32>().unwrap() == factor;
    let answered = under_load(&server, 8, own, |answered| {
        for version in 2..=RELOADS {
            scaled(&model, &version.to_string(), version as f32);
            load(&server, "m").unwrap();
            progressed(answered);
        }
    });
    assert!(answered > 20 * (RELOADS - 1));
    assert_eq!(factor(&predict(&server, "m")), format!("{RELOADS}.0"));

    // The same version again and again, with other contents; some of them broken.
    let both = |_: &str, factor: f32| factor == RELOADS as f32 || factor == 0.5;
    under_load(&server, 8, both, |answered| {
        for turn in 0..RELOADS {
            match turn % 3 {
                0 => scaled(&model, &RELOADS.to_string(), 0.5),
                1 => scaled(&model, &RELOADS.to_string(), RELOADS as f32),
                _ => write(&model.join(format!("{RELOADS}/model.onnx")), "half"),
            }
            assert_eq!(load(&server, "m").is_ok(), turn % 3 < 2);
            progressed(answered);
        }
    });
    drained(&server);
    let versions: usize = server.repository.list().iter().map(|model| model.versions.len()).sum();
    assert_eq!(versions, 1, "what was swapped out is gone");
}
