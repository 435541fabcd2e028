//! Explanations against those of captum and shap: `tests/fixtures/explain/make.py` wrote models with them.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndserve::engine::{Appender, Emit, LoadOptions, Model, Session, Slice, Tensor, Threads, has_trees, npz, read_graph};
use ndserve::error::Error;
use ndserve::explain::{Class, ExplainSettings, Explained, Explainer, Known, Method, Options, Program, Question, Subject};

/// Of the greatest contribution, or of 1.
const BOUND: f64 = 1e-5;

/// A model with what is known of it.
struct Case {
    folder: PathBuf,
    arrays: BTreeMap<String, Tensor>,
    model: Arc<Model>,
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn case(name: &str) -> Case {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/explain/cases.zip");
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut member = |file: &str| {
        let mut bytes = Vec::new();
        archive.by_name(&format!("{name}/{file}")).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let arrays = npz::read(Cursor::new(member("data.npz")), 1 << 24).unwrap();
    let unique = format!("explain-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.onnx"), member("model.onnx")).unwrap();
    let model = Arc::new(Model::load(&folder.join("model.onnx"), &LoadOptions::default()).unwrap());
    Case { folder, arrays, model }
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Slice::F32(values) => values.iter().map(|&v| v.into()).collect(),
        Slice::F64(values) => values.to_vec(),
        _ => panic!("{tensor:?} is no array of floats"),
    }
}

impl Case {
    /// Asks, with at most `per_pass` rows in a pass.
    fn ask(&self, question: Question, per_pass: usize) -> Result<Explained, Error> {
        let (settings, signature) = (ExplainSettings::default(), self.model.signature());
        let labels = self.model.metadata().labels.clone();
        let has_trees = has_trees(&self.model);
        let subject = Subject { signature, labels: &labels, settings: &settings, background: None, has_trees };
        let mut explainer = Explainer::new(&subject, question)?;
        let mut sessions: BTreeMap<&str, Session> = BTreeMap::new();
        while explainer.rows() > 0 {
            let (rows, step, program) = (explainer.rows(), explainer.rows_per_pass(per_pass), explainer.program());
            let name = if program == Program::Model { "model" } else { "derived" };
            if !sessions.contains_key(name) {
                let loaded = read_graph(&self.folder.join("model.onnx"), &LoadOptions::default())?;
                let model = match program {
                    Program::Model => Arc::clone(&self.model),
                    other => Arc::new(other.derive(loaded, signature, explainer.output(), &LoadOptions::default())?),
                };
                sessions.insert(name, Session::new(model, Arc::new(Threads::new(2).unwrap())));
            }
            for start in (0..rows).step_by(step) {
                let range = start..(start + step).min(rows);
                let inputs = explainer.inputs(range.clone());
                let outputs = sessions.get_mut(name).unwrap().run(&inputs).map_err(Error::from)?;
                explainer.take(range, &outputs)?;
            }
            explainer.advance()?;
        }
        Ok(explainer.finish())
    }

    fn question(&self, method: Method, background: &str) -> Question {
        let background = self.arrays.get(background).map(|rows| vec![rows.clone()]);
        Question { inputs: vec![self.arrays["x"].clone()], method: Some(method), background, ..Question::default() }
    }

    /// Holds the contributions against an array.
    fn agrees(&self, question: Question, array: &str) -> Explained {
        let explained = self.ask(question, 7).unwrap();
        let want = wide(&self.arrays[array]);
        let found: Vec<f64> = explained.explanations.iter().flat_map(|e| e.contributions.iter().copied()).collect();
        assert_eq!(found.len(), want.len(), "{array}");
        let size = want.iter().fold(1.0_f64, |size, v| size.max(v.abs()));
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            assert!((found - want).abs() <= BOUND * size, "{array}: element {i} is {found}, not {want}");
        }
        explained
    }
}

fn window(window: &[usize], stride: &[usize]) -> Options {
    Options { window: Some(window.to_vec()), stride: Some(stride.to_vec()), ..Options::default() }
}

#[test]
fn networks_are_explained_as_by_captum() {
    for name in ["mlp", "cnn"] {
        let case = case(name);
        for (array, background) in [("integrated_gradients.zeros", ""), ("integrated_gradients", "background")] {
            let explained = case.agrees(case.question(Method::IntegratedGradients, background), array);
            let worst = explained.explanations.iter().filter_map(|e| e.completeness_error).fold(0.0, f64::max);
            // The mean of a convolution's kinks: fifty points are not the integral.
            let bound = if name == "mlp" { 1e-5 } else { 1e-2 };
            assert!(worst < bound, "{name}: completeness error {worst}");
        }
        case.agrees(case.question(Method::GradientInput, ""), "gradient_input.zeros");
        let base = case.arrays["background"].rows(0..1);
        let options = if name == "mlp" { window(&[2], &[1]) } else { window(&[1, 3, 3], &[1, 2, 2]) };
        let question = Question { background: Some(vec![base]), options, ..case.question(Method::Occlusion, "") };
        let explained = case.agrees(question, "occlusion");
        assert!(explained.explanations.iter().all(|e| e.completeness_error.is_none()));
    }
}

#[test]
fn few_features_have_the_exact_shapley_values_of_shap() {
    let case = case("mlp");
    let question =
        Question { options: Options { samples: Some(100), ..Options::default() }, ..case.question(Method::Shapley, "background") };
    let explained = case.agrees(question, "shapley");
    for explanation in &explained.explanations {
        assert_eq!(explanation.spread, None, "exact values have no error");
        assert!(explanation.completeness_error.unwrap() < 1e-6, "{explanation:?}");
    }
    // 4 rows, 5 of the background, and for each pair of them every subset that is neither empty nor all.
    assert_eq!(explained.evaluations, 4 + 5 + 4 * 5 * 62);
}

/// Models of trees with the classes whose values are known: of two, some libraries explain the second alone.
const TREES: &[(&str, &[usize])] = &[
    ("forest-regressor", &[0]),
    ("boosting-regressor", &[0]),
    ("forest-classifier", &[0, 1, 2]),
    ("forest-classifier-zipmap", &[0, 1, 2]),
    ("boosting-classifier", &[1]),
    ("boosting-two-bases", &[1]),
    ("xgboost-binary", &[1]),
    ("xgboost-classes", &[0, 1, 2]),
    ("lightgbm-regressor", &[0]),
];

/// The scores that the trees of `xgboost-classes` begin with. shap 0.51 takes the first for every class: its values then do not sum
/// to the booster's own margins.
const BASE_SCORES: [f64; 3] = [-0.32285213470458984, -0.4529045820236206, 0.7757569551467896];

#[test]
fn trees_have_the_values_of_treeshap() {
    for &(name, classes) in TREES {
        let case = case(name);
        for &class in classes {
            let question = Question { target: Some(Class::Index(class)), ..case.question(Method::TreeShap, "background") };
            let explained = case.agrees(question, &format!("tree_shap.{class}"));
            for explanation in &explained.explanations {
                assert!(explanation.completeness_error.unwrap() < 1e-9, "{name}: {explanation:?}");
            }
            let base = wide(&case.arrays["base_value"]);
            let base = base.get(class).unwrap_or(&base[0]);
            let base = base + if name == "xgboost-classes" { BASE_SCORES[class] - BASE_SCORES[0] } else { 0.0 };
            let found = explained.explanations[0].base_value.unwrap();
            assert!((found - base).abs() <= BOUND * base.abs().max(1.0), "{name}: base value {found}, not {base}");
        }
    }
}

/// ONNX Runtime leaves the second class of such trees without a score: the margin is the first one's.
#[test]
fn of_two_base_values_and_votes_for_one_class_the_first_score_is_explained() {
    let case = case("boosting-two-bases-one-sided");
    let question = |class| Question { target: Some(Class::Index(class)), ..case.question(Method::TreeShap, "background") };
    let explained = case.agrees(question(0), "tree_shap.1");
    let base = wide(&case.arrays["base_value"])[0];
    assert!(explained.explanations.iter().all(|e| e.completeness_error.unwrap() < 1e-9 && (e.base_value.unwrap() - base).abs() < BOUND));
    let second = case.ask(question(1), 7).unwrap();
    assert!(second.explanations.iter().all(|e| e.value == Some(0.0) && e.contributions.iter().all(|&v| v == 0.0)));
}

/// The sampled values of a forest lie around the exact ones as their standard errors say.
#[test]
fn sampled_shapley_values_are_the_exact_ones_within_their_error() {
    let case = case("forest-regressor");
    let options = Options { samples: Some(400), ..Options::default() };
    let question = Question { options, ..case.question(Method::Shapley, "background") };
    let explained = case.ask(question.clone(), 64).unwrap();
    let want = wide(&case.arrays["tree_shap.0"]);
    let found = explained.explanations.iter().flat_map(|e| e.contributions.iter().zip(e.spread.as_ref().unwrap()));
    for ((value, error), want) in found.zip(want) {
        assert!((value - want).abs() <= 5.0 * error + 1e-6, "{value} ± {error} is not {want}");
    }
    assert!(explained.explanations.iter().all(|e| e.completeness_error.unwrap() < 1e-6), "every background row has its turn equally often");
    // The same bits whatever a pass holds, and whatever rows are beside.
    let again = case.ask(question.clone(), 13).unwrap();
    assert_eq!(again.explanations, explained.explanations);
    let alone = case.ask(Question { inputs: vec![case.arrays["x"].rows(3..4)], ..question.clone() }, 64).unwrap();
    assert_eq!(alone.explanations[0], explained.explanations[3]);
    let other = case.ask(Question { options: Options { seed: 1, ..question.options.clone() }, ..question }, 64).unwrap();
    assert_ne!(other.explanations, explained.explanations);
    // One pair of orders does not tell how sure it is.
    let background = Some(vec![case.arrays["background"].rows(0..1)]);
    let options = Options { samples: Some(2), ..Options::default() };
    let pair = case.ask(Question { background, options, ..case.question(Method::Shapley, "") }, 64).unwrap();
    assert!(pair.explanations.iter().all(|e| e.spread.is_none() && e.completeness_error.unwrap() < 1e-6));
}

#[test]
fn permutation_importance_is_scikit_learns_within_its_error() {
    for name in ["forest-regressor", "boosting-regressor", "lightgbm-regressor"] {
        let case = case(name);
        let known = wide(&case.arrays["targets"]).into_iter().map(Known::Number).collect();
        let options = Options { repeats: Some(40), ..Options::default() };
        let inputs = vec![case.arrays["rows"].clone()];
        let question = Question { inputs, known: Some(known), options, ..case.question(Method::PermutationImportance, "") };
        let explained = case.ask(question, 64).unwrap();
        let [explanation] = &explained.explanations[..] else { panic!("{name}: one explanation of all rows") };
        assert_eq!(explanation.measured.unwrap().measure, "r2");
        let (want, spread) = (wide(&case.arrays["permutation_importance"]), wide(&case.arrays["permutation_importance.std"]));
        for ((found, want), spread) in explanation.contributions.iter().zip(want).zip(spread) {
            let error = spread * (2.0_f64 / 40.0).sqrt();
            assert!((found - want).abs() <= 5.0 * error + 1e-6, "{name}: {found} is not {want} ± {error}");
        }
        assert_eq!(explanation.ranked()[0], 0, "{name}: the first feature counts most");
    }
}

/// What a model adds to its trees, they know nothing of: their values were told as if they were all of it.
#[test]
fn an_output_that_reads_the_input_beside_the_trees_is_not_theirs() {
    let case = case("forest-regressor");
    let options = LoadOptions::default();
    let mut loaded = read_graph(&case.folder.join("model.onnx"), &options).unwrap();
    let (x, score) = (loaded.graph.inputs[0], loaded.graph.outputs[0]);
    let emit: &mut dyn Emit = &mut Appender::new(&mut loaded.graph, "residual");
    let sum = emit.op("ReduceMax", &[x]).unwrap();
    let all = emit.op("Add", &[score, sum]).unwrap();
    loaded.graph.outputs[0] = all;
    let error = Program::Trees.derive(loaded, case.model.signature(), 0, &options).unwrap_err().to_string();
    assert!(error.contains("ReduceMax") && error.contains("output `variable` reads the input here, beside the trees"), "{error}");
}

#[test]
fn what_cannot_be_explained_is_refused_by_name() {
    let forest = case("forest-regressor");
    let message = |case: &Case, question: Question| case.ask(question, 64).unwrap_err().message().to_owned();
    let error = message(&forest, forest.question(Method::IntegratedGradients, ""));
    assert!(error.contains("TreeEnsembleRegressor of ai.onnx.ml") && error.contains("the operator has no gradient"), "{error}");
    let known = vec![Known::Number(2.5); forest.arrays["x"].shape()[0]];
    let error = message(&forest, Question { known: Some(known), ..forest.question(Method::PermutationImportance, "") });
    assert_eq!(error, "targets are all the same: r2 needs different ones");
    let network = case("mlp");
    let error = message(&network, network.question(Method::TreeShap, ""));
    assert_eq!(error, "the model has 0 nodes of trees; tree_shap explains one, `shapley` any model");
    // Of the label the trees have no score, and nothing has a gradient; it was an internal error.
    let classifier = case("forest-classifier");
    for (method, want) in [
        (Method::TreeShap, "output `label` is int64; tree_shap explains scores"),
        (Method::IntegratedGradients, "output `label` is int64, which has no gradient"),
    ] {
        let error = message(&classifier, Question { output: Some("label".into()), ..classifier.question(method, "") });
        assert_eq!(error, want);
    }
    let importance = |known: &dyn Fn(usize) -> Known| {
        let known = (0..classifier.arrays["x"].shape()[0]).map(known).collect();
        message(&classifier, Question { known: Some(known), ..classifier.question(Method::PermutationImportance, "") })
    };
    let error = importance(&|row| Known::Number(if row == 1 { 3.0 } else { 0.0 }));
    assert_eq!(error, "targets[1] is 3, which is none of the classes 0 to 2");
    assert_eq!(importance(&|_| Known::Label("cat".into())), "targets has the label `cat`, and the model has no labels");
    for (array, want) in
        [("x", "output `y` is no finite number for row 2"), ("background", "output `y` is no finite number for row 2 of the background")]
    {
        let mut values: Vec<f32> = network.arrays[array].slice::<f32>().unwrap().to_vec();
        values[6] = f32::NAN;
        let broken = Tensor::new(network.arrays[array].shape(), values).unwrap();
        let mut question = network.question(Method::Shapley, "background");
        if array == "x" {
            question.inputs = vec![broken]
        } else {
            question.background = Some(vec![broken])
        }
        assert_eq!(message(&network, question), want);
    }
    let question = |change: &dyn Fn(&mut Question)| {
        let mut question = network.question(Method::Shapley, "");
        change(&mut question);
        message(&network, question)
    };
    type Change<'a> = &'a dyn Fn(&mut Question);
    let cases: &[(Change<'_>, &str)] = &[
        (&|q| q.target = Some(Class::Index(3)), "target is 3; the output has 3 elements in a row"),
        (&|q| q.output = Some("z".into()), "output `z` is not known; the outputs are `y`"),
        (&|q| q.background = Some(vec![Tensor::zeros(ndserve::engine::DType::F32, &[2, 5])]), "background: input `x` wants shape"),
        (&|q| q.inputs = vec![Tensor::zeros(ndserve::engine::DType::F32, &[0, 6])], "there is no row to explain"),
        (&|q| q.options.samples = Some(0), "samples is 0"),
        (&|q| q.method = Some(Method::PermutationImportance), "permutation_importance needs `targets`"),
        (&|q| (q.method, q.options.steps) = (Some(Method::IntegratedGradients), Some(0)), "steps is 0; a number from 1 to 1000 is wanted"),
        (&|q| (q.method, q.options.window) = (Some(Method::Occlusion), Some(vec![7])), "window is [7]; input `x` wants 1 sizes"),
    ];
    for (change, want) in cases {
        let error = question(change);
        assert!(error.starts_with(want), "{error}");
    }
}
