#!/usr/bin/env python3
"""Measure the server under load with wrk and h2load (Debian's wrk and nghttp2-client), everything compared side by side in one run.

    cargo build --release --bin ndserve --example axum_baseline --example tonic_baseline
    scripts/bench_serve.py [--rounds 7] [--seconds 2] [--record benches/record/NAME.md]

Four tables: overhead (`two-features` beside a hand-written axum handler), the same over protocol v2 with JSON and binary tensors
and over gRPC (beside a hand-written tonic handler), batching (`digits` with batching on and off, 64 connections), start (process
start to first answered prediction, idle memory). A figure is the median over rounds; a round
measures every side once, in alternating order, so that a drift of the machine cancels in the ratio.
"""
import argparse, datetime, http.client, json, os, pathlib, platform, re, socket, statistics, struct, subprocess, sys, tempfile, time, zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process on a free port, stopped at the end of the block."""

    def __init__(self, name, command):
        self.name, self.port = name, free_port()
        self.command = [part.replace("{port}", str(self.port)) for part in command]

    def __enter__(self):
        self.started = time.perf_counter()
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/readyz")
                if connection.getresponse().status in (200, 404, 405):
                    return self
            except (http.client.HTTPException, ConnectionResetError):
                return self  # it speaks HTTP/2 alone
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with {self.process.returncode}: {' '.join(self.command)}")
            time.sleep(0.001)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def place(self, connections):
        """With one connection the server and the load have a processor each: where they run else changes with each run, and the rate
        twofold. Returns what starts the load there."""
        cpus = sorted(os.sched_getaffinity(0))
        own = cpus[:1] if connections == 1 and len(cpus) > 1 else cpus
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            os.sched_setaffinity(int(task), own)
        return [] if own == cpus else ["taskset", "-c", str(cpus[1])]

    def wrk(self, path, body, connections, seconds, headers=None):
        """Requests per second, p50 and p99 in ms; every answer must be a 200."""
        raw = body if isinstance(body, bytes) else body.encode()
        escaped = "".join(f"\\{byte:03}" for byte in raw)
        headers = {"Content-Type": "application/json", **(headers or {})}
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(f"wrk.method = 'POST'\nwrk.body = '{escaped}'\n")
            script.writelines(f"wrk.headers['{key}'] = '{value}'\n" for key, value in headers.items())
            script.flush()
            url = f"http://127.0.0.1:{self.port}{path}"
            command = [*self.place(connections), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "--latency", "-s", script.name, url]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in out or "Socket errors" in out:
            sys.exit(f"{self.name} at {connections} connections:\n{out}")
        ms = lambda text: float(re.match(r"[\d.]+", text)[0]) * {"us": 1e-3, "ms": 1, "s": 1e3}[re.search(r"[a-z]+$", text)[0]]
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])
        # Anchored: a share such as 99.50% stands at the end of an earlier line.
        percentile = lambda p: ms(re.search(rf"^\s+{p}%\s+(\S+)", out, re.MULTILINE)[1])
        return rate, percentile(50), percentile(99)

    def h2load(self, path, message, connections, seconds):
        """The same for a gRPC call, one at a time on each connection."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        with tempfile.NamedTemporaryFile() as body, tempfile.NamedTemporaryFile("r") as log:
            body.write(b"\0" + struct.pack(">I", len(message)) + message)
            body.flush()
            # What fails has no message: a status of gRPC is a success to HTTP.
            once = ["curl", "-sS", "--fail", "--http2-prior-knowledge", "--data-binary", f"@{body.name}", *headers, url]
            if len(subprocess.run(once, capture_output=True, check=True).stdout) <= 5:
                sys.exit(f"{self.name} does not answer the call")
            command = [*self.place(connections), "h2load", "-t1", f"-c{connections}", "-m1", f"--duration={seconds}", f"--log-file={log.name}", "-d", body.name, *headers, url]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows = [line.split("\t") for line in log.read().splitlines()]
        if any(status != "200" for _, status, _ in rows) or not re.search(r" 0 failed, 0 errored, 0 timeout", out):
            sys.exit(f"{self.name} at {connections} connections:\n{out}")
        micros = sorted(int(took) for _, _, took in rows)
        percentile = lambda p: micros[min(len(micros) - 1, len(micros) * p // 100)] / 1e3
        return len(micros) / seconds, percentile(50), percentile(99)


def side_by_side(servers, path, body, connections, rounds, seconds, headers=None):
    """As `interleaved`, with wrk."""
    return interleaved(servers, lambda server, seconds: server.wrk(path, body, connections, seconds, headers), rounds, seconds)


def interleaved(servers, load, rounds, seconds):
    """Median of (rate, p50, p99) for each server, rounds interleaved and their order reversed every other round."""
    for server in servers:
        load(server, 1)
    runs = {server.name: [] for server in servers}
    for r in range(rounds):
        for server in servers if r % 2 == 0 else reversed(servers):
            runs[server.name].append(load(server, seconds))
    return {name: tuple(statistics.median(run[i] for run in values) for i in range(3)) for name, values in runs.items()}


def first_digit():
    """The first held-out image as JSON."""
    with zipfile.ZipFile(ROOT / "models/digits/held-out.npz") as archive:
        data = archive.read("image.npy")
    header = struct.unpack("<H", data[8:10])[0]
    pixels = struct.unpack("<64f", data[10 + header:10 + header + 256])
    rows = [[int(p) for p in pixels[r * 8:r * 8 + 8]] for r in range(8)]
    return json.dumps({"instances": [[rows]]}, separators=(",", ":"))


def overhead(binary, baseline, args):
    body = '{"instances":[[1,2]]}'
    ours = Server("ndserve", [binary, "serve", "--listen", "127.0.0.1:{port}", "--default-model", "two-features"])
    hand = Server("axum by hand", [baseline, "127.0.0.1:{port}"])
    yield "Overhead: `two-features` through `/predict`, one row per request, keep-alive\n"
    yield "| connections | ndserve req/s | axum by hand req/s | ratio | ndserve p50 / p99 ms | by hand p50 / p99 ms |\n|---|---|---|---|---|---|"
    with ours, hand:
        for connections in (1, 64):
            found = side_by_side([ours, hand], "/predict", body, connections, args.rounds, args.seconds)
            a, b = found["ndserve"], found["axum by hand"]
            yield f"| {connections} | {a[0]:,.0f} | {b[0]:,.0f} | **{a[0] / b[0]:.2f}** | {a[1]:.3f} / {a[2]:.3f} | {b[1]:.3f} / {b[2]:.3f} |"


def v2_bodies():
    """One row for protocol v2: (name, body, headers)."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    yield "JSON", json.dumps({"inputs": [{**tensor, "data": [1, 2]}]}, separators=(",", ":")), {}
    described = {"inputs": [{**tensor, "parameters": {"binary_data_size": 8}}], "parameters": {"binary_data_output": True}}
    head = json.dumps(described, separators=(",", ":")).encode()
    binary = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    yield "binary", head + struct.pack("<2f", 1, 2), binary


def model_infer_request():
    """One row of `two-features` as a message of the gRPC protocol: (field, bytes) each with its length in front."""
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, bytes([1, 2]))
    return field(1, b"two-features") + field(5, tensor) + field(7, struct.pack("<2f", 1, 2))


def protocols(binary, baseline, tonic, args):
    ours = Server("ndserve", [binary, "serve", "--listen", "127.0.0.1:{port}"])
    axum = Server("axum", [baseline, "127.0.0.1:{port}"])
    grpc = Server("tonic", [tonic, "127.0.0.1:{port}"])
    yield "\nProtocol v2: `two-features`, one row per request, keep-alive, beside an axum or a tonic handler written by hand\n"
    yield "| tensors | connections | ndserve req/s | by hand req/s | ratio | ndserve p50 / p99 ms | by hand p50 / p99 ms |\n|---|---|---|---|---|---|---|"

    def row(name, connections, found):
        a, b = found.values()
        return f"| {name} | {connections} | {a[0]:,.0f} | {b[0]:,.0f} | **{a[0] / b[0]:.2f}** | {a[1]:.3f} / {a[2]:.3f} | {b[1]:.3f} / {b[2]:.3f} |"

    with ours, axum, grpc:
        for name, body, headers in v2_bodies():
            for connections in (1, 64):
                yield row(name, connections, side_by_side([ours, axum], "/v2/models/two-features/infer", body, connections, args.rounds, args.seconds, headers))
        for connections in (1, 64):
            call = lambda server, seconds: server.h2load("/inference.GRPCInferenceService/ModelInfer", model_infer_request(), connections, seconds)
            yield row("gRPC", connections, interleaved([ours, grpc], call, args.rounds, args.seconds))


def batching(binary, args):
    with tempfile.TemporaryDirectory() as folder:
        # The same model folder with one key changed.
        off = pathlib.Path(folder) / "models" / "digits"
        off.mkdir(parents=True)
        for item in (ROOT / "models/digits").iterdir():
            if item.name != "model.toml":
                (off / item.name).symlink_to(item)
        (off / "model.toml").write_text((ROOT / "models/digits/model.toml").read_text() + "\nbatching = false\n")
        serve = lambda models: [binary, "serve", "--listen", "127.0.0.1:{port}", "--models", str(models), "--default-model", "digits"]
        on_server, off_server = Server("batching on", serve(ROOT / "models")), Server("batching off", serve(off.parent))
        with on_server, off_server:
            found = side_by_side([on_server, off_server], "/predict", first_digit(), 64, args.rounds, args.seconds)
    yield "\nBatching: `digits` through `/predict`, 64 connections, one image per request\n"
    yield "| | req/s | p50 ms | p99 ms |\n|---|---|---|---|"
    for name, (rate, p50, p99) in found.items():
        yield f"| {name} | {rate:,.0f} | {p50:.2f} | {p99:.2f} |"
    yield f"| ratio | **{found['batching on'][0] / found['batching off'][0]:.2f}** | | |"


def start(binary, args):
    times, memory = [], []
    for _ in range(max(args.rounds, 5)):
        server = Server("ndserve", [binary, "serve", "--listen", "127.0.0.1:{port}"])
        with server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            connection.request("POST", "/v1/models/two-features:predict", b'{"instances":[[1,2]]}')
            if connection.getresponse().status != 200:
                sys.exit("the first prediction was not answered")
            times.append((time.perf_counter() - server.started) * 1e3)
            time.sleep(0.5)
            status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
            memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
    yield "\nStart with the four models of `models/`\n"
    yield "| | median | worst |\n|---|---|---|"
    yield f"| process start → ready and first prediction answered, ms | **{statistics.median(times):.0f}** | {max(times):.0f} |"
    yield f"| idle resident memory, MB | **{statistics.median(memory):.1f}** | {max(memory):.1f} |"


def machine():
    model = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    return f"{datetime.date.today()}, {model[1] if model else platform.processor()}, {os.cpu_count()} cores shared by server and load, commit {commit}, {rustc}"


def append(record, lines):
    """Adds lines to a file, if one is named."""
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a") as file:
            file.write("\n".join(lines) + "\n\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/ndserve"))
    parser.add_argument("--baseline", default=str(ROOT / "target/release/examples/axum_baseline"))
    parser.add_argument("--tonic-baseline", default=str(ROOT / "target/release/examples/tonic_baseline"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", choices=["overhead", "protocols", "batching", "start"])
    parser.add_argument("--record", type=pathlib.Path, help="append the tables to this file")
    args = parser.parse_args()
    parts = {"overhead": lambda: overhead(args.binary, args.baseline, args), "protocols": lambda: protocols(args.binary, args.baseline, args.tonic_baseline, args), "batching": lambda: batching(args.binary, args), "start": lambda: start(args.binary, args)}
    lines = [f"{machine()}; {args.rounds} interleaved rounds of {args.seconds} s, medians", ""]
    print(lines[0], flush=True)
    for name, part in parts.items():
        if args.only in (None, name):
            for line in part():
                print(line, flush=True)
                lines.append(line)
    append(args.record, lines)


if __name__ == "__main__":
    main()
