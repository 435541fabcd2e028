//! What loading, reloading and unloading promise.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Choice, Label, LoadCounts, ModelState, Options, Overrides, Repository, ServerState, State, Unload};
use crate::engine::Tensor;
use crate::error::Kind;
use crate::serve::tests::Folder;
use crate::serve::{InferRequest, Servable};

/// A repository of the folder's models, loaded.
fn opened(folder: &Folder) -> Arc<Repository> {
    let repository = Arc::new(Repository::open(Options::new(&folder.0)).unwrap());
    repository.load(|_, _, _, _| {});
    repository
}

/// What serves, the failures behind it left out.
fn ready(repository: &Repository, name: &str) -> Vec<String> {
    let model = repository.list().into_iter().find(|model| model.name == name).unwrap();
    model.versions.into_iter().filter(|version| matches!(version.state, State::Ready(_))).map(|version| version.version).collect()
}

fn state(repository: &Repository, name: &str) -> ModelState {
    repository.list().into_iter().find(|model| model.name == name).unwrap().state()
}

fn reason(repository: &Repository, name: &str, version: &str) -> String {
    let model = repository.list().into_iter().find(|model| model.name == name).unwrap();
    model.versions.iter().find(|known| known.version == version).unwrap().reason().to_owned()
}

async fn answers(servable: &Servable) -> bool {
    let input = Tensor::new(&[1, 2], vec![1.0_f32, 2.0]).unwrap();
    servable.infer(InferRequest::new(vec![input])).await.is_ok()
}

/// Waits until nothing is being unloaded any more.
async fn drained(repository: &Repository) {
    let unloading = || repository.list().iter().flat_map(|model| &model.versions).any(|v| matches!(v.state, State::Unloading));
    while unloading() {
        tokio::task::yield_now().await;
    }
}

/// A second version, the same as the first.
fn add_version(model: &Path, version: &str, contents: Option<&[u8]>) {
    std::fs::create_dir_all(model.join(version)).unwrap();
    let file = model.join(version).join("model.onnx");
    match contents {
        Some(bytes) => std::fs::write(file, bytes).unwrap(),
        None => drop(std::fs::copy(model.join("1/model.onnx"), file).unwrap()),
    }
}

#[tokio::test]
async fn a_new_version_replaces_the_old_one_which_still_answers_who_holds_it() {
    let folder = Folder::new("swap");
    let model = folder.copy("two-features", "m");
    let repository = opened(&folder);
    assert_eq!(repository.state(), ServerState::Ready);
    let held = repository.get("m", None).unwrap();
    add_version(&model, "2", None);
    repository.load_model("m", Overrides::default()).await.unwrap();
    assert_eq!(repository.get("m", None).unwrap().version(), "2");
    assert_eq!(repository.get("m", Some("1")).unwrap_err().kind(), Kind::NotFound);
    let unloading = repository.list().remove(0).versions.remove(0);
    assert_eq!((unloading.version.as_str(), unloading.state.name()), ("1", "unloading"));
    assert!(answers(&held).await, "a request that has begun is finished");
    drop(held);
    drained(&repository).await;
    assert_eq!(repository.list()[0].versions.len(), 1);
    assert_eq!(repository.load_counts(), [("m".to_owned(), LoadCounts { ok: 2, failed: 0 })]);
}

#[tokio::test]
async fn a_broken_version_never_costs_a_good_one() {
    let folder = Folder::new("broken-swap");
    let model = folder.copy("two-features", "m");
    let repository = opened(&folder);
    add_version(&model, "2", Some(b"not a model"));
    let error = repository.load_model("m", Overrides::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.message().contains("model `m` version 2: ") && error.message().contains("not an ONNX model"), "{error}");
    assert_eq!((ready(&repository, "m"), state(&repository, "m")), (vec!["1".to_owned()], ModelState::Degraded));
    assert!(reason(&repository, "m", "2").contains("not an ONNX model"));
    assert_eq!((repository.state(), repository.readiness()), (ServerState::Degraded, Ok(())));

    // The same version with wrong contents, or wrong settings: what was loaded serves on.
    std::fs::remove_dir_all(model.join("2")).unwrap();
    std::fs::write(model.join("1/model.onnx"), b"half").unwrap();
    repository.load_model("m", Overrides::default()).await.unwrap_err();
    assert!(reason(&repository, "m", "1").contains("not an ONNX model"));
    std::fs::write(model.join("model.toml"), "max_batch = 1").unwrap();
    repository.load_model("m", Overrides::default()).await.unwrap_err();
    assert!(reason(&repository, "m", "1").contains("max_batch"));
    assert!(answers(&repository.get("m", None).unwrap()).await);

    // Once it is mended nothing is left of the failure.
    folder.copy("two-features", "m");
    repository.load_model("m", Overrides::default()).await.unwrap();
    assert_eq!((reason(&repository, "m", "1"), state(&repository, "m")), (String::new(), ModelState::Ready));
}

#[tokio::test]
async fn a_version_that_does_not_reproduce_its_golden_samples_does_not_come() {
    let folder = Folder::new("golden-swap");
    let model = folder.copy("two-features", "m");
    let repository = opened(&folder);
    add_version(&model, "2", None);
    std::fs::copy(model.join("golden/input_0.pb"), model.join("golden/output_0.pb")).unwrap();
    let error = repository.load_model("m", Overrides::default()).await.unwrap_err();
    assert!(error.message().contains("the golden samples are not reproduced"), "{error}");
    assert_eq!(ready(&repository, "m"), ["1"]);
}

#[tokio::test]
async fn at_the_start_an_older_version_is_better_than_none() {
    let folder = Folder::new("fallback");
    let model = folder.copy("two-features", "m");
    add_version(&model, "2", Some(b"not a model"));
    let repository = opened(&folder);
    assert_eq!((ready(&repository, "m"), state(&repository, "m")), (vec!["1".to_owned()], ModelState::Degraded));
    assert_eq!(repository.readiness(), Ok(()));
    add_version(&model, "3", None);
    repository.load_model("m", Overrides::default()).await.unwrap();
    drained(&repository).await;
    assert_eq!((ready(&repository, "m"), state(&repository, "m")), (vec!["3".to_owned()], ModelState::Ready));
}

#[tokio::test]
async fn an_unloaded_model_is_gone_until_it_is_loaded() {
    let folder = Folder::new("unload");
    folder.copy("two-features", "m");
    folder.copy("two-features", "n");
    let repository = opened(&folder);
    repository.unload_model("m", Unload::default()).await.unwrap();
    drained(&repository).await;
    let error = repository.get("m", None).unwrap_err();
    assert_eq!((error.kind(), error.message()), (Kind::NotFound, "model `m` version 1 is unloaded"));
    assert_eq!((state(&repository, "m"), reason(&repository, "m", "1")), (ModelState::Unloaded, "unloaded".to_owned()));
    assert_eq!(repository.readiness(), Ok(()), "what was unloaded on purpose is not missed");
    repository.load_model("m", Overrides::default()).await.unwrap();
    assert!(answers(&repository.get("m", None).unwrap()).await);
    assert_eq!(repository.unload_model("nobody", Unload::default()).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_model_that_came_later_can_be_loaded() {
    let folder = Folder::new("later");
    folder.copy("two-features", "m");
    let repository = opened(&folder);
    for name in ["nobody", "../m", "..", "", "_m", "a/b"] {
        let error = repository.load_model(name, Overrides::default()).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::NotFound | Kind::InvalidArgument), "{name}: {error}");
    }
    folder.copy("two-features", "n");
    repository.load_model("n", Overrides::default()).await.unwrap();
    assert!(answers(&repository.get("n", None).unwrap()).await);
    assert_eq!(repository.list().len(), 2, "a name that leads nowhere leaves nothing behind");
}

#[tokio::test]
async fn files_and_settings_of_a_request_serve_instead_of_the_repositorys() {
    let folder = Folder::new("overrides");
    let model = folder.copy("two-features", "m");
    let scratch = Folder::new("overrides-scratch");
    let options = Options { scratch: scratch.0.clone(), ..Options::new(&folder.0) };
    let repository = Arc::new(Repository::open(options).unwrap());
    repository.load(|_, _, _, _| {});
    let bytes = Bytes::from(std::fs::read(model.join("1/model.onnx")).unwrap());
    let mut overrides = Overrides { config: Some(r#"{"max_batch_size": 3}"#.into()), ..Overrides::default() };
    overrides.add_file("file:7/model.onnx", bytes).unwrap();
    repository.load_model("m", overrides.clone()).await.unwrap();
    repository.load_model("new", overrides).await.unwrap();
    for name in ["m", "new"] {
        let servable = repository.get(name, None).unwrap();
        assert_eq!((servable.version(), servable.settings().max_batch_rows), ("7", 3));
        assert!(answers(&servable).await);
    }
    // Explanations read the files again.
    let folders = || std::fs::read_dir(&scratch.0).unwrap().count();
    assert_eq!(folders(), 2);
    repository.load_model("m", Overrides::default()).await.unwrap();
    assert_eq!(repository.get("m", None).unwrap().version(), "1");
    repository.unload_model("new", Unload::default()).await.unwrap();
    drop(repository.get("new", None));
    // What no longer serves is taken apart once nobody holds it.
    let begun = std::time::Instant::now();
    while folders() > 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "the files of versions that are gone stay");
        tokio::task::yield_now().await;
    }
    let wrong = Overrides { config: Some("{".into()), ..Overrides::default() };
    assert_eq!(repository.load_model("m", wrong).await.unwrap_err().kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn labels_are_names_for_versions() {
    let folder = Folder::new("labels");
    let model = folder.copy("two-features", "m");
    add_version(&model, "2", None);
    add_version(&model, "3", None);
    std::fs::write(model.join("model.toml"), "versions = { latest = 1 }\nversion_labels = { stable = '1' }").unwrap();
    let repository = opened(&folder);
    assert_eq!(ready(&repository, "m"), ["1", "3"], "a version that a label names is wanted");
    let version =
        |choice: Choice<'_>| repository.get("m", choice).map(|servable| servable.version().to_owned()).map_err(|error| error.kind());
    assert_eq!(version(Choice::Default).unwrap(), "3");
    assert_eq!(version(Choice::Label("stable")).unwrap(), "1");
    assert_eq!(version(Choice::Version("stable")).unwrap(), "1", "where a protocol has no labels");
    assert_eq!(version(Choice::Label("canary")), Err(Kind::NotFound));
    repository.set_label("m", "default", Some(Label::version("1"))).unwrap();
    assert_eq!(version(Choice::Default).unwrap(), "1");
    let split = Label { split: vec![("1".into(), 1), ("3".into(), 1)], mirror: None };
    repository.set_label("m", "canary", Some(split)).unwrap();
    let mut seen: Vec<String> = (0..10).map(|_| version(Choice::Label("canary")).unwrap()).collect();
    seen.sort();
    assert_eq!(seen, ["1", "1", "1", "1", "1", "3", "3", "3", "3", "3"]);
    repository.set_label("m", "stable", None).unwrap();
    assert_eq!(version(Choice::Label("stable")), Err(Kind::NotFound));
    for (model, label, rule, kind) in [
        ("m", "x", Some(Label::version("2")), Kind::NotFound),
        ("m", "a/b", Some(Label::version("1")), Kind::InvalidArgument),
        ("m", "x", Some(Label { split: vec![], mirror: None }), Kind::InvalidArgument),
        ("n", "x", None, Kind::NotFound),
    ] {
        assert_eq!(repository.set_label(model, label, rule.clone()).unwrap_err().kind(), kind, "{model} {label} {rule:?}");
    }
    // A reload keeps what was set.
    repository.load_model("m", Overrides::default()).await.unwrap();
    assert_eq!(version(Choice::Default).unwrap(), "1");
    assert_eq!(version(Choice::Label("stable")), Err(Kind::NotFound));
}
