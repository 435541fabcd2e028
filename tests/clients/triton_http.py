"""tritonclient.http, blocking and asyncio.

    python triton_http.py HOST:PORT FOLDER
"""

import asyncio
import pathlib
import sys
import time

import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from report import DATATYPES, Report, equal, raises, raises_async, values
from tritonclient.utils import InferenceServerException

ADDRESS, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
# Half floats have no form in JSON.
JSON_TYPES = [datatype for datatype in DATATYPES if datatype not in ("FP16", "BF16")]


def tensor(datatype, array, binary=True, name="x"):
    given = http.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def identity(client, datatype, binary_in=True, binary_out=True, array=None, **more):
    array = values(datatype) if array is None else array
    outputs = [http.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer(f"identity_{datatype.lower()}", [tensor(datatype, array, binary_in)], outputs=outputs, **more)
    equal(result.as_numpy("y"), array)
    return result


def simple():
    a = np.arange(16, dtype=np.int32).reshape(1, 16)
    b = np.full((1, 16), 3, np.int32)
    return a, b, [tensor("INT32", a, name="a"), tensor("INT32", b, name="b")]


def sync_client():
    report = Report("tritonclient http")
    client = http.InferenceServerClient(ADDRESS, concurrency=4)
    for datatype in DATATYPES:
        report.check(f"binary {datatype}", lambda datatype=datatype: identity(client, datatype))
    for datatype in JSON_TYPES:
        report.check(f"JSON {datatype}", lambda datatype=datatype: identity(client, datatype, False, False))
    report.check("JSON in, binary out", lambda: identity(client, "FP64", False, True))
    report.check("binary in, JSON out", lambda: identity(client, "FP64", True, False))
    for algorithm in ["gzip", "deflate"]:
        report.check(f"{algorithm} request", lambda a=algorithm: identity(client, "FP32", request_compression_algorithm=a))
        report.check(f"{algorithm} response", lambda a=algorithm: identity(client, "FP32", response_compression_algorithm=a))
    report.check("empty tensor", lambda: identity(client, "FP32", array=np.zeros((1, 0), np.float32)))
    report.check("empty BYTES tensor", lambda: identity(client, "BYTES", array=np.zeros((1, 0), object)))
    report.check("large tensor", lambda: identity(client, "FP32", array=np.random.rand(1, 3_000_000).astype(np.float32)))
    report.check("NaN and infinities in JSON", lambda: nan(client))
    report.check("all outputs, id", lambda: all_outputs(client))
    report.check("some outputs, mixed forms", lambda: mixed(client))
    report.check("classification", lambda: classification(client))
    report.check("async infer", lambda: async_infer(client))
    report.check("sequence, priority, timeout, parameters", lambda: parameters(client))
    report.check("percent-encoded name", lambda: encoded(client))
    report.check("version in the path", lambda: equal_version(client))
    report.check("health", lambda: health(client))
    report.check("metadata", lambda: metadata(client))
    report.check("configuration", lambda: configuration(client))
    report.check("statistics", lambda: statistics(client))
    report.check("repository index", lambda: index(client))
    report.check("unload and load", lambda: control(client))
    report.check("load with files", lambda: load_files(client))
    report.check("log settings", lambda: logging(client))
    report.check("trace settings", lambda: tracing(client))
    report.check("shared memory is refused", lambda: raises(InferenceServerException, "", client.get_system_shared_memory_status))
    for feature, part, run in errors(client):
        report.check(f"error: {feature}", lambda part=part, run=run: raises(InferenceServerException, part, run))
    client.close()


def nan(client):
    array = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    identity(client, "FP32", True, False, array=array)
    given = http.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(array, binary_data=False)
    result = client.infer("identity_fp32", [given])
    assert np.isnan(result.as_numpy("y")[0, 0]) and np.isinf(result.as_numpy("y")[0, 1])


def all_outputs(client):
    a, b, inputs = simple()
    result = client.infer("simple", inputs, request_id="my id")
    equal(result.as_numpy("sum"), a + b)
    equal(result.as_numpy("difference"), a - b)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("my id", "simple", "1"), response


def mixed(client):
    a, b, inputs = simple()
    outputs = [http.InferRequestedOutput("difference", binary_data=False), http.InferRequestedOutput("sum", binary_data=True)]
    result = client.infer("simple", inputs, outputs=outputs)
    equal(result.as_numpy("sum"), a + b)
    equal(result.as_numpy("difference"), a - b)
    result = client.infer("simple", inputs, outputs=[http.InferRequestedOutput("sum")])
    assert result.as_numpy("difference") is None


def classification(client):
    scores = np.array([[0.5, 2, -1, 0.25]], np.float32)
    outputs = [http.InferRequestedOutput("scores", class_count=2)]
    classes = client.infer("classes", [tensor("FP32", scores)], outputs=outputs).as_numpy("scores")
    parts = [item.decode().split(":") for item in classes.flat]
    assert [(float(value), int(at), label) for value, at, label in parts] == [(2, 1, "dog"), (0.5, 0, "cat")], parts


def async_infer(client):
    array = values("INT64")
    pending = [client.async_infer("identity_int64", [tensor("INT64", array)]) for _ in range(20)]
    for answer in pending:
        equal(answer.get_result().as_numpy("y"), array)


def parameters(client):
    identity(client, "FP32", sequence_id=7, sequence_start=True, sequence_end=True, priority=1, timeout=10_000_000)
    identity(client, "FP32", sequence_id="text", parameters={"mine": "value", "number": 3, "flag": True})
    raises(InferenceServerException, "triton_", lambda: client.infer("identity_fp32", [tensor("FP32", values("FP32"))], parameters={"triton_x": 1}))


def encoded(client):
    array = values("FP32")
    equal(client.infer("a name+with%20signs", [tensor("FP32", array)]).as_numpy("y"), array)
    assert client.get_model_metadata("a name+with%20signs")["name"] == "a name+with%20signs"


def equal_version(client):
    assert client.is_model_ready("simple", "1") and not client.is_model_ready("simple", "77")
    assert identity(client, "FP32", model_version="1").get_response()["model_version"] == "1"
    raises(InferenceServerException, "77", lambda: client.infer("simple", simple()[2], model_version="77"))


def health(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and not client.is_model_ready("absent")


def metadata(client):
    server = client.get_server_metadata()
    assert server["name"] == "ndserve" and server["version"], server
    for extension in ["binary_tensor_data", "statistics", "model_configuration", "model_repository", "schedule_policy", "logging", "trace"]:
        assert extension in server["extensions"], f"{extension} is not among {server['extensions']}"
    model = client.get_model_metadata("simple")
    assert model["versions"] == ["1"] and model["platform"], model
    assert model["inputs"][0] == {"name": "a", "datatype": "INT32", "shape": [-1, 16]}, model


def configuration(client):
    config = client.get_model_config("simple")
    assert config["name"] == "simple" and config["max_batch_size"] >= 1, config
    given = config["input"][0]
    assert (given["name"], given["data_type"], given["dims"]) == ("a", "TYPE_INT32", [16]), config
    assert "dynamic_batching" in config and config["instance_group"][0]["kind"] == "KIND_CPU", config
    assert client.get_model_config("identity_bytes")["output"][0]["data_type"] == "TYPE_STRING"


def statistics(client):
    before = client.get_inference_statistics("simple")["model_stats"][0]
    client.infer("simple", simple()[2])
    after = client.get_inference_statistics("simple", "1")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1, (before, after)
    assert after["execution_count"] > before["execution_count"] and after["last_inference"] > 0, after
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1, after
    assert sum(row["compute_infer"]["count"] for row in after["batch_stats"]) == after["execution_count"], after
    everything = client.get_inference_statistics()["model_stats"]
    assert "identity_bool" in [row["name"] for row in everything]


def index(client):
    rows = {row["name"]: row for row in client.get_model_repository_index()}
    assert rows["simple"]["state"] == "READY" and rows["simple"]["version"] == "1", rows["simple"]


def control(client):
    client.unload_model("classes")
    assert not client.is_model_ready("classes")
    state = lambda: next(row["state"] for row in client.get_model_repository_index() if row["name"] == "classes")
    # As at Triton the call answers while the last holders of the version let it go.
    until = time.monotonic() + 10
    while state() == "UNLOADING" and time.monotonic() < until:
        time.sleep(0.01)
    assert state() == "UNAVAILABLE", state()
    client.load_model("classes")
    assert client.is_model_ready("classes")
    client.load_model("classes")
    raises(InferenceServerException, "absent", lambda: client.load_model("absent"))


def load_files(client):
    model = (FOLDER / "identity_fp32/1/model.onnx").read_bytes()
    client.load_model("from_afar", config='{"max_batch_size": 4}', files={"file:1/model.onnx": model})
    array = values("FP32")
    equal(client.infer("from_afar", [tensor("FP32", array)]).as_numpy("y"), array)
    assert client.get_model_config("from_afar")["max_batch_size"] == 4
    client.unload_model("from_afar")
    for path in ["../up.onnx", "/abs/model.onnx"]:
        load = lambda: client.load_model("from_afar", config="{}", files={f"file:{path}": model})
        raises(InferenceServerException, "path", load)


def logging(client):
    before = client.get_log_settings()
    assert before["log_info"] is True and before["log_verbose_level"] == 0, before
    assert client.update_log_settings({"log_verbose_level": 1, "log_info": False})["log_verbose_level"] == 1
    assert client.get_log_settings()["log_info"] is False
    client.update_log_settings({"log_verbose_level": 0, "log_info": True})
    raises(InferenceServerException, "log_file", lambda: client.update_log_settings({"log_file": "/tmp/x"}))


def tracing(client):
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    changed = client.update_trace_settings(model_name="simple", settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "2"})
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS"], "2"), changed
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    client.infer("simple", simple()[2])
    cleared = client.update_trace_settings(model_name="simple", settings={"trace_level": None, "trace_rate": None})
    assert (cleared["trace_level"], cleared["trace_rate"]) == (["OFF"], "1000"), cleared
    raises(InferenceServerException, "tensors", lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}))


def errors(client):
    array = values("FP32")
    wrong_size = http.InferInput("x", [2, 4], "FP32")
    wrong_size._raw_data, wrong_size._parameters = array.tobytes(), {"binary_data_size": array.nbytes}
    a, b, inputs = simple()
    return [
        ("unknown model", "absent", lambda: client.infer("absent", [tensor("FP32", array)])),
        ("datatype", "FP32", lambda: client.infer("identity_fp32", [tensor("INT64", values("INT64"))])),
        ("rank", "shape", lambda: client.infer("identity_fp32", [tensor("FP32", array.reshape(1, 2, 3))])),
        ("dimension", "16", lambda: client.infer("simple", [tensor("INT32", a[:, :8].copy(), name="a"), inputs[1]])),
        ("bytes and shape", "x", lambda: client.infer("identity_fp32", [wrong_size])),
        ("missing input", "`b`", lambda: client.infer("simple", inputs[:1])),
        ("unknown input", "nothing", lambda: client.infer("identity_fp32", [tensor("FP32", array, name="nothing")])),
        ("input twice", "twice", lambda: client.infer("identity_fp32", [tensor("FP32", array)] * 2)),
        ("unknown output", "nothing", lambda: client.infer("identity_fp32", [tensor("FP32", array)], outputs=[http.InferRequestedOutput("nothing")])),
        ("FP16 in JSON", "not supported", lambda: identity(client, "FP16", False, True)),
    ]


async def aio_client():
    report = Report("tritonclient http.aio")
    async with http_aio.InferenceServerClient(ADDRESS) as client:
        async def one(datatype, binary=True, **more):
            array = values(datatype)
            outputs = [http_aio.InferRequestedOutput("y", binary_data=binary)]
            result = await client.infer(f"identity_{datatype.lower()}", [tensor(datatype, array, binary)], outputs=outputs, **more)
            equal(result.as_numpy("y"), array)

        for datatype in DATATYPES:
            await report.check_async(f"binary {datatype}", lambda datatype=datatype: one(datatype))
        for datatype in JSON_TYPES:
            await report.check_async(f"JSON {datatype}", lambda datatype=datatype: one(datatype, False))
        for algorithm in ["gzip", "deflate"]:
            await report.check_async(f"{algorithm} request", lambda a=algorithm: one("FP32", request_compression_algorithm=a))
            await report.check_async(f"{algorithm} response", lambda a=algorithm: one("FP32", response_compression_algorithm=a))

        async def many():
            await asyncio.gather(*(one("FP64") for _ in range(50)))

        async def health():
            assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("simple")
            assert (await client.get_server_metadata())["name"] == "ndserve"
            assert (await client.get_model_config("simple"))["name"] == "simple"
            assert (await client.get_inference_statistics("simple"))["model_stats"]
            assert await client.get_model_repository_index()

        async def unknown():
            array = values("FP32")
            await raises_async(InferenceServerException, "absent", lambda: client.infer("absent", [tensor("FP32", array)]))

        await report.check_async("async infer", many)
        await report.check_async("health", health)
        await report.check_async("error: unknown model", unknown)


sync_client()
asyncio.run(aio_client())
