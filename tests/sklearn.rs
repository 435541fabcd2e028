//! Models of scikit-learn, XGBoost and LightGBM against the answers of the estimators themselves: every case of
//! `tests/fixtures/sklearn/cases.zip`, which `make.py` beside it writes.
//!
//! Every case runs with every instruction set of the machine on one thread and on two, whole, and row by row with the
//! same bits where the model is batchable.

mod archive;

use std::sync::Arc;

use archive::{Files, cases};
use ndserve::engine::{DType, Isa, Kind, LoadOptions, Session, Tensor, Threads, Value, onnx};

const LIMIT: usize = 1 << 28;
/// Estimators compute in double, their models mostly in float.
const RELATIVE: f64 = 1e-4;
const ABSOLUTE: f64 = 1e-5;

fn values<'a>(files: &Files, prefix: &str, kinds: impl Iterator<Item = &'a Kind>) -> Vec<Value> {
    let read = |(i, kind)| onnx::read_value(&files[&format!("{prefix}_{i}.pb")], kind, LIMIT).unwrap().1;
    kinds.enumerate().map(read).collect()
}

/// The difference between an answer and the expected one, if there is any.
fn difference(found: &Value, want: &Value) -> Result<(), String> {
    match (found, want) {
        (Value::Tensor(found), Value::Tensor(want)) => tensors(found, want),
        (Value::Sequence(found), Value::Sequence(want)) if found.len() == want.len() => {
            found.iter().zip(want).try_for_each(|(found, want)| difference(found, want))
        }
        (Value::Map { keys: a, values: found }, Value::Map { keys: b, values: want }) if a == b => tensors(found, want),
        _ => Err(format!("{found:?} where {want:?} is expected")),
    }
}

/// Floats within the tolerance, everything else exactly.
fn tensors(found: &Tensor, want: &Tensor) -> Result<(), String> {
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= ABSOLUTE + RELATIVE * b.abs();
    let wide = |tensor: &Tensor| -> Vec<f64> {
        match tensor.slice::<f32>() {
            Some(values) => values.iter().map(|&v| v.into()).collect(),
            None => tensor.slice::<f64>().unwrap().to_vec(),
        }
    };
    let same = match found.dtype() {
        _ if (found.dtype(), found.shape()) != (want.dtype(), want.shape()) => false,
        DType::F32 | DType::F64 => wide(found).into_iter().zip(wide(want)).all(|(a, b)| close(a, b)),
        _ => found == want,
    };
    if same { Ok(()) } else { Err(format!("{found:?} where {want:?} is expected")) }
}

fn row(value: &Value, r: usize) -> Value {
    match value {
        Value::Tensor(tensor) => Value::Tensor(tensor.rows(r..r + 1)),
        Value::Sequence(rows) => Value::Sequence(vec![rows[r].clone()]),
        other => panic!("{other:?} has no rows"),
    }
}

/// Runs a case; the error names what differs.
fn check(files: &Files, isa: Isa) -> Result<(), String> {
    let options = LoadOptions { isa, memory_limit: LIMIT, ..LoadOptions::default() };
    let model = Arc::new(onnx::read_model(&files["model.onnx"], &options).map_err(|e| format!("does not load: {e}"))?);
    let signature = model.signature();
    let inputs = values(files, "input", signature.inputs.iter().map(|port| &port.kind));
    let want = values(files, "output", signature.outputs.iter().map(|port| &port.kind));
    assert_eq!(files.len(), 1 + inputs.len() + want.len(), "files that nothing reads");
    for threads in [1, 2] {
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::new(threads).unwrap()));
        let mut run = |inputs: &[Value]| session.run_values(inputs).map_err(|e| format!("{threads} threads: {e}"));
        let found = run(&inputs)?;
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            difference(found, want).map_err(|e| format!("output {i}, {threads} threads: {e}"))?;
        }
        if !signature.batchable {
            continue;
        }
        let rows = inputs[0].tensor().map_or(0, |t| t.shape()[0]);
        for r in 0..rows {
            let alone = run(&inputs.iter().map(|input| row(input, r)).collect::<Vec<_>>())?;
            if alone != found.iter().map(|value| row(value, r)).collect::<Vec<_>>() {
                return Err(format!("row {r} has other bits alone: {alone:?} in {found:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn answers_are_those_of_the_estimators() {
    let cases = cases("sklearn");
    let boosted = cases.keys().filter(|name| name.starts_with("xgboost-") || name.starts_with("lightgbm-")).count();
    assert!(boosted >= 20 && cases.len() - boosted >= 80, "{boosted} boosted models of {} cases", cases.len());
    let mut failures = Vec::new();
    for isa in Isa::available() {
        let failed = cases.iter().filter_map(|(name, files)| check(files, isa).err().map(|error| format!("{name}, {isa}: {error}")));
        failures.extend(failed);
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
