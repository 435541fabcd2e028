"""The Python of the pages of protocols, as it stands there: every block, and every line of the table of gRPC's calls.

    python docs.py HOST:PORT PYTHON_WITH_KSERVE
"""

import pathlib
import re
import subprocess
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from report import Report

ADDRESS, KSERVE = sys.argv[1:]
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "docs/protocols"


def here(text):
    """The text with the address of the server that is asked."""
    return text.replace("localhost:8080", ADDRESS)


def blocks(page):
    found = re.findall(r"```python\n(.*?)```", here(page.read_text()), re.DOTALL)
    assert found or page.name in ("tf-serving.md", "triton-extensions.md"), f"{page.name} has no block of Python"
    return found


def run(block):
    python = KSERVE if "kserve" in block else sys.executable
    done = subprocess.run([python, "-c", block], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), f"exit code {done.returncode}: {done.stdout}{done.stderr}"


def call(line, names):
    """Runs the statements of a line; a call that answers False has not done what it says. Three dots stand for the reader's own."""
    if line.startswith("for "):
        exec(line.replace("…", "break"), names)
        return
    for statement in line.split("; "):
        assert eval(statement, names) is not False, f"`{statement}` gives False"


def calls(report):
    page = PAGES / "grpc.md"
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", here(page.read_text()), re.MULTILINE)
    told = " ".join(names for names, _ in rows)
    methods = re.findall(r"^ *rpc (\w+)\(", (ROOT / "proto/inference.proto").read_text(), re.MULTILINE)
    missing = [method for method in methods if method not in told and not re.match("(System|Cuda)SharedMemory", method)]
    report.tell("every call is in the table", f"not there: {missing}" if missing or not methods else "")
    names = {"health_pb2": health_pb2, "health_pb2_grpc": health_pb2_grpc, "channel": grpc.insecure_channel(ADDRESS)}
    exec(blocks(page)[0], names)
    for name, told in rows:
        line = told.split("`")[1] if "`" in told else ""
        if line.startswith(("client.", "health_pb2", "for ")):
            report.check(f"line of {name.strip('`')}", lambda line=line: call(line, names))
    names["client"].load_model("two-features")
    names["client"].close()


def main():
    report = Report("the docs")
    for page in sorted(PAGES.glob("*.md")):
        for number, block in enumerate(blocks(page), 1):
            report.check(f"{page.name}, block {number}", lambda block=block: run(block))
    calls(report)


main()
