"""The KServe SDK's inference clients: REST v1 and v2, gRPC v2.

    python kserve_sdk.py HOST:HTTP_PORT HOST:GRPC_PORT
"""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from report import DATATYPES, Report, equal, raises_async, values

HTTP, GRPC = f"http://{sys.argv[1]}", sys.argv[2]
# What the SDK has of the types; it knows no BF16.
TYPES = [datatype for datatype in DATATYPES if datatype != "BF16"]
JSON_TYPES = [datatype for datatype in TYPES if datatype != "FP16"]


def request(datatype, binary, model=None):
    array = values(datatype)
    given = InferInput("x", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    # The request says with which form the answer comes.
    parameters = {"binary_data_output": binary}
    return array, InferRequest(model or f"identity_{datatype.lower()}", [given], request_id="1", parameters=parameters)


async def rest_v2():
    report = Report("KServe SDK REST v2")
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:

        async def infer(datatype, binary):
            array, data = request(datatype, binary)
            answer = await client.infer(HTTP, data, model_name=data.model_name)
            equal(answer.outputs[0].as_numpy(), array)
            assert answer.id == "1" and answer.model_name == data.model_name

        for datatype in TYPES:
            await report.check_async(f"binary {datatype}", lambda datatype=datatype: infer(datatype, True))
        for datatype in JSON_TYPES:
            await report.check_async(f"JSON {datatype}", lambda datatype=datatype: infer(datatype, False))

        async def health():
            assert await client.is_server_live(HTTP) is True
            assert await client.is_server_ready(HTTP) is True
            assert await client.is_model_ready(HTTP, "simple") is True
            assert await client.is_model_ready(HTTP, "absent") is False

        async def plain():
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]}
            answer = await client.infer(HTTP, body, model_name="identity_fp32")
            equal(answer.outputs[0].as_numpy(), np.array([[1, 2]], np.float32))

        async def unknown():
            _, data = request("FP32", False)
            await raises_async(httpx.HTTPStatusError, "absent", lambda: client.infer(HTTP, data, model_name="absent"))

        await report.check_async("health", health)
        await report.check_async("nested JSON", plain)
        await report.check_async("error: unknown model", unknown)


async def rest_v1():
    report = Report("KServe SDK REST v1")
    async with InferenceRESTClient(RESTConfig(protocol="v1", retries=0)) as client:

        async def predict():
            answer = await client.infer(HTTP, {"instances": [[1, 2], [3, 4]]}, model_name="identity_fp32")
            assert answer == {"predictions": [[1, 2], [3, 4]]}, answer

        async def columns():
            answer = await client.infer(HTTP, {"inputs": {"x": [[1, 2]]}}, model_name="identity_fp32")
            assert answer == {"outputs": [[1, 2]]} or answer == {"outputs": {"y": [[1, 2]]}}, answer

        async def health():
            assert await client.is_server_live(HTTP) is True
            assert await client.is_model_ready(HTTP, "simple") is True

        async def unknown():
            await raises_async(httpx.HTTPStatusError, "absent", lambda: client.infer(HTTP, {"instances": [[1]]}, model_name="absent"))
            await raises_async(httpx.HTTPStatusError, "absent", lambda: client.is_model_ready(HTTP, "absent"))

        async def explain():
            await raises_async(httpx.HTTPStatusError, "400", lambda: client.explain(HTTP, "simple", {"instances": [[1]], "method": "none"}))

        await report.check_async("instances", predict)
        await report.check_async("inputs", columns)
        await report.check_async("health", health)
        await report.check_async("error: unknown model", unknown)
        await report.check_async("error: explain", explain)


async def grpc_v2():
    report = Report("KServe SDK gRPC v2")
    async with InferenceGRPCClient(GRPC, retries=0, channel_args=[("grpc.enable_retries", 0)]) as client:

        async def infer(datatype, binary):
            array, data = request(datatype, binary)
            answer = await client.infer(data)
            equal(answer.outputs[0].as_numpy(), array)

        for datatype in TYPES:
            await report.check_async(f"binary {datatype}", lambda datatype=datatype: infer(datatype, True))
        for datatype in JSON_TYPES:
            await report.check_async(f"typed {datatype}", lambda datatype=datatype: infer(datatype, False))

        async def health():
            assert await client.is_server_live() is True
            assert await client.is_server_ready() is True
            assert await client.is_model_ready("simple") is True

        async def unknown():
            _, data = request("FP32", True, "absent")
            error = await raises_async(grpc.RpcError, "absent", lambda: client.infer(data))
            assert error.code() == grpc.StatusCode.NOT_FOUND, error

        await report.check_async("health", health)
        await report.check_async("error: unknown model", unknown)


async def main():
    await rest_v2()
    await rest_v1()
    await grpc_v2()


asyncio.run(main())
