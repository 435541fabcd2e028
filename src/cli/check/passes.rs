//! `ndserve check --why`: what each pass of the optimiser did to a model, and what it left.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::engine::{Left, LoadError, LoadOptions, Model, PassReport};

/// What the passes do to the model in a file.
///
/// # Errors
/// If it cannot be loaded.
pub(super) fn of(file: &Path, options: &LoadOptions) -> Result<Vec<PassText>, LoadError> {
    Ok(Model::passes(file, options)?.into_iter().map(PassText::from).collect())
}

/// What a pass of the optimiser did.
#[derive(Debug, Serialize)]
pub(super) struct PassText {
    pass: &'static str,
    removed: BTreeMap<String, usize>,
    added: BTreeMap<String, usize>,
    left: Vec<LeftText>,
}

/// A node that a pass is there for and left.
#[derive(Debug, Serialize)]
struct LeftText {
    node: String,
    operator: String,
    reason: String,
}

impl From<PassReport> for PassText {
    fn from(PassReport { pass, removed, added, left }: PassReport) -> Self {
        let left = left.into_iter().map(|Left { node, operator, reason }| LeftText { node, operator, reason }).collect();
        Self { pass, removed, added, left }
    }
}

impl PassText {
    /// A line of what went and came, and one for each reason why nodes stayed.
    pub(super) fn write(&self, text: &mut String) {
        let list = |counts: &BTreeMap<String, usize>| counts.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", ");
        let did = match (self.removed.is_empty(), self.added.is_empty()) {
            (true, true) => "nothing".to_owned(),
            (true, false) => format!("{} added", list(&self.added)),
            (false, true) => format!("{} gone", list(&self.removed)),
            (false, false) => format!("{} instead of {}", list(&self.added), list(&self.removed)),
        };
        let _ = writeln!(text, "  pass {}: {did}", self.pass);
        let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for LeftText { node, operator, reason } in &self.left {
            reasons.entry((operator, reason)).or_default().push(node);
        }
        for ((operator, reason), nodes) in reasons {
            let more = nodes.len().checked_sub(1).filter(|&more| more > 0).map_or(String::new(), |more| format!(" and {more} more"));
            let _ = writeln!(text, "    left `{}` ({operator}){more}: {reason}", nodes[0]);
        }
    }
}
