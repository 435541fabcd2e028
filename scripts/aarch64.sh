#!/bin/bash
# The kernels' own tests on aarch64, by an emulator: the portable bodies, which the compiler makes NEON code of there, against the
# definitions. Needs the Rust target aarch64-unknown-linux-gnu, a C compiler for it and qemu's user mode (Debian: gcc-aarch64-linux-gnu,
# qemu-user).
#
#   scripts/aarch64.sh [FILTER]     (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

# A crate of the kernels alone: they are what differs between processors, and the whole crate's tests take an hour there.
crate=target/aarch64-kernels
mkdir -p "$crate/src"
{
    printf '[package]\nname = "aarch64-kernels"\nedition = "2024"\n\n[dependencies]\n'
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
cd "$crate"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
cargo test --target "$target" -- "$@"
