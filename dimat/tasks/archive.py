"""Read an `.npz` of training and test arrays, and say exactly what is wrong with one that cannot be trained on.

No pickled object is ever read: `numpy.load(allow_pickle=False)`, zip archives only.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dimat import plugins
from dimat.errors import TaskError

Array = npt.NDArray[Any]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
KINDS = ("images", "series", "table")

_SHAPES = {
    "images": "(N, height, width) or (N, height, width, channels)",
    "series": "(N, channels, length)",
    "table": "(N, features)",
}
_DIMENSIONS = {"images": (3, 4), "series": (3,), "table": (2,)}


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that was read and checked; images are channels first."""

    path: Path
    kind: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    column: Array | None = None


def read_archive(path: Path, *, kind: str | None = None, column: str | None = None) -> Archive:
    """Read and check the arrays of `path`.

    Args:
        path: the `.npz`.
        kind: `images`, `series` or `table`; None tells them apart by dimensions and dtype.
        column: name of one more array to read, with one value per training sample.

    Raises:
        TaskError: no such file, no zip archive, a damaged or pickled array, a missing array, shapes that do not fit,
            labels that are no classes, NaN or Inf.
    """
    if kind is not None and kind not in KINDS:
        raise TaskError(plugins.unknown("kind", str(kind), KINDS))
    arrays = _read(path, column)
    x_train, y_train, x_test, y_test = (arrays[name] for name in ARRAYS)
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        _check_samples(path, split, x, y)
    kind = kind or _kind_of(path, x_train)
    if x_train.ndim not in _DIMENSIONS[kind]:
        raise TaskError(f"{path}: x_train has shape {x_train.shape}, expected {_SHAPES[kind]} for {kind}")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise TaskError(
            f"{path}: samples of x_train have shape {x_train.shape[1:]}, those of x_test {x_test.shape[1:]}"
        )
    if (x_train.dtype == np.uint8) != (x_test.dtype == np.uint8):
        raise TaskError(
            f"{path}: x_train is {x_train.dtype} and x_test {x_test.dtype}, expected both bytes or both floats"
        )
    names = _class_names(path, y_train, y_test, arrays.get("class_names"))
    if column is not None and arrays[column].shape != y_train.shape:
        raise TaskError(
            f"{path}: {column} has shape {arrays[column].shape}, expected one value per sample {y_train.shape}"
        )
    return Archive(
        path=path,
        kind=kind,
        x_train=_samples(path, "x_train", x_train, kind),
        y_train=torch.from_numpy(y_train.astype(np.int64)),
        x_test=_samples(path, "x_test", x_test, kind),
        y_test=torch.from_numpy(y_test.astype(np.int64)),
        class_names=names,
        column=None if column is None else arrays[column],
    )


def _read(path: Path, column: str | None) -> dict[str, Array]:
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*.npz")) if path.parent.is_dir() else []
        near = plugins.closest(path.name, beside)
        there = f" Did you mean {near!r}?" if near else f" Beside it: {', '.join(beside) or 'no .npz file'}."
        raise TaskError(f"data file {path} {'is a folder' if path.is_dir() else 'does not exist'}.{there}")
    if not zipfile.is_zipfile(path):
        raise TaskError(
            f"data file {path} is no .npz archive (or was cut short), expected a file written by numpy.savez",
            hint="numpy.savez_compressed('data.npz', x_train=..., y_train=..., x_test=..., y_test=...)",
        )
    # A damaged archive fails in as many ways as zip, deflate and the array header have fields.
    damage = (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
    )
    try:
        # Opened here: numpy leaves the file open when the archive turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            existing = sorted(archive.files)
            wanted = [*ARRAYS, *([column] if column else [])]
            missing = [name for name in wanted if name not in existing]
            if missing:
                near = plugins.closest(missing[0], existing)
                hint = f"is {near!r} meant to be {missing[0]}?" if near else None
                raise TaskError(
                    f"{path}: no array {', '.join(missing)}; "
                    f"expected {', '.join(wanted)}; it holds {', '.join(existing)}",
                    hint=hint,
                )
            return {name: _entry(path, archive, name) for name in [*wanted, *({"class_names"} & {*existing})]}
    except (*damage, ValueError) as error:
        raise TaskError(f"data file {path} is damaged: {type(error).__name__}: {error}") from error


def _entry(path: Path, archive: Any, name: str) -> Array:
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise TaskError(
            f"{path}: {name} holds Python objects, which only pickle could read; expected numbers",
            hint="give the array a numeric dtype before saving it",
        ) from None
    if not isinstance(array, np.ndarray):
        raise TaskError(f"{path}: {name} is no array")
    return array


def _check_samples(path: Path, split: str, x: Array, y: Array) -> None:
    if x.dtype != np.uint8 and x.dtype not in (np.float16, np.float32, np.float64):
        raise TaskError(
            f"{path}: x_{split} is {x.dtype}, expected uint8, float16, float32 or float64",
            hint=f"save x_{split}.astype('float32')",
        )
    if x.ndim not in (2, 3, 4) or x.size == 0:
        expected = "; ".join(f"{kind} {shape}" for kind, shape in _SHAPES.items())
        raise TaskError(f"{path}: x_{split} has shape {x.shape}, expected {expected}")
    if y.ndim != 1 or len(y) != len(x):
        raise TaskError(
            f"{path}: y_{split} has shape {y.shape}, expected one label per sample of x_{split}, ({len(x)},)"
        )
    if y.dtype.kind not in "iu":
        raise TaskError(f"{path}: y_{split} is {y.dtype}, expected whole numbers 0, 1, 2, ...")
    if y.min() < 0:
        raise TaskError(f"{path}: y_{split} has the label {y.min()} at index {y.argmin()}, expected labels from 0 on")


def _kind_of(path: Path, x: Array) -> str:
    if x.ndim == 2:
        return "table"
    if x.ndim == 3 and x.dtype != np.uint8 and x.shape[1] == x.shape[2]:
        raise TaskError(
            f"{path}: x_train has shape {x.shape}, which is images (N, height, width) as well as series "
            "(N, channels, time)",
            hint="say which: -s task.options.kind=images, or series",
        )
    if x.ndim == 3:
        return "images" if x.dtype == np.uint8 else "series"
    if x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 4:
        raise TaskError(
            f"{path}: x_train has shape {x.shape}, which looks like (N, channels, height, width); "
            f"expected {_SHAPES['images']}",
            hint="save x.transpose(0, 2, 3, 1), or say kind: images when it is what it seems not to be",
        )
    return "images"


def _class_names(path: Path, y_train: Array, y_test: Array, given: Array | None) -> tuple[str, ...]:
    num_classes = int(y_train.max()) + 1
    if given is not None and given.ndim == 1 and given.dtype.kind in "US" and len({*given.tolist()}) == len(given):
        if len(given) < num_classes:
            raise TaskError(f"{path}: y_train has the label {num_classes - 1}, class_names has only {len(given)} names")
        num_classes = len(given)
    else:
        given = None
    if num_classes < 2:
        raise TaskError(f"{path}: y_train has one label only, {num_classes - 1}; expected at least two classes")
    if num_classes > len(y_train):
        raise TaskError(
            f"{path}: y_train has the label {num_classes - 1} among {len(y_train)} samples, expected 0, 1, 2, ...",
            hint="number the classes: numpy.unique(y, return_inverse=True)[1]",
        )
    if y_test.max() >= num_classes:
        raise TaskError(
            f"{path}: y_test has the label {y_test.max()} at index {y_test.argmax()}, expected below {num_classes}, "
            "the number of classes in y_train"
        )
    if given is None:
        return tuple(str(label) for label in range(num_classes))
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given.tolist())


def _samples(path: Path, name: str, x: Array, kind: str) -> Tensor:
    if x.dtype == np.float64:
        with np.errstate(over="ignore"):  # what overflows is reported below, as Inf
            x = x.astype(np.float32)
    if x.dtype != np.uint8:
        finite = np.isfinite(x)
        if not finite.all():
            first = tuple(int(index) for index in np.argwhere(~finite)[0])
            raise TaskError(
                f"{path}: {name} has {int((~finite).sum())} values that are NaN or Inf, the first at {first}"
            )
    if kind == "images":
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    # Archives from machines of the other byte order are read too.
    return torch.from_numpy(np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")))
