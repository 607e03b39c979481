"""The data of the cells: what ships with scikit-learn, and class-balanced subsets of `.npz` files, cached.

A subset is drawn by the cell's seed, so that the spread over the seeds holds that of the data too; all methods of a
seed see the same samples. Files keep their stored numbers: the task scales images of bytes to [-1, 1] and series to
mean 0 and deviation 1 over the training samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dimat.errors import UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of the data folder and how much of it is used; None is all of it."""

    file: str
    num_train: int | None
    num_test: int | None
    options: tuple[str, ...] = ()


BUILT_IN = ("digits",)
FILES: Mapping[str, DataFile] = {
    "mnist": DataFile("mnist.npz", 2000, 500),
    "fashion_mnist": DataFile("fashion_mnist.npz", 2000, 500),
    "cifar10": DataFile("cifar10_20k.npz", 4000, 1000),
    "har": DataFile("har.npz", None, 1000, ("task.options.kind=series",)),  # people differ in how much they did
}


def missing(dataset: str, folder: Path) -> str | None:
    """Why the data cannot be had, or None."""
    if dataset in BUILT_IN:
        return None
    path = folder / FILES[dataset].file
    return None if path.is_file() else f"no file {FILES[dataset].file} in the data folder {str(folder)!r}"


def task_settings(dataset: str, seed: int, folder: Path, cache: Path) -> tuple[str, ...]:
    """The config settings of a data set; its subset is made when it is first asked for.

    Raises:
        UsageError: the file is not in the data folder, or does not hold enough samples of each class.
    """
    if dataset in BUILT_IN:
        return (f"task.name={dataset}",)
    if why := missing(dataset, folder):
        raise UsageError(why, hint="--data FOLDER")
    spec = FILES[dataset]
    path = (cache / "data" / f"{dataset}-{spec.num_train or 'all'}-{spec.num_test or 'all'}-s{seed}.npz").absolute()
    if not path.is_file():
        write_subset(folder / spec.file, path, spec, seed)
    return ("task.name=arrays", f"task.data={path}", *spec.options)


def write_subset(source: Path, target: Path, spec: DataFile, seed: int) -> None:
    """Cut `spec`'s numbers of samples out of `source`, the arrays that go with them too.

    Raises:
        UsageError: there are fewer samples of a class than its share.
    """
    arrays: dict[str, Array] = {}
    with np.load(source, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    for split, num in (("train", spec.num_train), ("test", spec.num_test)):
        labels = held[f"y_{split}"]
        rows = np.arange(len(labels)) if num is None else balanced(labels, num, seed)
        for name, array in held.items():
            if name.endswith(f"_{split}"):
                arrays[name] = array[rows]
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.stem}.{os.getpid()}.npz")
    np.savez(beside, allow_pickle=False, **arrays)
    beside.replace(target)


def balanced(labels: Array, num: int, seed: int) -> npt.NDArray[np.int64]:
    """`num` sorted row numbers, each class equally often; the first classes once more where it does not divide.

    >>> labels = np.array([0, 1, 0, 1, 1, 1])
    >>> np.bincount(labels[balanced(labels, 4, seed=0)]).tolist()
    [2, 2]

    Raises:
        UsageError: a class has fewer samples than its share.
    """
    random = np.random.default_rng([seed, num])
    classes = np.unique(labels)
    rows: list[npt.NDArray[np.int64]] = []
    for place, value in enumerate(classes):
        members = np.flatnonzero(labels == value)
        wanted = num // len(classes) + (place < num % len(classes))
        if len(members) < wanted:
            raise UsageError(f"class {value} has {len(members)} samples, and a balanced {num} take {wanted} of it")
        rows.append(random.permutation(members)[:wanted])
    return np.sort(np.concatenate(rows))
