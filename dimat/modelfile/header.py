"""The header of a `.safetensors` file: what it says is checked against the file before anything is allocated.

    8 bytes        length n of the header, little-endian
    n bytes        JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {...}}
    the rest       the tensors' bytes; offsets count from here, and leave neither holes nor overlaps

The format is the one of https://github.com/huggingface/safetensors. A header that says anything else is a damaged file,
and the message names the file and the tensor.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from dimat.errors import UsageError
from dimat.files import FileVersion, version_of

MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""The format's name of each dtype that torch can hold one entry to a place."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a header announces it: `num_bytes` bytes of `path` from `start` on."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file holds, in the order of its bytes."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    version: FileVersion
    """Of the file when the header was read."""


def read_header(path: Path) -> Header:
    """Read and check the header of the file `path`.

    Raises:
        UsageError: the file cannot be read, or is damaged.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody who writes to it
            raise UsageError(f"file {path} cannot be read: it is a pipe or a device, expected a file on a disk")
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > status.st_size - 8:
                _damaged(path, f"it has {status.st_size} bytes, fewer than the {length + 8} of its own header")
            if length > MAX_HEADER_BYTES:
                _damaged(path, f"its header claims {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed")
            text = file.read(length)
    except OSError as error:
        raise UsageError(f"file {path} cannot be read: {error.strerror or error}") from error
    return Header(*parse_header(path, text, status.st_size), version_of(status))


def parse_header(path: Path, text: bytes, file_bytes: int) -> tuple[tuple[StoredTensor, ...], dict[str, str]]:
    """The tensors that the JSON `text` announces, in the order of their bytes, and the metadata.

    Args:
        path: the file, for the answer and for messages.
        text: the header without its length.
        file_bytes: size of the whole file.

    Raises:
        UsageError: the header is damaged, or announces what the file does not hold.
    """
    entries = parse_json(path, text)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(path, f"its {METADATA} is not a mapping from text to text")
    data = 8 + len(text)
    tensors = [_entry(path, name, entry, data, file_bytes) for name, entry in entries.items()]
    # Tensors without entries share their place with the next one: by where they end, too.
    tensors.sort(key=lambda one: (one.start, one.start + one.num_bytes))
    end = data
    for tensor in tensors:
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a hole before it"
            _damaged(path, f"tensor {tensor.name!r} starts at byte {tensor.start - data} of the data and {what}")
        end = tensor.start + tensor.num_bytes
    if end != file_bytes:
        _damaged(path, f"its tensors end at byte {end}, the file at byte {file_bytes}")
    return tuple(tensors), metadata


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no key stands twice, anywhere.

    Raises:
        UsageError: it is something else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            _damaged(path, f"it lists {twice!r} twice")
        return found

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # ValueError: of UTF-8, of JSON, of a number with too many digits
        _damaged(path, f"it does not begin with a JSON header ({error})" if path.suffix != ".json" else str(error))
    if not isinstance(entries, dict):
        _damaged(path, "its JSON is not an object")
    return entries


def _entry(path: Path, name: str, entry: Any, data: int, file_bytes: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UsageError(
            f"file {path}: tensor {name!r} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}",
            hint="quantised formats with several entries to a byte cannot be averaged: convert to BF16 or F32 first",
        )
    if not _counts(shape) or len(shape) > 64 or math.prod(length or 1 for length in shape) >= 2**63:
        _damaged(path, f"tensor {name!r} has shape {_brief(shape)}, which is not one")
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_bytes - data:
        _damaged(path, f"tensor {name!r} has data_offsets {_brief(offsets)} in {file_bytes - data} bytes of data")
    num_bytes, expected = offsets[1] - offsets[0], math.prod(shape) * DTYPES[dtype].itemsize
    if num_bytes != expected:
        _damaged(path, f"tensor {name!r} of {dtype} and shape {shape} takes {expected} bytes, {num_bytes} are given")
    return StoredTensor(name, DTYPES[dtype], tuple(shape), path, data + offsets[0], num_bytes)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _damaged(path: Path, why: str) -> NoReturn:
    raise UsageError(f"file {path} is damaged: {why}", hint="it may have been cut short: fetch or write it again")
