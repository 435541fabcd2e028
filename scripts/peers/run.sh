#!/bin/sh
# Exports the benchmark models, builds the binary, times it beside ONNX Runtime and OpenVINO, and writes the table to
# benches/record/<date>-peers.md. Arguments go to side_by_side.py: --only mlp,resnet50 --batches 1 --threads 1 --rounds 9.
# The models lie in target/peers (about 4 GB); PEERS_MODELS is another place for them.
set -eu
cd "$(dirname "$0")/../.."
python=$(scripts/peers/env.sh)
models=${PEERS_MODELS:-target/peers}
"$python" scripts/peers/export_models.py --out "$models"
cargo build --release --locked
exec "$python" scripts/peers/side_by_side.py --ndserve target/release/ndserve --models "$models" --table "benches/record/$(date +%F)-peers.md" "$@"
