#!/bin/bash
# The kernels' own tests on aarch64, by an emulator: the portable bodies, which the compiler makes NEON code of there, against the
# definitions. Needs the Rust target aarch64-unknown-linux-gnu, a C compiler for it and qemu's user mode (Debian: gcc-aarch64-linux-gnu,
# qemu-user).
#
#   scripts/aarch64.sh [FILTER]     (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/kernels-crate.sh target/aarch64-kernels
cd target/aarch64-kernels
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
cargo test --target aarch64-unknown-linux-gnu -- "$@"
