"""Write a model: a `.safetensors` file, or a Hugging Face folder like the one it comes from.

The same tensors and metadata give the same bytes (the safetensors package orders metadata anew in every process), and
tensors go out one by one or in pieces: nothing is held twice. What is there under the final name is whole: files and
folders are written beside, fsynced and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from dimat.errors import DimatError, UsageError
from dimat.files import check_name
from dimat.modelfile.folder import CONFIG
from dimat.modelfile.model import SUFFIX, ModelFile
from dimat.modelfile.pieces import SHARD_BYTES, Layout, lay_out, write_bytes, write_pieces
from dimat.plugins import closest

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".py", ".md")
"""Endings of what travels with a model: configs, tokenizers, chat templates, the model's own code, its card."""
_LONGER = 40
"""Bytes by which names are longer that are written beside a model: of what is half-written, of its card."""


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
    is_folder = like is not None and like.is_folder
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    layout = lay_out(shapes, is_folder=is_folder, shard_bytes=shard_bytes)
    check_out(path, is_folder=is_folder, num_bytes=layout.num_bytes)
    notes = metadata if metadata is not None else like.metadata if like is not None else {}
    write_streamed(path, layout, (tensors[name] for name in layout.names), notes, like=like)


def write_streamed(
    path: Path,
    layout: Layout,
    pieces: Iterable[Tensor],
    metadata: Mapping[str, str],
    *,
    like: ModelFile | None = None,
    extra_files: Callable[[], Mapping[str, bytes]] | None = None,
) -> None:
    """Write a model whose tensors come in pieces; `check_out` comes before.

    Args:
        path: the file or folder; what is there is replaced at the end, at once.
        layout: names, dtypes, shapes and files.
        pieces: entries in the order of `layout.names`; see `write_pieces`. What they raise is raised here.
        metadata: text by key.
        like: when it is a folder, a folder is written, with its config and tokenizer files beside the weights.
        extra_files: asked once all pieces are there: content by name, inside the folder, or beside the file.

    Raises:
        DimatError: writing failed; nothing is left behind.
    """
    is_folder = like is not None and like.is_folder
    try:
        with ExitStack() as written:  # renamed together at the end
            beside = written.enter_context(_beside(path.resolve()))
            if is_folder:
                assert like is not None
                beside.mkdir()
                for source in sorted(like.path.iterdir()):
                    if source.is_file() and travels(source.name):
                        shutil.copyfile(source, beside / source.name)
                        _sync(beside / source.name)
            write_pieces(beside, layout, pieces, metadata)
            for name, content in ({} if extra_files is None else extra_files()).items():
                place = path.resolve().with_name(name)
                write_bytes(beside / name if is_folder else written.enter_context(_beside(place)), content)
    except OSError as error:
        raise DimatError(f"model {path} cannot be written: {error.strerror or error}") from error


def check_out(
    path: Path,
    *,
    is_folder: bool,
    num_bytes: int = 0,
    inputs: tuple[ModelFile, ...] = (),
    overwrite: bool | None = None,
) -> None:
    """Raise UsageError when a model of `num_bytes` could not be written to `path`, or would overwrite an input.

    Args:
        path: the file or folder.
        is_folder: which of both is written.
        num_bytes: what its disk must have left.
        inputs: models that are read meanwhile.
        overwrite: whether a model that is there may be replaced; None: a file may, a folder that holds anything not.
    """
    check_name(path, "out")
    parent = path.resolve().parent
    for model in inputs:
        _check_apart(path, model, replaced=is_folder and bool(overwrite))
    if not parent.is_dir():
        near = closest(parent.name, [one.name for one in parent.parent.glob("*/")]) if parent.parent.is_dir() else None
        hint = f"is {str(parent.with_name(near))!r} meant?" if near else f"make it first: mkdir -p {parent}"
        raise UsageError(f"the folder {parent} of out {path} does not exist", hint=hint)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {parent} of out {path} may not be written to")
    length, longest = len(os.fsencode(path.resolve().name)), os.pathconf(parent, "PC_NAME_MAX") - _LONGER
    if length > longest:
        raise UsageError(f"the name of out {path.name[:30]}... has {length} bytes, expected at most {longest}")
    if is_folder:
        if path.exists() and not path.is_dir():
            raise UsageError(f"out {path} is a file; the models are folders, so out is a folder")
        if path.suffix == SUFFIX:
            raise UsageError(f"out {path} is named as a file; the models are folders, so out is a folder")
        if path.is_dir() and any(path.iterdir()):
            if overwrite is None:
                raise UsageError(
                    f"out {path} is a folder that is not empty", hint="name another one, or empty it first"
                )
            if not (path / CONFIG).exists() or not any(path.glob(f"*{SUFFIX}")):
                raise UsageError(
                    f"out {path} is a folder of other things: only a model folder is ever replaced",
                    hint="name another one, or empty it first",
                )
    elif path.is_dir():
        example = path / f"model{SUFFIX}"
        raise UsageError(f"out {path} is a folder; the models are files, so out is a file, such as {example}")
    elif path.suffix != SUFFIX:
        raise UsageError(f"out {path} is not named *{SUFFIX}", hint=f"name it {path.with_suffix(SUFFIX)}")
    if overwrite is False and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise UsageError(f"out {path} exists already", hint="name another one, or say --force to replace it")
    free = shutil.disk_usage(parent).free
    if num_bytes > free:
        raise UsageError(f"out {path} takes {num_bytes:,} bytes, its disk has {free:,} left")


def _check_apart(path: Path, model: ModelFile, *, replaced: bool) -> None:
    """Raise UsageError when writing `path` would change the model that is being read."""
    out, read = path.resolve(), model.path.resolve()
    stored = {read, *(one.resolve() for one in model.versions)}
    if out in stored or (path.exists() and any(path.samefile(one) for one in (model.path, *model.versions))):
        raise UsageError(f"out {path} is the model {model.path} itself: nothing is ever overwritten by its own copy")
    if model.is_folder and out.is_relative_to(read):
        raise UsageError(f"out {path} lies in the model folder {model.path}, which is read: name a place outside it")
    for one in stored:
        if replaced and one.is_relative_to(out):
            raise UsageError(f"the model {model.path} lies in out {path}, which would be replaced: name another out")


def travels(name: str) -> bool:
    """Whether the file `name` of a model folder goes where the model goes: everything but the weights and odd files."""
    weights = name.endswith((SUFFIX, ".index.json"))
    return not name.startswith(".") and not weights and (name.endswith(_COPIED) or name in ("LICENSE", "NOTICE"))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in the same folder; what was written there becomes `path` at the end, or vanishes."""
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # in containers the number of a process comes again
    beside = path.with_name(f".{path.name}.{own}.partial")
    aside = path.with_name(f".{path.name}.{own}.replaced")
    try:
        yield beside
        if beside.is_dir():
            _sync(beside)
            if path.is_dir() and any(path.iterdir()):  # no call replaces a folder that holds something
                path.replace(aside)
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        if aside.is_dir() and not path.exists():
            aside.replace(path)
        raise
    finally:
        for leftover in (beside, aside):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
