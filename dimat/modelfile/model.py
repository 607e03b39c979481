"""Open a model on disk: what it holds is known from headers, and each tensor is read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dimat.errors import DimatError, UsageError
from dimat.files import FileVersion, check_name, version_of
from dimat.modelfile.folder import folder_headers
from dimat.modelfile.header import Header, StoredTensor, read_header
from dimat.plugins import closest, unknown

SUFFIX = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of checkpoints that only pickle reads, which runs whatever code the file holds."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk, known by its headers.

    Attributes:
        path: the file or folder.
        is_folder: whether it is a Hugging Face folder.
        tensors: name -> what the header says of it, in the order of the bytes (of the shards, in a folder).
        metadata: text by key, of all shards together.
        versions: path -> what tells a change of each file when its header was read.
    """

    path: Path
    is_folder: bool
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    versions: Mapping[Path, FileVersion]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """One tensor, in the file's dtype, in memory of its own.

        Args:
            name: of the tensor.
            start: with `stop`, the entries from `start` up to `stop` alone, in row-major order, as a flat tensor.
            stop: the end of those entries; None for the tensor's end.

        Raises:
            UsageError: no tensor has that name.
            DimatError: the file was changed since it was opened.
        """
        stored = self.tensors.get(name)
        if stored is None:
            raise UsageError(f"{self.path}: {unknown('tensor', name, self.tensors)}")
        width, num_entries = stored.dtype.itemsize, torch.Size(stored.shape).numel()
        first, last, _ = slice(start, stop).indices(num_entries)
        content = torch.empty(max(last - first, 0) * width, dtype=torch.uint8)
        try:
            # Straight into the tensor, without a file object: slices are read by the thousand.
            handle = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(handle)
                same = version_of(status) == self.versions[stored.path]
                view, done = content.numpy().data, 0
                while same and done < len(view):
                    count = os.preadv(handle, [view[done:]], stored.start + first * width + done)
                    same, done = bool(count), done + count
            finally:
                os.close(handle)
        except OSError as error:
            raise DimatError(f"model file {stored.path} cannot be read: {error.strerror or error}") from error
        if not same:
            raise DimatError(f"model file {stored.path} was changed while it was read", hint="run the command again")
        entries = content.view(stored.dtype)
        return entries.reshape(stored.shape) if start == 0 and stop is None else entries

    def read_all(self) -> dict[str, Tensor]:
        """Every tensor, in the order of the bytes."""
        return {name: self.read(name) for name in self.tensors}


def open_model(path: Path) -> ModelFile:
    """The model at `path`: a `.safetensors` file, or a folder with config.json and one or several of them.

    Only headers are read.

    Raises:
        UsageError: there is no model, it is a pickle, or a file is damaged.

    >>> import tempfile
    >>> from dimat.modelfile import write_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "small.safetensors"
    ...     write_model(path, {"weight": torch.eye(2, dtype=torch.bfloat16)}, metadata={"from": "a doctest"})
    ...     small = open_model(path)
    ...     small.shapes, small.metadata, small.read("weight").tolist()
    ({'weight': (2, 2)}, {'from': 'a doctest'}, [[1.0, 0.0], [0.0, 1.0]])
    """
    check_name(path, "model")
    if path.is_dir():
        return _joined(path, True, folder_headers(path))
    if not path.exists():
        raise UsageError(f"model {path} does not exist.{_beside(path)}")
    if path.suffix.lower() in PICKLES or (path.is_file() and _looks_pickled(path)):
        raise UsageError(
            f"model {path} is a pickle, which would run whatever code it holds; expected a .safetensors file or a "
            "Hugging Face folder",
            hint="where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), "
            f"{path.with_suffix(SUFFIX).name!r})",
        )
    if path.suffix != SUFFIX:
        raise UsageError(
            f"model {path} is no .safetensors file, and no Hugging Face folder (config.json with model.safetensors)"
        )
    return _joined(path, False, [read_header(path)])


def _joined(path: Path, is_folder: bool, headers: list[Header]) -> ModelFile:
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    versions: dict[Path, FileVersion] = {}
    for header in headers:
        metadata = {**header.metadata, **metadata}
        for tensor in header.tensors:
            versions[tensor.path] = header.version
            tensors[tensor.name] = tensor
    if not tensors:
        raise UsageError(f"model {path} holds no tensors")
    return ModelFile(path, is_folder, tensors, metadata, versions)


def _looks_pickled(path: Path) -> bool:
    """A bare pickle of protocol 2 and later, or the zip archive that torch.save wraps around one."""
    if path.suffix == SUFFIX:
        return False  # its first bytes are a length, which may be anything
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UsageError(f"model {path} cannot be read: {error.strerror or error}") from error
    return start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Its folder {path.parent} does not exist either."
    models = sorted(one.name for one in path.parent.iterdir() if one.suffix == SUFFIX or (one / "config.json").exists())
    near = closest(path.name, models)
    return (
        f" Did you mean {str(path.with_name(near))!r}?" if near else f" Beside it: {', '.join(models) or 'no model'}."
    )
