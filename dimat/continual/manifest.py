"""What a ledger is, said once when it is made: `ledger.json`, and where everything else lies beside it.

ledger.json          format, method, options, digest of the base, how many states are kept, alignment
base.safetensors     the base, copied in; base/ when it is a Hugging Face folder
alignment.json       the groups of units that may move, for ledgers that align
states/              the state of the fold, one file for each version that is kept
journal.sqlite       which models are in, and which state is the current
lock                 held by whoever writes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dimat.errors import DimatError, UsageError
from dimat.plugins import closest

FORMAT = 2
MANIFEST = "ledger.json"
JOURNAL = "journal.sqlite"
ALIGNMENT = "alignment.json"
STATES = "states"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `ledger.json`.

    Attributes:
        method: the merge method.
        options: all of its options, also those that were left at their defaults: a later release may have others.
        base: name of the base in the folder.
        base_digest: its digest; see `dimat.merge.digest`.
        keep: how many states `undo` can go back.
        align: `weights`, or None.
        model: what made the module that the alignment was found with, for messages.
        dimat: the version that made the ledger.
        needs: the oldest version that reads it.
        format: of the folder.
    """

    method: str
    options: Mapping[str, Any]
    base: str
    base_digest: str
    keep: int
    align: str | None
    model: str | None
    dimat: str
    needs: str = "0.1.0"
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """The text of the file; equal manifests give equal bytes."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """What `folder` is.

    Raises:
        UsageError: it is no ledger (the closest one is named), or one of a newer format.
        DimatError: its `ledger.json` is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(_no_ledger(folder), hint="dimat continual init LEDGER --base BASE --method METHOD makes one")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict) or type(entries.get("format")) is not int:
            raise ValueError("it has no format number")
        if entries["format"] != FORMAT:
            _other_format(folder, entries)
        return Manifest(**entries)
    except (OSError, ValueError, TypeError) as error:
        hint = "take it from a backup, or build the ledger anew from its models"
        raise DimatError(f"{path} is damaged: {error}", hint=hint) from error


def _other_format(folder: Path, entries: Mapping[str, Any]) -> None:
    from dimat import __version__

    if entries["format"] < FORMAT:
        raise UsageError(
            f"ledger {folder} is of the older format {entries['format']}; this is dimat {__version__}, which reads "
            f"format {FORMAT}",
            hint="build it anew from its models: masks and trims of some methods are others now",
        )
    needs = entries.get("needs", entries.get("dimat", "a newer one"))
    raise UsageError(
        f"ledger {folder} is of format {entries['format']}, which needs dimat {needs}; this is dimat {__version__}, "
        f"which reads format {FORMAT}",
        hint=f"pip install 'dimat>={needs}'",
    )


def _no_ledger(folder: Path) -> str:
    around = folder.resolve().parent
    found = around.glob(f"*/{MANIFEST}") if around.is_dir() else ()
    ledgers = sorted(one.parent.name for one in found if one.is_file())
    near = closest(folder.name, ledgers)
    beside = f"Beside it: {', '.join(ledgers)}" if ledgers else "Beside it: no ledger"
    hint = f"Did you mean {str(folder.with_name(near))!r}?" if near else beside
    if not folder.exists():
        return f"ledger {folder} does not exist. {hint}"
    what = "a file" if folder.is_file() else f"a folder without {MANIFEST}"
    return f"{folder} is no ledger, but {what}. {hint}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
