"""Write a `.safetensors` file tensor by tensor, when names and shapes become known only on the way.

The header stands before the data, so room is kept for it: `reserve_bytes`, filled up with spaces, which the format
allows. Tensors lie in the order in which they were added. Nothing is held in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from torch import Tensor

from dimat.errors import DimatError
from dimat.modelfile.header import METADATA
from dimat.modelfile.pieces import DTYPE_NAMES, write_entries


class AppendedFile:
    """A file in the making; `close` makes it a `.safetensors` file, `sync` has it on the disk.

    Args:
        path: the file, which is replaced.
        reserve_bytes: room for the header. A header takes about 100 bytes and its name for each tensor.
    """

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        self.path = path
        self._reserve = reserve_bytes + -reserve_bytes % 8
        self._header: dict[str, object] = {}
        self._end = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        self._file.seek(8 + self._reserve)
        return self

    def append(self, name: str, tensor: Tensor) -> None:
        """Add a tensor under a name that was not there yet."""
        assert self._file is not None, "enter the file before adding to it"
        assert name not in self._header, f"{name!r} is there already"
        start, self._end = self._end, self._end + tensor.nbytes
        offsets = [start, self._end]
        self._header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        write_entries(self._file, tensor)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the header, and have everything on the disk.

        Raises:
            DimatError: the header is longer than the room that was kept for it.
        """
        assert self._file is not None, "enter the file before closing it"
        header = {METADATA: dict(sorted(metadata.items())), **self._header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > self._reserve:
            raise DimatError(f"the header of {self.path} takes {len(text)} bytes, {self._reserve} were reserved")
        self._file.seek(0)
        self._file.write(self._reserve.to_bytes(8, "little") + text.ljust(self._reserve))
        self._file.truncate(8 + self._reserve + self._end)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
