#!/bin/sh
# Runs each fuzz target for some seconds, beginning with the inputs kept in fuzz/seeds/. Stops at the first finding, which is
# left in fuzz/artifacts/.
#
#   scripts/fuzz.sh [SECONDS [TARGET…]]
#
# Needs a nightly toolchain, cargo-fuzz and python3.
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${1:-3600}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- onnx_read onnx_run safetensors config
for target; do
    mkdir -p "corpus/$target"
    python3 -m zipfile -e "seeds/$target.zip" "corpus/$target"
    cargo +nightly fuzz run --dev "$target" -- -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=2048
done
