"""Training beside PyTorch: rows a second and peak memory of three networks, interleaved, on the same threads.

scripts/peers/training.py BINARY [--threads 2] [--rounds 3] [NETWORK ...]
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("networks", nargs="*", default=["digits", "mlp", "resnet18"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--torch", help="one run of PyTorch, for the script itself")
args = parser.parse_args()

CONV = dict(kind="conv", kernel=3, padding="same", activation="relu")
POOL = dict(kind="max_pool", kernel=2)


def block(channels, stride):
    conv = dict(kind="conv", filters=channels, kernel=3, padding=1, bias=False)
    norm, relu = dict(kind="batch_norm"), dict(kind="activation", function="relu")
    shortcut = [dict(conv, kernel=1, padding=0, stride=stride), norm] if stride > 1 else []
    layers = [dict(conv, stride=stride), norm, relu, conv, norm]
    return [dict(kind="residual", layers=layers, shortcut=shortcut), relu]


RESNET = [dict(kind="conv", filters=64, kernel=3, padding=1, bias=False), dict(kind="batch_norm"), dict(kind="activation", function="relu")]
for channels, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
    RESNET += block(channels, stride)
RESNET += [dict(kind="global_average_pool")]
DENSE = dict(kind="dense", activation="relu")
# Shape of a row, rows, rows of a step, epochs, layers.
NETWORKS = {
    "digits": ([1, 8, 8], 1344, 32, 6, [dict(CONV, filters=32), POOL, dict(CONV, filters=64), POOL, dict(CONV, filters=128),
                                       dict(kind="flatten"), dict(DENSE, units=256), dict(kind="dropout", rate=0.5)]),
    "mlp": ([784], 12800, 128, 4, [dict(DENSE, units=512), dict(DENSE, units=256)]),
    "resnet18": ([3, 32, 32], 256, 64, 2, RESNET),
}


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def data(name):
    shape, rows, *_ = NETWORKS[name]
    random = np.random.default_rng(1)
    return random.standard_normal((rows, *shape), np.float32), random.integers(0, 10, rows)


def ours(name, folder):
    shape, rows, batch, epochs, layers = NETWORKS[name]
    x, y = data(name)
    np.savez(folder / "data.npz", x=x, y=y)
    text = f'layer = {toml(layers)}\n[data]\npath = "data.npz"\ntarget = "y"\ntask = "classify"\n[train]\n'
    text += f"epochs = {epochs}\nbatch = {batch}\nlearning_rate = 0.001\n"
    (folder / "bench.toml").write_text(text)
    command = [args.binary, "train", str(folder / "bench.toml"), "--threads", str(args.threads)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = child.stdout.read(), child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, err
    return float(re.search(r"(\d+) rows a second", out)[1]), used.ru_maxrss / 1024


def theirs(name):
    command = [sys.executable, __file__, args.binary, "--torch", name, "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(json.loads(out))


def torch_run(name):
    import time

    import torch
    from torch import nn

    torch.set_num_threads(args.threads)
    shape, rows, batch, epochs, layers = NETWORKS[name]

    class Residual(nn.Module):
        def __init__(self, body, shortcut):
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x):
            return self.body(x) + self.shortcut(x)

    def build(layers, shape):
        found = []
        for layer in layers:
            kind = layer["kind"]
            if kind == "conv":
                padding = layer["kernel"] // 2 if layer["padding"] == "same" else layer["padding"]
                stride = layer.get("stride", 1)
                found.append(nn.Conv2d(shape[0], layer["filters"], layer["kernel"], stride, padding, bias=layer.get("bias", True)))
                shape = [layer["filters"]] + [(n + 2 * padding - layer["kernel"]) // stride + 1 for n in shape[1:]]
            elif kind == "dense":
                found.append(nn.Linear(shape[0], layer["units"]))
                shape = [layer["units"]]
            elif kind == "residual":
                body, after = build(layer["layers"], shape)
                found.append(Residual(body, build(layer["shortcut"], shape)[0]))
                shape = after
            elif kind == "max_pool":
                found.append(nn.MaxPool2d(2))
                shape = [shape[0]] + [n // 2 for n in shape[1:]]
            elif kind == "global_average_pool":
                found += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
                shape = shape[:1]
            elif kind == "flatten":
                found.append(nn.Flatten())
                shape = [int(np.prod(shape))]
            elif kind == "batch_norm":
                found.append(nn.BatchNorm2d(shape[0]))
            elif kind == "dropout":
                found.append(nn.Dropout(layer["rate"]))
            if kind == "activation" or layer.get("activation"):
                found.append(nn.ReLU())
        return nn.Sequential(*found), shape

    body, after = build(layers, shape)
    net = nn.Sequential(body, nn.Linear(after[0], 10))
    x, y = (torch.from_numpy(a) for a in data(name))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    net.train()
    start = time.perf_counter()
    for _ in range(epochs):
        for picked in torch.randperm(rows).split(batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[picked]), y[picked])
            loss.backward()
            optimizer.step()
            loss.item()
    print(json.dumps([epochs * rows / (time.perf_counter() - start), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


if args.torch:
    torch_run(args.torch)
    sys.exit()
print("| network | ndserve, rows/s | PyTorch, rows/s | ratio | ndserve, MB | PyTorch, MB | ratio |\n|---|---|---|---|---|---|---|")
for name in args.networks:
    with tempfile.TemporaryDirectory() as folder:
        found = [(ours(name, Path(folder)), theirs(name)) for _ in range(args.rounds)]
    middle = lambda side, at: statistics.median(pair[side][at] for pair in found)
    speed, memory = [middle(0, 0), middle(1, 0)], [middle(0, 1), middle(1, 1)]
    print(f"| {name} | {speed[0]:.0f} | {speed[1]:.0f} | {speed[0] / speed[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} |", flush=True)
