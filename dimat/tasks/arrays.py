"""`arrays`: any `.npz` file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dimat import plugins
from dimat.errors import TaskError
from dimat.tasks.archive import Archive, read_archive
from dimat.tasks.partition import balanced_subset
from dimat.tasks.scaling import Scaling
from dimat.tasks.supervised import Dataset, SupervisedTask

SCALES = ("auto", "unit", "standard", "none")


class ArraysTask(SupervisedTask):
    """Images, series or tables from a file.

    Args:
        data: path of the `.npz`: samples (N, ...) of uint8, float16, float32 or float64 and integer labels (N,).
        model: `cnn` reads images and series, `mlp` everything, `resnet20` and `vgg16_bn` images.
        partition: as in `SupervisedTask`; `column` names an array of the file with one value per training sample.
        batch_size: training samples per step.
        kind: `images` (N, H, W) or (N, H, W, channels), `series` (N, channels, length), `table` (N, features). By
            default from the array: two dimensions are a table, four are images, three are images when uint8 and
            series when float.
        scale: `unit` takes bytes 0..255 to [-1, 1]; `standard` gives each channel or feature mean 0 and deviation 1
            over the training samples; `none` only makes float32. `auto` is `unit` for images of bytes, else `standard`.
        train_limit: use this many training samples, classes as equal as they can be.
        test_limit: the same for testing.

    Raises:
        TaskError: an option out of range; what is wrong with the file is said at its first use.
    """

    def __init__(
        self,
        *,
        data: str | None = None,
        model: str | Mapping[str, Any] = "cnn",
        partition: str | Mapping[str, Any] = "iid",
        batch_size: int = 32,
        kind: str | None = None,
        scale: str = "auto",
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(model=model, partition=partition, batch_size=batch_size)
        if not isinstance(data, str | os.PathLike) or not str(data):
            raise TaskError(
                f"task arrays needs the path of an .npz file, {data!r} was given",
                hint="for example -s task.data=mnist.npz",
            )
        if scale not in SCALES:
            raise TaskError(plugins.unknown("scale", str(scale), SCALES))
        for name, limit in (("train_limit", train_limit), ("test_limit", test_limit)):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise TaskError(f"{name} is a whole number of at least 1, {limit!r} was given")
        self._path = Path(data)
        self._kind = kind
        self._scale = scale
        self._limits = (train_limit, test_limit)

    def dataset(self) -> Dataset:
        """The file's samples, read once per process as long as the file stays the same."""
        column = self._partition.column if self._partition.scheme == "column" else None
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size)
        except OSError:
            version = (0, 0)  # read_archive says what is wrong with the path
        return _load(self._path.absolute(), version, self._kind, self._scale, self._limits, column)


# Agents simulated in one process share one copy. Two: a run and whatever is compared with it.
@lru_cache(maxsize=2)
def _load(
    path: Path,
    version: tuple[int, int],
    kind: str | None,
    scale: str,
    limits: tuple[int | None, int | None],
    column: str | None,
) -> Dataset:
    del version  # only part of the cache's key: a file that was rewritten is read again
    archive = read_archive(path, kind=kind, column=column)
    x_train, y_train, rows = _limited(archive.x_train, archive.y_train, limits[0])
    x_test, y_test, _ = _limited(archive.x_test, archive.y_test, limits[1])
    columns = {} if archive.column is None or column is None else {column: archive.column[rows]}
    scaling = _scaling(archive, x_train, scale)
    return Dataset(x_train, y_train, x_test, y_test, scaling, archive.class_names, columns)


def _limited(x: torch.Tensor, y: torch.Tensor, limit: int | None) -> tuple[torch.Tensor, torch.Tensor, Any]:
    if limit is None or limit >= len(y):
        return x, y, slice(None)
    rows = balanced_subset(y.numpy(), limit)
    chosen = torch.from_numpy(rows)
    return x[chosen], y[chosen], rows


def _scaling(archive: Archive, x_train: torch.Tensor, scale: str) -> Scaling:
    is_bytes = x_train.dtype == torch.uint8
    if scale == "unit" and not is_bytes:
        raise TaskError(
            f"scale unit takes bytes to [-1, 1], {archive.path} holds {x_train.dtype}",
            hint="take scale standard or none",
        )
    if scale == "unit" or (scale == "auto" and is_bytes and archive.kind == "images"):
        return Scaling.symmetric(255)
    return Scaling.identity() if scale == "none" else Scaling.standard(x_train)
