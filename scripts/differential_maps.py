#!/usr/bin/env python3
"""The operators of maps, at random, answered by `ndserve predict` and by ONNX Runtime: where do they differ?

    cargo build --release
    $(scripts/python-env.sh) scripts/differential_maps.py --count 500

A map exists only at the edge of a graph: ZipMap puts maps out, DictVectorizer and CastMap take them in. So they are no family of
differential.py, whose values are arrays, but models of one node each. ONNX Runtime's Python interface takes maps to float32 with at
least one key; other maps are left to the tests beside the operators. What ONNX Runtime refuses is not compared.
"""

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

onnxruntime.set_default_logger_severity(4)
WORDS = ["", "a", "b", "cc", "Ünï", "12", "-3.5", "x y"]
ELEMENTS = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "string": TensorProto.STRING}


def keys_of(rng, kind, low=-2):
    """Different keys, one to eight, in no order."""
    words = WORDS if kind == "string" else [int(i) for i in rng.choice(2**40, 3)] + list(range(low, 8))
    return [words[i] for i in rng.permutation(len(words))[: int(rng.integers(1, 9))]]


def numbers(rng, count, finite=False):
    values = rng.normal(0, 10, count).astype(np.float32)
    if count and not finite and rng.random() < 0.2:
        values[int(rng.integers(count))] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
    return values


def map_type(keys):
    return helper.make_map_type_proto(ELEMENTS[keys], helper.make_tensor_type_proto(TensorProto.FLOAT, []))


def map_proto(keys, values, key_kind):
    proto = onnx.MapProto(name="x", key_type=ELEMENTS[key_kind])
    if key_kind == "string":
        proto.string_keys.extend(k.encode() for k in keys)
    else:
        proto.keys.extend(keys)
    proto.values.elem_type = onnx.SequenceProto.TENSOR
    for value in values:
        proto.values.tensor_values.append(numpy_helper.from_array(np.float32(value)))
    return proto


def model_of(op, given, result, **attributes):
    node = helper.make_node(op, ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph([node], op, [helper.make_value_info("x", given)], [helper.make_value_info("y", result)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)


def zip_map(rng):
    kind = rng.choice(["int64", "string"])
    labels = keys_of(rng, kind)
    attribute = {"classlabels_strings" if kind == "string" else "classlabels_int64s": labels}
    model = model_of("ZipMap", helper.make_tensor_type_proto(TensorProto.FLOAT, [None, len(labels)]), helper.make_sequence_type_proto(map_type(kind)), **attribute)
    rows = int(rng.integers(0, 4))
    x = numbers(rng, rows * len(labels)).reshape(rows, len(labels))
    return model, x, numpy_helper.from_array(x, "x")


def dict_vectorizer(rng):
    kind = rng.choice(["int64", "string"])
    attribute = {"string_vocabulary" if kind == "string" else "int64_vocabulary": keys_of(rng, kind)}
    keys = keys_of(rng, kind)
    values = numbers(rng, len(keys))
    model = model_of("DictVectorizer", map_type(kind), helper.make_tensor_type_proto(TensorProto.FLOAT, None), **attribute)
    return model, dict(zip(keys, values.tolist())), map_proto(keys, values, kind)


def cast_map(rng):
    target = rng.choice(["float32", "string", "int64"])
    sparse = {"map_form": "SPARSE", "max_map": int(rng.integers(1, 12))} if rng.random() < 0.5 else {}
    keys = keys_of(rng, "int64", low=0 if sparse else -2)
    values = numbers(rng, len(keys), finite=target == "int64")
    cast = {"float32": "TO_FLOAT", "string": "TO_STRING", "int64": "TO_INT64"}[target]
    model = model_of("CastMap", map_type("int64"), helper.make_tensor_type_proto(ELEMENTS[target], None), cast_to=cast, **sparse)
    return model, dict(zip(keys, values.tolist())), map_proto(keys, values, "int64")


def plain(value):
    """A value as lists and dictionaries that compare by their texts, so that NaN equals NaN."""
    if isinstance(value, onnx.SequenceProto):
        return [plain(m) for m in value.map_values]
    if isinstance(value, onnx.MapProto):
        keys = [k.decode() for k in value.string_keys] if value.key_type == TensorProto.STRING else list(value.keys)
        return plain({k: numpy_helper.to_array(t).item() for k, t in zip(keys, value.values.tensor_values)})
    if isinstance(value, dict):
        return {k: str(np.float32(v)) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if value.dtype.kind in "OU":
        return list(value.shape), [v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel()]
    return str(value.dtype), list(value.shape), [str(v) for v in value.ravel()]


def answer(binary, model, given):
    """What ndserve says, or its error in words."""
    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        folder = Path(folder)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "input_0.pb").write_bytes(given.SerializeToString())
        (folder / "out").mkdir()
        command = [binary, "predict", "--model", folder / "model.onnx", "--inputs", folder, "--outputs", folder / "out"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            return done.stderr.strip()
        data = (folder / "out" / "output_0.pb").read_bytes()
        kind = onnx.SequenceProto if model.graph.output[0].type.HasField("sequence_type") else onnx.TensorProto
        proto = kind.FromString(data)
        return plain(proto if kind is onnx.SequenceProto else numpy_helper.to_array(proto))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/ndserve")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500, help="models of each operator")
    options = parser.parse_args()
    counts = collections.Counter()
    for make in (zip_map, dict_vectorizer, cast_map):
        for number in range(options.count):
            model, feed, given = make(np.random.default_rng([options.seed, number]))
            what = model.graph.node[0].op_type
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
                expected = plain(session.run(None, {"x": feed})[0])
            except Exception as error:
                counts[f"{what} refused by ONNX Runtime"] += 1
                if os.environ.get("REFUSED"):
                    print(f"{what} {number}: {str(error)[:200]}")
                continue
            found = answer(options.binary, model, given)
            counts[f"{what} {'equal' if found == expected else 'different'}"] += 1
            if found != expected:
                print(f"{what} {number}: {found} instead of {expected}; {helper.printable_node(model.graph.node[0])} of {feed}")
    for key, n in sorted(counts.items()):
        print(f"{n:6} {key}")
    return 1 if any("different" in key for key in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
