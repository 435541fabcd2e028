#!/bin/sh
# Makes .venv-peers at the repository root from scripts/peers/requirements.txt and prints the path of its python: scripts/venv.sh.
# About 7 GB. PEERS_PYTHON is an interpreter that has everything already.
set -eu
if [ -n "${PEERS_PYTHON:-}" ]; then
    echo "$PEERS_PYTHON"
    exit
fi
exec "$(dirname "$0")/../venv.sh" .venv-peers peers/requirements.txt onnxruntime openvino torchvision transformers
