//! The generated pages of `docs/` say what the code says. `UPDATE_DOCS=1 cargo test --test docs` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use ndserve::api::{METRICS, Metric, triton_metrics};
use ndserve::engine::{LATEST_OPSET, gradient_rules, operators};

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
fn the_page_of_gradients_is_that_of_the_code() {
    let mut text = "# Gradients\n\nThe operators that can be differentiated, written from the table of rules by a test. A graph with another one between what is\n\
                    differentiated and what it is differentiated by is refused by the node's name. How it works:\n\
                    [decision 11](decisions/0011-gradients-are-rules-beside-operators.md).\n\n"
        .to_owned();
    let mut names: Vec<String> = gradient_rules()
        .map(|rule| if rule.domain.is_empty() { rule.name.to_owned() } else { format!("{}.{}", rule.domain, rule.name) })
        .collect();
    names.sort();
    for name in names {
        let _ = writeln!(text, "- {name}");
    }
    check("gradients.md", &text);
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

/// The lines of README's table of peers that the record it links does not have, and the table's lines.
fn not_in_the_record(readme: &str, record: impl Fn(&str) -> String) -> (Vec<String>, usize) {
    let (_, rest) = readme.split_once("<!-- bench-peers -->").expect("README has the mark that the table begins behind");
    let (block, _) = rest.split_once("<!-- /bench-peers -->").expect("README has the mark that the table ends at");
    let lines: Vec<&str> = block.lines().filter(|line| line.starts_with('|')).collect();
    if lines.is_empty() {
        return (Vec::new(), 0);
    }
    let (link, _) = block.split_once("[all cases](").and_then(|(_, rest)| rest.split_once(')')).expect("the table links its record");
    let text = record(link);
    let missing = lines.iter().filter(|line| !text.lines().any(|other| other == **line)).map(|line| (*line).to_owned());
    (missing.collect(), lines.len())
}

#[test]
fn the_table_of_peers_is_that_of_the_record() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (missing, _) = not_in_the_record(&read("README.md"), read);
    assert!(missing.is_empty(), "README quotes what its record does not have (scripts/peers/report.py writes both): {missing:#?}");
    let sample = "<!-- bench-peers -->\n([all cases](r.md))\n| mlp | 1.20 |\n| lenet | 0.90 |\n<!-- /bench-peers -->";
    let (missing, lines) = not_in_the_record(sample, |path| format!("{path}\n| mlp | 1.20 |\n| lenet | 0.91 |\n"));
    assert_eq!((missing, lines), (vec!["| lenet | 0.90 |".to_owned()], 2));
}
