"""One model that is written to the disk as its bytes arrive, each tensor checked against its announced digest.

The file is a `.safetensors` file from its first byte on: the header is known before, the tensors follow in the order of
their announcement. So its length tells how far it has come, also after a kill, and nothing is held in memory but
the running digest of one tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dimat.errors import PayloadError, PeerUnavailable, UsageError
from dimat.messages import ITEM_SIZES, TensorSpec
from dimat.transport.receive import valid_entries

BLOCK_BYTES = 1 << 20
_WORDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The file format's name of each dtype that travels."""


class IncomingModel:
    """A model on its way into the file `path`.

    `broken` says that bytes were refused, or could not be written: it is of no more use.

    Args:
        path: the file; what is there already is gone on with when it is the beginning of the same model.
        tensors: what will come, in this order.
        checksums: SHA-256 of each tensor's bytes.
        metadata: text by key, for the header.
    """

    def __init__(
        self,
        path: Path,
        tensors: Sequence[TensorSpec],
        checksums: Sequence[bytes],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.position = 0
        self.num_bytes = sum(spec.num_bytes for spec in tensors)
        self.tensors = tuple(tensors)
        self.broken = False
        self._checksums = tuple(checksums)
        self._header = header_bytes(tensors, metadata or {})
        self._file: BinaryIO | None = None
        self._known = False
        self._next = 0  # the tensor that is being filled
        self._running = _Running()

    @property
    def whole(self) -> bool:
        """Whether every byte has come, and every tensor has its digest."""
        return self._next == len(self.tensors)

    @property
    def num_file_bytes(self) -> int:
        """What the whole file takes."""
        return len(self._header) + self.num_bytes

    def open(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Make the file, or find out how far it has come: what an earlier process wrote is read and checked again.

        Args:
            stopped: asked now and then while that goes on.

        Raises:
            PeerUnavailable: `stopped` said yes.
        """
        if self._known:
            self._file = self.path.open("r+b", buffering=0)
            self._file.seek(len(self._header) + self.position)
            return
        self._file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        try:
            self._find(self._file, stopped)
        except BaseException:
            self.suspend()
            raise
        self._known = True

    def _find(self, file: BinaryIO, stopped: Callable[[], bool]) -> None:
        """Go to the end of what is right; what comes after it is cut off."""
        self._restart()
        if file.read(len(self._header)) == self._header:
            try:
                while block := file.read(BLOCK_BYTES):
                    self._check(memoryview(block))
                    if stopped():
                        raise PeerUnavailable("nobody waits for the upload any more")
            except (PayloadError, UsageError):
                self._restart()  # damaged on the disk: from the beginning
        else:
            file.seek(0)
            _write(file, memoryview(self._header))
        file.seek(len(self._header) + self.position)
        file.truncate()

    def take(self, position: int, data: memoryview) -> None:
        """Write the bytes that belong at `position` of the tensors' bytes.

        Raises:
            PayloadError: the position is not the next one, there are more bytes than announced, or a tensor that is
                now whole has another digest than announced.
            UsageError: NaN or Inf; the tensor is named.
        """
        assert self._file is not None, "open the model before taking bytes"
        if position != self.position:
            raise PayloadError(f"the model went on at byte {position} where byte {self.position} was next")
        if len(data) > self.num_bytes - self.position:
            raise PayloadError(
                f"the model has surplus bytes: {position + len(data)} came and {self.num_bytes} were announced"
            )
        self.broken = True  # until all went well
        _write(self._file, data)
        self._check(data)
        self.broken = False

    def suspend(self) -> None:
        """Close the file, to be opened again; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Have the whole file on the disk, and close it."""
        assert self._file is not None and self.whole, "only a whole model is finished"
        os.fsync(self._file.fileno())
        self.suspend()

    def _restart(self) -> None:
        assert self._file is not None
        self.position = self._next = 0
        self._running = _Running()
        self._file.seek(0)
        self._close_whole_ones()
        if self._file.seek(0, os.SEEK_END) > self.num_file_bytes:
            self._file.truncate(0)  # longer than it can be: another model
        self._file.seek(0)

    def _check(self, data: memoryview) -> None:
        """Take bytes into the digests, and look at their numbers."""
        while data:
            spec = self.tensors[self._next]
            part = data[: spec.num_bytes - self._running.num_bytes]
            self._running.take(part, spec)
            self.position += len(part)
            data = data[len(part) :]
            self._close_whole_ones()

    def _close_whole_ones(self) -> None:
        # Empty tensors are whole before a byte has come.
        while not self.whole and self._running.num_bytes == self.tensors[self._next].num_bytes:
            spec, checksum = self.tensors[self._next], self._checksums[self._next]
            if self._running.digest.digest() != checksum:
                raise PayloadError(
                    f"tensor {spec.name!r} has not the digest that was announced: its bytes changed on the way, or "
                    "were never those"
                )
            self._next += 1
            self._running = _Running()


class _Running:
    """One tensor so far: how many bytes, their digest, and the beginning of an entry that was cut in two."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.digest: Any = hashlib.sha256()
        self._cut = b""

    def take(self, data: memoryview, spec: TensorSpec) -> None:
        self.num_bytes += len(data)
        self.digest.update(data)
        size = ITEM_SIZES[spec.dtype]
        lead = min(-len(self._cut) % size, len(data))
        first, rest = self._cut + bytes(data[:lead]), data[lead:]
        if len(first) % size:
            self._cut = first
            return
        whole = len(rest) - len(rest) % size
        self._cut = bytes(rest[whole:])
        if not (valid_entries(memoryview(first), spec.dtype) and valid_entries(rest[:whole], spec.dtype)):
            what = "neither 0 nor 1" if spec.dtype == "bool" else "NaN or Inf"
            raise UsageError(
                f"tensor {spec.name!r} of the model holds {what}; expected finite numbers",
                hint="the training that wrote it has diverged: take an earlier checkpoint",
            )


def header_bytes(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """What stands in a `.safetensors` file before the tensors' bytes.

    >>> header_bytes([TensorSpec("w", "float32", (2,))], {})[8:]
    b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for spec in tensors:
        start, end = end, end + spec.num_bytes
        header[spec.name] = {"dtype": _WORDS[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, data: memoryview) -> None:
    while data:  # an unbuffered write may be short
        data = data[file.write(data) :]
