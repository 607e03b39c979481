"""The reader's side of a fetch, free of any network: check the announcement, take bytes in order, check every tensor.

A reader trusts nothing. What is announced must equal its own schema before a byte is stored, so that a peer can never
make it allocate; bytes must come without gap or overlap; each tensor must have its digest and hold no NaN or Inf.
Digest and numbers are checked on each piece right after it was copied, while it is in the processor's cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from dimat.errors import PayloadError
from dimat.messages import ITEM_SIZES, Header, Payload, Schema, Tensor, TensorSpec, digest
from dimat.transport.base import Fetch

INFINITY_BITS = {"float64": 0x7FF0 << 48, "float32": 0x7F80 << 16, "float16": 0x7C00, "bfloat16": 0x7F80}
"""+Inf of every floating dtype as an integer: what lies above is NaN, and the sign bit mirrors both."""


def valid_entries(data: memoryview, dtype: str) -> bool:
    """Whether all entries of raw little-endian `data` are finite numbers (for bool: 0 or 1).

    Read as integers, a float is NaN or Inf exactly when it is at least +Inf as a signed, or at least -Inf as an
    unsigned number: two maxima at memory speed, no temporaries, and right for bfloat16, which numpy does not know.

    >>> valid_entries(memoryview(np.array([1.0, -3e38], dtype="<f4")).cast("B"), "float32")
    True
    >>> valid_entries(memoryview(np.array([1.0, -np.inf], dtype="<f4")).cast("B"), "float32")
    False
    """
    if not data:
        return True
    if dtype == "bool":
        return int(np.frombuffer(data, np.uint8).max()) <= 1
    infinity = INFINITY_BITS.get(dtype)
    if infinity is None:
        return True
    size = ITEM_SIZES[dtype]
    if int(np.frombuffer(data, f"<i{size}").max()) >= infinity:
        return False
    return int(np.frombuffer(data, f"<u{size}").max()) < infinity | 1 << (8 * size - 1)


def pieces(payload: Payload, position: int, piece_bytes: int) -> Iterator[tuple[int, list[memoryview]]]:
    """The bytes of all tensors as one sequence, from `position` on, in pieces of `piece_bytes` (the last is shorter).

    Yields:
        The position of a piece in the sequence and the views that make it up: small tensors share a piece.
    """
    start, parts, room = position, [], piece_bytes
    end_of_tensor = 0
    for tensor in payload.tensors:
        data = tensor.data
        begin_of_tensor, end_of_tensor = end_of_tensor, end_of_tensor + len(data)
        offset = max(0, position - begin_of_tensor)
        while offset < len(data):
            part = data[offset : offset + room]
            parts.append(part)
            offset += len(part)
            room -= len(part)
            if not room:
                yield start, parts
                start, parts, room = start + piece_bytes, [], piece_bytes
    if parts:
        yield start, parts


class Receiver:
    """Takes one payload into the reader's own buffer, piece by piece; survives a stream that breaks and goes on.

    Args:
        reader: the id of the agent that reads.
        fetch: what it asked for, and the buffer to fill.
    """

    def __init__(self, reader: int, fetch: Fetch) -> None:
        self.fetch = fetch
        self.position = 0
        self.num_bytes = fetch.into.schema.num_bytes
        self._reader = reader
        self._header: Header | None = None
        self._checksums: tuple[bytes, ...] = ()
        self._tensors: list[Tensor] = []
        self._current: _Incoming | None = None

    @property
    def round(self) -> int | None:
        """The round that is being read: as announced, or as asked for while nothing is."""
        return self._header.round if self._header else self.fetch.round

    def announce(self, header: Header, specs: tuple[TensorSpec, ...], checksums: tuple[bytes, ...]) -> None:
        """Compare what will come with what was asked for, before anything is stored.

        Raises:
            PayloadError: another kind, round, agent or schema than asked for, or (resumed) another payload than before.
        """
        if self._header is not None:
            if (header, checksums) != (self._header, self._checksums):
                raise self._error("was replaced by another one while it was read")
            return
        asked = (self.fetch.kind, self.fetch.round if self.fetch.round is not None else header.round, self.fetch.peer)
        if (header.kind, header.round, header.agent) != asked:
            raise self._error(
                f"was answered with {header.kind!r} of round {header.round} by agent {header.agent}, "
                "which was not asked for"
            )
        difference = self.fetch.into.schema.difference(Schema(specs, self.fetch.into.schema.groups))
        if difference is not None:
            raise self._error(
                f"does not fit agent {self._reader}'s schema: {difference} "
                f"(here: agent {self._reader}, there: agent {self.fetch.peer})"
            )
        if len(checksums) != len(specs):
            raise self._error(f"announced {len(checksums)} checksums for {len(specs)} tensors")
        self._header, self._checksums = header, checksums
        self._next_tensor()

    def is_announced(self, payload: Payload) -> bool:
        """Whether what was announced is `payload`, byte for byte as far as digests tell."""
        checksums = tuple(tensor.checksum for tensor in payload.tensors)
        return (self._header, self._checksums) == (payload.header, checksums)

    def take(self, position: int, data: memoryview) -> None:
        """Store the bytes that belong at `position` of the sequence.

        Raises:
            PayloadError: nothing was announced, the position is not the next one, there are more bytes than announced,
                or a tensor that is now whole has a wrong digest; also as soon as it holds NaN or Inf.
        """
        if self._header is None:
            raise self._error("began with data, before any announcement")
        if position != self.position:
            raise self._error(f"went on at byte {position} where byte {self.position} was next")
        if len(data) > self.num_bytes - self.position:
            raise self._error(f"has surplus bytes: {position + len(data)} came and {self.num_bytes} were announced")
        while data:
            assert self._current is not None  # bytes are left to come, so a tensor is open
            taken = self._current.take(data)
            data = data[taken:]
            self.position += taken
            if self._current.invalid:
                raise self._error(f"holds {self._current.invalid} in tensor {self._current.spec.name!r}")
            if self._current.whole:
                self._close_tensor()
                self._next_tensor()

    def check(self, payload: Payload) -> None:
        """Check tensors that are read where they lie, as `take` checks what comes in; `announce` was called.

        Raises:
            PayloadError: a tensor has a wrong size or digest, or holds NaN or Inf.
        """
        present = sum(len(tensor.data) for tensor in payload.tensors)
        if present < self.num_bytes:
            raise self._error(f"is truncated: it ended after {present} of {self.num_bytes} bytes")
        for tensor in payload.tensors:
            name, spec = repr(tensor.spec.name), tensor.spec
            if len(tensor.data) != spec.num_bytes:
                raise self._error(f"holds {len(tensor.data)} bytes in tensor {name}, {spec.num_bytes} were announced")
            if not valid_entries(tensor.data, spec.dtype):
                raise self._error(f"holds {_invalid(spec)} in tensor {name}")
            if digest(tensor.data) != tensor.checksum:
                raise self._error(f"has a wrong digest in tensor {name}: its bytes changed on the way")

    def finish(self) -> Payload:
        """The payload, once the stream has ended; its tensors are views into the reader's buffer.

        Raises:
            PayloadError: the stream ended early.
        """
        if self._header is None:
            raise self._error("ended before any announcement")
        if self.position != self.num_bytes:
            raise self._error(f"is truncated: it ended after {self.position} of {self.num_bytes} bytes")
        return Payload(self._header, tuple(self._tensors))

    def _next_tensor(self) -> None:
        # Empty tensors are whole before a byte has come.
        self._current = None
        specs = self.fetch.into.schema.tensors
        while self._current is None and len(self._tensors) < len(specs):
            spec = specs[len(self._tensors)]
            self._current = _Incoming(spec, self.fetch.into.view(spec.name))
            if self._current.whole:
                self._close_tensor()

    def _close_tensor(self) -> None:
        assert self._current is not None
        spec, checksum = self._current.spec, self._checksums[len(self._tensors)]
        if self._current.digest() != checksum:
            raise self._error(f"has a wrong digest in tensor {spec.name!r}: its bytes changed on the way")
        self._tensors.append(Tensor(spec, self._current.view, checksum))
        self._current = None

    def _error(self, what: str) -> PayloadError:
        round_ = "the newest round" if self.round is None else f"round {self.round}"
        return PayloadError(f"agent {self.fetch.peer}'s {self.fetch.kind!r} of {round_} {what}")


class _Incoming:
    """One tensor that is being filled: how far it has come, its digest so far, how far its numbers were checked."""

    def __init__(self, spec: TensorSpec, view: memoryview) -> None:
        self.spec = spec
        self.view = view
        self.invalid = ""
        self._filled = 0
        self._checked = 0
        self._hash: Any = xxhash.xxh3_128()

    @property
    def whole(self) -> bool:
        return self._filled == len(self.view)

    def take(self, data: memoryview) -> int:
        """Store as much of `data` as belongs to this tensor; returns how many bytes that were."""
        taken = min(len(data), len(self.view) - self._filled)
        end = self._filled + taken
        self.view[self._filled : end] = data[:taken]
        self._hash.update(self.view[self._filled : end])
        self._filled = end
        aligned = end - end % ITEM_SIZES[self.spec.dtype]  # an entry may be cut in two by the end of a piece
        if not valid_entries(self.view[self._checked : aligned], self.spec.dtype):
            self.invalid = _invalid(self.spec)
        self._checked = aligned
        return taken

    def digest(self) -> bytes:
        return bytes(self._hash.digest())


def _invalid(spec: TensorSpec) -> str:
    return "neither 0 nor 1" if spec.dtype == "bool" else "NaN or Inf"


assert sys.byteorder == "little", "tensors travel as little-endian bytes and are used in place"
