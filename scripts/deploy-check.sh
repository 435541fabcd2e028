#!/bin/sh
# Checks the files in deploy/ with a Python in target/ that has PyYAML and the schemas of Kubernetes, both from PyPI.
set -eu
cd "$(dirname "$0")/.."
python=target/deploy-check/bin/python
[ -x "$python" ] || python3 -m venv target/deploy-check
"$python" -c 'import kubernetes_validate' 2> /dev/null \
    || "$python" -m pip install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.0'
exec "$python" scripts/deploy_check.py
