#!/usr/bin/env python3
"""Times ndserve's engine beside ONNX Runtime and OpenVINO on the same models, inputs and cores, interleaved.

    "$(scripts/peers/env.sh)" scripts/peers/side_by_side.py --ndserve target/release/ndserve --models target/peers --table out.md

A round runs every engine once for a slice of time; an engine's figure is the median of its runs over all rounds, so that a
drift of the machine meets all alike. Answers are compared with ONNX Runtime's at f32 in the same run: the greatest difference
in parts of the greatest magnitude of its output. Ends with 1 if ndserve at f32 is farther than 1e-4 off anywhere.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import numpy_helper

F32_LIMIT = 1e-4


def tensors(folder, prefix):
    """The recorded tensors of a folder by name, in order."""
    found = {}
    for file in sorted(glob.glob(f"{folder}/{prefix}_*.pb"), key=lambda f: int(f.rsplit("_", 1)[1][:-3])):
        proto = onnx.TensorProto()
        proto.ParseFromString(open(file, "rb").read())
        found[proto.name or os.path.basename(file)] = numpy_helper.to_array(proto)
    return found


def difference(answers, wanted):
    """The greatest difference of all floating-point outputs that both have."""
    worst = 0.0
    for name, want in wanted.items():
        if name in answers and want.dtype == np.float32:
            size = np.abs(want).max(initial=0.0)
            far = np.abs(answers[name].astype(np.float64) - want).max(initial=0.0)
            worst = max(worst, float(far / size) if size > 0 else float(far))
    return worst


class InProcess:
    """An engine that is called in this process; `run` is one inference."""

    def slice(self, seconds):
        runs, end = [], time.perf_counter() + seconds
        while not runs or time.perf_counter() < end:
            start = time.perf_counter()
            self.run()
            runs.append((time.perf_counter() - start) * 1e3)
        return runs


class Ort(InProcess):
    def __init__(self, model, folder, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        recorded = tensors(folder, "input")
        self.feed = {i.name: recorded[i.name] for i in self.session.get_inputs()}
        self.slice(0.05)

    def run(self):
        return self.session.run(None, self.feed)

    def answers(self):
        return dict(zip((o.name for o in self.session.get_outputs()), self.run()))


class OpenVino(InProcess):
    def __init__(self, model, folder, threads, precision):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)
        recorded = tensors(folder, "input")
        self.request = self.compiled.create_infer_request()
        # The request does not own what its tensors share.
        self.kept = [np.ascontiguousarray(recorded[i.get_any_name()]) for i in self.compiled.inputs]
        for port, value in zip(self.compiled.inputs, self.kept):
            self.request.set_tensor(port.get_any_name(), openvino.Tensor(value))
        self.slice(0.05)

    def run(self):
        self.request.infer()

    def answers(self):
        self.run()
        return {port.get_any_name(): self.request.get_tensor(port).data.copy() for port in self.compiled.outputs}


class Ndserve:
    def __init__(self, binary, model, folder, threads, precision):
        self.binary, self.files = binary, ["--model", model, "--inputs", folder]
        self.settings = ["--threads", str(threads), "--precision", precision]

    def call(self, command, *arguments):
        ran = subprocess.run([self.binary, command, *self.files, *self.settings, *arguments], capture_output=True, text=True, timeout=600)
        if ran.returncode:
            raise RuntimeError((ran.stderr.strip().splitlines() or [f"exit {ran.returncode}"])[-1])
        return ran.stdout

    def slice(self, seconds):
        return json.loads(self.call("bench", "--json", "--seconds", str(seconds)))["runs_ms"]

    def answers(self):
        with tempfile.TemporaryDirectory() as folder:
            self.call("predict", "--outputs", folder)
            return tensors(folder, "output")


def measure(args, name, folder, threads):
    """One case: medians, differences and errors by engine."""
    model = f"{args.models}/{name}/model.onnx"
    makers = {
        "nd f32": lambda: Ndserve(args.ndserve, model, folder, threads, "f32"),
        "nd bf16": lambda: Ndserve(args.ndserve, model, folder, threads, "bf16"),
        "ort": lambda: Ort(model, folder, threads),
        "ov f32": lambda: OpenVino(model, folder, threads, "f32"),
        "ov bf16": lambda: OpenVino(model, folder, threads, "bf16"),
    }
    engines, errors, far = {}, {}, {}
    makers = {key: make for key, make in makers.items() if not args.engines or key in args.engines.split(",")}
    wanted = tensors(folder, "output")
    for key, make in makers.items():
        try:
            engines[key] = make()
            far[key] = difference(engines[key].answers(), wanted)
        except Exception as error:
            engines.pop(key, None)
            errors[key] = str(error).splitlines()[0][:160]
    runs = {key: [] for key in engines}
    for round_number in range(args.rounds):
        order = list(runs)
        for key in order[round_number % len(order) :] + order[: round_number % len(order)] if order else []:
            try:
                runs[key] += engines[key].slice(args.seconds)
            except Exception as error:
                errors[key] = str(error)[:160]
                del runs[key]
    return {key: statistics.median(times) for key, times in runs.items()}, far, errors


def ratio(medians, peer, own):
    return medians[peer] / medians[own] if peer in medians and own in medians else float("nan")


def table(rows):
    """The cases as text, with the geometric mean and the worst of each ratio."""
    keys = ["nd f32", "nd bf16", "ort", "ov f32", "ov bf16"]
    lines = ["| model | rows | threads | " + " | ".join(f"{key} ms" for key in keys) + " | best f32 / nd f32 | ov bf16 / nd bf16 | off: nd f32, nd bf16, ov bf16 |"]
    lines.append("|---" + "|--:" * (len(keys) + 4) + "|---|")
    columns = {"best f32 / nd f32": [], "ov bf16 / nd bf16": []}
    for row in rows:
        medians, far = row["median_ms"], row["difference"]
        best = min((medians[key] for key in ("ort", "ov f32") if key in medians), default=float("nan"))
        ratios = [best / medians["nd f32"] if "nd f32" in medians else float("nan"), ratio(medians, "ov bf16", "nd bf16")]
        for values, value in zip(columns.values(), ratios):
            values += [value] if value == value else []
        cells = [f"{medians[key]:.3f}" if key in medians else "-" for key in keys] + [f"{value:.2f}" if value == value else "-" for value in ratios]
        off = ", ".join(f"{far[key]:.0e}" if key in far else "-" for key in ("nd f32", "nd bf16", "ov bf16"))
        lines.append(f"| {row['model']} | {row['rows']} | {row['threads']} | " + " | ".join(cells) + f" | {off} |")
    for name, values in columns.items():
        if values:
            lines.append(f"\n{name}: geometric mean {np.exp(np.mean(np.log(values))):.2f}, worst {min(values):.2f}, of {len(values)} cases (above 1 ndserve is faster)")
    return "\n".join(lines) + "\n"


def head(args):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    own = subprocess.run([args.ndserve, "--version"], capture_output=True, text=True).stdout.strip()
    versions = f"{own}; onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__.split('-')[0]}"
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} × {cpu}. {versions}.\nMedians of interleaved slices: {args.rounds} rounds of {args.seconds} s. `just bench-peers`.\n\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ndserve", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default="", help="models, by comma")
    parser.add_argument("--batches", default="", help="rows, by comma")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--engines", default="", help="of `nd f32`, `nd bf16`, `ort`, `ov f32`, `ov bf16`, by comma")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--table", help="a file for the table")
    args = parser.parse_args()
    rows, wrong = [], []
    for name in args.only.split(",") if args.only else sorted(os.listdir(args.models)):
        for folder in sorted(glob.glob(f"{args.models}/{name}/b[0-9]*"), key=lambda f: int(os.path.basename(f)[1:])):
            batch = os.path.basename(folder)[1:]
            if args.batches and batch not in args.batches.split(","):
                continue
            for threads in map(int, args.threads.split(",")):
                medians, far, errors = measure(args, name, folder, threads)
                rows.append({"model": name, "rows": int(batch), "threads": threads, "median_ms": medians, "difference": far, "errors": errors})
                print(table(rows[-1:]).splitlines()[2], flush=True)
                for key, error in errors.items():
                    print(f"    {key}: {error}", flush=True)
                if far.get("nd f32", 0.0) > F32_LIMIT:
                    wrong.append(f"{name} with {batch} rows")
    if args.json:
        json.dump(rows, open(args.json, "w"), indent=1)
    if args.table:
        open(args.table, "w").write(head(args) + table(rows))
    print(table(rows).split("\n\n", 1)[-1])
    if wrong:
        sys.exit("ndserve at f32 is off: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
