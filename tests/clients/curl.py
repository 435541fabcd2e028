"""curl as people type it: without a Content-Type, and with the one that curl makes up.

    python curl.py HOST:PORT
"""

import json
import subprocess
import sys

from report import Report

ADDRESS = sys.argv[1]


def curl(path, *options):
    """The status and the body of an answer."""
    command = ["curl", "--silent", "--max-time", "20", "--write-out", "\n%{http_code}", f"http://{ADDRESS}{path}", *options]
    done = subprocess.run(command, check=True, capture_output=True)
    body, status = done.stdout.rsplit(b"\n", 1)
    return int(status), body


V2 = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
V1 = '{"instances": [[1, 2]]}'


def v2(*options):
    status, body = curl("/v2/models/identity_fp32/infer", "--data", V2, *options)
    assert status == 200 and json.loads(body)["outputs"][0]["data"] == [1, 2], (status, body)


def v1(*options):
    status, body = curl("/v1/models/identity_fp32:predict", "--data", V1, *options)
    assert status == 200 and json.loads(body) == {"predictions": [[1, 2]]}, (status, body)


def error(status, path, *options):
    got, body = curl(path, *options)
    assert got == status and json.loads(body)["error"], (got, body)


def main():
    report = Report("curl")
    none = ["--header", "Content-Type:"]
    report.check("v2 without a Content-Type", lambda: v2(*none))
    report.check("v2 with curl's own", v2)
    report.check("v1 without a Content-Type", lambda: v1(*none))
    report.check("v1 with curl's own", v1)
    report.check("v2 over HTTP/2", lambda: v2("--http2-prior-knowledge"))
    report.check("chunked", lambda: v2("--header", "Transfer-Encoding: chunked"))
    report.check("Expect: 100-continue", lambda: v2("--header", "Expect: 100-continue"))
    report.check("repository index, empty body", lambda: ok("/v2/repository/index", "--request", "POST"))
    report.check("statistics", lambda: ok("/v2/models/stats"))
    report.check("error: not JSON", lambda: error(400, "/v2/models/identity_fp32/infer", "--data", "x"))
    report.check("error: wrong method", lambda: error(405, "/v2/models/identity_fp32/infer"))
    report.check("error: unknown path", lambda: error(404, "/v3"))


def ok(path, *options):
    status, body = curl(path, *options)
    assert status == 200 and json.loads(body), (status, body)


main()
