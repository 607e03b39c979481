"""Write tensors that come in pieces: where each one goes is settled by names and shapes before the first byte is known.

    layout = lay_out(shapes, is_folder=True)
    write_pieces(folder, layout, pieces)               # pieces of the tensors of layout.names, in that order

A piece is some of a tensor's entries in row-major order, or all of them. Nothing is kept once it is written.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dimat.errors import UsageError
from dimat.modelfile.folder import INDEX, SINGLE
from dimat.modelfile.header import DTYPES, METADATA
from dimat.modelfile.model import SUFFIX

SHARD_BYTES = 5_000_000_000
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""The format's name by dtype."""
FLUSH_BYTES, FLUSH_S = 8 << 20, 0.05
"""So much has been written, and so much time gone, when the disk is told to begin: at the end, little is left to do."""
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has the other one alone

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensor lies in which file, in the order of the bytes.

    Attributes:
        shapes: dtype and shape by name.
        files: name of each file -> the names of its tensors. One file of no name where the model is no folder.
    """

    shapes: Shapes
    files: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """All tensors in the order of writing."""
        return [name for names in self.files.values() for name in names]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(num_bytes(*shape) for shape in self.shapes.values())


def lay_out(shapes: Shapes, *, is_folder: bool, shard_bytes: int = SHARD_BYTES) -> Layout:
    """The layout of a file, or of a folder with one file up to `shard_bytes` and several beyond it.

    Wide dtypes come first in each file, so that all tensors lie aligned; then by name.

    Raises:
        UsageError: a dtype that the format has not.

    >>> shapes = {name: (torch.float32, (4,)) for name in ("b", "a", "c")}
    >>> dict(lay_out(shapes, is_folder=True, shard_bytes=32).files)
    {'model-00001-of-00002.safetensors': ('a', 'b'), 'model-00002-of-00002.safetensors': ('c',)}
    """
    for name, (dtype, _) in shapes.items():
        if dtype not in DTYPE_NAMES:
            raise UsageError(f"tensor {name!r} is {dtype}, which a .safetensors file cannot hold")
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(shapes):
        size = num_bytes(*shapes[name])
        if is_folder and shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]
    ordered = [tuple(sorted(names, key=lambda name: (-shapes[name][0].itemsize, name))) for names in shards]
    return Layout(shapes, dict(zip(files if is_folder else [""], ordered, strict=True)))


def write_pieces(place: Path, layout: Layout, pieces: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write the files of `layout`, and the index of several.

    Args:
        place: the file, or the folder, which exists.
        layout: what comes.
        pieces: entries in the order of `layout.names`, in the announced dtypes; no piece spans two tensors.
        metadata: text by key, for every file.
    """
    coming = iter(pieces)
    for file, names in layout.files.items():
        _write_file(place / file if file else place, names, layout.shapes, coming, metadata)
    if len(layout.files) > 1:
        homes = {name: file for file, names in layout.files.items() for name in names}
        index = {"metadata": {"total_size": layout.num_bytes}, "weight_map": dict(sorted(homes.items()))}
        write_bytes(place / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    assert next(coming, None) is None, "more pieces came than the layout has room for"


def _write_file(
    path: Path, names: Iterable[str], shapes: Shapes, coming: Iterator[Tensor], metadata: Mapping[str, str]
) -> None:
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + num_bytes(dtype, shape)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file, _on_disk(file):
        _write(file, memoryview(len(text).to_bytes(8, "little") + text))
        for name in names:
            dtype, shape = shapes[name]
            missing = torch.Size(shape).numel()
            while True:  # an empty tensor comes as one empty piece
                piece = next(coming)
                assert piece.dtype == dtype and piece.numel() <= missing, f"{name!r} differs from what was announced"
                write_entries(file, piece)
                missing -= piece.numel()
                if not missing:
                    break


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[None]:
    """What is written inside is on the disk at the end; a thread has the disk begin meanwhile.

    To ask for it without waiting (`posix_fadvise`, `sync_file_range`) leaves the disk idle for most of the time.
    """
    ended = threading.Event()
    failures: list[OSError] = []

    def flush() -> None:
        flushed = 0
        try:
            while not ended.wait(FLUSH_S):
                size = os.fstat(file.fileno()).st_size
                if size - flushed >= FLUSH_BYTES:
                    flushed = size
                    _sync_data(file.fileno())
        except OSError as error:  # the system tells of it once
            failures.append(error)

    thread = threading.Thread(target=flush, name="flush", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for error in failures:
        raise error
    os.fsync(file.fileno())


def write_entries(file: BinaryIO, tensor: Tensor) -> None:
    """The bytes of a tensor, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    _write(file, flat.view(torch.uint8).numpy().data)


def write_bytes(path: Path, content: bytes) -> None:
    """A small file, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def _write(file: BinaryIO, content: memoryview) -> None:
    """All of it; an unbuffered file may take a part at a time."""
    while len(content):
        content = content[file.write(content) :]
