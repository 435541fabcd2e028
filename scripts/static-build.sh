#!/bin/sh
# Builds the static release binary and prints its path. The one place that knows how; the Dockerfile and CI call it.
#
# Static against glibc: nothing but the host toolchain is needed, no musl target. `--target` is named
# although it is the host's, because the flags would otherwise also reach procedural macros, which cannot be static.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --release --locked --bin ndserve --target "$target" >&2
echo "${CARGO_TARGET_DIR:-target}/$target/release/ndserve"
