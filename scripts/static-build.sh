#!/bin/sh
# Builds the static release binary and prints its path. The one place that knows how; the Dockerfile and CI call it.
#
# Static against glibc: nothing but the host toolchain is needed, no musl target. `--target` is named
# although it is the host's, because the flags would otherwise also reach procedural macros, which cannot be static.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
# Relocations take a megabyte, packed ones a fiftieth of it; a static program can apply those from glibc 2.36 on.
packed=
case $(getconf GNU_LIBC_VERSION 2> /dev/null) in
    "glibc 2."*) [ "$(getconf GNU_LIBC_VERSION | sed 's/^glibc 2\.\([0-9]*\).*/\1/')" -lt 36 ] || packed="-C link-arg=-Wl,-z,pack-relative-relocs" ;;
esac
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static $packed" cargo build --release --locked --bin ndserve --target "$target" >&2
echo "${CARGO_TARGET_DIR:-target}/$target/release/ndserve"
