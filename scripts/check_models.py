#!/usr/bin/env python3
"""The models of this repository: ONNX Runtime gives each one's answers to 1e-5, and the line in each one's README makes it anew, as good.

scripts/check_models.py NDSERVE [--no-training] [MODEL ...]

Answers are compared on the golden rows, and on as many rows around them as fill a batch. A model is trained in a folder that is made for
it and goes with the script; what it must come to is in BOUNDS.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
# The row of the README's table, what is measured in it, and the least (or, of a loss, the greatest) value.
BOUNDS = {
    "digits": [("test rows", "accuracy", 0.985)],
    "breast-cancer": [("5 folds", "accuracy", 0.96)],
    "diabetes": [("5 folds", "R²", 0.42)],
    "two-features": [("training rows", "accuracy", 1.0), ("training rows", "loss", 1e-3)],
}
TOLERANCE = 1e-5
ROWS = 256


def run(*command, cwd=ROOT):
    found = subprocess.run([str(part) for part in command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 0, f"{command}: {found.stderr}"
    return found.stdout


def rows_of(folder, session):
    """The golden rows, then rows whose every number is up to a fifth off one of theirs."""
    rng, inputs = np.random.default_rng(1), {}
    for i, port in enumerate(session.get_inputs()):
        golden = numpy_helper.to_array(onnx.load_tensor(folder / "golden" / f"input_{i}.pb"))
        more = golden[np.arange(ROWS) % len(golden)]
        if np.issubdtype(golden.dtype, np.floating):
            more = (more * rng.uniform(0.8, 1.2, more.shape)).astype(golden.dtype)
        inputs[port.name] = np.concatenate([golden, more])
    return inputs


def agrees(binary, name, folder, scratch):
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = rows_of(folder, session)
    np.savez(scratch / "in.npz", **inputs)
    run(binary, "predict", "--model", folder, "--inputs", scratch / "in.npz", "--outputs", scratch / "out.npz")
    found = np.load(scratch / "out.npz")
    worst = 0.0
    for port, want in zip(session.get_outputs(), session.run(None, inputs)):
        got = found[port.name]
        assert got.shape == want.shape, f"{name}: `{port.name}` has shape {got.shape}, not {want.shape}"
        if np.issubdtype(want.dtype, np.floating):
            off = np.abs(got - want) / np.maximum(1.0, np.abs(want))
            worst = max(worst, float(off.max()))
            assert np.isfinite(got).all() and worst <= TOLERANCE, f"{name}: `{port.name}` is off by {worst:.2e}"
        else:
            assert (got == want).all(), f"{name}: `{port.name}` differs"
    print(f"{name}: {sum(len(v) for v in inputs.values())} rows, ONNX Runtime differs by at most {worst:.1e}", flush=True)


def is_made_anew(binary, name, folder, scratch):
    line = f"ndserve train models/{name}/train.toml"
    assert f"\n{line}\n" in (folder / "README.md").read_text(), f"{name}: its README has no line `{line}`"
    made = scratch / "models" / name
    made.mkdir(parents=True)
    for file in folder.iterdir():
        # Configuration and data; the rest is made.
        if file.is_file() and file.suffix in {".toml", ".csv", ".gz", ".npz", ".parquet"} and file.name != "model.toml":
            shutil.copy(file, made)
    run(binary, *line.split()[1:], cwd=scratch)
    card = (made / "README.md").read_text()
    for row, measure, bound in BOUNDS[name]:
        cell = re.search(rf"^\| {row} \| (.*) \|$", card, re.MULTILINE)[1]
        value = float(re.search(rf"{measure} (-?[0-9.]+)", cell)[1])
        ok = value <= bound if measure == "loss" else value >= bound
        print(f"{name}: trained anew, {row}: {measure} {value} (bound {bound})", flush=True)
        assert ok, f"{name}: {measure} of {row} is {value}"
    agrees(binary, f"{name}, trained anew", made, scratch)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("models", nargs="*", default=sorted(BOUNDS))
    parser.add_argument("--no-training", action="store_true", help="compare answers only")
    args = parser.parse_args()
    unknown = {path.parent.name for path in (ROOT / "models").glob("*/train.toml")} ^ set(BOUNDS)
    assert not unknown, f"models and BOUNDS differ by {unknown}"
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            agrees(args.binary.resolve(), name, ROOT / "models" / name, Path(scratch))
            if not args.no_training:
                is_made_anew(args.binary.resolve(), name, ROOT / "models" / name, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
