#!/bin/bash
# Builds the static binary and checks that it is one: no loader, no shared library, no more bytes than the image may have.
set -euo pipefail
cd "$(dirname "$0")/.."
SIZE_MAX=25000000  # as in scripts/container.sh

die() { printf 'static: FAILED: %s\n' "$*" >&2; exit 1; }
binary=$(scripts/static-build.sh)
command -v readelf > /dev/null || die "there is no readelf (it comes with the C compiler's binutils)"
# Into variables: a reader that stops early would fail the pipe.
segments=$(readelf --wide --program-headers "$binary")
dynamic=$(readelf --wide --dynamic "$binary")
[[ $segments != *INTERP* ]] || die "$binary asks for a loader"
[[ $dynamic != *NEEDED* ]] || die "$binary asks for shared libraries"
size=$(stat -c %s "$binary")
[ "$size" -le $SIZE_MAX ] || die "$binary has $size bytes, more than $SIZE_MAX"
echo "static: $binary, $size bytes, $("$binary" --version)"
