#!/usr/bin/env python3
"""Process start to first answer, and peak resident memory, beside ONNX Runtime and OpenVINO.

    "$(scripts/peers/env.sh)" scripts/peers/start.py --binary target/release/ndserve [--binary OTHER …] [--models target/peers] [--model resnet50 …]

A round starts each binary as a server of the one model, asks it every millisecond whether the model is ready, and when it is for a prediction of
one row in binary tensors: when that is answered is its time, from before the process is made. With --weight-cache each binary is one more
subject, which finds packed weights that its `check` has kept. Then a round makes a session of each peer in a process of its own, and runs it
once: its time begins behind the imports, so that it is without the start of a process, of Python, and of a server. Subjects take turns;
figures are medians over the rounds. Memory is the greatest that was resident by the first answer and two seconds behind it (VmHWM), of peers
with Python. The page cache is warm: the file is read before. Answers are compared with those recorded for the model.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
from onnx import numpy_helper

TYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
F32_LIMIT = 1e-4

PEERS = {
    "onnxruntime": """
import onnxruntime
def first(model, feed, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]
""",
    "openvino": """
import openvino
def first(model, feed, threads):
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(model, "CPU", settings)(feed)[0]
""",
}
# Behind what defines `first`: the model, the inputs as a file of numpy, the threads. Prints seconds, then memory in kB; the answer is a file.
CALL = """
import sys, time, numpy
feed = dict(numpy.load(sys.argv[2]))
start = time.perf_counter()
answer = first(sys.argv[1], feed, int(sys.argv[3]))
print(time.perf_counter() - start)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
numpy.save(sys.argv[4], answer)
"""


def tensors(folder, prefix):
    """The recorded tensors of a folder by name, in order."""
    protos = [onnx.TensorProto.FromString(path.read_bytes()) for path in sorted(folder.glob(f"{prefix}_*.pb"))]
    return {proto.name or f"{prefix}_{i}": numpy_helper.to_array(proto) for i, proto in enumerate(protos)}


def request(name, feed):
    """A prediction as the bytes of an HTTP request."""
    inputs = [
        {"name": key, "datatype": TYPES[str(value.dtype)], "shape": value.shape, "parameters": {"binary_data_size": value.nbytes}}
        for key, value in feed.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(np.ascontiguousarray(value).tobytes() for value in feed.values())
    lines = (
        f"POST /v2/models/{name}/infer HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}", f"Content-Length: {len(body)}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + body


def answer(connection):
    """The status and the body of the next answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionError("closed")
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, value in (line.split(":", 1) for line in lines[1:])}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += connection.recv(1 << 16)
    return int(lines[0].split()[1]), body[: int(headers.get("inference-header-content-length", length))], body


def first_answer(port, name, data, deadline):
    """The first output of the first answer that is 200, and when it was there."""
    connection = None
    # Requests of many bytes would take the processors from what is measured.
    ready = f"GET /v2/models/{name}/ready HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    while time.perf_counter() < deadline:
        try:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(ready)
            if answer(connection)[0] == 200:
                connection.sendall(data)
                status, head, body = answer(connection)
                if status != 200:
                    continue
                now = time.perf_counter()
                output = json.loads(head)["outputs"][0]
                raw = body[len(head) : len(head) + output["parameters"]["binary_data_size"]]
                return now, np.frombuffer(raw, np.float32).reshape(output["shape"])
        except OSError:
            connection = None
        time.sleep(0.001)
    raise TimeoutError("no answer")


def memory(pid):
    """The greatest resident memory so far, in MiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(args, binary, repository, name, feed, flags=()):
    """Milliseconds to the first answer, memory then and later in MiB, and the answer."""
    port, data = free_port(), request(name, feed)
    command = [binary, "serve", "--models", str(repository), "--listen", f"127.0.0.1:{port}", "--log-filter", "warn", *args.flag, *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end, output = first_answer(port, name, data, start + 60)
        then = memory(process.pid)
        time.sleep(args.later)
        return (end - start) * 1e3, then, memory(process.pid), output
    finally:
        process.terminate()
        process.wait(30)


def peer(args, name, model, feed, folder):
    """As [`serve`] of a session in a process of its own."""
    np.savez(folder / "in.npz", **feed)
    command = [sys.executable, "-c", PEERS[name] + CALL, str(model), str(folder / "in.npz"), str(args.threads), str(folder / "out.npy")]
    seconds, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()[-2:]
    return float(seconds) * 1e3, int(kilobytes) / 1024, int(kilobytes) / 1024, np.load(folder / "out.npy")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", action="append", required=True)
    parser.add_argument("--models", default="target/peers", type=pathlib.Path, help="as scripts/peers/export_models.py writes them")
    parser.add_argument("--model", action="append", help="names of models; resnet50 and bert_base by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peers")
    parser.add_argument("--later", type=float, default=2, help="seconds behind the first answer after which memory is looked at again")
    parser.add_argument("--flag", action="append", default=[], help="further arguments of `ndserve serve`")
    parser.add_argument("--weight-cache", action="store_true", help="measure each binary also with packed weights that it has kept")
    parser.add_argument("--without-peers", action="store_true")
    args = parser.parse_args()
    print("| model | subject | first answer ms (least to most) | peak MiB then | peak MiB later |\n|---|---|---|---|---|")
    wrong = False
    for name in args.model or ["resnet50", "bert_base"]:
        model = args.models / name / "model.onnx"
        feed, wanted = (tensors(args.models / name / "b1", kind) for kind in ("input", "output"))
        wanted = next(iter(wanted.values()))
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            version = scratch / "models" / name / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").symlink_to(model.resolve())
            model.read_bytes()
            subjects = {binary: lambda binary=binary: serve(args, binary, scratch / "models", name, feed) for binary in args.binary}
            if args.weight_cache:
                for index, binary in enumerate(args.binary):
                    flags = ("--weight-cache", str(scratch / f"kept-{index}"))
                    subprocess.run([binary, "check", str(version / "model.onnx"), *args.flag, *flags], check=True, stdout=subprocess.DEVNULL)
                    subjects[f"{binary}, weights kept"] = lambda binary=binary, flags=flags: serve(
                        args, binary, scratch / "models", name, feed, flags
                    )
            if not args.without_peers:
                subjects |= {engine: lambda engine=engine: peer(args, engine, model, feed, scratch) for engine in PEERS}
            runs = {subject: [] for subject in subjects}
            for _ in range(args.rounds):
                for subject, run in subjects.items():
                    *figures, output = run()
                    difference = np.abs(output - wanted).max() / np.abs(wanted).max()
                    if wanted.size and not difference <= F32_LIMIT:
                        wrong = True
                        print(f"{name}: {subject} is {difference:.1e} off what is recorded", file=sys.stderr)
                    runs[subject].append(figures)
            for subject, figures in runs.items():
                times, then, later = zip(*figures)
                print(
                    f"| {name} | {subject} | {statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f}) "
                    f"| {statistics.median(then):.0f} | {statistics.median(later):.0f} |",
                    flush=True,
                )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
