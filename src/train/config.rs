//! The configuration of a training: a TOML file, every key of which is known.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::augment::Augment;
use super::base::Start;
use super::batches::Batches;
use super::error::{Error, Result, in_file};
use super::loss::Loss;
use super::network::Layer;
use super::optimizer::Rule as Optimizer;
use super::prepare::Rules;
use super::schedule::Schedule;
use super::search::Search;

/// What is predicted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One of several classes: an output of probabilities.
    Classify,
    /// Whether something is so: one output, a probability. The target is 0 or 1, or the second of two labels.
    Binary,
    /// A number.
    Regress,
}

/// Where the data is and how it is parted.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A .csv, .tsv, .parquet or .npz file or a folder of pictures by class; relative to the configuration's folder.
    pub path: PathBuf,
    /// The array of the inputs, if an .npz file has several.
    pub inputs: Option<String>,
    /// The column or array that is predicted. Of pictures, their folders.
    #[serde(default)]
    pub target: String,
    /// The columns that are used, in the order of the model's input; all others where none are named.
    #[serde(default)]
    pub features: Vec<String>,
    /// What is predicted; without it, classes if the target is text, else numbers.
    pub task: Option<Task>,
    /// The names of classes, in order.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The share of rows that says when to stop.
    #[serde(default)]
    pub validation: f64,
    /// The share of rows that judges the result.
    #[serde(default)]
    pub test: f64,
    /// A file of rows that judge the result, in the place of a share; relative to the configuration's folder.
    pub test_path: Option<PathBuf>,
    /// Whether each part has its share of every class.
    #[serde(default = "yes")]
    pub stratify: bool,
    /// Folds of a cross-validation before the training itself.
    pub folds: Option<usize>,
    /// Height and width that pictures are brought to; without it those of the first.
    pub size: Option<[usize; 2]>,
    /// Channels of pictures, 1 (grey) or 3; without it those of the first.
    pub channels: Option<usize>,
}

impl Data {
    /// The column or array that is predicted.
    pub fn target(&self) -> &str {
        if self.target.is_empty() { "class" } else { &self.target }
    }
}

/// How classes count.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum ClassWeights {
    /// All alike.
    #[default]
    Equal,
    /// "balanced": inversely to how often they are.
    Word(String),
    /// So, in the order of the labels.
    Each(Vec<f64>),
}

/// How the network is trained.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Passes over the rows.
    pub epochs: usize,
    /// Rows of a step.
    #[serde(default)]
    pub batch: Batches,
    /// The greatest learning rate.
    pub learning_rate: f64,
    /// How parameters follow their gradients.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: Schedule,
    /// Epochs in which the rate rises from zero.
    #[serde(default)]
    pub warmup_epochs: usize,
    /// What is made small; by the task where it is not said.
    pub loss: Option<Loss>,
    /// The factor on weights that is added to their gradients (AdamW: by which they shrink).
    #[serde(default)]
    pub l2: f64,
    /// The number whose sign is a weight's that is added to its gradient.
    #[serde(default)]
    pub l1: f64,
    /// The norm that all gradients together may have.
    pub clip_norm: Option<f64>,
    /// Epochs without a better validation loss after which the training ends; the best parameters are kept.
    pub patience: Option<usize>,
    /// How classes count.
    #[serde(default)]
    pub class_weights: ClassWeights,
    /// How rows are changed at random.
    #[serde(default)]
    pub augment: Augment,
    /// All randomness follows from it.
    #[serde(default)]
    pub seed: u64,
}

/// The folder that is made.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The model's name: that of its folder where none is given.
    pub name: Option<String>,
    /// What the model is, for model.toml and the card.
    #[serde(default)]
    pub description: String,
    /// Markdown for the card: where the data is from, what it may be used for.
    #[serde(default)]
    pub about: String,
    /// The name of the model's input, if it has one.
    pub input: Option<String>,
    /// The name of its output.
    pub output: Option<String>,
    /// More settings for model.toml: batching, limits.
    #[serde(default)]
    pub settings: toml::Table,
}

/// A training.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the data is.
    pub data: Data,
    /// How inputs are prepared.
    #[serde(default)]
    pub prepare: Rules,
    /// The layers between the inputs and the output layer, which is made by itself.
    #[serde(default, rename = "layer")]
    pub layers: Vec<Layer>,
    /// How the network is trained.
    pub train: Training,
    /// The model that it begins with.
    pub base: Option<Start>,
    /// What is tried before.
    pub search: Option<Search>,
    /// The folder that is made.
    #[serde(default)]
    pub model: Output,
}

fn yes() -> bool {
    true
}

impl Config {
    /// The configuration of a file, and its text.
    ///
    /// # Errors
    /// The key that is not known or has no value that it can have.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(path).map_err(|error| in_file(path, error))?;
        let mut config = Self::parse(&text).map_err(|error| in_file(path, error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in [Some(&mut config.data.path), config.data.test_path.as_mut(), config.base.as_mut().map(|base| &mut base.path)]
            .into_iter()
            .flatten()
            .filter(|file| file.is_relative())
        {
            *file = folder.join(&*file);
        }
        Ok((config, text))
    }

    /// The configuration of a text.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self =
            toml::from_str(text).map_err(|error| wrong_layer(text).unwrap_or_else(|| Error(error.to_string().trim_end().to_owned())))?;
        let train = &config.train;
        let wrong = |key: &str, value: &dyn std::fmt::Display| Err(Error(format!("`train.{key}` is {value}")));
        if train.epochs == 0 {
            return wrong("epochs", &0);
        }
        if !train.batch.are_valid() {
            return Err("`train.batch` is 0, has a 0 or is empty; a step takes one row or more".into());
        }
        if !(train.learning_rate > 0.0 && train.learning_rate.is_finite()) {
            return wrong("learning_rate", &train.learning_rate);
        }
        if !(train.l1 >= 0.0 && train.l2 >= 0.0) {
            return wrong("l1` or `train.l2", &"negative");
        }
        if config.data.target.is_empty() && config.data.path.extension().is_some() {
            return Err("`data.target` is missing: the column or array that is predicted".into());
        }
        if config.data.test_path.is_some() && config.data.test != 0.0 {
            return Err("`data.test` and `data.test_path` exclude each other".into());
        }
        let labels = &config.data.labels;
        if let Some((_, label)) = labels.iter().enumerate().find(|(at, label)| labels[..*at].contains(label)) {
            return Err(Error(format!("`data.labels` has `{label}` twice")));
        }
        if train.patience.is_some() && config.data.validation == 0.0 {
            return Err("`train.patience` needs rows that say when to stop: `data.validation`".into());
        }
        if config.search.is_some() && config.data.validation == 0.0 && config.data.folds.is_none() {
            return Err("a search needs rows that say which trial is best: `data.validation` or `data.folds`".into());
        }
        if let ClassWeights::Word(word) = &train.class_weights
            && word != "balanced"
        {
            return Err(Error(format!("`train.class_weights` is {word:?}; \"balanced\" or a list is wanted")));
        }
        Ok(config)
    }
}

/// What is wrong with the first layer that cannot be read, if one cannot: of a list the parser tells where the list begins only.
fn wrong_layer(text: &str) -> Option<Error> {
    let table: toml::Table = toml::from_str(text).ok()?;
    table.get("layer")?.as_array()?.iter().enumerate().find_map(|(i, layer)| {
        let kind = layer.get("kind").and_then(toml::Value::as_str).map_or(String::new(), |kind| format!(" (`{kind}`)"));
        let error = layer.clone().try_into::<Layer>().err()?;
        Some(Error(format!("layer {}{kind}: {}", i + 1, error.message())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[data]\npath = \"a.csv\"\ntarget = \"y\"\n[train]\nepochs = 1\nlearning_rate = 0.1\n";

    #[test]
    fn keys_are_known_or_named() {
        let config =
            Config::parse(&format!("{LEAST}[[layer]]\nkind = \"dense\"\nunits = 3\nactivation = \"relu\"\n[prepare]\nmissing = 0.5\n"))
                .unwrap();
        assert_eq!(config.layers, [Layer::Dense { units: 3, bias: true, activation: Some(super::super::network::Function::Relu) }]);
        assert_eq!(config.prepare.missing, Some(super::super::prepare::Missing::Constant(0.5)));
        for (more, part) in [
            ("epoch = 3\n", "epoch"),
            ("[[layer]]\nkind = \"dense\"\nunit = 3\n", "unit"),
            ("[[layer]]\nkind = \"dens\"\n", "dens"),
            ("[[layer]]\nkind = \"flatten\"\n[[layer]]\nkind = \"dense\"\nunit = 3\n", "layer 2 (`dense`): unknown field `unit`"),
            ("optimizer = { kind = \"adam\", beta = 1 }\n", "beta"),
            ("patience = 3\n", "data.validation"),
            ("class_weights = \"even\"\n", "balanced"),
            ("batch = 0\n", "train.batch"),
            ("batch = []\n", "train.batch"),
            ("batch = [8, 0]\n", "train.batch"),
            ("batch = -1\n", "a list of numbers that take turns"),
            ("batch = [8, \"x\"]\n", "a list of numbers that take turns"),
        ] {
            let error = Config::parse(&format!("{LEAST}{more}")).unwrap_err().0;
            assert!(error.contains(part), "{more}: {error}");
        }
        assert!(Config::parse(&LEAST.replace("0.1", "-1.0")).unwrap_err().0.contains("learning_rate"));
    }
}
