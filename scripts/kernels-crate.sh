#!/bin/bash
# Writes a crate of the kernels alone into a folder of target/: they are what differs between processors, and the whole crate's tests take an
# hour under an emulator.
#
#   scripts/kernels-crate.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
crate=$1
mkdir -p "$crate/src"
{
    printf '[package]\nname = "kernels"\nedition = "2024"\n\n[dependencies]\n'
    sed -n '/^\[dependencies\]/,/^\[dev-dependencies\]/p' Cargo.toml | grep -E '^(bytemuck|half|libmimalloc-sys|mimalloc|rustix|smallvec) ='
    printf '\n[profile.test]\nopt-level = 2\ndebug = false\n\n[workspace]\n'
} > "$crate/Cargo.toml"
cat > "$crate/src/lib.rs" <<RUST
#![allow(dead_code, unused_imports, reason = "what uses the kernels is not here")]
mod engine {
    #[path = "$PWD/src/engine/kernels/mod.rs"]
    pub mod kernels;
}
RUST
cp Cargo.lock "$crate/Cargo.lock"
