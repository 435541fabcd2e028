//! The systems of the mission as each exporter writes them: every model of `tests/fixtures/systems` gives what its framework
//! gave. `docs/exporters.md` is the outcome; `UPDATE_DOCS=1 cargo test --test systems` writes it anew.
//!
//! A case that fails must stand in `gaps.txt` there with its error, and one that stands there must fail by that error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ndserve::engine::{DType, LoadOptions, Model, PASSES, Precision, Session, Tensor, Threads, Value, WeightCachePlace, onnx};
use serde::Deserialize;
use zip::ZipArchive;

const LIMIT: usize = 1 << 30;
/// An archive that is lost would otherwise go unnoticed.
const CASES_MIN: usize = 200;
/// Of an f32 or f64 element, relative to the larger of 1 and the expected value; other elements are equal.
const TOLERANCE: f64 = 1e-4;

/// A model that does not run yet: a line `<zip>/<case> | <part of its error> | <what is missing>` of `gaps.txt`.
struct Gap {
    case: String,
    error: String,
    why: String,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/systems")
}

/// The lines of a list with three fields.
fn list(file: &str) -> Vec<[String; 3]> {
    let text = std::fs::read_to_string(fixtures().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let fields = |line: &str| -> [String; 3] {
        let fields: Vec<String> = line.split(" | ").map(str::to_owned).collect();
        fields.try_into().unwrap_or_else(|_| panic!("{file}: `{line}` has not three fields"))
    };
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(fields).collect()
}

fn gaps() -> Vec<Gap> {
    list("gaps.txt").into_iter().map(|[case, error, why]| Gap { case, error, why }).collect()
}

/// What `case.json` says of a model.
#[derive(Deserialize)]
struct About {
    system: String,
    exporter: String,
    version: String,
    opset: u32,
    ir: u32,
    note: String,
    onnxruntime: String,
    samples: BTreeMap<String, Sample>,
}

/// Names of the entries that hold the tensors, in the graph's order.
#[derive(Deserialize)]
struct Sample {
    inputs: Vec<String>,
    outputs: Vec<String>,
}

struct Case {
    id: String,
    about: About,
    model: PathBuf,
    tensors: Arc<BTreeMap<String, Tensor>>,
}

fn read(archive: &mut ZipArchive<File>, entry: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.by_name(entry).unwrap_or_else(|e| panic!("{entry}: {e}")).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The cases of one archive, their models unpacked.
fn cases_of(path: &Path, place: &str) -> Vec<Case> {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let mut archive = ZipArchive::new(File::open(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
    let mut tensors = BTreeMap::new();
    for name in names.iter().filter(|name| name.starts_with("data/")) {
        let (_, tensor) = onnx::read_tensor(&read(&mut archive, name), LIMIT).unwrap_or_else(|e| panic!("{name}: {e}"));
        tensors.insert(name.clone(), tensor);
    }
    let tensors = Arc::new(tensors);
    let mut cases = Vec::new();
    for case in names.iter().filter_map(|name| name.strip_suffix("/case.json")) {
        let about: About = serde_json::from_slice(&read(&mut archive, &format!("{case}/case.json"))).unwrap();
        assert!(!about.samples.is_empty(), "{case} has no sample");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(place).join(stem);
        std::fs::create_dir_all(&folder).unwrap();
        let model = folder.join(format!("{case}.onnx"));
        std::fs::write(&model, read(&mut archive, &format!("{case}/model.onnx"))).unwrap();
        cases.push(Case { id: format!("{stem}/{case}"), about, model, tensors: Arc::clone(&tensors) });
    }
    cases
}

/// All cases, their models unpacked into a folder that no other test writes to.
fn cases(place: &str) -> Vec<Case> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "zip"));
    paths.sort();
    paths.iter().flat_map(|path| cases_of(path, place)).collect()
}

impl Case {
    /// Runs every sample: with all passes, with none, and with weights that are not packed.
    fn run(&self) -> Result<(), String> {
        let all: Vec<String> = PASSES.iter().map(|pass| pass.name.to_owned()).collect();
        for (disabled_passes, no_prepack, label) in
            [(vec![], false, ""), (all, false, " without passes"), (vec![], true, " without packing")]
        {
            let options = LoadOptions { disabled_passes, no_prepack, memory_limit: LIMIT, ..LoadOptions::default() };
            let model = Model::load(&self.model, &options).map_err(|e| format!("load: {e}"))?;
            let mut session = Session::new(Arc::new(model), Arc::new(Threads::new(1).unwrap()));
            for (name, sample) in &self.about.samples {
                let tensors = |names: &[String]| -> Vec<Tensor> { names.iter().map(|name| self.tensors[name].clone()).collect() };
                let found = session.run(&tensors(&sample.inputs)).map_err(|e| format!("{name}{label}: {e}"))?;
                let want = tensors(&sample.outputs);
                if found.len() != want.len() {
                    return Err(format!("{name}{label}: {} outputs, not {}", found.len(), want.len()));
                }
                for (i, (found, want)) in found.iter().zip(&want).enumerate() {
                    same(found, want).map_err(|e| format!("{name}{label}: output {i}: {e}"))?;
                }
            }
        }
        Ok(())
    }
}

fn kept_weights() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("weights")
}

/// How many bytes of packed weights the second of two loads at a precision found, if it answered as the first did, to the bit.
fn found_again(case: &Case, precision: Precision) -> Result<usize, String> {
    let weight_cache = Some(WeightCachePlace::Folder(kept_weights()));
    let options = LoadOptions { precision, memory_limit: LIMIT, weight_cache, ..LoadOptions::default() };
    let load = || Model::load(&case.model, &options).map_err(|e| format!("load: {e}"));
    let answers = |model: Model| -> Result<Vec<String>, String> {
        let mut session = Session::new(Arc::new(model), Arc::new(Threads::new(1).unwrap()));
        let inputs = |sample: &Sample| -> Vec<Tensor> { sample.inputs.iter().map(|name| case.tensors[name].clone()).collect() };
        case.about.samples.values().map(|sample| session.run(&inputs(sample)).map(bits).map_err(|e| e.to_string())).collect()
    };
    let first = load()?;
    // The models of most systems are too small to have anything worth keeping.
    if !first.lacks_kept_weights() && first.found_bytes() == 0 {
        return Ok(0);
    }
    for kept in first.keep_weights() {
        kept?;
    }
    let second = load()?;
    let found = second.found_bytes();
    match () {
        () if second.damaged_weights().is_some() => Err(format!("{:?}", second.damaged_weights())),
        () if second.lacks_kept_weights() || found == 0 => Err(format!("{precision}: what was kept was not found")),
        () if answers(first)? != answers(second)? => Err(format!("{precision}: other answers with weights that were found")),
        () => Ok(found),
    }
}

/// Outputs with all bits of their elements.
fn bits(outputs: Vec<Value>) -> String {
    let one = |value: &Value| match value {
        Value::Tensor(tensor) => match tensor.slice::<f32>() {
            Some(values) => format!("{:?}", values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
            None => format!("{tensor:?}"),
        },
        other => format!("{other:?}"),
    };
    outputs.iter().map(one).collect()
}

#[test]
fn packed_weights_that_were_kept_are_those_that_would_be_packed() {
    let cases = cases("systems-kept");
    // What an earlier run kept would be found by the first load, too.
    let _ = std::fs::remove_dir_all(kept_weights());
    // Files that have just been written are not trusted to be what was read of them.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    for precision in Precision::ALL {
        let found: usize = cases.iter().map(|case| found_again(case, precision).unwrap_or_else(|e| panic!("{}: {e}", case.id))).sum();
        assert!(found > 100 << 10, "{precision}: {found} bytes are too few to show anything");
    }
}

fn same(found: &Value, want: &Tensor) -> Result<(), String> {
    let Value::Tensor(found) = found else { return Err(format!("{found:?} is no tensor")) };
    if (found.dtype(), found.shape()) != (want.dtype(), want.shape()) {
        return Err(format!("{:?} {:?}, not {:?} {:?}", found.dtype(), found.shape(), want.dtype(), want.shape()));
    }
    match found.dtype() {
        DType::F32 => close(found.slice::<f32>().unwrap(), want.slice::<f32>().unwrap()),
        DType::F64 => close(found.slice::<f64>().unwrap(), want.slice::<f64>().unwrap()),
        _ if found == want => Ok(()),
        _ => Err(format!("{found:?}, not {want:?}")),
    }
}

fn close<T: Copy + Into<f64>>(found: &[T], want: &[T]) -> Result<(), String> {
    let distance = |(&a, &b): (&T, &T)| (a.into() - b.into()).abs() / b.into().abs().max(1.0);
    // NaN is no distance that is small enough.
    let bad = found.iter().zip(want).position(|pair| distance(pair).partial_cmp(&TOLERANCE).is_none_or(|order| order.is_gt()));
    let Some(first) = bad else { return Ok(()) };
    let largest = found.iter().zip(want).map(distance).fold(0.0, f64::max);
    let (found, want): (f64, f64) = (found[first].into(), want[first].into());
    Err(format!("element {first} is {found}, not {want}; off by {largest:.1e} at most"))
}

/// Every case's outcome, in order; a panic is an outcome too.
fn outcomes(cases: &[Case]) -> Vec<Result<(), String>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Ok(()); cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((i, case)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, cases.get(i)?))) {
                    let outcome = catch_unwind(AssertUnwindSafe(|| case.run())).unwrap_or_else(|_| Err("panicked".to_owned()));
                    results.lock().unwrap()[i] = outcome;
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn every_system_gives_what_its_framework_gave() {
    let (cases, gaps) = (cases("systems"), gaps());
    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(outcomes(&cases)) {
        match (outcome, gaps.iter().find(|gap| gap.case == case.id)) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => wrong.push(format!("{} passes: take it off gaps.txt", case.id)),
            (Err(error), Some(gap)) if error.contains(&gap.error) => {}
            (Err(error), _) => wrong.push(format!("{}: {error}", case.id)),
        }
    }
    let unknown = gaps.iter().filter(|gap| !cases.iter().any(|case| case.id == gap.case));
    wrong.extend(unknown.map(|gap| format!("{} is in gaps.txt and does not exist", gap.case)));
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn the_page_lists_every_case() {
    let (mut cases, gaps) = (cases("systems-gaps"), gaps());
    cases.sort_by(|a, b| (&a.about.system, &a.id).cmp(&(&b.about.system, &b.id)));
    let mut rows = String::new();
    for case in &cases {
        let About { system, exporter, version, opset, ir, note, onnxruntime, samples } = &case.about;
        let samples = samples.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let gap = gaps.iter().find(|gap| gap.case == case.id);
        let result = gap.map_or("equal".to_owned(), |gap| format!("**not yet**: {}", gap.why));
        let peer = if onnxruntime.parse::<f64>().is_ok() { onnxruntime } else { "fails" };
        let _ = writeln!(rows, "| {system} | {exporter} | {version} | {opset} | {ir} | {samples} | {note} | {result} | {peer} |");
    }
    let missing: String = list("not-exported.txt").iter().map(|fields| format!("| {} |\n", fields.join(" | "))).collect();
    let text = format!(
        "# What exporters write\n\n\
         Small instances of each system (all blocks, random weights), exported and compared with the answers of the framework that they\n\
         come from. Written by a test, which runs all of `tests/fixtures/systems`. {} of {} models are *equal*: every f32 output of every\n\
         sample is within {TOLERANCE:e} of the framework's, relative to the larger of 1 and the value, and all else exact. The last column is\n\
         how far ONNX Runtime was when the file was made; nothing is compared with it.\n\n\
         | system | exporter | version | opset | IR | samples | note | ndserve | ONNX Runtime |\n|---|---|---|---|---|---|---|---|---|\n{rows}\n\
         ## What the exporters could not write\n\n| system | exporter | why |\n|---|---|---|\n{missing}",
        cases.len() - gaps.len(),
        cases.len(),
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exporters.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/exporters.md is out of date: UPDATE_DOCS=1 cargo test --test systems");
}
