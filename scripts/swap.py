#!/usr/bin/env python3
"""Reload a model again and again under load, and see that nobody notices.

    cargo build --release
    scripts/swap.py [--binary target/release/ndserve] [--model digits] [--reloads 200] [--pause 0.25] [--connections 64] [--seconds 10]

A round loads the server once without and once with reloads, one after the other from the first to the last moment of the load, with a
pause behind each. Rounds follow until there were so many reloads, three at least. The model is one of `models/`, or `dense`: four
layers of 1,024 units with random weights, 17 MB, made here. Fails if a request fails, if the 99th
percentile during reloads is more than 1.3 times that without (medians over the rounds), or if resident memory after everything
is more than 5 % above that before the first reload: medians of what is resident after each of three loads without reloads, for it
differs from load to load. Needs wrk (Debian's package); the load stays on this machine.
"""
import argparse, array, http.client, json, os, pathlib, random, re, shutil, socket, statistics, struct, subprocess, sys, tempfile, threading, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATIO_MAX, GROWTH_MAX = 1.3, 1.05

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", default=str(ROOT / "target/release/ndserve"))
parser.add_argument("--model", default="digits")
parser.add_argument("--reloads", type=int, default=200)
parser.add_argument("--pause", type=float, default=0.25, help="seconds behind each reload; 0 for as many as can be")
parser.add_argument("--connections", type=int, default=64)
parser.add_argument("--seconds", type=int, default=10, help="load without, and load with reloads, in each round")
args = parser.parse_args()


def dense(folder, layers=4, units=1024):
    """Writes a folder of a network of dense layers."""
    tensors, data = {}, bytearray()
    for layer in range(layers):
        for name, shape in (("weight", [units, units]), ("bias", [units])):
            count = shape[0] * (shape[1] if name == "weight" else 1)
            start = len(data)
            data += array.array("f", (random.gauss(0, units**-0.5) for _ in range(count))).tobytes()
            tensors[f"{layer}.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    header = json.dumps(tensors).encode()
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    layer = '[[layers]]\nkind = "dense"\nname = "{}"\n[[layers]]\nkind = "activation"\nfunction = "relu"\n'
    network = "".join(layer.format(i) for i in range(layers))
    (folder / "model.toml").write_text(f'[input]\nname = "x"\nshape = [{units}]\n[output]\nname = "y"\n{network}')


def ask(port, method, path, body=""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def resident_mib(pid):
    """After the load: what is freed late has had its time."""
    time.sleep(3)
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def body():
    """Eight rows of zeros, by the model's metadata."""
    status, text = ask(port, "GET", f"/v2/models/{args.model}")
    assert status == 200, text
    inputs = []
    for tensor in json.loads(text)["inputs"]:
        shape = [8] + [abs(size) for size in tensor["shape"][1:]]
        count = 1
        for size in shape:
            count *= size
        inputs.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": [0] * count})
    return json.dumps({"inputs": inputs})


def start_load(seconds, script):
    url = f"http://127.0.0.1:{port}/v2/models/{args.model}/infer"
    command = ["wrk", "-t1", f"-c{args.connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", script, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(load):
    """p99 in ms and answers of a load that has ended."""
    out = load.communicate()[0]
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"a request failed:\n{out}")
    number, unit = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s)$", out, re.M).groups()
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit], int(re.search(r"(\d+) requests in", out)[1])


def reload(stop):
    """Reloads one after the other; how many, and the longest in seconds."""
    took = []
    while not stop.is_set():
        start = time.monotonic()
        status, text = ask(port, "POST", f"/v2/repository/models/{args.model}/load")
        assert status == 200, text
        took.append(time.monotonic() - start)
        stop.wait(args.pause)
    return len(took), max(took)


def load_with_reloads(script):
    """The result of the load, and that of the reloads meanwhile."""
    stop, reloads = threading.Event(), []
    thread = threading.Thread(target=lambda: reloads.append(reload(stop)))
    thread.start()
    loaded = result(start_load(args.seconds, script))
    stop.set()
    thread.join()
    return loaded, reloads[0]


def resident(script, pid):
    """Resident memory behind a load without reloads: the median of three, in MiB."""
    seen = []
    for _ in range(3):
        result(start_load(args.seconds, script))
        seen.append(resident_mib(pid))
    print("resident, MiB:", " ".join(f"{mib:.1f}" for mib in seen), flush=True)
    return statistics.median(seen)


with tempfile.TemporaryDirectory() as folder:
    if args.model == "dense":
        dense(pathlib.Path(folder) / "dense")
    else:
        shutil.copytree(ROOT / "models" / args.model, pathlib.Path(folder) / args.model)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([args.binary, "serve", "--models", folder, "--listen", f"127.0.0.1:{port}", "--log-filter", "warn"])
    try:
        while True:
            try:
                if ask(port, "GET", "/readyz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.01)
        script = pathlib.Path(folder) / ".load.lua"
        script.write_text(f"wrk.method = 'POST'\nwrk.body = '{body()}'\nwrk.headers['Content-Type'] = 'application/json'\n")
        before = resident(script, server.pid)
        quiet, busy, reloads = [], [], 0
        while reloads < args.reloads or len(busy) < 3:
            quiet.append(result(start_load(args.seconds, script)))
            loaded, (count, longest) = load_with_reloads(script)
            busy.append(loaded)
            reloads += count
            print(f"p99 {quiet[-1][0]:.2f} ms without, {loaded[0]:.2f} ms with {count} reloads, {longest:.2f} s at most", flush=True)
        after = resident(script, server.pid)
    finally:
        server.terminate()
        server.wait(60)

ratio = statistics.median(p99 for p99, _ in busy) / statistics.median(p99 for p99, _ in quiet)
answers = sum(count for _, count in quiet + busy)
print(f"{reloads} reloads of {args.model}, {args.connections} connections: 0 of {answers} requests failed; "
      f"p99 {ratio:.2f} times that without; resident memory {before:.1f} MiB before, {after:.1f} MiB after ({after / before:.2f})")
if ratio > RATIO_MAX or after > before * GROWTH_MAX:
    sys.exit("the bound is 1.3 times the p99 and 1.05 times the memory")
