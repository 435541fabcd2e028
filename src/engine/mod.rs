//! The engine.
pub mod kernels;
