#!/bin/sh
# Makes .venv-fixtures at the repository root from scripts/fixtures-requirements.txt and prints the path of its python: scripts/venv.sh.
# About 8 GB on Linux: PyTorch, TensorFlow, JAX, Keras and what exports from them.
#
#   $(scripts/fixtures-env.sh) tests/fixtures/systems/make.py
exec "$(dirname "$0")/venv.sh" .venv-fixtures fixtures-requirements.txt keras onnxruntime optimum.exporters.onnx tf2onnx torchvision ultralytics
