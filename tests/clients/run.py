#!/usr/bin/env python3
"""Unmodified clients of other projects against the real binary.

    tests/clients/run.py [BINARY]       default target/debug/ndserve

Makes virtual environments below target/clients/, models of every datatype, starts the server with HTTP and gRPC on ports of
their own, lets every client ask what it can, and prints a table of features and clients. Exit code 1 if anything is missing.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = ROOT / "target/clients"
# Seconds that one client's script may take; an answer that never comes must not hang CI.
SCRIPT_SECONDS = 240


def environment(name):
    """The Python of a virtual environment with what `<name>-requirements.txt` lists; made once per list."""
    folder, requirements = HOME / name, HERE / f"{name}-requirements.txt"
    python, stamp = folder / "bin/python", folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run(install, check=True)
        stamp.write_text(requirements.read_text())
    return python


class Server:
    """The binary, on free ports."""

    def __init__(self, binary, models, log):
        self.log = log
        options = ["--models", str(models), "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([str(binary), "serve", *options], stdout=log.open("w"), stderr=subprocess.STDOUT)
        until = time.monotonic() + 60
        while True:
            text = log.read_text()
            # The first is where HTTP is, the second the port of its own for gRPC.
            line = re.search(r"listens on (.*)", text)
            addresses = re.findall(r"http://([0-9.:]+)", line.group(1)) if line else []
            if len(addresses) == 2:
                self.http, self.grpc = addresses
                probe = [str(binary), "healthcheck", "--url", f"http://{self.http}/readyz"]
                if subprocess.run(probe, capture_output=True).returncode == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                sys.exit(f"the server does not get ready:\n{log.read_text()}")
            time.sleep(0.05)

    def stop(self):
        """Ends the server; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "it did not end within 30 s of SIGTERM"


def run(python, script, *arguments):
    """What a client's script tells, and a failure of its own if it did not come to its end."""
    command = [str(python), str(HERE / script), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_SECONDS)
        lines, noise, end = done.stdout, done.stderr, f"exit code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        lines, noise = [(stream or b"").decode() for stream in (expired.stdout, expired.stderr)]
        end = f"not done after {SCRIPT_SECONDS} s"
    results = [json.loads(line) for line in lines.splitlines() if line.startswith('{"client"')]
    results.append({"client": script, "feature": "the script ends well", "error": end})
    if any(result["error"] for result in results):
        print(f"--- {script}\n{noise}", file=sys.stderr)
    return results


def perf_analyzer(python, server):
    """Triton's load generator, for some requests; or why it does not run here."""
    binary = python.parent / "perf_analyzer"
    started = binary.exists() and subprocess.run([str(binary), "--version"], capture_output=True)
    if not started or started.returncode not in (0, 1):
        return [], "perf_analyzer does not run here: its wheel wants a newer glibc"
    results = []
    for protocol, address in [("http", server.http), ("grpc", server.grpc)]:
        for more in [[], ["--concurrency-range", "8"]]:
            command = [str(binary), "-m", "simple", "-i", protocol, "-u", address, "--request-count", "200", *more]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            measured = re.search(r"Throughput: ([0-9.]+)", done.stdout)
            # With the statistics extension it also tells the server's side.
            held = done.returncode == 0 and measured and float(measured.group(1)) > 0 and "Inference count" in done.stdout
            error = "" if held else f"exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
            results.append({"client": "perf_analyzer", "feature": f"{protocol} {' '.join(more) or 'one at a time'}", "error": error})
    return results, ""


def logged(log):
    """What the clients' settings did to the log."""
    text = log.read_text()
    traces = [line for line in text.splitlines() if "trace" in line and 'model="simple"' in line and "compute_ns" in line]
    return [
        {"client": "the log", "feature": "trace settings", "error": "" if traces else "no line of a traced request"},
        {"client": "the log", "feature": "log settings", "error": "" if "DEBUG" in text else "no line of level debug"},
    ]


def table(results):
    """Features down, clients across: `+` it works, `MISS` it does not, nothing where a client does not have it."""
    clients = list(dict.fromkeys(result["client"] for result in results))
    features = list(dict.fromkeys(result["feature"] for result in results))
    cells = {(result["feature"], result["client"]): "MISS" if result["error"] else "+" for result in results}
    width = max(map(len, features))
    for number, client in enumerate(clients):
        print(f"{'':{width}}  " + "  |  " * number + f"  {client}")
    for feature in features:
        print(f"{feature:{width}}  " + "".join(f"{cells.get((feature, client), '.'):^5}" for client in clients))


def main():
    binary = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target/debug/ndserve"
    HOME.mkdir(parents=True, exist_ok=True)
    triton, kserve = environment("triton"), environment("kserve")
    with tempfile.TemporaryDirectory() as scratch:
        models, log = pathlib.Path(scratch) / "models", pathlib.Path(scratch) / "log"
        subprocess.run([str(triton), str(HERE / "models.py"), str(models)], check=True)
        server = Server(binary, models, log)
        try:
            results = run(triton, "triton_http.py", server.http, models)
            results += run(triton, "triton_grpc.py", server.grpc, models)
            results += run(kserve, "kserve_sdk.py", server.http, server.grpc)
            if shutil.which("curl"):
                results += run(triton, "curl.py", server.http)
            load, absent = perf_analyzer(triton, server)
            results += load
        finally:
            code = server.stop()
        # The pages' lines name the models of this repository.
        server = Server(binary, ROOT / "models", pathlib.Path(scratch) / "docs-log")
        try:
            results += run(triton, "docs.py", server.http, kserve)
        finally:
            code = server.stop() or code
        results.append({"client": "ndserve", "feature": "exit code 0 after SIGTERM", "error": "" if code == 0 else str(code)})
        results += logged(log)
    table(results)
    misses = [result for result in results if result["error"]]
    for miss in misses:
        print(f"MISS {miss['client']}: {miss['feature']}: {miss['error']}")
    if absent:
        print(absent)
    print(f"clients: {len(results) - len(misses)} of {len(results)} work")
    return 1 if misses else 0


os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
sys.exit(main())
