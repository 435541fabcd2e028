#!/bin/bash
# The tests of what shares memory between threads, and of what reads raw memory, under miri: undefined behaviour is an error, and each seed
# runs the threads in another order. Needs a nightly toolchain with the components miri and rust-src.
#
#   scripts/miri.sh [SEEDS]     (default 24)
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-24}

# A crate of these files alone: miri interprets, and the whole crate's dependencies call into C.
crate=target/miri-kernels
mkdir -p "$crate/src"
cat > "$crate/Cargo.toml" <<TOML
[package]
name = "miri-kernels"
edition = "2024"

[dependencies]
bytemuck = "1"

[workspace]
TOML
cat > "$crate/src/lib.rs" <<RUST
#[path = "$PWD/src/engine/kernels/bytes.rs"]
pub mod bytes;
#[path = "$PWD/src/engine/kernels/offers.rs"]
pub mod offers;
RUST
cd "$crate"
MIRIFLAGS="-Zmiri-many-seeds=0..$seeds" cargo +nightly miri test
