//! The protocols: the only place that knows HTTP.

pub mod json;
