"""Trains the digit classifier, exports it, records golden answers and the held-out images.

.venv/bin/python models/digits/make.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import model_folder as folder
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = folder.folder_of(__file__)
SEED = 1
HELD_OUT_ROWS = 450
EPOCHS = 40


class Digits(nn.Module):
    """Raw pixels 0..16 in, probabilities out; `logits` is what training sees."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 10),
        )

    def logits(self, image):
        return self.layers(image / 16.0)

    def forward(self, image):
        return torch.softmax(self.logits(image), dim=1)


def shift(images):
    """Moves each image by -1, 0 or 1 pixel along both axes, with empty pixels moved in: as if written off centre."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    out = torch.empty_like(images)
    for i, (down, right) in enumerate(torch.randint(0, 3, (len(images), 2)).tolist()):
        out[i] = padded[i, :, down : down + 8, right : right + 8]
    return out


def main():
    folder.reproducible(SEED)
    data = load_digits()
    images = data.images.astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=HELD_OUT_ROWS, stratify=labels, random_state=SEED
    )
    network = Digits()
    loss = nn.CrossEntropyLoss()  # has its own softmax, so it sees the logits
    folder.train(network, network.logits, train_x, train_y, loss, EPOCHS, augment=shift)

    path = folder.export(network, train_x[:2], "image", "probabilities", HERE)
    difference = folder.check_against_torch(path, network, test_x)
    right = int((folder.answer(path, test_x).argmax(1) == test_y).sum())
    folder.write_golden(path, test_x[: folder.GOLDEN_ROWS])
    np.savez_compressed(HERE / "held-out.npz", image=test_x, label=test_y)
    folder.fill_readme(path, f"accuracy {right / len(test_y):.4f} ({right} of {len(test_y)})", test_x[0])
    print(f"largest difference to torch {difference:.1e}")


if __name__ == "__main__":
    main()
