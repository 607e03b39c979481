"""A model on disk as one sequence of bytes, and the digests that announce it: what is sent, read where it is needed."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dimat.continual.offered import schema_of
from dimat.errors import DimatError
from dimat.files import version_of
from dimat.merge.source import OnDisk
from dimat.messages import TensorSpec
from dimat.modelfile import ModelFile

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OutgoingModel:
    """A model whose files are open: they may be deleted meanwhile, and are never read after they were changed.

    Attributes:
        model: where it lies.
        tensors: in the order of the sequence.
        starts: where each one begins in the sequence; at last the sequence's length.
        handles: an open file by path.
    """

    model: ModelFile
    tensors: tuple[TensorSpec, ...]
    starts: tuple[int, ...]
    handles: dict[Path, int]
    _stack: ExitStack = field(repr=False)

    @classmethod
    def open(cls, model: ModelFile) -> Self:
        """Open the files of `model`.

        Raises:
            UsageError: a tensor's dtype does not travel.
            DimatError: a file cannot be read.
        """
        tensors = schema_of(OnDisk(model)).tensors
        starts = [0]
        for spec in tensors:
            starts.append(starts[-1] + spec.num_bytes)
        with ExitStack() as stack:
            handles = {}
            for path in model.versions:
                try:
                    handles[path] = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise DimatError(f"model file {path} cannot be read: {error.strerror or error}") from error
                stack.callback(os.close, handles[path])
            return cls(model, tensors, tuple(starts), handles, stack.pop_all())

    @property
    def num_bytes(self) -> int:
        """Length of the sequence."""
        return self.starts[-1]

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._stack.close()

    def read(self, position: int, num_bytes: int) -> bytes:
        """At most `num_bytes` of the sequence, from `position` on; none at its end.

        Raises:
            DimatError: a file was changed since the model was opened.
        """
        parts = []
        end = min(position + num_bytes, self.num_bytes)
        while position < end:
            number = bisect.bisect_right(self.starts, position) - 1
            stored = self.model.tensors[self.tensors[number].name]
            offset = position - self.starts[number]
            part = self._read(stored.path, stored.start + offset, min(stored.num_bytes - offset, end - position))
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def pieces(self, position: int, piece_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The sequence from `position` on, in pieces."""
        while piece := self.read(position, piece_bytes):
            yield piece
            position += len(piece)

    def checksums(self, tell: Callable[[int], None] = lambda done: None) -> tuple[bytes, ...]:
        """SHA-256 of each tensor's bytes; `tell` hears how many bytes were read."""
        found = []
        for start, stop in zip(self.starts, self.starts[1:], strict=False):
            digest = hashlib.sha256()
            for position in range(start, stop, BLOCK_BYTES):
                digest.update(self.read(position, min(BLOCK_BYTES, stop - position)))
                tell(min(position + BLOCK_BYTES, stop))
            found.append(digest.digest())
        return tuple(found)

    def _read(self, path: Path, start: int, num_bytes: int) -> bytes:
        handle = self.handles[path]
        try:
            status = os.fstat(handle)
            data = os.pread(handle, num_bytes, start)
        except OSError as error:
            raise DimatError(f"model file {path} cannot be read: {error.strerror or error}") from error
        if version_of(status) != self.model.versions[path] or not data:
            raise DimatError(f"model file {path} was changed while it was read", hint="run the command again")
        return data
