"""`digits`: 1797 handwritten digits of 8×8 pixels that ship with scikit-learn; the data of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dimat.tasks.partition import stratified_split
from dimat.tasks.scaling import Scaling
from dimat.tasks.supervised import Dataset, SupervisedTask

TEST_SHARE = 0.2


class DigitsTask(SupervisedTask):
    """Ten classes, about 1440 samples to train and 360 to test on, images (1, 8, 8) scaled from 0..16 to [-1, 1].

    The split is the same for every seed, so accuracies of different runs compare.

    >>> task = DigitsTask(partition="iid")
    >>> len(task.data(agent=0, num_agents=5, seed=0)), task.num_samples
    (9, 288)
    """

    def __init__(
        self,
        *,
        model: str | Mapping[str, Any] = "cnn",
        partition: str | Mapping[str, Any] = "iid",
        batch_size: int = 32,
    ) -> None:
        super().__init__(model=model, partition=partition, batch_size=batch_size)

    def dataset(self) -> Dataset:
        """The digits, read once per process."""
        return load_digits()


@lru_cache(maxsize=1)
def load_digits() -> Dataset:
    """Scikit-learn's digits with a fixed split, 20 % of each class for testing."""
    # scikit-learn takes a second to import, and the other tasks have no need of it.
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy(x.astype(np.uint8).reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(y.astype(np.int64))
    train, test = (torch.from_numpy(part) for part in stratified_split(y, TEST_SHARE))
    names = tuple(str(digit) for digit in range(10))
    return Dataset(images[train], labels[train], images[test], labels[test], Scaling.symmetric(16), names)
