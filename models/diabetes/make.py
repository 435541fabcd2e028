"""Trains the disease progression regressor, exports it and records golden answers.

.venv/bin/python models/diabetes/make.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import model_folder as folder
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from torch import nn

HERE = folder.folder_of(__file__)
SEED = 1
HELD_OUT_ROWS = 110  # a quarter
EPOCHS = 60


class Diabetes(nn.Module):
    """Features as scikit-learn scales them in, progression in its own unit out; `standard` is what training sees."""

    def __init__(self, feature_std, target_mean, target_std):
        super().__init__()
        self.register_buffer("feature_std", torch.from_numpy(feature_std))
        self.target_mean = target_mean
        self.target_std = target_std
        self.layers = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 1))

    def standard(self, features):
        return self.layers(features / self.feature_std)

    def forward(self, features):
        return self.standard(features) * self.target_std + self.target_mean


def main():
    folder.reproducible(SEED)
    data = load_diabetes()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data.astype(np.float32),
        data.target.astype(np.float32)[:, None],
        test_size=HELD_OUT_ROWS,
        random_state=SEED,
    )
    # Of the training rows only. The features are centred already, but about 0.05 wide.
    mean, std = float(train_y.mean(dtype=np.float64)), float(train_y.std(dtype=np.float64))
    network = Diabetes(train_x.std(0, dtype=np.float64).astype(np.float32), mean, std)
    standard_y = ((train_y - mean) / std).astype(np.float32)
    folder.train(network, network.standard, train_x, standard_y, nn.MSELoss(), EPOCHS, weight_decay=1e-1)

    path = folder.export(network, train_x[:2], "features", "progression", HERE)
    difference = folder.check_against_torch(path, network, test_x)
    predicted = folder.answer(path, test_x)
    r2 = r2_score(test_y, predicted)
    ridge = RidgeCV(np.logspace(-4, 1, 20)).fit(train_x, train_y.ravel())
    r2_of_ridge = r2_score(test_y, ridge.predict(test_x))
    off, off_of_mean = np.abs(predicted - test_y).mean(), np.abs(mean - test_y).mean()
    folder.write_golden(path, test_x[: folder.GOLDEN_ROWS])
    error = f"mean absolute error {off:.1f} ({off_of_mean:.1f} for always answering the mean)"
    metric = f"R² {r2:.3f} ({r2_of_ridge:.3f} for ridge regression), {error}, {len(test_y)} rows"
    folder.fill_readme(path, metric, test_x[0])
    print(f"largest difference to torch {difference:.1e}")


if __name__ == "__main__":
    main()
