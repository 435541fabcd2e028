"""Trains the tumour classifier, exports it and records golden answers.

.venv/bin/python models/breast-cancer/make.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import model_folder as folder
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn

HERE = folder.folder_of(__file__)
SEED = 1
HELD_OUT_ROWS = 142  # a quarter
EPOCHS = 100


class BreastCancer(nn.Module):
    """Raw measurements in, probabilities of malignant and benign out; `logits` is what training sees."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))

    def logits(self, features):
        return self.layers((features - self.mean) / self.std)

    def forward(self, features):
        return torch.softmax(self.logits(features), dim=1)


def main():
    folder.reproducible(SEED)
    data = load_breast_cancer()
    assert list(data.target_names) == ["malignant", "benign"]  # the order of model.toml's labels
    train_x, test_x, train_y, test_y = train_test_split(
        data.data.astype(np.float32),
        data.target.astype(np.int64),
        test_size=HELD_OUT_ROWS,
        stratify=data.target,
        random_state=SEED,
    )
    # Of the training rows only: the held-out rows must not shape the model. In f64, since one column is in thousands.
    mean = train_x.mean(0, dtype=np.float64).astype(np.float32)
    std = train_x.std(0, dtype=np.float64).astype(np.float32)
    network = BreastCancer(mean, std)
    loss = nn.CrossEntropyLoss()  # has its own softmax, so it sees the logits
    folder.train(network, network.logits, train_x, train_y, loss, EPOCHS, weight_decay=1e-2)

    path = folder.export(network, train_x[:2], "features", "probabilities", HERE)
    difference = folder.check_against_torch(path, network, test_x)
    right = int((folder.answer(path, test_x).argmax(1) == test_y).sum())
    folder.write_golden(path, test_x[: folder.GOLDEN_ROWS])
    folder.fill_readme(path, f"accuracy {right / len(test_y):.4f} ({right} of {len(test_y)})", test_x[0])
    print(f"largest difference to torch {difference:.1e}")


if __name__ == "__main__":
    main()
