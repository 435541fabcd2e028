//! Labels: names for versions that clients can ask for instead, such as `stable` and `canary`, and the label `default` for
//! requests that name nothing. A label may split its requests over several versions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde::Deserialize;

/// Which version of a model a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// What the label `default` says, or the newest version that is ready.
    Default,
    /// The version of this name or, where there is none, what the label of this name says: protocols without labels can use
    /// them as well.
    Version(&'a str),
    /// What the label of this name says.
    Label(&'a str),
}

impl<'a> From<Option<&'a str>> for Choice<'a> {
    fn from(version: Option<&'a str>) -> Self {
        version.filter(|version| !version.is_empty()).map_or(Self::Default, Self::Version)
    }
}

/// The label that answers where a request names neither version nor label.
pub const DEFAULT_LABEL: &str = "default";

/// What a label stands for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Label {
    /// Versions with the share of requests that each gets, in proportion to the others. At least one, with a weight above 0.
    /// A version that is not ready gives its share to the others.
    pub split: Vec<(String, u32)>,
    /// Another version that is asked the same, without its answer being used.
    pub mirror: Option<Mirror>,
}

/// A version that gets copies of a label's requests.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The version.
    pub version: String,
    /// The part of the requests that is copied: above 0, at most 1.
    #[serde(default = "everything")]
    pub share: f64,
}

fn everything() -> f64 {
    1.0
}

/// A label as written in a file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Version(String),
    Rule(Rule),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    version: Option<String>,
    split: Option<BTreeMap<String, u32>>,
    mirror: Option<Mirror>,
}

impl TryFrom<Written> for Label {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let label = match written {
            Written::Version(version) => Self::version(version),
            Written::Rule(Rule { version: Some(version), split: None, mirror }) => Self { mirror, ..Self::version(version) },
            Written::Rule(Rule { version: None, split: Some(split), mirror }) => Self { split: split.into_iter().collect(), mirror },
            Written::Rule(_) => return Err("a label has either `version` or `split`".to_owned()),
        };
        label.check()?;
        Ok(label)
    }
}

impl Label {
    /// A label for one version.
    pub fn version(version: impl Into<String>) -> Self {
        Self { split: vec![(version.into(), 1)], mirror: None }
    }

    /// Whether the rule can be followed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if let Some(wrong) = self.versions().find(|version| !is_path_segment(version)) {
            return Err(format!("`{wrong}` is no version"));
        }
        if self.split.iter().all(|(_, weight)| *weight == 0) {
            return Err("a label needs a version with a weight above 0".to_owned());
        }
        match &self.mirror {
            Some(Mirror { share, .. }) if !(*share > 0.0 && *share <= 1.0) => {
                Err(format!("mirror: a share of {share} is not above 0 and at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// Every version that the rule names.
    pub fn versions(&self) -> impl Iterator<Item = &str> {
        let mirror = self.mirror.as_ref().map(|mirror| mirror.version.as_str());
        self.split.iter().map(|(version, _)| version.as_str()).chain(mirror)
    }

    /// One of the versions that are `ready`, each as often as its weight says.
    pub(super) fn pick(&self, turn: &Turn, ready: impl Fn(&str) -> bool) -> Option<&str> {
        let mut targets = self.split.iter().filter(|(version, weight)| *weight > 0 && ready(version));
        if self.split.len() == 1 {
            return targets.next().map(|(version, _)| version.as_str());
        }
        let targets: Vec<_> = targets.collect();
        let total: u64 = targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = (u64::from(turn.next()) * total) >> 32;
        targets.into_iter().find_map(|(version, weight)| {
            let weight = u64::from(*weight);
            if at < weight {
                return Some(version.as_str());
            }
            at -= weight;
            None
        })
    }
}

/// Where in its range the next request falls: steps of the golden ratio, which spread any number of requests evenly.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU32);

impl Turn {
    pub(super) fn next(&self) -> u32 {
        /// 2³² divided by the golden ratio.
        const STEP: u32 = 0x9e37_79b9;
        self.0.fetch_add(STEP, Relaxed)
    }

    #[cfg(test)]
    /// Whether a request is among the `share` that is taken.
    pub(super) fn takes(&self, share: f64) -> bool {
        f64::from(self.next()) < share * 2_f64.powi(32)
    }
}

/// Whether a client can write the name between two slashes.
pub(super) fn is_path_segment(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Result<Label, String> {
        #[derive(Deserialize)]
        struct File {
            label: Label,
        }
        toml::from_str::<File>(text).map(|file| file.label).map_err(|error| error.to_string())
    }

    #[test]
    fn a_label_is_a_version_or_a_rule() {
        assert_eq!(label("label = '1'").unwrap(), Label::version("1"));
        let rule = label("label = { split = { 1 = 90, 2 = 10 }, mirror = { version = '3', share = 0.5 } }").unwrap();
        assert_eq!(rule.split, [("1".to_owned(), 90), ("2".to_owned(), 10)]);
        assert_eq!(rule.versions().collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(label("label = { version = '1', mirror = { version = '2' } }").unwrap().mirror.unwrap().share, 1.0);
        for (text, want) in [
            ("label = 1", "label"),
            ("label = { version = '1', split = { 1 = 1 } }", "either `version` or `split`"),
            ("label = { split = { 1 = 0 } }", "a weight above 0"),
            ("label = { split = {} }", "a weight above 0"),
            ("label = '../1'", "`../1` is no version"),
            ("label = { version = '1', mirror = { version = '2', share = 1.5 } }", "a share of 1.5"),
        ] {
            let error = label(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn requests_are_split_by_weight_over_what_is_ready() {
        let rule = label("label = { split = { 1 = 90, 2 = 10, 3 = 0 } }").unwrap();
        let turn = Turn::default();
        let mut counts = BTreeMap::new();
        for _ in 0..1000 {
            *counts.entry(rule.pick(&turn, |_| true).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), ["1", "2"]);
        assert!((890..=910).contains(&counts["1"]), "{counts:?}");
        assert!((0..100).all(|_| rule.pick(&turn, |version| version != "2") == Some("1")));
        assert_eq!(rule.pick(&turn, |_| false), None);
        let taken = (0..1000).filter(|_| turn.takes(0.25)).count();
        assert!((245..=255).contains(&taken), "{taken}");
        assert!((0..100).all(|_| turn.takes(1.0)));
    }
}
