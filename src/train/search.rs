//! A search over hyper-parameters: each trial is a training of its own, the best one's settings are trained at last.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::checkpoint::write_whole;
use super::config::Config;
use super::error::{Error, Result};
use super::random::Random;

/// How settings are chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every combination.
    #[default]
    Grid,
    /// So many, drawn at random.
    Random,
}

/// What one setting may be.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Choice {
    /// One of these.
    List(Vec<toml::Value>),
    /// A number between two, for a random search.
    Between(Between),
}

/// See [`Choice::Between`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Between {
    /// The least.
    pub from: f64,
    /// The greatest.
    pub to: f64,
    /// Whether each power of ten is as likely as another.
    #[serde(default)]
    pub log: bool,
    /// Whether it is a whole number.
    #[serde(default)]
    pub whole: bool,
}

/// A search.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// How settings are chosen.
    #[serde(default)]
    pub kind: Kind,
    /// How many are tried, of a random search.
    pub trials: Option<usize>,
    /// Of a random search.
    #[serde(default)]
    pub seed: u64,
    /// Settings by their path: `train.learning_rate`, or `layer.1.units` of the first layer.
    pub values: BTreeMap<String, Choice>,
}

/// The settings of a trial.
pub type Trial = Vec<(String, toml::Value)>;

/// More trials than anyone waits for.
const TRIALS_MAX: usize = 10_000;

impl Search {
    /// The settings of every trial.
    ///
    /// # Errors
    /// The key that says nothing, or too much.
    pub fn trials(&self) -> Result<Vec<Trial>> {
        if self.values.is_empty() {
            return Err("`search.values` is empty".into());
        }
        for (path, choice) in &self.values {
            if let Some(why) = same_for_all(path) {
                return Err(Error(format!("`search.values.{path}`: {why}")));
            }
            match choice {
                Choice::List(list) if list.is_empty() => return Err(Error(format!("`search.values.{path}` is empty"))),
                Choice::Between(b) if !(b.from < b.to && b.to.is_finite() && (!b.log || b.from > 0.0)) => {
                    return Err(Error(format!("`search.values.{path}`: from {} to {} is no range", b.from, b.to)));
                }
                Choice::Between(_) if self.kind == Kind::Grid => {
                    return Err(Error(format!("`search.values.{path}` is a range; a grid wants lists, `kind = \"random\"` takes both")));
                }
                _ => {}
            }
        }
        let trials = match self.kind {
            Kind::Grid if self.trials.is_some() => return Err("`search.trials` is of a random search; a grid tries all".into()),
            Kind::Grid => self.grid()?,
            Kind::Random => {
                let count =
                    self.trials.filter(|n| (1..=TRIALS_MAX).contains(n)).ok_or("`search.trials` says how many are tried at random")?;
                let mut random = Random::new(self.seed, 0x5ea2c4);
                (0..count).map(|_| self.values.iter().map(|(path, choice)| (path.clone(), choice.draw(&mut random))).collect()).collect()
            }
        };
        Ok(trials)
    }

    fn grid(&self) -> Result<Vec<Trial>> {
        let mut trials: Vec<Trial> = vec![Vec::new()];
        for (path, choice) in &self.values {
            let Choice::List(list) = choice else { continue };
            if trials.len() * list.len() > TRIALS_MAX {
                return Err(Error(format!("the grid has more than {TRIALS_MAX} combinations")));
            }
            let with = |trial: &Trial, value: &toml::Value| [&trial[..], &[(path.clone(), value.clone())]].concat();
            trials = trials.iter().flat_map(|trial| list.iter().map(move |value| with(trial, value))).collect();
        }
        Ok(trials)
    }
}

impl Choice {
    fn draw(&self, random: &mut Random) -> toml::Value {
        match self {
            Self::List(list) => list[random.below(list.len())].clone(),
            Self::Between(Between { from, to, log, whole }) => {
                let share = random.uniform();
                let value = if *log { (from.ln() + share * (to.ln() - from.ln())).exp() } else { from + share * (to - from) };
                if *whole { toml::Value::Integer(value.round() as i64) } else { toml::Value::Float(value) }
            }
        }
    }
}

/// Why a setting is the same for all trials, if it is.
fn same_for_all(path: &str) -> Option<&'static str> {
    /// How the rows that are read are parted.
    const PARTED: &[&str] = &["data.validation", "data.test", "data.stratify", "data.folds"];
    match path.split('.').collect::<Vec<_>>()[..] {
        ["data", ..] if !PARTED.contains(&path) => {
            Some("the data is read once for all trials; of `data` they may have their own validation, test, stratify and folds")
        }
        ["base"] | ["base", "path", ..] => Some("all trials begin with one model; of `base` they may have their own until and freeze"),
        _ => None,
    }
}

/// The configuration of a text with the settings of a trial in it, without the search.
///
/// # Errors
/// The path that leads nowhere, or the value that does not go there.
pub fn applied(config: &Config, text: &str, trial: &Trial) -> Result<(Config, String)> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| Error(error.to_string()))?;
    table.remove("search");
    let mut whole = toml::Value::Table(table);
    for (path, value) in trial {
        let wrong = || Error(format!("`search.values.{path}`: there is no such setting to change"));
        let mut at = &mut whole;
        for key in path.split('.') {
            at = match at {
                toml::Value::Table(table) => table.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new())),
                // Layers count from 1, as in errors.
                toml::Value::Array(list) => {
                    let number: usize = key.parse().map_err(|_| wrong())?;
                    number.checked_sub(1).and_then(|at| list.get_mut(at)).ok_or_else(wrong)?
                }
                _ => return Err(wrong()),
            };
        }
        *at = value.clone();
    }
    let text = toml::to_string(&whole).map_err(|error| Error(error.to_string()))?;
    let mut found = Config::parse(&text).map_err(|error| Error(format!("a trial of the search: {error}")))?;
    // The text has paths relative to the configuration's folder, which is known of the configuration alone.
    (found.data.path, found.data.test_path) = (config.data.path.clone(), config.data.test_path.clone());
    if let (Some(base), Some(from)) = (&mut found.base, &config.base) {
        base.path.clone_from(&from.path);
    }
    Ok((found, text))
}

/// The scores of trials, or what folds came to, kept in a file so that what was stopped goes on.
#[derive(Debug, Default)]
pub struct Scores {
    /// One for each that is done; of trials the least is the best.
    pub done: Vec<f64>,
    hash: String,
}

impl Scores {
    /// None yet, of a configuration and data with this hash.
    pub fn new(hash: &str) -> Self {
        Self { done: Vec::new(), hash: hash.to_owned() }
    }

    /// Those of a file, if it is of this hash.
    pub fn read(path: &Path, hash: &str) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let same = lines.next() == Some(hash);
        let done = if same { lines.map_while(|line| line.parse().ok()).collect() } else { Vec::new() };
        Self { done, hash: hash.to_owned() }
    }

    /// Writes all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{}\n", self.hash);
        self.done.iter().for_each(|score| {
            let _ = writeln!(text, "{score:?}");
        });
        write_whole(path, text.as_bytes())
    }

    /// The trial with the least score; of equal ones the first.
    pub fn best(&self) -> Option<usize> {
        let finite = self.done.iter().enumerate().filter(|(_, score)| score.is_finite());
        finite.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| at)
    }
}

/// Settings as one line.
pub fn line(trial: &Trial) -> String {
    trial.iter().map(|(path, value)| format!("{path} = {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[data]\npath = \"a.csv\"\ntarget = \"y\"\nvalidation = 0.2\n[[layer]]\nkind = \"dense\"\nunits = 3\n[train]\nepochs = 1\nlearning_rate = 0.1\n";

    fn search(text: &str) -> Result<Vec<Trial>> {
        toml::from_str::<Search>(text).map_err(|error| Error(error.to_string()))?.trials()
    }

    #[test]
    fn a_grid_tries_all_and_chance_some() {
        let trials = search("[values]\n\"layer.1.units\" = [2, 4]\n\"train.learning_rate\" = [0.1, 0.2, 0.3]\n").unwrap();
        assert_eq!(trials.len(), 6);
        assert_eq!(line(&trials[4]), "layer.1.units = 4, train.learning_rate = 0.2");
        let random = "kind = \"random\"\ntrials = 50\n[values]\n\"train.learning_rate\" = { from = 1e-4, to = 1.0, log = true }\n\"layer.1.units\" = { from = 2, to = 9, whole = true }\n";
        let trials = search(random).unwrap();
        assert_eq!(trials, search(random).unwrap());
        let rates: Vec<f64> = trials.iter().map(|trial| trial[1].1.as_float().unwrap()).collect();
        assert!(rates.iter().all(|rate| (1e-4..1.0).contains(rate)) && rates.iter().filter(|rate| **rate < 1e-2).count() > 15, "{rates:?}");
        assert!(trials.iter().all(|trial| (2..=9).contains(&trial[0].1.as_integer().unwrap())));
        for (text, message) in [
            ("[values]\n", "`search.values` is empty"),
            ("[values]\na = []\n", "`search.values.a` is empty"),
            ("[values]\na = { from = 1, to = 2 }\n", "a grid wants lists"),
            ("trials = 3\n[values]\na = [1]\n", "`search.trials`"),
            ("kind = \"random\"\n[values]\na = [1]\n", "`search.trials`"),
            ("kind = \"random\"\ntrials = 3\n[values]\na = { from = 2, to = 1 }\n", "is no range"),
        ] {
            let error = search(text).unwrap_err().0;
            assert!(error.contains(message), "{message}: {error}");
        }
    }

    #[test]
    fn settings_go_where_their_path_leads() {
        let config = Config::parse(TEXT).unwrap();
        let apply = |path: &str, value: toml::Value| applied(&config, TEXT, &vec![(path.to_owned(), value)]);
        let (found, text) = apply("layer.1.units", 7.into()).unwrap();
        assert_eq!(found.layers[0], toml::from_str("kind = \"dense\"\nunits = 7").unwrap());
        assert_eq!(Config::parse(&text).unwrap(), found);
        assert_eq!(
            apply("train.optimizer", toml::Value::Table([("kind".to_owned(), "adamw".into())].into_iter().collect())).unwrap().0.data,
            config.data
        );
        for (path, value, message) in [
            ("layer.2.units", 7.into(), "`search.values.layer.2.units`"),
            ("train.rate", 7.into(), "rate"),
            ("train.epochs", "many".into(), "a trial of the search"),
        ] {
            let error = apply(path, value).unwrap_err().0;
            assert!(error.contains(message), "{message}: {error}");
        }
    }
}
