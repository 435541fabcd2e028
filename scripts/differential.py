#!/usr/bin/env python3
"""Random small graphs, answered by `ndserve predict` and by ONNX Runtime or ONNX's reference evaluator: where do they differ?

    cargo build --release
    $(scripts/python-env.sh) scripts/differential.py --count 20000

Graphs of one batch have one opset and become one model, since starting a process costs more than computing a graph; a model that
fails is halved until the graph that fails is alone. Every model runs twice, with the optimiser's passes and without. The same
--seed makes the same graphs. A graph with a difference is written to --keep as a case for `ndserve predict`, and named in the
output by the operators of the first fragment that differs when it is given the right inputs.

Expected values come from ONNX Runtime, one fragment at a time and without its optimiser; from the reference evaluator where it
has no kernel, or where REFERENCE says that it departs from the standard. What neither of the two computes as the standard says is
in UNDECIDED, with the reason, and makes no graph.
"""

import argparse
import collections
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from differential_graphs import FAMILIES, ML, MS, Graph, Rejected, Value, grow, kind_of, proto

onnxruntime.set_default_logger_severity(4)
PASSES = "dead-code,identity,fold-constants,fold-batch-norm,fuse-activation"
MODES = {"optimised": [], "unoptimised": ["--disable-pass", PASSES]}
# Relative tolerance, and absolute tolerance per largest magnitude of the value (sums cancel).
TOLERANCES = {"float64": (1e-6, 1e-9), "float32": (1e-3, 1e-5), "float16": (1e-2, 2e-3), "bfloat16": (3e-2, 1e-2)}
NOISE = {"float64": 1e-10, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}

def is_(*kinds):
    """Whether the first operand has one of the types."""
    return lambda graph, node, attributes, arrays: arrays[0].dtype.name in kinds


def has_nan(array):
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def same_crops(graph, node, attributes, arrays):
    """`auto_pad` of SAME where a stride skips more than the window covers, so that the padding is below zero."""
    if attributes.get("auto_pad", b"")[:4] != b"SAME":
        return False
    kernel = attributes.get("kernel_shape") or arrays[3 if node.op_type == "QLinearConv" else 1].shape[2:]
    strides, dilations = attributes.get("strides") or [1] * len(kernel), attributes.get("dilations") or [1] * len(kernel)
    sizes = arrays[0].shape[2:]
    if node.op_type == "ConvTranspose":
        return any((k - 1) * d + 1 < s for k, d, s in zip(kernel, dilations, strides))
    return any((-(-n // s) - 1) * s + (k - 1) * d + 1 < n for n, k, d, s in zip(sizes, kernel, dilations, strides))


def unfinished_rows(graph, node, attributes, arrays):
    return arrays[0].dtype == np.float64 and not np.isfinite(arrays[0]).all()


def constant_row(graph, node, attributes, arrays):
    with np.errstate(all="ignore"):
        return bool((np.var(arrays[0], tuple(attributes.get("axes", [0, 2, 3]))) == 0).any())


def fraction_of_a_size(mode):
    """Whether the scales of a Resize with these coordinates give no whole sizes."""

    def found(graph, node, attributes, arrays):
        scales = [a for a in arrays[1:] if a.dtype == np.float32 and a.size == arrays[0].ndim]
        return attributes.get("coordinate_transformation_mode") == mode and any((s * arrays[0].shape % 1 != 0).any() for s in scales)

    return found


def interpolated_integers(graph, node, attributes, arrays):
    return arrays[0].dtype.kind in "iu" and attributes.get("mode", b"nearest") != b"nearest"


def backwards_from_the_end(graph, node, attributes, arrays):
    if len(node.input) < 5:
        return False
    return bool(((arrays[-1] < 0) & (arrays[2] >= 2**31 - 1)).any())


def single_target(graph, node, attributes, arrays):
    return attributes.get("targets", attributes.get("n_targets", 1)) == 1 and attributes.get("post_transform", b"NONE") != b"NONE"


def based(graph, node, attributes, arrays):
    return "base_values" in attributes and attributes["n_targets"] > 1


def numbered_pair(graph, node, attributes, arrays):
    labels = attributes.get("classlabels_int64s", [0, 1])
    return len(labels) == 2 and list(labels) != [0, 1]


def before_the_axis(graph, node, attributes, arrays):
    """Whether a backward Slice starts before the first element."""
    if len(arrays) < 4 or "" in node.input:
        return False
    rows = zip(arrays[1], arrays[3], arrays[-1])
    return backwards_from_the_end(graph, node, attributes, arrays) and any(start < -arrays[0].shape[axis] and step < 0 for start, axis, step in rows)


EMPTY = lambda graph, node, attributes, arrays: arrays[0].size == 0
EXTREME = lambda graph, node, attributes, arrays: arrays[0].dtype.kind == "i" and np.abs(arrays[0].astype(np.float64)).max(initial=0) > 2**24

# Where ONNX Runtime departs from the standard, and the reference evaluator does not: (operators, condition, reason).
REFERENCE = [
    (["Resize"], fraction_of_a_size(b"align_corners"), "ONNX Runtime aligns the corners of the rounded size; the conformance cases demand size times scale"),
    (["Resize"], interpolated_integers, "ONNX Runtime interpolates integers in fixed point, or truncates at each axis (compared to within 1)"),
    (["Slice"], backwards_from_the_end, "ONNX Runtime takes an end of INT_MAX for the beginning if the step is negative"),
    (["ReduceMean"], EMPTY, "the mean of nothing is NaN; ONNX Runtime says 0"),
    (["ReduceL1", "ReduceSum"], EXTREME, "sums of integers wrap; ONNX Runtime saturates, and has but the digits of a float"),
    (["ReduceProd"], is_("int32", "int64"), "products of integers wrap; ONNX Runtime saturates"),
    (["ReduceMax", "ReduceMin"], lambda g, n, at, arrays: has_nan(arrays[0]), "ONNX Runtime passes over NaN in some places of a row"),
    (["Softplus"], lambda g, n, at, arrays: arrays[0].dtype == np.float16 and (arrays[0] > 80).any(), "ONNX Runtime overflows in float16 only"),
    (["Softmax", "LogSoftmax"], unfinished_rows, "ONNX Runtime passes over NaN and infinity in float64 only"),
    (["Cast", "CastLike"], lambda g, n, at, arrays: arrays[0].dtype == bool and (at.get("to") == 8 or arrays[-1].dtype.kind in "OU"),
     "the standard's text of a bool is that of Python; ONNX Runtime writes 0 and 1"),
    (["Gather"], lambda g, n, at, arrays: arrays[0].dtype.kind in "OU", "ONNX Runtime copies only the first string of a block"),
    (["ScatterND", "ScatterElements"], lambda g, n, at, arrays: at.get("reduction") in (b"max", b"min") and any(has_nan(a) for a in arrays),
     "ONNX Runtime passes over NaN in max and min"),
    (["DynamicQuantizeLinear"], lambda g, n, at, arrays: not arrays[0].any(), "ONNX Runtime takes 1 as the scale of zeros"),
    (["MeanVarianceNormalization"], constant_row, "ONNX Runtime divides 0 by 0 where the standard adds 1e-9"),
    (["Unique"], lambda g, n, at, arrays: EMPTY(g, n, at, arrays) and "axis" in at, "ONNX Runtime aborts its process"),
    (["Shrink"], is_("float64"), "ONNX Runtime computes float64 in float32"),
]
# What neither computes as the standard says, or what it leaves open: (operators, condition, reason).
UNDECIDED = [
    (["ScatterElements"], lambda g, n, at, arrays: at.get("reduction") in (b"max", b"min") and any(has_nan(a) for a in arrays),
     "ONNX Runtime and the reference evaluator pass over NaN in max and min here, and not in ScatterND or Max"),
    (["Conv"], lambda g, n, at, arrays: arrays[0].dtype == np.float64 and (not np.isfinite(arrays[0]).all() or 0 in arrays[0].shape),
     "ONNX Runtime has no kernel, the reference evaluator multiplies what lies between dilated taps by zero"),
    (["Conv"], lambda g, n, at, arrays: arrays[0].dtype == np.float64 and any(k > s for k, s in zip(arrays[1].shape[2:], arrays[0].shape[2:])),
     "ONNX Runtime has no kernel and refuses a window beyond the image in float32, as ndserve does; the reference evaluator answers nothing"),
    (["AveragePool"], lambda g, n, at, arrays: arrays[0].dtype != np.float32 and at.get("ceil_mode"),
     "ONNX Runtime has float32 only, the reference evaluator shifts the windows"),
    (["Softmax", "LogSoftmax"], lambda g, n, at, arrays: g.opset < 13 and unfinished_rows(g, n, at, arrays),
     "ONNX Runtime passes over NaN and infinity in float64 only, the reference evaluator computes the form of opset 13"),
    (["LogSoftmax"], lambda g, n, at, arrays: unfinished_rows(g, n, at, arrays) and np.ptp(arrays[0][np.isfinite(arrays[0])].tolist() or 0) > 700,
     "ONNX Runtime passes over NaN and infinity in float64 only, the reference evaluator takes the logarithm of what has vanished"),
    (["ReduceLogSumExp"], lambda g, n, at, arrays: has_nan(arrays[0]) and bool(np.isinf(arrays[0]).any()),
     "ONNX Runtime passes over NaN beside infinity, the reference evaluator subtracts infinity from infinity"),
    (["PRelu"], lambda g, n, at, arrays: arrays[0].dtype != np.float32 and not np.isfinite(arrays[1]).all(),
     "ONNX Runtime has float32 only, the reference evaluator multiplies zeros by the slope"),
    (["Clip"], lambda g, n, at, arrays: arrays[0].dtype in (np.float16, np.float64) and np.isinf(arrays[0]).any() and len(arrays) < 3,
     "a bound left out is the last finite number; ONNX Runtime knows that for float32 only, the reference evaluator for nothing"),
    (["Slice"], before_the_axis, "both of: ONNX Runtime's INT_MAX of a negative step, and a start that the reference evaluator does not clamp to 0"),
    (["ReduceL2", "ReduceSumSquare"], lambda g, n, at, arrays: EXTREME(g, n, at, arrays) or EMPTY(g, n, at, arrays),
     "ONNX Runtime saturates and has but the digits of a float, the reference evaluator changes the type"),
    (["ReduceMean"], lambda g, n, at, arrays: arrays[0].dtype.kind == "i" and (EMPTY(g, n, at, arrays) or EXTREME(g, n, at, arrays)),
     "no integer is the mean of nothing; ONNX Runtime saturates"),
    (["Resize"], lambda g, n, at, arrays: arrays[0].dtype.kind in "iu" and at.get("mode") == b"cubic",
     "ONNX Runtime has floats only, the reference evaluator does not exclude what is outside as ONNX Runtime does in float32"),
    (["Resize"], lambda g, n, at, arrays: interpolated_integers(g, n, at, arrays) and fraction_of_a_size(b"pytorch_half_pixel")(g, n, at, arrays),
     "ONNX Runtime truncates integers; the reference evaluator takes a size of one and a fraction for more than one"),
    (["LpPool"], lambda g, n, at, arrays: arrays[0].dtype != np.float32 and at.get("ceil_mode"),
     "ONNX Runtime has float32 only, the reference evaluator makes up for what a window lacks at the end"),
    (["AveragePool", "LpPool"], lambda g, n, at, arrays: arrays[0].dtype != np.float32 and at.get("auto_pad") == b"VALID" and at.get("dilations"),
     "ONNX Runtime has float32 only, the reference evaluator forgets the dilations"),
    (["Unique"], lambda g, n, at, arrays: EMPTY(g, n, at, arrays) and "axis" in at and at.get("sorted", 1) == 0,
     "ONNX Runtime aborts its process, the reference evaluator picks along the wrong axis"),
    (["Unique"], is_("int32"), "ONNX Runtime has no kernel; the reference evaluator picks along the wrong axis if unsorted"),
    (["TreeEnsembleRegressor"], is_("int64"), "ONNX Runtime has floats only, the reference evaluator rounds to the type of the input"),
    (["GlobalMaxPool"], is_("float64", "float16"), "ONNX Runtime has float32 only, the reference evaluator keeps dimensions"),
    (["LRN"], is_("float64", "float16"), "ONNX Runtime has float32 only, the reference evaluator takes the batch size for the channels"),
    (["Hardmax"], lambda g, n, at, arrays: g.opset < 13 and arrays[0].dtype != np.float32,
     "ONNX Runtime has float32 only, the reference evaluator computes the form of opset 13"),
    (["ConvTranspose"], lambda g, n, at, arrays: arrays[0].dtype != np.float32 and len(arrays) > 2 and at.get("group", 1) > 1,
     "ONNX Runtime has float32 only, the reference evaluator adds the first bias to every group"),
    (["Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"], same_crops,
     "padding below zero: ONNX Runtime crops, refuses or ignores it by operator and type, the reference evaluator likewise"),
    (["ReduceLogSum", "ReduceLogSumExp"], is_("int32", "int64"), "ONNX Runtime takes logarithms of integers in integers"),
    (["LinearRegressor", "TreeEnsembleRegressor"], single_target, "ONNX Runtime ignores post_transform of a single target; the reference evaluator lacks it"),
    (["TreeEnsembleRegressor"], based, "ONNX Runtime forgets the base value of a target that no leaf adds to"),
    (["TreeEnsembleClassifier"], numbered_pair, "ONNX Runtime answers 0 and 1 instead of two integer labels"),
    (["OneHot"], lambda g, n, at, arrays: arrays[0].dtype == np.float32 and arrays[1].dtype != np.float32 and arrays[2].dtype == np.float32,
     "ONNX Runtime has no kernel, the reference evaluator rounds on - off + off"),
]
# Where a float64 result has only the digits of float32: (operators, first opset, reason).
SHORT = [
    (["LayerNormalization", "RMSNormalization", "GroupNormalization"], 9, "by stash_type the first stage is in float32; both oracles pass over it"),
    (["GridSample"], 9, "the reference evaluator finds positions in float32; PyTorch agrees with ndserve"),
    (["HardSwish", "Gelu"], 9, "constants of the function's body are float32 in the reference evaluator"),
]


def rule(table, graph, fragment, arrays):
    """The first row that holds for a node of the fragment."""
    for node in fragment.nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for ops, condition, reason in table:
            if node.op_type in ops and condition(graph, node, attributes, arrays):
                return node.op_type, reason
    return None


# ------------------------------------------------------------------------------------------------------------- oracles

def model_of(graph, nodes, inputs, outputs, constants=()):
    """`inputs` are values; `outputs` are names or, where the types are known, values."""
    imports = [helper.make_opsetid("", graph.opset), helper.make_opsetid(ML, graph.ml_opset), helper.make_opsetid(MS, 1)]
    given = [helper.make_tensor_value_info(v.name, proto(v.dtype), shape_of(v)) for v in inputs]
    ends = [helper.make_tensor_value_info(v.name, proto(v.dtype), None) if isinstance(v, Value) else onnx.ValueInfoProto(name=v) for v in outputs]
    tensors = [numpy_helper.from_array(v.array, v.name) for v in constants]
    whole = helper.make_graph(nodes, "differential", given, ends, tensors)
    return helper.make_model(whole, opset_imports=imports, ir_version=8 if graph.opset < 19 else 10)


def shape_of(value):
    """Some dimensions are left open, by the name so that they are the same on every run."""
    return [None if (sum(value.name.encode()) + i) % 3 == 0 else d for i, d in enumerate(value.shape)]


def by_runtime(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def by_reference(model, feeds):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, feeds)]


def oracle(counts):
    def evaluate(graph, fragment, arrays):
        if found := rule(UNDECIDED, graph, fragment, arrays):
            counts["undecided: " + ": ".join(found)] += 1
            raise Rejected(found)
        values = [Value(v.name, a) for v, a in zip(fragment.inputs, arrays)]
        fixed = {v.name for v in graph.constants}
        constants = [v for v in values if v.name in fixed]
        values = [v for v in values if v.name not in fixed]
        model = model_of(graph, fragment.nodes, values, fragment.outputs, constants)
        feeds = {v.name: v.array for v in values}
        found = rule(REFERENCE, graph, fragment, arrays)
        try:
            if found:
                counts["reference: " + ": ".join(found)] += 1
                results = by_reference(model, feeds)
            else:
                try:
                    results = by_runtime(model, feeds)
                    fragment.oracle = "onnxruntime"
                except Exception as error:
                    # Only a missing kernel: what the runtime calls invalid is no valid graph.
                    if not any(text in str(error) for text in ("NOT_IMPLEMENTED", "not supported", "does not support")):
                        counts[f"refused: {fragment.ops}"] += 1
                        if os.environ.get("REFUSED"):
                            print(f"refused {fragment.ops} opset {graph.opset}: {str(error)[:300]}", flush=True)
                        raise
                    results = by_reference(model, feeds)
        except Exception as error:
            raise Rejected(str(error)) from error
        fragment.oracle = getattr(fragment, "oracle", "reference")
        if any(node.op_type in ops and graph.opset >= since for node in fragment.nodes for ops, since, _ in SHORT):
            fragment.digits = "float32"
        if not all(isinstance(a, np.ndarray) and (a.dtype.kind in "fiubOU") for a in results):
            raise Rejected("no tensors")
        return results

    return evaluate


# ------------------------------------------------------------------------------------------------------------- ndserve

class Failed(Exception):
    pass


def predict(binary, model, inputs, count, extra):
    """The outputs that ndserve computes."""
    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        folder = Path(folder)
        write_case(folder, model, inputs)
        (folder / "out").mkdir()
        command = [binary, "predict", "--model", folder / "model.onnx", "--inputs", folder, "--outputs", folder / "out", "--threads", "2"]
        done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise Failed(f"exit {done.returncode}: {done.stderr.strip()[-400:]}")
        return [numpy_helper.to_array(onnx.load_tensor(folder / "out" / f"output_{i}.pb")) for i in range(count)]


def write_case(folder, model, inputs, outputs=()):
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for kind, values in (("input", inputs), ("output", outputs)):
        for i, v in enumerate(values):
            (folder / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(v.array, v.name).SerializeToString())


def answers(binary, graphs, extra):
    """(graph, outputs or Failed) of each graph: of all at once, or halved as long as it fails."""
    model = merged(graphs)
    outputs = [v for g in graphs for v in g.outputs]
    try:
        results = iter(predict(binary, model, [v for g in graphs for v in g.inputs], len(outputs), extra))
        return [(g, [next(results) for _ in g.outputs]) for g in graphs]
    except (Failed, subprocess.TimeoutExpired) as error:
        if len(graphs) == 1:
            return [(graphs[0], error)]
        half = len(graphs) // 2
        return answers(binary, graphs[:half], extra) + answers(binary, graphs[half:], extra)


def merged(graphs):
    nodes = [node for g in graphs for fragment in g.fragments for node in fragment.nodes]
    every = lambda what: [v for g in graphs for v in getattr(g, what)]
    return model_of(graphs[0], nodes, every("inputs"), every("outputs"), every("constants"))


# ---------------------------------------------------------------------------------------------------------- comparison

def difference(expected, actual, exact, slack=None, digits=None):
    """What is different, in words; None if nothing is. `slack` is what noise in the operands does to each element."""
    if kind_of(expected.dtype) != kind_of(actual.dtype) or expected.shape != actual.shape:
        return f"{actual.dtype}{actual.shape} instead of {expected.dtype}{expected.shape}"
    if expected.dtype.kind in "iu" and not exact:
        # Interpolated, then rounded: a half may go either way.
        same = np.abs(expected.astype(np.int64) - actual.astype(np.int64)) <= 1
    elif expected.dtype.kind not in "f":
        same = expected.astype(str) == actual.astype(str) if expected.dtype.kind in "OU" else expected == actual
    else:
        with np.errstate(all="ignore"):
            e, a = expected.astype(np.float64), actual.astype(np.float64)
            relative, absolute = (0, 0) if exact else TOLERANCES[digits or expected.dtype.name]
            finite = np.abs(e[np.isfinite(e)])
            near = np.abs(e - a) <= relative * np.abs(e) + absolute * max(1, finite.max(initial=0)) + (0 if slack is None else slack)
            same = (e == a) | (np.isnan(e) & np.isnan(a)) | (near & np.isfinite(e) & np.isfinite(a))
            if slack is not None:
                same |= np.isinf(slack) | np.isnan(slack)
    if same.all():
        return None
    at = tuple(int(i[0]) for i in np.nonzero(~np.atleast_1d(same)))
    pair = np.atleast_1d(actual)[at], np.atleast_1d(expected)[at]
    return f"{int((~same).sum())} of {same.size}, at {at}: {pair[0]!r} instead of {pair[1]!r}"


def first_difference(binary, graph, extra):
    """The fragment that is wrong although its operands are right."""
    arrays = {v.name: v for v in graph.inputs + graph.constants + graph.computed}
    for fragment in graph.fragments:
        outputs = [arrays[name] for name in fragment.outputs]
        fixed = [v for v in fragment.inputs if v in graph.constants]
        given = [v for v in fragment.inputs if v not in graph.constants]
        model = model_of(graph, fragment.nodes, given, outputs, fixed)
        try:
            results = predict(binary, model, given, len(outputs), extra)
        except Failed as error:
            return fragment, str(error), (model, given, outputs)
        for value, actual in zip(outputs, results):
            exact = value.exact or (fragment.exact and value.dtype.kind == "f")
            if found := difference(value.array, actual, exact, digits=value.digits):
                return fragment, found, (model, given, outputs)
    return None


def noise_spread(graph, evaluate):
    """How far each output moves if every inexact value is disturbed by about what its type cannot tell."""
    rng = np.random.default_rng(7)
    spread = {v.name: np.zeros(v.shape) for v in graph.outputs}
    right = {v.name: v for v in graph.inputs + graph.constants + graph.computed}
    for _ in range(6):
        disturbed = {v.name: v.array for v in graph.inputs + graph.constants}
        for fragment in graph.fragments:
            try:
                results = evaluate(graph, fragment, [disturbed[v.name] for v in fragment.inputs])
            except Rejected:
                results = [right[name].array for name in fragment.outputs]
            for name, array in zip(fragment.outputs, results):
                if array.dtype.kind == "f" and not right[name].exact:
                    with np.errstate(all="ignore"):
                        factor = 1 + NOISE[right[name].digits or array.dtype.name] * rng.uniform(-1, 1, array.shape)
                        shift = NOISE[right[name].digits or array.dtype.name] * rng.uniform(-0.1, 0.1, array.shape)
                        array = np.asarray(array * factor + shift).astype(array.dtype)
                disturbed[name] = array
        for name in spread:
            with np.errstate(all="ignore"):
                moved = np.abs(disturbed[name].astype(np.float64) - right[name].array.astype(np.float64)) if right[name].dtype.kind == "f" else 0
            # Infinity minus itself is NaN, but has not moved.
            both = right[name].array
            same = (disturbed[name] == both) | ((both != both) & (disturbed[name] != disturbed[name]))
            spread[name] = np.maximum(spread[name], np.where(same, 0, moved))
    return spread


def examine(options, graph, mode, result, evaluate):
    """None, or the operators, text and smallest case (model, inputs, outputs) of the difference."""
    extra = MODES[mode]
    if isinstance(result, Exception):
        found = str(result)
    else:
        pairs = list(zip(graph.outputs, result))
        found = next((text for v, actual in pairs if (text := difference(v.array, actual, v.exact, digits=v.digits))), None)
        if not found:
            return None
    if alone := first_difference(options.binary, graph, extra):
        fragment, text, case = alone
        return f"{fragment.ops} ({fragment.oracle})", text, case
    if not isinstance(result, Exception):
        spread = noise_spread(graph, evaluate)
        if not any(difference(v.array, actual, v.exact, 10 * spread[v.name], v.digits) for v, actual in pairs):
            return "rounding", found, None
    return "whole graph: " + " ".join(f.ops for f in graph.fragments), found, (merged([graph]), graph.inputs, graph.outputs)


# ---------------------------------------------------------------------------------------------------------------- batches

def batch(job):
    """The graphs of one batch, compared: counts, and (kind, text) per difference."""
    options, number = job
    rng = np.random.default_rng([options.seed, number])
    counts = collections.Counter()
    evaluate = oracle(counts)
    opset, ml_opset = int(rng.integers(9, 25)), 3
    graphs, differences = [], []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        while len(graphs) < options.batch:
            graph = Graph(f"g{number}_{len(graphs)}_", rng, opset, ml_opset, evaluate)
            if grow(graph, options.families):
                graphs.append(graph)
    quiet = oracle(collections.Counter())
    for mode, extra in MODES.items():
        for graph, result in answers(options.binary, graphs, extra):
            found = examine(options, graph, mode, result, quiet)
            if not found:
                continue
            if found[0] == "rounding":
                counts["explained: rounding, amplified by what follows"] += 1
                continue
            differences.append((f"{found[0]}", f"{mode} opset {opset} {graph.prefix} {found[1]}"))
            if options.keep:
                folder = Path(options.keep) / f"{graph.prefix}{mode}"
                folder.mkdir(parents=True, exist_ok=True)
                write_case(folder, *found[2])
    counts["graphs"] = len(graphs)
    for graph in graphs:
        for fragment in graph.fragments:
            counts["by " + fragment.oracle] += 1
            for node in fragment.nodes:
                counts["op " + node.op_type] += 1
    return counts, differences


def compared(jobs, width):
    """What `batch` says of each job, in a process of its own, `width` at a time.

    An oracle may abort its process, which a pool would wait for without end. A batch whose process died runs once more; one that
    dies again counts as a difference.
    """
    waiting, running, died = list(reversed(jobs)), {}, collections.Counter()
    while waiting or running:
        while waiting and len(running) < width:
            receive, send = multiprocessing.Pipe(duplex=False)
            job = waiting.pop()
            process = multiprocessing.Process(target=lambda send=send, job=job: send.send(batch(job)))
            process.start()
            send.close()
            running[receive] = process, job
        for receive in multiprocessing.connection.wait(list(running)):
            process, job = running.pop(receive)
            try:
                yield receive.recv()
            except EOFError:
                process.join()
                died[job[1]] += 1
                if died[job[1]] == 1:
                    waiting.append(job)
                else:
                    yield collections.Counter(), [("process", f"batch {job[1]} died twice, with {process.exitcode}")]
            process.join()
    for number in sorted(died):
        print(f"batch {number}: an oracle's process died {died[number]} times", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/ndserve")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20000, help="graphs")
    parser.add_argument("--batch", type=int, default=40, help="graphs per model")
    parser.add_argument("--first", type=int, default=0, help="number of the first batch")
    parser.add_argument("--families", default=",".join(FAMILIES), help="of: %(default)s")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", help="folder for the graphs that differ")
    options = parser.parse_args()
    options.families = options.families.split(",")
    started, counts, differences = time.time(), collections.Counter(), []
    jobs = [(options, options.first + i) for i in range(-(-options.count // options.batch))]
    for done, (more, found) in enumerate(compared(jobs, options.jobs), 1):
        counts += more
        differences += found
        for kind, text in found:
            print(f"{kind}: {text}", flush=True)
        if done % 50 == 0:
            print(f"… {counts['graphs']} graphs, {len(differences)} differences, {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    operators = {key[3:]: n for key, n in counts.items() if key.startswith("op ")}
    print(f"\nseed {options.seed}, {counts['graphs']} graphs, {sum(operators.values())} nodes of {len(operators)} operators, opsets 9 to 24")
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}; {time.time() - started:.0f} s")
    for key in sorted(counts):
        if not key.startswith("op ") and key != "graphs":
            print(f"{counts[key]:7} {key}")
    print("operators:", " ".join(f"{name}:{n}" for name, n in sorted(operators.items())))
    kinds = collections.Counter(kind for kind, _ in differences)
    print(f"{len(differences)} unexplained differences")
    for kind, n in kinds.most_common():
        print(f"{n:7} {kind}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
