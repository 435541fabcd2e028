#!/bin/sh
# Makes .venv at the repository root from scripts/requirements.txt and prints the path of its python.
# Cheap when nothing changed: a copy of the requirements lies in the environment and is compared first.
# About 6 GB on Linux: PyTorch's wheel links to CUDA's libraries, so it does not load without them even though
# only the CPU is used.
#
#   $(scripts/python-env.sh) tests/fixtures/training/make.py
#
# PYTHON chooses the interpreter the environment is made with (default python3, 3.11 or newer).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
requirements="$root/scripts/requirements.txt"
installed="$root/.venv/requirements.txt"
python="$root/.venv/bin/python"

if ! { [ -x "$python" ] && cmp -s "$requirements" "$installed"; }; then
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
    # Everything but the answer goes to stderr, so that $(scripts/python-env.sh) is usable.
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    "$python" -c 'import lightgbm, numpy, onnx, onnxmltools, onnxruntime, onnxscript, skl2onnx, sklearn, torch, xgboost'
    cp "$requirements" "$installed"
fi
echo "$python"
