#!/bin/sh
# Makes .venv-peers at the repository root from scripts/peers/requirements.txt and prints the path of its python.
# Cheap when nothing changed: a copy of the requirements lies in the environment and is compared first. About 7 GB.
#
# PYTHON chooses the interpreter the environment is made with (default python3, 3.11 or newer); PEERS_PYTHON is an
# interpreter that has everything already.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -n "${PEERS_PYTHON:-}" ]; then
    echo "$PEERS_PYTHON"
    exit
fi
requirements="$root/scripts/peers/requirements.txt"
installed="$root/.venv-peers/requirements.txt"
python="$root/.venv-peers/bin/python"

if ! { [ -x "$python" ] && cmp -s "$requirements" "$installed"; }; then
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$root/.venv-peers"
    # Everything but the answer goes to stderr, so that $(scripts/peers/env.sh) is usable.
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    "$python" -c 'import onnxruntime, openvino, torchvision, transformers' >&2
    cp "$requirements" "$installed"
fi
echo "$python"
