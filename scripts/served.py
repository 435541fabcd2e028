#!/usr/bin/env python3
"""Rows per second of a model over HTTP with binary tensors, beside the engine alone at its best batch.

    scripts/served.py --binary target/release/ndserve --model models/digits [--model FOLDER|FILE …] [--clients 32] [--rows 1] [--rounds 3] [--seconds 4]

A round measures the engine (`ndserve bench` with 1, 2, 4, 8, 16 and 32 rows, all threads; the best counts) and then the server under `clients`
connections, `--rows` a request; the figures are medians over the rounds. Inputs are random numbers between 0 and 1, or ones for integers.
Dimensions that are not fixed but the first are `--length`. Needs wrk and numpy (`scripts/peers/env.sh`); server and load share the processors.
"""
import argparse, http.client, json, pathlib, random, re, shutil, statistics, struct, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", required=True)
parser.add_argument("--model", action="append", required=True, type=pathlib.Path)
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--rows", type=int, default=1)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=4)
parser.add_argument("--length", type=int, default=128)
parser.add_argument("--precision", default="f32")
args = parser.parse_args()

CODES = {"FP32": "f", "INT64": "q", "INT32": "i", "UINT8": "B"}


def ask(port, method, path, body=b""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def request(port, name):
    """Rows by the model's metadata: the JSON part's length, and the body."""
    status, text = ask(port, "GET", f"/v2/models/{name}")
    assert status == 200, text
    inputs, data = [], b""
    for tensor in json.loads(text)["inputs"]:
        shape = [args.rows] + [size if size > 0 else args.length for size in tensor["shape"][1:]]
        count = 1
        for size in shape:
            count *= size
        code = CODES[tensor["datatype"]]
        values = [random.random() if code == "f" else 1 for _ in range(count)]
        raw = struct.pack(f"<{count}{code}", *values)
        inputs.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "parameters": {"binary_data_size": len(raw)}})
        data += raw
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return len(head), head + data


def engine(path):
    """Rows per second at the best batch, and that batch. A model with lengths is measured with inputs of the same."""
    best = (0.0, 0)
    for rows in (1, 2, 4, 8, 16, 32):
        command = [args.binary, "bench", "--model", str(path), "--seconds", str(args.seconds / 4), "--precision", args.precision, "--json"]
        with tempfile.TemporaryDirectory() as folder:
            out = subprocess.run([*command, "--inputs", inputs_of[path](rows, folder)], capture_output=True, text=True)
        if out.returncode:
            print(out.stderr, file=sys.stderr)
            continue
        best = max(best, (1e3 * rows / statistics.median(json.loads(out.stdout)["runs_ms"]), rows))
    assert best[1], f"{path}: the engine ran no batch"
    return best


def npz(rows, folder, tensors):
    """Inputs of `rows` rows for `ndserve bench`."""
    import numpy

    kinds = {"FP32": numpy.float32, "INT64": numpy.int64, "INT32": numpy.int32, "UINT8": numpy.uint8}
    arrays = {}
    for tensor in tensors:
        shape = [rows] + [size if size > 0 else args.length for size in tensor["shape"][1:]]
        kind = kinds[tensor["datatype"]]
        arrays[tensor["name"]] = numpy.random.rand(*shape).astype(kind) if kind is numpy.float32 else numpy.ones(shape, kind)
    numpy.savez(f"{folder}/in.npz", **arrays)
    return f"{folder}/in.npz"


def served(port, name, script):
    """Rows per second under load."""
    url = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
    command = ["wrk", "-t1", f"-c{args.clients}", f"-d{args.seconds:.0f}s", "--timeout", "60s", "-s", script, url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"a request failed:\n{out}")
    return args.rows * float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


inputs_of = {}
print("| model | engine alone, rows/s (batch) | over HTTP, rows/s | ratio |\n|---|--:|--:|--:|")
for path in args.model:
    name = path.stem if path.is_file() and path.name != "model.onnx" else (path.parent if path.is_file() else path).name
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "models" / name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            (target / "1").mkdir(parents=True)
            shutil.copy(path, target / "1/model.onnx")
        command = [args.binary, "serve", "--models", str(target.parent), "--listen", "127.0.0.1:0", "--log-filter", "warn", "--precision", args.precision]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = int(re.search(r"http://127.0.0.1:(\d+)", server.stdout.readline())[1])
            while ask(port, "GET", "/readyz")[0] != 200:
                time.sleep(0.05)
            head, body = request(port, name)
            tensors = json.loads(ask(port, "GET", f"/v2/models/{name}")[1])["inputs"]
            inputs_of[path] = lambda rows, where: npz(rows, where, tensors)
            (pathlib.Path(folder) / "body").write_bytes(body)
            script = pathlib.Path(folder) / "load.lua"
            script.write_text(
                f"local f = io.open('{folder}/body', 'rb')\nwrk.method = 'POST'\nwrk.body = f:read('*a')\n"
                f"wrk.headers['Inference-Header-Content-Length'] = '{head}'\nwrk.headers['Content-Type'] = 'application/octet-stream'\n"
            )
            served(port, name, str(script))
            alone, over = [], []
            for _ in range(args.rounds):
                alone.append(engine(path))
                over.append(served(port, name, str(script)))
        finally:
            server.terminate()
            server.wait(60)
    rows = statistics.median(rate for rate, _ in alone)
    answered = statistics.median(over)
    batch = statistics.mode(batch for _, batch in alone)
    print(f"| {name} | {rows:,.0f} ({batch}) | {answered:,.0f} | {answered / rows:.2f} |", flush=True)
