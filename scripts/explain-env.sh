#!/bin/sh
# Makes .venv-explain at the repository root from scripts/explain-requirements.txt and prints the path of its python.
# Cheap when nothing changed: a copy of the requirements lies in the environment and is compared first.
# About 6 GB on Linux, most of it PyTorch's libraries.
#
#   $(scripts/explain-env.sh) tests/fixtures/explain/make.py
#
# PYTHON chooses the interpreter the environment is made with (default python3, 3.11 or newer).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
requirements="$root/scripts/explain-requirements.txt"
installed="$root/.venv-explain/requirements.txt"
python="$root/.venv-explain/bin/python"

if ! { [ -x "$python" ] && cmp -s "$requirements" "$installed"; }; then
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$root/.venv-explain"
    # Everything but the answer goes to stderr, so that $(scripts/explain-env.sh) is usable.
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    "$python" -c 'import captum, lightgbm, onnx, onnxmltools, onnxscript, shap, skl2onnx, sklearn, torch, xgboost'
    cp "$requirements" "$installed"
fi
echo "$python"
