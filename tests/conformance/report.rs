//! The page with the result per operator.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::corpus::Case;

/// Compares `docs/conformance.md` with the results, or writes it.
pub(crate) fn check(cases: &[Case<'_>], results: &BTreeMap<String, Option<String>>, excluded: &BTreeMap<String, String>) {
    let text = page(cases, results, excluded);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == text, "docs/conformance.md is not what the suite gives; UPDATE_DOCS=1 writes it anew");
}

fn page(cases: &[Case<'_>], results: &BTreeMap<String, Option<String>>, excluded: &BTreeMap<String, String>) -> String {
    let passed = results.values().filter(|failure| failure.is_none()).count();
    let mut operators: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for case in cases {
        let passes = results[&case.name].is_none();
        for operator in case.operators() {
            let (good, all) = operators.entry(operator).or_default();
            *all += 1;
            *good += usize::from(passes);
        }
    }
    let complete = operators.values().filter(|(good, all)| good == all).count();
    let mut text = format!(
        "# Conformance\n\nWritten by `UPDATE_DOCS=1 cargo test --test conformance`.\n\nThe ONNX project's own test cases, as the \
         Python package `onnx` holds them: {passed} of {} pass, and all cases of {complete} of the {} operators in them. Each is \
         run optimised and not, planned and not. A case counts for every operator in its model.\n\n## What does not pass\n\n",
        results.len(),
        operators.len()
    );
    text.push_str(if excluded.is_empty() { "Nothing.\n" } else { "| case | why |\n|---|---|\n" });
    for (name, reason) in excluded {
        let _ = writeln!(text, "| {name} | {reason} |");
    }
    text.push_str("\n## Operators\n\n| operator | passed | cases |\n|---|---|---|\n");
    for (operator, (good, all)) in &operators {
        let _ = writeln!(text, "| {operator} | {good} | {all} |");
    }
    text
}
