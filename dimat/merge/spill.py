"""States on disk until the whole model is known: methods that need scalars of all tensors read none out before that.

The file has no name (it is removed while it is open), so that nothing is left of it, however the process ends. It is
a row of mappings, each a line of JSON and the bytes of its tensors; nothing of them stays in memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import torch

from dimat.errors import DimatError
from dimat.modelfile.header import DTYPES
from dimat.modelfile.pieces import DTYPE_NAMES, write_entries


class Spill:
    """Mappings of tensors on disk, read again in the order in which they came.

    Args:
        folder: where the file is; the one of the output, whose disk has room for models.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self.folder))
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what is buffered does not fit: nobody needs it any more
                self._file.close()

    def append(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a mapping.

        Raises:
            DimatError: it cannot be written.
        """
        assert self._file is not None, "enter the spill before adding to it"
        line = [[key, DTYPE_NAMES[tensor.dtype], list(tensor.shape)] for key, tensor in tensors.items()]
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            for tensor in tensors.values():
                write_entries(self._file, tensor)
        except OSError as error:
            raise self._failed(error) from error

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The mappings.

        Raises:
            DimatError: they cannot be written or read.
        """
        assert self._file is not None, "enter the spill before reading it"
        try:
            self._file.seek(0)
            while line := self._file.readline():
                yield {key: self._read(DTYPES[dtype], shape) for key, dtype, shape in json.loads(line)}
        except OSError as error:
            raise self._failed(error) from error

    def _read(self, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
        assert self._file is not None
        tensor = torch.empty(shape, dtype=dtype)
        view = tensor.reshape(-1).view(torch.uint8).numpy().data
        if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise OSError(0, "they were cut short")
        return tensor

    def _failed(self, error: OSError) -> DimatError:
        return DimatError(f"intermediate states in {self.folder} cannot be kept: {error.strerror or error}")


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise DimatError when the disk of `folder` has no room for so many bytes."""
    free = os.statvfs(folder)
    if num_bytes > free.f_bavail * free.f_frsize:
        raise DimatError(
            f"intermediate states take {num_bytes:,} bytes beside the output, the disk of {folder} has "
            f"{free.f_bavail * free.f_frsize:,} left"
        )
