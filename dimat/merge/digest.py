"""The digest that names a model: what it holds, whatever its files are called and however it is cut into shards.

SHA-256 over one line for each tensor, sorted by name: name, dtype, shape and the SHA-256 of its bytes, separated by
tabs; backslashes, tabs and line feeds in names are escaped, so that no name passes for another line. Somebody who sends
a model cannot make another one of the same digest, so a ledger may refuse what it has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dimat.hashing import Begun
from dimat.merge.source import Source, TensorInfo

SLICE_ENTRIES = 1 << 18
"""Large tensors are read, and folded where the fold is elementwise, in slices of this size: what a slice needs stays in
the cache (1 MiB in float32). One size for every merge: sums over slices are then rounded alike everywhere."""


class Digest:
    """A digest in the making: slices of one tensor are added in order, tensors in any order.

    Args:
        begun: what was hashed already of the tensors' first bytes, by name.
    """

    def __init__(self, begun: Mapping[str, Begun] | None = None) -> None:
        self._begun = begun or {}
        self._running: dict[str, tuple[TensorInfo, int, Any]] = {}
        self._lines: dict[str, str] = {}

    def add(self, name: str, info: TensorInfo, entries: torch.Tensor) -> None:
        """Take in the next entries of the tensor `name`."""
        _, done, running = self._running.pop(name, (info, 0, None))
        if running is None:
            running = self._begun[name].running.copy() if name in self._begun else hashlib.sha256()
        known = self._known_bytes(name) - done * info.dtype.itemsize
        done += entries.numel()
        if known < entries.nbytes:
            running.update(_content(entries)[max(known, 0) :])
        if done < info.num_entries:
            self._running[name] = info, done, running
        else:  # the hash itself goes at once: small objects that stay break up the memory between large ones that go
            self._lines[name] = _line(name, info, running)

    def is_known(self, name: str, info: TensorInfo) -> bool:
        """Whether the whole tensor was hashed already; then it counts as added."""
        if name not in self._begun or self._known_bytes(name) < info.num_entries * info.dtype.itemsize:
            return False
        self._lines[name] = _line(name, info, self._begun[name].running)
        return True

    def _known_bytes(self, name: str) -> int:
        return self._begun[name].num_bytes if name in self._begun else 0

    def hexdigest(self) -> str:
        """The digest of what was added, 64 hexadecimal digits."""
        unfinished = {name: _line(name, info, running) for name, (info, _, running) in self._running.items()}
        whole = hashlib.sha256()
        for _, line in sorted({**self._lines, **unfinished}.items()):
            whole.update(line.encode())
        return whole.hexdigest()


def _line(name: str, info: TensorInfo, running: Any) -> str:
    name = name.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n")
    return f"{name}\t{str(info.dtype).removeprefix('torch.')}\t{list(info.shape)}\t{running.hexdigest()}\n"


def slices_of(info: TensorInfo, slice_entries: int = SLICE_ENTRIES) -> Iterator[tuple[int, int]]:
    """Where the slices of a tensor start and stop; one empty slice for a tensor without entries.

    >>> list(slices_of(TensorInfo(torch.float32, (2, 5)), 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    if info.num_entries == 0:
        yield 0, 0
    for start in range(0, info.num_entries, slice_entries):
        yield start, min(start + slice_entries, info.num_entries)


def hash_tensor(source: Source, name: str, begun: Begun | None = None) -> Begun:
    """All of a tensor hashed, going on from what was; its entries are read slice by slice."""
    info = source.tensors[name]
    running, known = (hashlib.sha256(), 0) if begun is None else (begun.running.copy(), begun.num_bytes)
    for start, stop in slices_of(info):
        first, end = start * info.dtype.itemsize, stop * info.dtype.itemsize
        if end > known:
            running.update(_content(source.read(name, start, stop))[max(known - first, 0) :])
    return Begun(info.num_entries * info.dtype.itemsize, running)


def _content(entries: torch.Tensor) -> memoryview:
    return entries.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest_of(source: Source, begun: Mapping[str, Begun] | None = None) -> str:
    """The digest of a whole model, read slice by slice; what was hashed already is not read again.

    >>> from dimat.merge.source import InMemory
    >>> digest_of(InMemory("a", {"w": torch.ones(2)}))[:16]
    '...'
    """
    digest = Digest(begun)
    for name, info in source.tensors.items():
        if digest.is_known(name, info):
            continue
        for start, stop in slices_of(info):
            digest.add(name, info, source.read(name, start, stop))
    return digest.hexdigest()
