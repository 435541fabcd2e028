#!/bin/sh
# Makes a virtual environment at the repository root and prints the path of its python; what the *env.sh scripts have in common.
# Cheap when nothing changed: a copy of the requirements lies in the environment and is compared first.
#
#   scripts/venv.sh FOLDER REQUIREMENTS MODULE…
#
# REQUIREMENTS is a file of scripts/; each MODULE must import. PYTHON chooses the interpreter the environment is made with (default
# python3, 3.11 or newer).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/$1
requirements=$root/scripts/$2
shift 2
python=$folder/bin/python

if ! { [ -x "$python" ] && cmp -s "$requirements" "$folder/requirements.txt"; }; then
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
    # Everything but the answer goes to stderr, so that $(scripts/venv.sh …) is usable.
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    # Each by itself: PyTorch and TensorFlow in one process both bring an LLVM, and end it.
    for module; do
        USE_TF=0 "$python" -c "import $module" >&2
    done
    cp "$requirements" "$folder/requirements.txt"
fi
echo "$python"
