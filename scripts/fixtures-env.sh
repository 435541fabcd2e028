#!/bin/sh
# Makes .venv-fixtures at the repository root from scripts/fixtures-requirements.txt and prints the path of its python.
# Cheap when nothing changed: a copy of the requirements lies in the environment and is compared first.
# About 8 GB on Linux: PyTorch, TensorFlow, JAX, Keras and what exports from them.
#
#   $(scripts/fixtures-env.sh) tests/fixtures/systems/make.py
#
# PYTHON chooses the interpreter the environment is made with (default python3, 3.11 or newer).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
requirements="$root/scripts/fixtures-requirements.txt"
installed="$root/.venv-fixtures/requirements.txt"
python="$root/.venv-fixtures/bin/python"

if ! { [ -x "$python" ] && cmp -s "$requirements" "$installed"; }; then
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$root/.venv-fixtures"
    # Everything but the answer goes to stderr, so that $(scripts/fixtures-env.sh) is usable.
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    # Each by itself: PyTorch and TensorFlow in one process both bring an LLVM, and end it.
    for module in keras onnxruntime optimum.exporters.onnx tf2onnx torchvision ultralytics; do
        USE_TF=0 "$python" -c "import $module" >&2
    done
    cp "$requirements" "$installed"
fi
echo "$python"
