"""The models that the clients ask: an identity per datatype, one with two inputs and outputs, and a classifier.

    python models.py FOLDER
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Datatype of the protocol → ONNX's element type.
DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
CLASSES = ["cat", "dog", "bird", "fish"]


def port(name, kind, *dims):
    return helper.make_tensor_value_info(name, kind, ["batch", *dims])


def save(folder, name, nodes, inputs, outputs, constants=(), settings="", version="1"):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / name / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    if settings:
        (folder / name / "model.toml").write_text(settings)


def main(folder):
    for datatype, kind in DATATYPES.items():
        node = helper.make_node("Identity", ["x"], ["y"])
        save(folder, f"identity_{datatype.lower()}", [node], [port("x", kind, "n")], [port("y", kind, "n")])
    # Names that have to be percent-encoded in a path.
    node = helper.make_node("Identity", ["x"], ["y"])
    save(folder, "a name+with%20signs", [node], [port("x", TensorProto.FLOAT, "n")], [port("y", TensorProto.FLOAT, "n")])
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    two = [port(name, TensorProto.INT32, 16) for name in ["a", "b"]]
    save(folder, "simple", nodes, two, [port(name, TensorProto.INT32, 16) for name in ["sum", "difference"]])
    scores = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weights")
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["scores"])]
    labels = "labels = [" + ", ".join(f'"{name}"' for name in CLASSES) + "]\n"
    x, y = port("x", TensorProto.FLOAT, 4), port("scores", TensorProto.FLOAT, 4)
    save(folder, "classes", nodes, [x], [y], [scores], labels)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
