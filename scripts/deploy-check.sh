#!/bin/sh
# Checks the files in deploy/ with a Python that has PyYAML: the system's, or one in target/ with PyYAML from PyPI.
set -eu
cd "$(dirname "$0")/.."
python=python3
if ! python3 -c 'import yaml' 2> /dev/null; then
    python=target/deploy-check/bin/python
    [ -x "$python" ] || python3 -m venv target/deploy-check
    "$python" -c 'import yaml' 2> /dev/null || "$python" -m pip install --quiet --disable-pip-version-check 'PyYAML>=6,<7'
fi
exec "$python" scripts/deploy_check.py
