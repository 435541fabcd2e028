"""What a client's script says about each feature: one line of JSON, read by run.py."""

import json
import sys
import traceback

import numpy as np


class Report:
    """The results of one client."""

    def __init__(self, client):
        self.client = client

    def check(self, feature, run):
        """Runs `run`; the feature holds unless it raises."""
        error = ""
        try:
            run()
        except Exception as failure:  # a client may raise anything
            traceback.print_exc(file=sys.stderr)
            error = f"{type(failure).__name__}: {failure}"
        self.tell(feature, error)

    async def check_async(self, feature, run):
        error = ""
        try:
            await run()
        except Exception as failure:
            traceback.print_exc(file=sys.stderr)
            error = f"{type(failure).__name__}: {failure}"
        self.tell(feature, error)

    def tell(self, feature, error):
        print(json.dumps({"client": self.client, "feature": feature, "error": error}), flush=True)


def equal(got, want):
    """Both arrays have the same shape and the same bits."""
    assert got is not None, "no such output"
    assert got.shape == want.shape, f"shape {got.shape} where {want.shape} is wanted"
    if want.dtype == object:
        as_bytes = [item if isinstance(item, bytes) else str(item).encode() for item in want.flat]
        given = [item if isinstance(item, bytes) else str(item).encode() for item in got.flat]
        assert given == as_bytes, f"{given} where {as_bytes} is wanted"
    else:
        assert got.tobytes() == want.tobytes(), f"{got} where {want} is wanted"


def raises(kind, part, run):
    """`run` raises `kind` with `part` in its text."""
    try:
        run()
    except kind as error:
        assert part.lower() in str(error).lower(), f"the message is {error}, without {part!r}"
        return error
    raise AssertionError(f"nothing was raised where {part!r} is wanted")


async def raises_async(kind, part, run):
    try:
        await run()
    except kind as error:
        assert part.lower() in str(error).lower(), f"the message is {error}, without {part!r}"
        return error
    raise AssertionError(f"nothing was raised where {part!r} is wanted")


def values(datatype):
    """Extreme values of a datatype as an array of shape [2, 3]."""
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BYTES":
        return np.array([["", "a", "naïve ☃"], ["long " * 100, "\"\\\n", "{}"]], dtype=object)
    if datatype == "BF16":
        import ml_dtypes

        return np.array([[0, -1.5, 3.0e38], [1e-38, np.inf, 2]], dtype=ml_dtypes.bfloat16)
    kind = np.dtype(datatype.lower().replace("fp", "float"))
    if kind.kind == "f":
        info = np.finfo(kind)
        return np.array([[0, -0.0, info.max], [info.min, info.tiny, 1 / 3]], dtype=kind)
    info = np.iinfo(kind)
    return np.array([[0, 1, info.max], [info.min, 7, info.max - 1]], dtype=kind)


DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"]
