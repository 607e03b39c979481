"""Write a model: a `.safetensors` file, or a Hugging Face folder like the one it comes from.

The same tensors and metadata give the same bytes (the safetensors package orders metadata anew in every process), and
tensors go out one by one: nothing is held twice. What is there under the final name is whole: files and folders are
written beside, fsynced and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dimat.errors import DimatError, UsageError
from dimat.modelfile.folder import INDEX, SINGLE
from dimat.modelfile.header import DTYPES, METADATA
from dimat.modelfile.model import SUFFIX, ModelFile
from dimat.plugins import closest

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".py", ".md")
"""Endings of what travels with a model: configs, tokenizers, chat templates, the model's own code, its card."""


def write_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    like: ModelFile | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `tensors` to `path`, in the form of `like`.

    Args:
        path: the file or folder. A file is replaced; a folder must not exist or be empty.
        tensors: by name, each written once under its name, in its own dtype.
        like: when it is a folder, a folder is written, with its config and tokenizer files beside the weights.
        metadata: text by key; by default that of `like`.
        shard_bytes: a folder's weights are one file up to this size, beyond it several with an index.

    Raises:
        UsageError: `path` cannot be written to; see `check_out`.
        DimatError: writing failed; nothing is left behind.
    """
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    is_folder = like is not None and like.is_folder
    check_out(path, is_folder=is_folder, num_bytes=num_bytes)
    notes = dict(metadata if metadata is not None else like.metadata if like is not None else {})
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name, (dtype, _) in shapes.items():
        if dtype not in _NAMES:
            raise UsageError(f"tensor {name!r} is {dtype}, which a .safetensors file cannot hold")
    try:
        with _beside(path.resolve()) as beside:
            if not is_folder:
                _write_file(beside, shapes, tensors.__getitem__, notes)
            else:
                assert like is not None
                beside.mkdir()
                for source in sorted(like.path.iterdir()):
                    if source.is_file() and _travels(source.name):
                        shutil.copyfile(source, beside / source.name)
                        _sync(beside / source.name)
                _write_shards(beside, shapes, tensors.__getitem__, notes, shard_bytes)
    except OSError as error:
        raise DimatError(f"model {path} cannot be written: {error.strerror or error}") from error


def check_out(path: Path, *, is_folder: bool, num_bytes: int = 0, inputs: tuple[ModelFile, ...] = ()) -> None:
    """Raise UsageError when a model of `num_bytes` could not be written to `path`, or would overwrite an input."""
    parent = path.resolve().parent
    for model in inputs:
        if path.exists() and path.samefile(model.path):
            raise UsageError(
                f"out {path} is the model {model.path} itself: nothing is ever overwritten by its own copy"
            )
    if not parent.is_dir():
        near = closest(parent.name, [one.name for one in parent.parent.glob("*/")]) if parent.parent.is_dir() else None
        hint = f"is {str(parent.with_name(near))!r} meant?" if near else f"make it first: mkdir -p {parent}"
        raise UsageError(f"the folder {parent} of out {path} does not exist", hint=hint)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {parent} of out {path} may not be written to")
    if is_folder:
        if path.exists() and not path.is_dir():
            raise UsageError(f"out {path} is a file; the models are folders, so out is a folder")
        if path.suffix == SUFFIX:
            raise UsageError(f"out {path} is named as a file; the models are folders, so out is a folder")
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"out {path} is a folder that is not empty", hint="name another one, or empty it first")
    elif path.is_dir():
        example = path / f"aligned{SUFFIX}"
        raise UsageError(f"out {path} is a folder; the models are files, so out is a file, such as {example}")
    elif path.suffix != SUFFIX:
        raise UsageError(f"out {path} is not named *{SUFFIX}", hint=f"name it {path.with_suffix(SUFFIX)}")
    free = shutil.disk_usage(parent).free
    if num_bytes > free:
        raise UsageError(f"out {path} takes {num_bytes:,} bytes, its disk has {free:,} left")


def _travels(name: str) -> bool:
    weights = name.endswith((SUFFIX, ".index.json"))
    return not name.startswith(".") and not weights and (name.endswith(_COPIED) or name in ("LICENSE", "NOTICE"))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in the same folder; what was written there becomes `path` at the end, or vanishes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        if beside.is_dir():
            _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def _write_shards(
    folder: Path, shapes: _Shapes, tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str], shard_bytes: int
) -> None:
    sizes = {name: _num_bytes(*shapes[name]) for name in sorted(shapes)}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_file(folder / file, {name: shapes[name] for name in names}, tensor_of, metadata)
    if count > 1:
        homes = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(homes.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _sync(folder / INDEX)


def _write_file(path: Path, shapes: _Shapes, tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]) -> None:
    """One file; `tensor_of` is asked for one tensor at a time, wide dtypes first so that all lie aligned."""
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + _num_bytes(dtype, shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write_tensor(file, tensor_of(name), *shapes[name])
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), "a tensor differs from what its header announced"
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    file.write(flat.view(torch.uint8).numpy().data)


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
