//! Explanations: what of a model's inputs brought its answer about.
//!
//! Nothing here runs a model. An [`Explainer`] says which rows are to be evaluated by which [`Program`], takes the answers, and
//! makes contributions of them; a session or the queue of a server evaluates. An explanation of a row does not depend on the rows
//! beside it, and everything random follows from a seed.
//!
//! A method is a file with an `impl Work`, a variant of [`Method`] and an arm in `explainer::begin`.

mod explainer;
mod gradients;
mod importance;
mod layout;
mod occlusion;
mod picture;
mod quadrature;
mod random;
mod scores;
mod settings;
mod shapley;
mod trees;

pub use explainer::{Explainer, Program, Question, Subject};
pub use importance::Known;
pub use layout::{Layout, number};
pub use picture::heat_map;
pub use scores::{Class, Scores, output as explained_output};
pub use settings::{ExplainSettings, SampleSource};

use serde::Deserialize;

use crate::engine::Tensor;

/// How an answer is explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The gradient integrated on the way from a baseline: Sundararajan et al., Axiomatic attribution for deep networks, 2017.
    IntegratedGradients,
    /// The gradient times the difference to a baseline.
    GradientInput,
    /// Shapley values against a background sample: exact for few features, else of sampled orders.
    Shapley,
    /// Exact Shapley values of trees against a background sample, of the score before its transform.
    TreeShap,
    /// What covering parts of the input changes.
    Occlusion,
    /// What is lost of a measure when the values of a feature change places among the rows.
    PermutationImportance,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 6] =
        [Self::IntegratedGradients, Self::GradientInput, Self::Shapley, Self::TreeShap, Self::Occlusion, Self::PermutationImportance];

    /// The name in requests and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::IntegratedGradients => "integrated_gradients",
            Self::GradientInput => "gradient_input",
            Self::Shapley => "shapley",
            Self::TreeShap => "tree_shap",
            Self::Occlusion => "occlusion",
            Self::PermutationImportance => "permutation_importance",
        }
    }

    /// The method of a name.
    ///
    /// # Errors
    /// The names that there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| format!("is `{name}`; known are {}", known()))
    }
}

/// What a request may say of how; what is `None` has a default that fits the method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Points of the integral of integrated gradients; 50.
    pub steps: Option<usize>,
    /// Orders in which the features of `shapley` join; a multiple of twice the background rows, at least 64.
    pub samples: Option<usize>,
    /// The part that occlusion covers: a size for each dimension of a row; of images an eighth of height and width, with all
    /// channels.
    pub window: Option<Vec<usize>>,
    /// How far the part moves; the window itself.
    pub stride: Option<Vec<usize>>,
    /// How often the values of a feature change places; 5.
    pub repeats: Option<usize>,
    /// What everything random follows from; 0.
    pub seed: u64,
}

/// The explanations of a request, with what is needed to tell them.
#[derive(Debug)]
pub struct Explained {
    /// One for each row, or one for all.
    pub explanations: Vec<Explanation>,
    /// What the contributions are of.
    pub layout: Layout,
    /// The rows.
    pub instances: Vec<Tensor>,
    /// Where the background came from, and how many rows it had.
    pub background: (SampleSource, usize),
    /// Rows of the model that were evaluated, or as much work.
    pub evaluations: usize,
}

/// What is explained: one element of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The output.
    pub output: String,
    /// The element of a row of it.
    pub index: usize,
    /// The label, if the model has labels.
    pub label: Option<String>,
}

/// The measure of which permutation importance tells the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// `accuracy` or `r2`.
    pub measure: &'static str,
    /// Its value on the rows as they are.
    pub value: f64,
}

/// An explanation of one row, or by permutation importance of all.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// How it was found.
    pub method: Method,
    /// What is explained.
    pub target: Target,
    /// The model's answer; `None` for all rows together.
    pub answer: Option<f64>,
    /// What the contributions begin at: the mean answer to the background; for trees before the transform.
    pub base_value: Option<f64>,
    /// What they end at: the answer; for trees the score before the transform.
    pub value: Option<f64>,
    /// How far base value and contributions together are from the value; `None` where they need not meet.
    pub completeness_error: Option<f64>,
    /// For each element of the inputs what it adds, in the order of the [`Layout`].
    pub contributions: Vec<f64>,
    /// How sure the contributions are, where they are sampled: their standard error; of permutation importance the standard
    /// deviation over the repeats.
    pub spread: Option<Vec<f64>>,
    /// The measure, of permutation importance.
    pub measured: Option<Measured>,
}

impl Explanation {
    /// Elements in the order of their contributions, the greatest first, whatever their sign; equal ones in the order of the
    /// inputs.
    pub fn ranked(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.contributions.len()).collect();
        order.sort_by(|&a, &b| self.contributions[b].abs().total_cmp(&self.contributions[a].abs()));
        order
    }

    fn complete(mut self) -> Self {
        if let (Some(base), Some(value)) = (self.base_value, self.value) {
            self.completeness_error = Some((base + self.contributions.iter().sum::<f64>() - value).abs());
        }
        self
    }
}
