"""What scripts that write fixtures share: reproducible arithmetic, sessions of ONNX Runtime, tensors as files.

Import this module before torch: it fixes the arithmetic torch uses, and torch reads that when it is loaded.
"""

import os
from pathlib import Path

# The same bytes on every run: one thread, no kernels chosen by instruction set.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper


def reproducible(seed):
    """Call first: two runs then draw the same weights."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # its kernels sum in an order chosen by instruction set
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    np.random.seed(seed)


def drop_stack_traces(model):
    """Removes where each node was written: the exporter records file paths of the machine it ran on."""
    for owner in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        kept = [p for p in owner.metadata_props if not p.key.endswith("stack_trace")]
        del owner.metadata_props[:]
        owner.metadata_props.extend(kept)


def session(path):
    """ONNX Runtime over a file, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_tensor(path, array, name):
    path.write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString(deterministic=True))


def operators(model):
    """Sorted (domain, operator, opset) of a model, subgraphs and local functions included; "" is ONNX's own domain."""
    opsets = {o.domain: o.version for o in model.opset_import}
    local = {(f.domain, f.name) for f in model.functions}
    found = set()

    def walk(nodes, opsets):
        for node in nodes:
            if (node.domain, node.op_type) not in local:
                found.add((node.domain, node.op_type, opsets[node.domain]))
            for attribute in node.attribute:
                for graph in [attribute.g, *attribute.graphs]:
                    walk(graph.node, opsets)

    walk(model.graph.node, opsets)
    for function in model.functions:
        walk(function.node, {o.domain: o.version for o in function.opset_import})
    return sorted(found)


def folder_of(script):
    return Path(script).resolve().parent
