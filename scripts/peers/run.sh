#!/bin/sh
# Exports the benchmark models, builds the binary, times it beside ONNX Runtime and OpenVINO, and writes the record with a plot, and
# README's table: scripts/peers/report.py says where. Arguments go to side_by_side.py: --only mlp,resnet50 --batches 1 --threads 1 --rounds 9.
# The models lie in target/peers (about 4 GB); PEERS_MODELS is another place for them. PEERS_BINARY is a binary that is built already.
set -eu
cd "$(dirname "$0")/../.."
python=$(scripts/peers/env.sh)
models=${PEERS_MODELS:-target/peers}
"$python" scripts/peers/export_models.py --out "$models"
if [ -z "${PEERS_BINARY:-}" ]; then
    cargo build --release --locked
    PEERS_BINARY=${CARGO_TARGET_DIR:-target}/release/ndserve
fi
mkdir -p target
rm -f target/peers.json
status=0
"$python" scripts/peers/side_by_side.py --ndserve "$PEERS_BINARY" --models "$models" --json target/peers.json "$@" || status=$?
[ ! -e target/peers.json ] || "$python" scripts/peers/report.py target/peers.json
exit "$status"
