#!/usr/bin/env python3
"""Requests per second beside a server written by hand on ONNX Runtime (benches/ort_baseline.rs): same model, same bytes, same processors.

    cargo build --release --locked --bin ndserve --example ort_baseline
    "$(scripts/peers/env.sh)" scripts/peers/served.py [--models target/peers] [--model digits …] [--rounds 5] [--seconds 3] [--record NAME.md]

The server by hand is there twice: with a session of one thread for each processor, which serves many clients best, and with one session
on all threads, which serves one client best. ndserve runs with its defaults, and stands beside the faster of the two in each row. A round
loads each server once with each number of clients, in alternating order, for `--seconds`, or longer if they would hold fewer than ten
answers for each client; figures are medians over the rounds. Requests are one row in binary tensors by wrk; server and load share the
processors. Before that the answers of all are compared: ends with 1 if one is farther
than 1e-4 from the first, in parts of the greatest magnitude of its output. A model is a folder of models/ or one that
scripts/peers/export_models.py wrote. Needs wrk.
"""

import argparse
import http.client
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
from start import TYPES, tensors

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from bench_serve import Server, append, interleaved, machine  # noqa: E402

F32_LIMIT = 1e-4
BINARY = "Inference-Header-Content-Length"


class Peer(Server):
    """A server that may use every processor with one connection too: its engine has threads of its own."""

    def place(self, _):
        return []

    def wrk(self, *arguments):
        """As that of a server, and then until what was asked last is computed: it must not take the time of the server after this one."""
        found = super().wrk(*arguments)
        before, end = None, time.perf_counter() + 30
        while before != (now := self.busy()) and time.perf_counter() < end:
            before = now
            time.sleep(0.1)
        return found

    def busy(self):
        """Ticks of the processors that the server has taken."""
        return sum(map(int, pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    def answers(self, path, body, headers):
        """The outputs of one request by name, as arrays."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        if answer.status != 200:
            sys.exit(f"{self.name} answers {answer.status}: {raw[:300]}")
        length = int(answer.headers[BINARY])
        kinds = {name: kind for kind, name in TYPES.items()}
        found, start = {}, length
        for output in json.loads(raw[:length])["outputs"]:
            end = start + output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(raw[start:end], kinds[output["datatype"]]).reshape(output["shape"])
            start = end
        return found


def request(feed):
    """A request in binary tensors, and its headers."""
    inputs = [
        {"name": name, "datatype": TYPES[str(value.dtype)], "shape": value.shape, "parameters": {"binary_data_size": value.nbytes}}
        for name, value in feed.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", BINARY: str(len(head))}
    return head + b"".join(np.ascontiguousarray(value).tobytes() for value in feed.values()), headers


def difference(found, wanted):
    """The greatest difference of all outputs; infinite where names or shapes are others."""
    if found.keys() != wanted.keys() or any(found[name].shape != want.shape for name, want in wanted.items()):
        return float("inf")
    worst = 0.0
    for name, want in wanted.items():
        far = float(np.abs(found[name].astype(np.float64) - want).max(initial=0.0) / (np.abs(want).max(initial=0.0) or 1.0))
        worst = max(worst, far if np.isfinite(far) else float("inf"))
    return worst


def model_of(args, name, repository):
    """Puts the model into the repository; returns its file and one row of inputs."""
    own = ROOT / "models" / name
    if own.is_dir():
        shutil.copytree(own, repository / name)
        return own / "1/model.onnx", {key: value[:1] for key, value in tensors(own / "golden", "input").items()}
    folder = args.models / name
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to((folder / "model.onnx").resolve())
    return folder / "model.onnx", tensors(folder / "b1", "input")


def measure(args, name):
    """The lines of a model, and whether its answers are equal."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        file, feed = model_of(args, name, pathlib.Path(scratch))
        body, headers = request(feed)
        path = f"/v2/models/{name}/infer"
        hand = lambda sessions, each: [args.ort_baseline, "127.0.0.1:{port}", name, str(file), str(sessions), str(each)]
        ours = Peer("ndserve", [args.binary, "serve", "--models", scratch, "--listen", "127.0.0.1:{port}", "--log-filter", "warn"])
        many, one = Peer("a session per processor", hand(threads, 1)), Peer("one session", hand(1, threads))
        with ours, many, one:
            servers = [ours, many, one]
            answers = [server.answers(path, body, headers) for server in servers]
            start = time.perf_counter()
            for _ in range(5):
                ours.answers(path, body, headers)
            alone = (time.perf_counter() - start) / 5
            far = max(difference(found, answers[0]) for found in answers[1:])
            for clients in args.clients:
                load = lambda server, seconds: server.wrk(path, body, clients, seconds, headers)
                # Ten answers for each client at least: of a slow model some seconds hold few batches.
                seconds = max(args.seconds, math.ceil(10 * clients * alone / threads))
                found = interleaved(servers, load, args.rounds, seconds)
                own, *hands = (found[server.name] for server in servers)
                best = max(hands)
                rates = " | ".join(f"{hand[0]:,.0f}" for hand in hands)
                yield f"| {name} | {clients} | {own[0]:,.0f} | {rates} | **{own[0] / best[0]:.2f}** | {own[1]:.2f} / {own[2]:.2f} | {best[1]:.2f} / {best[2]:.2f} | {far:.0e} |"
    if not far <= F32_LIMIT:
        args.wrong.append(name)


def library():
    """ONNX Runtime's library of the Python package."""
    found = sorted((pathlib.Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    return str(found[0]) if found else sys.exit("the package onnxruntime has no libonnxruntime.so: name one with ORT_DYLIB_PATH")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    parser.add_argument("--binary", default=str(target / "ndserve"))
    parser.add_argument("--ort-baseline", default=str(target / "examples/ort_baseline"))
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target/peers")
    parser.add_argument("--model", nargs="+", default=["digits", "mlp", "lenet", "minilm_l6"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--record", type=pathlib.Path, help="append the table to this file")
    args = parser.parse_args()
    os.environ.setdefault("ORT_DYLIB_PATH", library())
    args.wrong = []
    version = subprocess.run([args.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    threads = len(os.sched_getaffinity(0))
    lines = [
        f"{machine()}; {version}, ONNX Runtime {onnxruntime.__version__}; {args.rounds} interleaved rounds of {args.seconds} s, medians",
        "",
        f"| model | clients | ndserve req/s | by hand, {threads} sessions of 1 thread | by hand, 1 session of {threads} threads | ratio to the faster | ndserve p50 / p99 ms | the faster's p50 / p99 ms | apart |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines), flush=True)
    for name in args.model:
        for line in measure(args, name):
            print(line, flush=True)
            lines.append(line)
    append(args.record, lines)
    if args.wrong:
        sys.exit("answers are apart: " + ", ".join(args.wrong))


if __name__ == "__main__":
    main()
