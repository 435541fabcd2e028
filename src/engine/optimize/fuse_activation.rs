//! Placeholder module under construction.
use crate::engine::graph::Graph;
use crate::engine::model::LoadOptions;
pub(super) fn run(_: &mut Graph, _: &LoadOptions) {}
