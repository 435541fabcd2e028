#!/bin/sh
# Makes .venv-explain at the repository root from scripts/explain-requirements.txt and prints the path of its python: scripts/venv.sh.
# About 6 GB on Linux, most of it PyTorch's libraries.
#
#   $(scripts/explain-env.sh) tests/fixtures/explain/make.py
exec "$(dirname "$0")/venv.sh" .venv-explain explain-requirements.txt captum lightgbm onnx onnxmltools onnxscript shap skl2onnx sklearn torch xgboost
