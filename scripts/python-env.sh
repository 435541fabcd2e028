#!/bin/sh
# Makes .venv at the repository root from scripts/requirements.txt and prints the path of its python: scripts/venv.sh.
# About 6 GB on Linux: PyTorch's wheel links to CUDA's libraries, so it does not load without them even though
# only the CPU is used.
#
#   $(scripts/python-env.sh) tests/fixtures/training/make.py
exec "$(dirname "$0")/venv.sh" .venv requirements.txt lightgbm numpy onnx onnxmltools onnxruntime onnxscript skl2onnx sklearn torch xgboost
