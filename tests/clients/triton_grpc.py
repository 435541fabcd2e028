"""tritonclient.grpc: blocking, asyncio and streams; and the health checks of grpcio-health-checking, reflection of grpcio.

    python triton_grpc.py HOST:PORT FOLDER
"""

import asyncio
import pathlib
import queue
import sys
import threading

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from report import DATATYPES, Report, equal, raises, raises_async, values
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

ADDRESS, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def tensor(datatype, array, name="x"):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def identity(client, datatype, array=None, **more):
    array = values(datatype) if array is None else array
    result = client.infer(f"identity_{datatype.lower()}", [tensor(datatype, array)], **more)
    equal(result.as_numpy("y"), array)
    return result


def simple():
    a = np.arange(16, dtype=np.int32).reshape(1, 16)
    b = np.full((1, 16), 3, np.int32)
    return a, b, [tensor("INT32", a, name="a"), tensor("INT32", b, name="b")]


def sync_client():
    report = Report("tritonclient grpc")
    client = triton.InferenceServerClient(ADDRESS)
    for datatype in DATATYPES:
        report.check(f"binary {datatype}", lambda datatype=datatype: identity(client, datatype))
    for algorithm in ["gzip", "deflate"]:
        report.check(f"{algorithm} request", lambda a=algorithm: identity(client, "FP32", compression_algorithm=a))
    report.check("empty tensor", lambda: identity(client, "FP32", np.zeros((1, 0), np.float32)))
    report.check("empty BYTES tensor", lambda: identity(client, "BYTES", np.zeros((1, 0), object)))
    report.check("large tensor", lambda: identity(client, "FP32", np.random.rand(1, 3_000_000).astype(np.float32)))
    report.check("all outputs, id", lambda: all_outputs(client))
    report.check("classification", lambda: classification(client))
    report.check("async infer", lambda: async_infer(client))
    report.check("client timeout", lambda: identity(client, "FP32", client_timeout=20))
    report.check("stream", lambda: stream(client))
    report.check("error in a stream", lambda: stream_error(client))
    report.check("sequence, priority, timeout, parameters", lambda: parameters(client))
    report.check("version in the path", lambda: versions(client))
    report.check("health", lambda: health(client))
    report.check("metadata", lambda: metadata(client))
    report.check("configuration", lambda: configuration(client))
    report.check("statistics", lambda: statistics(client))
    report.check("repository index", lambda: index(client))
    report.check("unload and load", lambda: control(client))
    report.check("load with files", lambda: load_files(client))
    report.check("log settings", lambda: logging(client))
    report.check("trace settings", lambda: tracing(client))
    report.check("shared memory is refused", lambda: raises(InferenceServerException, "UNIMPLEMENTED", client.get_system_shared_memory_status))
    array = values("FP32")
    a, _, inputs = simple()
    wrong_size = triton.InferInput("x", [2, 4], "FP32")
    wrong_size._raw_content = array.tobytes()
    absent = lambda: client.infer("absent", [tensor("FP32", array)])
    report.check("error: unknown model", lambda: raises(InferenceServerException, "NOT_FOUND", absent))
    for feature, part, run in [
        ("datatype", "FP32", lambda: client.infer("identity_fp32", [tensor("INT64", values("INT64"))])),
        ("rank", "shape", lambda: client.infer("identity_fp32", [tensor("FP32", array.reshape(1, 2, 3))])),
        ("dimension", "16", lambda: client.infer("simple", [tensor("INT32", a[:, :8].copy(), name="a"), inputs[1]])),
        ("bytes and shape", "x", lambda: client.infer("identity_fp32", [wrong_size])),
        ("missing input", "`b`", lambda: client.infer("simple", inputs[:1])),
        ("unknown input", "nothing", lambda: client.infer("identity_fp32", [tensor("FP32", array, name="nothing")])),
        ("unknown output", "nothing", lambda: identity(client, "FP32", outputs=[triton.InferRequestedOutput("nothing")])),
    ]:
        report.check(f"error: {feature}", lambda part=part, run=run: invalid(part, run))
    client.close()


def invalid(part, run):
    error = raises(InferenceServerException, part, run)
    assert error.status() == "StatusCode.INVALID_ARGUMENT", error


def all_outputs(client):
    a, b, inputs = simple()
    result = client.infer("simple", inputs, request_id="my id")
    equal(result.as_numpy("sum"), a + b)
    equal(result.as_numpy("difference"), a - b)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("my id", "simple", "1"), response
    only = client.infer("simple", inputs, outputs=[triton.InferRequestedOutput("difference")])
    equal(only.as_numpy("difference"), a - b)
    assert only.as_numpy("sum") is None


def classification(client):
    scores = np.array([[0.5, 2, -1, 0.25]], np.float32)
    outputs = [triton.InferRequestedOutput("scores", class_count=2)]
    classes = client.infer("classes", [tensor("FP32", scores)], outputs=outputs).as_numpy("scores")
    parts = [item.decode().split(":") for item in classes.flat]
    assert [(float(value), int(at), label) for value, at, label in parts] == [(2, 1, "dog"), (0.5, 0, "cat")], parts


def async_infer(client):
    array, answers = values("INT64"), queue.Queue()
    for _ in range(20):
        client.async_infer("identity_int64", [tensor("INT64", array)], callback=lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=30)
        assert error is None, error
        equal(result.as_numpy("y"), array)


def stream(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for count in range(100):
        array = np.full((1, 3), count, np.int64)
        client.async_stream_infer("identity_int64", [tensor("INT64", array)], request_id=str(count))
    for count in range(100):
        result, error = answers.get(timeout=30)
        assert error is None, error
        assert result.get_response().id == str(count), "the answers come in the order of the requests"
        equal(result.as_numpy("y"), np.full((1, 3), count, np.int64))
    client.stop_stream()


def stream_error(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    array = values("FP32")
    client.async_stream_infer("absent", [tensor("FP32", array)])
    client.async_stream_infer("identity_fp32", [tensor("FP32", array)])
    result, error = answers.get(timeout=30)
    assert result is None and "absent" in str(error), error
    result, error = answers.get(timeout=30)
    assert error is None, "the stream goes on after a request's failure"
    equal(result.as_numpy("y"), array)
    client.stop_stream()


def parameters(client):
    identity(client, "FP32", sequence_id=7, sequence_start=True, sequence_end=True, priority=1, timeout=10_000_000)
    identity(client, "FP32", sequence_id="text", parameters={"mine": "value", "number": 3, "flag": True})


def versions(client):
    assert client.is_model_ready("simple", "1") and not client.is_model_ready("simple", "77")
    assert identity(client, "FP32", model_version="1").get_response().model_version == "1"
    raises(InferenceServerException, "NOT_FOUND", lambda: client.infer("simple", simple()[2], model_version="77"))


def health(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and not client.is_model_ready("absent")


def metadata(client):
    server = client.get_server_metadata()
    assert server.name == "ndserve" and "statistics" in server.extensions, server
    model = client.get_model_metadata("simple", as_json=True)
    assert model["inputs"][0] == {"name": "a", "datatype": "INT32", "shape": ["-1", "16"]}, model
    assert model["versions"] == ["1"] and model["platform"], model


def configuration(client):
    config = client.get_model_config("simple").config
    assert config.name == "simple" and config.max_batch_size >= 1, config
    assert config.input[0].name == "a" and list(config.input[0].dims) == [16], config
    assert config.HasField("dynamic_batching") and config.instance_group[0].count >= 1, config
    assert client.get_model_config("identity_bf16").config.output[0].data_type != 0


def statistics(client):
    before = client.get_inference_statistics("simple").model_stats[0]
    client.infer("simple", simple()[2])
    after = client.get_inference_statistics("simple", "1").model_stats[0]
    assert after.inference_count == before.inference_count + 1 and after.execution_count > before.execution_count, after
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1, after
    assert "identity_bool" in [row.name for row in client.get_inference_statistics().model_stats]


def index(client):
    rows = {row.name: row for row in client.get_model_repository_index().models}
    assert rows["simple"].state == "READY" and rows["simple"].version == "1", rows["simple"]


def control(client):
    client.unload_model("classes")
    assert not client.is_model_ready("classes")
    client.load_model("classes")
    assert client.is_model_ready("classes")
    raises(InferenceServerException, "absent", lambda: client.load_model("absent"))


def load_files(client):
    model = (FOLDER / "identity_fp32/1/model.onnx").read_bytes()
    client.load_model("from_afar", config='{"max_batch_size": 4}', files={"file:1/model.onnx": model})
    array = values("FP32")
    equal(client.infer("from_afar", [tensor("FP32", array)]).as_numpy("y"), array)
    client.unload_model("from_afar")
    for path in ["../up.onnx", "/abs/model.onnx"]:
        raises(InferenceServerException, "path", lambda: client.load_model("from_afar", config="{}", files={f"file:{path}": model}))


def logging(client):
    before = client.get_log_settings().settings
    assert before["log_info"].bool_param is True and before["log_verbose_level"].uint32_param == 0, before
    after = client.update_log_settings({"log_verbose_level": 1}).settings
    assert after["log_verbose_level"].uint32_param == 1, after
    client.update_log_settings({"log_verbose_level": 0})
    raises(InferenceServerException, "log_file", lambda: client.update_log_settings({"log_file": "/tmp/x"}))


def tracing(client):
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    changed = client.update_trace_settings(model_name="simple", settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "2"}).settings
    assert list(changed["trace_level"].value) == ["TIMESTAMPS"] and list(changed["trace_rate"].value) == ["2"], changed
    cleared = client.update_trace_settings(model_name="simple", settings={"trace_level": None, "trace_rate": None}).settings
    assert list(cleared["trace_level"].value) == ["OFF"] and list(cleared["trace_rate"].value) == ["1000"], cleared


async def aio_client():
    report = Report("tritonclient grpc.aio")
    async with triton_aio.InferenceServerClient(ADDRESS) as client:

        async def one(datatype, **more):
            array = values(datatype)
            result = await client.infer(f"identity_{datatype.lower()}", [tensor(datatype, array)], **more)
            equal(result.as_numpy("y"), array)

        for datatype in DATATYPES:
            await report.check_async(f"binary {datatype}", lambda datatype=datatype: one(datatype))
        for algorithm in ["gzip", "deflate"]:
            await report.check_async(f"{algorithm} request", lambda a=algorithm: one("FP32", compression_algorithm=a))

        async def many():
            await asyncio.gather(*(one("FP64") for _ in range(50)))

        async def health():
            assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("simple")
            assert (await client.get_server_metadata()).name == "ndserve"
            assert (await client.get_model_config("simple")).config.name == "simple"
            assert (await client.get_inference_statistics("simple")).model_stats
            assert (await client.get_model_repository_index()).models

        async def stream():
            array = values("INT64")

            async def requests():
                for count in range(20):
                    yield {"model_name": "identity_int64", "inputs": [tensor("INT64", array)], "request_id": str(count)}

            got = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                equal(result.as_numpy("y"), array)
                got += 1
            assert got == 20

        async def unknown():
            await raises_async(InferenceServerException, "NOT_FOUND", lambda: client.infer("absent", [tensor("FP32", values("FP32"))]))

        await report.check_async("async infer", many)
        await report.check_async("health", health)
        await report.check_async("stream", stream)
        await report.check_async("error: unknown model", unknown)


def plain_stubs():
    """The protocol's own stubs: typed contents, which tritonclient never sends."""
    report = Report("grpcio stubs")
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def typed(datatype, field):
            array = values(datatype)
            request = service_pb2.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
            given = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
            elements = [item.encode() for item in array.flat] if datatype == "BYTES" else array.flatten().tolist()
            getattr(given.contents, field).extend(elements)
            output = stub.ModelInfer(request).outputs[0]
            assert list(getattr(output.contents, field)) == elements, output

        for datatype, field in FIELDS.items():
            report.check(f"typed {datatype}", lambda datatype=datatype, field=field: typed(datatype, field))

        def invalid(part, request):
            error = raises(grpc.RpcError, "", lambda: stub.ModelInfer(request))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and part in error.details(), error

        def both():
            request = service_pb2.ModelInferRequest(model_name="identity_fp32", raw_input_contents=[b"1234"])
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(1)
            invalid("contents field must not be specified", request)

        def count():
            request = service_pb2.ModelInferRequest(model_name="identity_fp32", raw_input_contents=[b"1234"] * 2)
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
            invalid("does not match", request)

        def range_():
            request = service_pb2.ModelInferRequest(model_name="identity_uint8")
            request.inputs.add(name="x", datatype="UINT8", shape=[1, 1]).contents.uint_contents.append(300)
            invalid("300", request)

        def deadline():
            # So large that it is not even sent within the time.
            array = np.zeros((1, 10_000_000), np.float32)
            request = service_pb2.ModelInferRequest(model_name="identity_fp32", raw_input_contents=[array.tobytes()])
            request.inputs.add(name="x", datatype="FP32", shape=array.shape)
            error = raises(grpc.RpcError, "", lambda: stub.ModelInfer(request, timeout=0.001))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error

        report.check("error: contents and raw", both)
        report.check("error: number of raw contents", count)
        report.check("error: out of range", range_)
        report.check("error: deadline", deadline)


def health_checks():
    report = Report("grpcio-health-checking")
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING

        def check(service):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == serving

        for service in ["", "inference.GRPCInferenceService", "liveness", "readiness", "simple", "simple/1"]:
            report.check(f"Check {service or 'the server'}", lambda service=service: check(service))

        def unknown():
            error = raises(grpc.RpcError, "", lambda: check("absent"))
            assert error.code() == grpc.StatusCode.NOT_FOUND, error

        def watch():
            # Past the timeout the next state is an error.
            states = stub.Watch(health_pb2.HealthCheckRequest(service="classes"), timeout=30)
            assert next(states).status == serving
            client = triton.InferenceServerClient(ADDRESS)
            threading.Timer(0.1, lambda: client.unload_model("classes")).start()
            assert next(states).status != serving
            client.load_model("classes")
            # Between unloading and loading there may be more than one state to be told.
            assert any(state.status == serving for state in states)
            states.cancel()

        report.check("Check of an unknown service", unknown)
        report.check("Watch", watch)

    report = Report("grpcio-reflection")
    with grpc.insecure_channel(ADDRESS) as channel:

        def services():
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            names = [service.name for service in next(answers).list_services_response.service]
            assert "inference.GRPCInferenceService" in names and "grpc.health.v1.Health" in names, names

        report.check("list of services", services)


sync_client()
asyncio.run(aio_client())
plain_stubs()
health_checks()
