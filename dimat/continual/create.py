"""Make a ledger: everything it will ever need lies in its folder, and the folder appears at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dimat import __version__
from dimat.continual.align import Alignment, find_alignment
from dimat.continual.clock import now
from dimat.continual.entry import Version
from dimat.continual.journal import Journal
from dimat.continual.lock import locked
from dimat.continual.manifest import ALIGNMENT, JOURNAL, LOCK, MANIFEST, STATES, Manifest, file_digest, read_manifest
from dimat.continual.state import sync_folder
from dimat.errors import DimatError, UsageError
from dimat.files import write_atomically
from dimat.merge.api import Fold
from dimat.merge.digest import digest_of
from dimat.merge.engine import check_models
from dimat.merge.options import whole
from dimat.merge.registry import find_method, make_fold, options_of
from dimat.merge.source import OnDisk, check_finite
from dimat.modelfile import ModelFile, open_model
from dimat.modelfile.folder import INDEX, SINGLE
from dimat.modelfile.model import SUFFIX
from dimat.modelfile.write import travels


def create(
    path: Path,
    base: Path,
    method: str,
    options: Mapping[str, Any],
    *,
    keep: int,
    align: str | None,
    model: str | None,
    example: Any,
    who: str,
) -> None:
    """See `Ledger.create`."""
    _check_free(path)
    method = absolute(method)
    ledger_fold(method, options)  # first: an option that the method does not have is told as such
    options = resolved(method, options)
    ledger_fold(method, options)
    try:
        whole("keep", keep)
    except ValueError as error:
        raise UsageError(str(error)) from error
    original = open_model(base)
    if _inside(path, base):
        raise UsageError(f"ledger {path} would lie inside of its own base {base}", hint="name another folder")
    _check_base(original)
    alignment = None
    if align is not None:
        if model is None or example is None:
            missing = "the function that makes its module (model)" if model is None else "an example input (example)"
            raise UsageError(f"align={align!r} finds which units of the base may move, and needs {missing}")
        alignment = find_alignment(align, original, model, example)
    elif model is not None:
        raise UsageError(f"model {model} says what is aligned, and align says how: it is missing", hint="align=weights")
    beside = path.resolve().with_name(f".{path.resolve().name}.partial")
    try:
        beside.mkdir(exist_ok=True)
        with locked(beside / LOCK, "makes it"):
            _check_free(path)  # once more: somebody may have made it while this waited
            try:
                _fill(
                    beside,
                    original,
                    Manifest(method, options, "", "", keep, align, model, __version__),
                    alignment,
                    who,
                )
                beside.replace(path.resolve())  # a link to an empty folder stays a link
                sync_folder(path.resolve().parent)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise DimatError(f"ledger {path} cannot be made: {error.strerror or error}; nothing was written") from error


def _fill(folder: Path, original: ModelFile, plan: Manifest, alignment: Alignment | None, who: str) -> None:
    """Put everything into the folder of a ledger; what a killed process left there goes."""
    for left in folder.iterdir():
        if left.name != LOCK:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    (folder / STATES).mkdir()
    name = _copy_base(original, folder)
    # Of the copy: what the ledger counts from is what lies in it.
    copy = OnDisk(open_model(folder / name))
    _check_numbers(copy, original.path)
    write_atomically(folder / MANIFEST, replace(plan, base=name, base_digest=digest_of(copy)).to_json())
    if alignment is not None:
        write_atomically(folder / ALIGNMENT, alignment.to_json())
    files = sorted(one for one in folder.rglob("*") if one.is_file() and one.name != LOCK)
    digests = {str(one.relative_to(folder)): file_digest(one) for one in files}
    Journal(folder / JOURNAL).create(digests, Version(0, "init", "", None, None, 0, 0.0, now(), who))
    for within in (folder / STATES, *([folder / name] if original.is_folder else []), folder):
        sync_folder(within)


def ledger_fold(method: str, options: Mapping[str, Any]) -> Fold:
    """The fold of a ledger.

    Raises:
        UsageError: no such method or option, or one whose state grows with every model.
    """
    fold = make_fold(method, options)
    if fold.memory == "linear":
        raise UsageError(
            f"merge method {method!r} keeps every model it has seen, so that a ledger of it would grow without end; "
            "expected one of constant memory",
            hint="dimat methods lists them; dimat merge takes this one over a list of models",
        )
    return fold


def resolved(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method with their values, defaults too, as JSON reads them back.

    A ledger outlives the release that made it, and a later one may have other defaults.

    Raises:
        UsageError: a value that JSON cannot write.

    >>> resolved("opcm", {"alpha": 0.25})["alpha"], resolved("magmax", {})
    (0.25, {'scale': 0.5})
    """
    found = {}
    for key, option in options_of(find_method(method)).items():
        try:
            found[key] = json.loads(json.dumps(options.get(key, option.default), allow_nan=False))
        except (TypeError, ValueError) as error:
            value = options.get(key, option.default)
            raise UsageError(
                f"merge method {method!r}: its option {key} is {value!r}, which a ledger cannot write down: {error}",
                hint="a ledger keeps numbers, texts, true, false, none, and lists and mappings of these",
            ) from error
    return found


def absolute(method: str) -> str:
    """A method that is named by a file, named so that it is found from every folder."""
    where, _, name = method.rpartition(":")
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else method


def _check_free(path: Path) -> None:
    parent = path.resolve().parent
    if not parent.is_dir():
        raise UsageError(
            f"the folder {parent} of ledger {path} does not exist", hint=f"make it first: mkdir -p {parent}"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {parent} of ledger {path} may not be written to")
    if path.is_dir() and not any(path.iterdir()):
        return
    if (path / MANIFEST).is_file():
        there = read_manifest(path)
        raise UsageError(
            f"{path} is a ledger already, of {there.method}; a new one needs a folder of its own",
            hint=f"dimat continual status {path} shows it; dimat continual add {path} MODEL goes on with it",
        )
    if path.exists() or path.is_symlink():
        what = "a folder that is not empty" if path.is_dir() else "a file"
        raise UsageError(f"{path} is {what}, expected a name that is free, or an empty folder")


def _inside(path: Path, base: Path) -> bool:
    return base.resolve() in path.resolve().parents


def _check_base(base: ModelFile) -> None:
    source = OnDisk(base)
    check_models(make_fold("mean"), [source])
    if not any(info.dtype.is_floating_point for info in source.tensors.values()):
        raise UsageError(f"base {base.path} holds no floating-point tensor, so there is nothing to merge")


def _check_numbers(base: OnDisk, given: Path) -> None:
    for name, info in base.tensors.items():
        if info.dtype.is_floating_point:
            check_finite(base.read(name), name, str(given))


def _copy_base(base: ModelFile, folder: Path) -> str:
    if not base.is_folder:
        _copy(base.path, folder / f"base{SUFFIX}")
        return f"base{SUFFIX}"
    (folder / "base").mkdir()
    weights = {one.path for one in base.tensors.values()}
    index = {base.path / INDEX} if base.path / SINGLE not in weights else set()
    beside = {one for one in base.path.iterdir() if one.is_file() and travels(one.name)}
    for source in sorted(weights | index | beside):
        _copy(source, folder / "base" / source.name)
    return "base"


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
