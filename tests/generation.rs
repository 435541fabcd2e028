//! Text generators of `com.microsoft` against ONNX Runtime: every case of `tests/fixtures/generation/cases.zip`, which `make.py`
//! beside it writes. Tokens are the same, sums of logarithms are close.

mod archive;

use std::sync::Arc;

use archive::{Files, cases};
use ndserve::engine::{Isa, LoadOptions, Port, Session, Threads, Value, onnx};

const LIMIT: usize = 1 << 28;
/// Sums over a dozen steps, computed in f32 by both.
const BOUND: f32 = 1e-3;

fn read(files: &Files, prefix: &str, ports: &[Port]) -> Vec<Value> {
    let one = |(i, port): (usize, &Port)| onnx::read_value(&files[&format!("{prefix}_{i}.pb")], &port.kind, LIMIT).unwrap().1;
    ports.iter().enumerate().map(one).collect()
}

fn alike(found: &Value, want: &Value) -> bool {
    let (Some(found), Some(want)) = (found.tensor(), want.tensor()) else { return false };
    match (found.slice::<f32>(), want.slice::<f32>()) {
        (Some(a), Some(b)) => {
            found.shape() == want.shape() && a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() <= BOUND * (1.0 + b.abs()))
        }
        _ => found == want,
    }
}

fn check(files: &Files, isa: Isa) -> Result<(), String> {
    let options = LoadOptions { isa, memory_limit: LIMIT, ..LoadOptions::default() };
    let model = Arc::new(onnx::read_model(&files["model.onnx"], &options).map_err(|error| error.to_string())?);
    let (inputs, want) = (read(files, "input", &model.signature().inputs), read(files, "output", &model.signature().outputs));
    assert_eq!(files.len(), 1 + inputs.len() + want.len(), "files that nothing reads");
    let found = Session::new(model, Arc::new(Threads::single())).run_values(&inputs).map_err(|error| error.to_string())?;
    match found.iter().zip(&want).position(|(found, want)| !alike(found, want)) {
        Some(i) => Err(format!("output {i} is {:?}, not {:?}", found[i], want[i])),
        None => Ok(()),
    }
}

#[test]
fn generators_give_the_tokens_that_onnxruntime_gives_for_each_row() {
    let cases = cases("generation");
    for kind in ["beam-gpt", "greedy-gpt", "beam-t5", "beam-t5-new"] {
        let count = cases.keys().filter(|name| name.rsplit_once('-').is_some_and(|(k, _)| k == kind)).count();
        assert!(count >= 10, "{count} cases of {kind}");
    }
    let mut failures = Vec::new();
    for isa in Isa::available() {
        failures.extend(cases.iter().filter_map(|(name, files)| check(files, isa).err().map(|error| format!("{name}, {isa}: {error}"))));
    }
    assert!(failures.is_empty(), "{} failures of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
