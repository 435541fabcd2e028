//! The generated pages of `docs/` say what the code says. `UPDATE_DOCS=1 cargo test --test docs` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use ndserve::api::{METRICS, Metric, triton_metrics};
use ndserve::engine::{LATEST_OPSET, operators};

fn check(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "docs/{page} is out of date: UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_operator_table_is_that_of_the_code() {
    let mut domains: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for def in operators() {
        let (from, to) = (*def.opsets.start(), *def.opsets.end());
        let opsets = if to == u16::MAX { format!("from {from}") } else { format!("{from} to {to}") };
        let types: Vec<&str> = def.types.iter().map(|dtype| dtype.name()).collect();
        let types = if types.is_empty() { "–".to_owned() } else { types.join(" ") };
        domains.entry(def.domain).or_default().push(format!("| {} | {opsets} | {types} |\n", def.name));
    }
    let mut text = format!(
        "# Operators\n\nWritten from the operator table by a test. The types are those of the first input. A model whose `ai.onnx` opset is newer than\n\
         {LATEST_OPSET} is refused, and so is a node that is not here, by name and all at once: `ndserve check` tells.\n"
    );
    for (domain, mut rows) in domains {
        rows.sort();
        let domain = if domain.is_empty() { "ai.onnx" } else { domain };
        let _ = write!(text, "\n## {domain}\n\n| operator | opsets | element types |\n|---|---|---|\n{}", rows.concat());
    }
    check("operators.md", &text);
}

#[test]
fn the_metrics_page_is_that_of_the_code() {
    let mut text = "# Metrics\n\n`GET /metrics` in the Prometheus text format, written from the table in the code by a test. Units are base units.\n\n\
                    | name | kind | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    let row = |metric: &Metric| {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ");
        format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind, metric.help)
    };
    text.extend(METRICS.iter().map(row));
    text.push_str(
        "\n## Triton's names\n\nWith `--triton-metrics` these are there too, in Triton's units, so that dashboards and autoscalers that were written\n\
         for it go on.\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    text.extend(triton_metrics().map(row));
    check("metrics.md", &text);
}
