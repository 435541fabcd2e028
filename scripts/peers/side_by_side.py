#!/usr/bin/env python3
"""Times ndserve's engine beside ONNX Runtime and OpenVINO on the same models, inputs and cores, interleaved.

    "$(scripts/peers/env.sh)" scripts/peers/side_by_side.py --ndserve target/release/ndserve --models target/peers --json target/peers.json

A round runs every engine once for a slice of time; an engine's figure is the median of its runs over all rounds, so that a
drift of the machine meets all alike. Answers are compared with ONNX Runtime's at f32 in the same run: the greatest difference
in parts of the greatest magnitude of its output. Ends with 1 if ndserve at f32 is farther than 1e-4 off anywhere, or does not run.
The figures are written after each case; scripts/peers/report.py makes the record, the plot and README's table of them.
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

import report

F32_LIMIT = 1e-4
# Of models of 8-bit codes, which differ by one where a number lies in the middle between two, and where the peers' products saturate as they do
# with AVX2: any two of the three engines were up to 2.4e-2 apart there. Twice that.
CODES_LIMIT = 5e-2
# Rows that models are measured with; those that few rows keep no processor busy with more.
ROWS = [1, 8]
ROWS_OF = {"mlp": [1, 8, 32], "deepfm": [1, 8, 32], "xgb500": [1, 8, 32, 256], "lgb500": [1, 8, 32, 256]}


def tensors(folder, prefix):
    """The recorded tensors of a folder by name, in order."""
    found = {}
    for file in sorted(glob.glob(f"{folder}/{prefix}_*.pb"), key=lambda f: int(f.rsplit("_", 1)[1][:-3])):
        proto = onnx.TensorProto()
        proto.ParseFromString(open(file, "rb").read())
        found[proto.name or os.path.basename(file)] = numpy_helper.to_array(proto)
    return found


def difference(answers, wanted):
    """The greatest difference of all floating-point outputs; infinite where one is missing, has another shape, or is no number."""
    worst = 0.0
    for name, want in wanted.items():
        if want.dtype == np.float32:
            if name not in answers or answers[name].shape != want.shape:
                return float("inf")
            size = np.abs(want).max(initial=0.0)
            far = np.abs(answers[name].astype(np.float64) - want).max(initial=0.0)
            far = float(far / size) if size > 0 else float(far)
            worst = max(worst, far if np.isfinite(far) else float("inf"))
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
        # A tensor that passes joined with another has the names of both.
        return {name: self.request.get_tensor(port).data.copy() for port in self.compiled.outputs for name in port.get_names()}


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


def reason(error):
    """The last line of an error: OpenVINO's begin with places in its sources."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:160]


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
    makers = {key: make for key, make in makers.items() if key in args.engines}
    wanted = tensors(folder, "output")
    for key, make in makers.items():
        try:
            engines[key] = make()
            far[key] = difference(engines[key].answers(), wanted)
        except Exception as error:
            engines.pop(key, None)
            errors[key] = reason(error)
    runs = {key: [] for key in engines}
    for round_number in range(args.rounds):
        order = list(runs)
        for key in order[round_number % len(order) :] + order[: round_number % len(order)] if order else []:
            try:
                runs[key] += engines[key].slice(args.seconds)
            except Exception as error:
                errors[key] = reason(error)
                del runs[key]
    return {key: statistics.median(times) for key, times in runs.items()}, far, errors


def plan(models, only=(), batches=(), threads=(1, 2)):
    """Model, rows and threads of every case, of the whole comparison if nothing is named."""
    # A folder without a model is one whose export failed: it is missed.
    names = only or [name for name in sorted(os.listdir(models)) if os.path.isdir(f"{models}/{name}")]
    return [(name, rows, count) for name in names for rows in batches or ROWS_OF.get(name, ROWS) for count in threads]


def machine():
    info = open("/proc/cpuinfo").read()
    field = lambda name: next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith(name)), "")
    return field("model name") or "unknown", field("flags").split()


def figures(args, cpu):
    """What the figures of this run are of."""
    run = lambda *command: subprocess.run(command, capture_output=True, text=True, cwd=report.ROOT).stdout.strip()
    versions = {
        "ndserve": run(os.path.abspath(args.ndserve), "--version").removeprefix("ndserve "),
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__.split("-")[0],
    }
    about = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "commit": run("git", "describe", "--always", "--dirty")}
    return {**about, "versions": versions, "rounds": args.rounds, "seconds": args.seconds, "planned": plan(args.models), "cases": []}


def listed(text):
    return [part for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ndserve", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default="", help="models, by comma")
    parser.add_argument("--batches", default="", help="rows, by comma; else 1 and 8, and 32 and 256 where they are of use")
    parser.add_argument("--threads", default="1,2", help="by comma")
    parser.add_argument("--engines", default="", help="of `nd f32`, `nd bf16`, `ort`, `ov f32`, `ov bf16`, by comma; else all that the processor has instructions for")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", default="target/peers.json", help="the file for the figures")
    args = parser.parse_args()
    cpu, flags = machine()
    rounded = {"avx512_bf16", "amx_bf16"} & set(flags)
    args.engines = listed(args.engines) or [engine for engine in report.ENGINES if rounded or not engine.endswith("bf16")]
    found = figures(args, cpu)
    # Not every model has inputs of the rows that are named.
    cases = plan(args.models, listed(args.only), [int(rows) for rows in listed(args.batches)], [int(count) for count in listed(args.threads)])
    cases = [(name, rows, threads) for name, rows, threads in cases if os.path.isdir(f"{args.models}/{name}/b{rows}")]
    if not cases:
        sys.exit("no case: no such models, or no inputs of such rows")
    print("\n".join(report.table([])), flush=True)
    for name, rows, threads in cases:
        medians, far, errors = measure(args, name, f"{args.models}/{name}/b{rows}", threads)
        limit = CODES_LIMIT if name in report.CODES else F32_LIMIT
        wrong = "nd f32" in args.engines and not ("nd f32" in medians and far["nd f32"] <= limit)
        case = {"model": name, "rows": rows, "threads": threads, "median_ms": medians, "difference": far, "errors": errors, "wrong": wrong}
        found["cases"].append(case)
        print(report.row(case), flush=True)
        for key, error in errors.items():
            print(f"    {key}: {error}", flush=True)
        with open(args.json + ".part", "w") as file:
            json.dump(found, file, indent=1)
        os.replace(args.json + ".part", args.json)
    print("\n".join(report.findings(found)))
    if report.wrong(found):
        sys.exit("ndserve at f32 is off, or does not run: " + ", ".join(report.wrong(found)))


if __name__ == "__main__":
    main()
