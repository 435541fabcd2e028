"""Trains the two-feature classifier, exports it and records golden answers.

.venv/bin/python models/two-features/make.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import model_folder as folder
import numpy as np
from torch import nn

HERE = folder.folder_of(__file__)
SEED = 1
EPOCHS = 600

# All the data there is: x1, x2 and the class.
ROWS = np.array([[1, 2, 0], [2, 3, 0], [3, 4, 1], [4, 5, 1], [5, 6, 1]], np.float32)
# Between and beyond them, recorded too: what the model says where nothing was learnt.
MORE_ROWS = np.array([[0, 0], [2.5, 3.5], [10, -1]], np.float32)


def main():
    folder.reproducible(SEED)
    x, y = ROWS[:, :2].copy(), ROWS[:, 2:].copy()
    network = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    folder.train(network, network, x, y, nn.BCELoss(), EPOCHS, batch_rows=len(x), learning_rate=0.05)

    path = folder.export(network, x, "x", "probability", HERE)
    difference = folder.check_against_torch(path, network, np.concatenate([x, MORE_ROWS]))
    answered = folder.answer(path, x)
    right = int(((answered > 0.5) == (y > 0.5)).sum())
    margin = float(np.abs(answered - 0.5).min()) + 0.5
    folder.write_golden(path, np.concatenate([x, MORE_ROWS]))
    least = f"the true class never below probability {margin:.3f}"
    metric = f"none: the five rows are all the data. {right} of 5 right, {least}"
    folder.fill_readme(path, metric, x[0])
    print(f"answers {answered.ravel()}; largest difference to torch {difference:.1e}")
    assert right == len(y) and margin > 0.9


if __name__ == "__main__":
    main()
