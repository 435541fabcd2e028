//! The arithmetic: matrix product, convolution and elementwise maths on plain slices.
//!
//! Everything here is a safe function over slices that checks lengths and picks an instruction set ([`isa::Isa`]) at run
//! time. Kernels know nothing of tensors or graphs and start no threads: they work on one piece, and the caller splits the work.
//!
//! Two promises hold for every kernel at a fixed instruction set:
//!
//! - **Batch invariance, to the bit.** An output element depends only on its own row (or sample) and on the constants. It is
//!   one chain of multiply-adds over ascending `k`, whatever the number of rows, their position or the split of the work.
//! - **NaN and infinity propagate.** No term is skipped because a factor is zero.
//!
//! This is the only folder of the crate that may contain `unsafe`, and only for ten things: loads and stores through
//! pointers in the tiles, the assembly of the tile unit (`bf16/amx.rs`, `int8/amx.rs`), one of no instruction (`register.rs`), calls into code compiled for instructions
//! that were detected beforehand, calls into the allocator and advice on memory to the system (`allocator.rs`), a copy of bytes
//! into memory that is not cleared (`bytes.rs`), a file in memory (`stored.rs`), closures that other threads call while their owner waits (`offers.rs`), and loops that
//! measure the processor (`limits.rs`).
#![allow(unsafe_code, reason = "vector loads and calls into feature-gated code; each block states why it is sound")]

pub mod allocator;
pub mod attention;
pub mod bf16;
pub mod bytes;
pub mod cache;
pub mod codes;
pub mod conv;
pub mod epilogue;
pub mod gemm;
pub mod int8;
pub mod integer;
pub mod isa;
pub mod limits;
pub mod offers;
pub mod pool;
mod register;
pub mod rows;
pub mod stored;
pub mod vector;
pub mod weights;

#[cfg(test)]
mod tests;
