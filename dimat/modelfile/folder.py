"""A Hugging Face folder: config.json beside model.safetensors, or beside shards and an index of what each one holds.

The index is checked against the shards' own headers: every tensor in exactly one shard, the one that is listed; no
path leads out of the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from dimat.errors import UsageError
from dimat.modelfile.header import Header, parse_json, read_header
from dimat.plugins import closest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def folder_headers(folder: Path) -> list[Header]:
    """The headers of a folder's weights: of model.safetensors, or else of all shards in the order of their names.

    Raises:
        UsageError: it is no model folder, or index and shards contradict each other.
    """
    names = {path.name for path in folder.iterdir()}
    if SINGLE not in names and INDEX not in names:
        pickled = [name for name in _PICKLED if name in names]
        if pickled:
            raise UsageError(
                f"model folder {folder} holds its weights as a pickle ({pickled[0]}), which is never read; "
                f"expected {SINGLE} or {INDEX}",
                hint="where you trust it: from_pretrained(folder).save_pretrained(another, safe_serialization=True)",
            )
        files = sorted(name for name in names if name.endswith(".safetensors"))
        found = f"it holds {', '.join(files)}" if files else "it holds no .safetensors file"
        raise UsageError(
            f"model folder {folder} has neither {SINGLE} nor {INDEX}; {found}",
            hint="name a .safetensors file itself, or the folder that save_pretrained wrote",
        )
    if CONFIG not in names:
        raise UsageError(
            f"model folder {folder} has no {CONFIG}: it is not a Hugging Face folder",
            hint=f"name the file itself: {folder / SINGLE}" if SINGLE in names else None,
        )
    return [read_header(folder / SINGLE)] if SINGLE in names else _shards(folder)


def _shards(folder: Path) -> list[Header]:
    index = folder / INDEX
    listed = _weight_map(index)
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    headers, homes = [], dict[str, str]()
    for shard in sorted(set(listed.values())):
        if shard not in present:
            near = closest(shard, present)
            beside = f"; is {near} meant?" if near else f"; the folder holds {', '.join(present) or 'no shard'}"
            raise UsageError(f"model folder {folder}: shard {shard} is missing, which {INDEX} lists{beside}")
        header = read_header(folder / shard)
        for tensor in header.tensors:
            if tensor.name in homes:
                _contradiction(index, f"tensor {tensor.name!r} is in {homes[tensor.name]} and in {shard}")
            homes[tensor.name] = shard
        headers.append(header)
    for name, shard in listed.items():
        if homes.get(name) != shard:
            really = f"it is in {homes[name]}" if name in homes else "no shard has it"
            _contradiction(index, f"tensor {name!r} is listed in {shard}, but {really}")
    for name, shard in homes.items():
        if name not in listed:
            _contradiction(index, f"tensor {name!r} of {shard} is not listed")
    return headers


def _weight_map(index: Path) -> dict[str, str]:
    try:
        text = index.read_bytes()
    except OSError as error:
        raise UsageError(f"model index {index} cannot be read: {error.strerror or error}") from error
    listed = parse_json(index, text).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        _contradiction(index, "its weight_map is not a mapping from tensor to shard")
    for name, shard in listed.items():
        # By name alone: the shards of a download cache are links to files elsewhere, which is fine.
        if not isinstance(shard, str) or shard in ("", ".", "..") or any(mark in shard for mark in "/\\\0:"):
            _contradiction(index, f"tensor {name!r} is listed in {shard!r}, which is no file of this folder")
    return listed


def _contradiction(index: Path, why: str) -> NoReturn:
    raise UsageError(f"model index {index} is damaged: {why}", hint="fetch or write the whole folder again")
