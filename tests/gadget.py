"""A pickle that leaves a mark where it is read by anything that unpickles: for tests that nothing does."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import torch


class Gadget:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def forms(mark: Path) -> dict[str, bytes]:
    """The gadget in every form in which models, arrays and settings are known to carry pickles."""
    gadget = Gadget(mark)
    protocols = {f"pickle, protocol {number}": pickle.dumps(gadget, number) for number in (0, 2, 5)}
    return {
        **protocols,
        "torch.save": _written(lambda file: torch.save({"w": gadget}, file)),
        "torch.save, before zip": _written(
            lambda file: torch.save({"w": gadget}, file, _use_new_zipfile_serialization=False)
        ),
        "npy of objects": _written(lambda file: np.save(file, np.array([gadget], dtype=object))),
        "npz of objects": _written(
            lambda file: np.savez(file, **{name: np.array([gadget], dtype=object) for name in ARRAYS})
        ),
        "yaml": f"w: !!python/object/apply:os.mkdir [{str(mark)!r}]\n".encode(),
    }


ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def _written(write: object) -> bytes:
    file = io.BytesIO()
    write(file)  # type: ignore[operator]
    return file.getvalue()
