"""What every models/<name>/make.py shares: reproducible training, export, golden files, README figures.

Import this module before torch: it fixes the arithmetic torch uses, and torch reads that when it is loaded.
"""

import json
import os
import platform
import re
import warnings
from pathlib import Path

# The same bytes on every run: one thread, no kernels chosen by instruction set. Training takes seconds, so the
# speed lost does not matter.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

OPSET = 20
GOLDEN_ROWS = 8


def reproducible(seed):
    """Call first in make.py: two runs then train the same weights."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # its kernels sum in an order chosen by instruction set
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    np.random.seed(seed)


def train(
    network, forward, inputs, targets, loss, epochs, batch_rows=32, learning_rate=1e-3, weight_decay=1e-4, augment=None
):
    """AdamW with a one-cycle learning rate over shuffled mini-batches; leaves the network in eval mode.

    `forward` is what the loss sees: the network itself, or a method of it that stops before the softmax.
    """
    inputs, targets = torch.from_numpy(inputs), torch.from_numpy(targets)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    batches = -(-len(inputs) // batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=learning_rate, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(batch_rows):
            batch = augment(inputs[rows]) if augment else inputs[rows]
            optimiser.zero_grad()
            loss(forward(batch), targets[rows]).backward()
            optimiser.step()
            schedule.step()
    network.eval()


def drop_stack_traces(model):
    """Removes where each node was written: the exporter records file paths of the machine it ran on."""
    for owner in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        kept = [p for p in owner.metadata_props if not p.key.endswith("stack_trace")]
        del owner.metadata_props[:]
        owner.metadata_props.extend(kept)


def export(network, example, input_name, output_name, folder):
    """Writes <folder>/1/model.onnx, one file with a free batch dimension, and checks it. Returns its path."""
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.from_numpy(example),),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
        )
    model = program.model_proto
    drop_stack_traces(model)
    onnx.checker.check_model(model, full_check=True)
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch", value
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def session(path):
    """ONNX Runtime over a file, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answer(path, inputs):
    """The single output of a file with a single input."""
    runtime = session(path)
    (output,) = runtime.run(None, {runtime.get_inputs()[0].name: inputs})
    return output


def check_against_torch(path, network, inputs):
    """The largest difference between the exported file and the network it came from; an error if it is not small."""
    with torch.no_grad():
        want = network(torch.from_numpy(inputs)).numpy()
    got = answer(path, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    return float(np.abs(got - want).max())


def write_tensor(path, array, name):
    path.write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString(deterministic=True))


def write_golden(path, inputs):
    """Records `inputs` and what ONNX Runtime answers beside the model. Returns the answer."""
    folder = path.parent.parent / "golden"
    folder.mkdir(exist_ok=True)
    graph = onnx.load(path).graph
    outputs = answer(path, inputs)
    write_tensor(folder / "input_0.pb", inputs, graph.input[0].name)
    write_tensor(folder / "output_0.pb", outputs, graph.output[0].name)
    return outputs


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


def versions():
    """What the file was made with, as one line."""
    import onnxscript
    import sklearn

    modules = [np, sklearn, torch, onnx, onnxscript, onnxruntime]
    parts = [f"Python {platform.python_version()}"]
    parts += [f"{m.__name__} {m.__version__.split('+')[0]}" for m in modules]
    return ", ".join(parts)


def request_body(path, row):
    """An Open Inference Protocol request for one row, as the README shows it."""
    name = onnx.load(path).graph.input[0].name
    data = [round(float(v), 6) for v in row.ravel()]
    data = [int(v) if v == int(v) else v for v in data]
    return json.dumps(
        {"inputs": [{"name": name, "shape": [1, *row.shape], "datatype": "FP32", "data": data}]}
    )


def fill_readme(path, metric, row):
    """Replaces what lies between README.md's two `measured` marks by the figures of this run."""
    model = onnx.load(path)
    folder = path.parent.parent
    body = request_body(path, row)
    sent = np.array(json.loads(body)["inputs"][0]["data"], np.float32).reshape(1, *row.shape)
    answered = [float(f"{v:.4g}") for v in answer(path, sent).ravel()]
    names = ", ".join(f"{d + '.' if d else ''}{op}" for d, op, _ in operators(model))
    measured = f"""| | |
|---|---|
| held-out metric | {metric} |
| `1/model.onnx` | {path.stat().st_size:,} bytes, IR {model.ir_version}, opset {model.opset_import[0].version} |
| operators | {names} |
| made with | {versions()} |

An example request, `POST /v2/models/{folder.name}/infer`:

```json
{body}
```

ONNX Runtime's answer to it: `{answered}`
"""
    readme = folder / "README.md"
    text, count = re.subn(
        r"(<!-- measured: .*? -->\n).*?(<!-- end -->)",
        lambda m: m[1] + measured + m[2],
        readme.read_text(),
        flags=re.S,
    )
    assert count == 1, f"{readme}: no `measured` marks"
    readme.write_text(text)
    print(f"{folder.name}: {metric}; {path.stat().st_size:,} bytes; {names}")


def folder_of(script):
    return Path(script).resolve().parent
