"""Absorb the models that appear in a folder, and only those that are complete.

Nobody tells when a file is finished, so it is looked at again and again. A model is taken when its headers are whole
(every tensor that they announce lies in the file, every shard in the folder) and nothing about it changed since the
look before. A writer that makes a file of its full size first and then rests for longer than that cannot be told from
one that has ended: who writes so should write beside and rename. What was refused is told once and left alone until it
changes; what is in the ledger already is known by its digest.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dimat.continual.entry import AlreadyAbsorbed, Entry
from dimat.continual.ledger import Ledger
from dimat.errors import DimatError, UsageError
from dimat.modelfile import open_model

SUFFIX = ".safetensors"
CONFIG = "config.json"
UNFINISHED = (".partial", ".tmp")
LOOKS_TO_HEAL = 3
"""Looks in a row that must find the same damage before it is called that: some writers leave the header for last."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of the last change of each file of a model."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one model of the folder.

    Attributes:
        path: where it lies.
        outcome: `absorbed`; `present`: the ledger had it already; `refused`, which is told once; `unfinished`.
        entry: its line in the journal, if it has one.
        reason: why it was refused, or is not taken yet.
    """

    path: Path
    outcome: Literal["absorbed", "present", "refused", "unfinished"]
    entry: Entry | None = None
    reason: str = ""


@dataclass(slots=True)
class _Candidate:
    stamp: Stamp
    num_alike: int = 0
    """Looks before that saw the same stamp."""
    settled: bool = False
    """Nothing is left to do until the stamp changes."""
    reason: str = "it was not there a moment ago"


@dataclass(slots=True)
class Watcher:
    """Looks at a folder again and again.

    Attributes:
        ledger: where models go.
        folder: where they come from; not searched deeper than its own entries.
        pattern: names to look at, as in a shell.
        who: noted in the journal.
    """

    ledger: Ledger
    folder: Path
    pattern: str = "*"
    who: str = ""
    _candidates: dict[Path, _Candidate] = field(default_factory=dict)

    def look(self, stopped: Callable[[], bool] = lambda: False) -> list[Seen]:
        """Take what became complete since the last look, in the order of names; what is left to others is not told.

        Args:
            stopped: asked before each model; true ends the look.

        Raises:
            UsageError: the folder is gone.
        """
        seen = []
        for path in self._ready():
            if stopped():
                break
            found = self._absorb(path)
            if found is not None:
                seen.append(found)
        return seen

    def unfinished(self) -> list[Seen]:
        """What lies there and is not complete, as far as the last look knows."""
        return [
            Seen(path, "unfinished", reason=candidate.reason)
            for path, candidate in sorted(self._candidates.items())
            if not candidate.settled
        ]

    def _ready(self) -> list[Path]:
        """Note what changed; the candidates that did not, and are not settled."""
        try:
            found = {path: stamp for path in sorted(self.folder.iterdir()) if (stamp := self._stamp(path))}
        except OSError as error:
            raise UsageError(f"folder {self.folder} cannot be read: {error.strerror or error}") from error
        before, self._candidates = self._candidates, {}
        for path, stamp in found.items():
            old = before.get(path)
            if old is None or old.stamp != stamp:
                self._candidates[path] = _Candidate(stamp, reason="it is still being written" if old else "it is new")
            else:
                old.num_alike += 1
                self._candidates[path] = old
        return [path for path, one in self._candidates.items() if one.num_alike and not one.settled]

    def _stamp(self, path: Path) -> Stamp | None:
        """What tells a change of the model at `path`; None when there is none."""
        name = path.name
        if name.startswith(".") or name.endswith(UNFINISHED) or not fnmatch.fnmatch(name, self.pattern):
            return None
        try:
            if path.is_dir():
                if not (path / CONFIG).exists() or path.resolve() == self.ledger.path.resolve():
                    return None
                files = sorted(path.iterdir())
            elif name.endswith(SUFFIX):
                files = [path]
            else:
                return None
            statuses = [(one.name, one.stat()) for one in files]
        except OSError:  # it went while it was looked at
            return None
        return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in statuses)

    def _absorb(self, path: Path) -> Seen | None:
        candidate = self._candidates[path]
        stamp = self._stamp(path)
        if stamp is None:  # it went
            return None
        if stamp != candidate.stamp:  # while the models before it were absorbed, which takes its time
            self._candidates[path] = _Candidate(stamp, reason="it is still being written")
            return None
        try:
            open_model(path)
        except DimatError as error:
            candidate.reason = str(error)
            if candidate.num_alike < LOOKS_TO_HEAL:
                return None
            candidate.settled = True
            return Seen(path, "refused", reason=str(error))
        try:
            entry = self.ledger.add(path, who=self.who)
        except AlreadyAbsorbed as error:
            candidate.settled = True
            return Seen(path, "present", error.entry)
        except UsageError as error:
            candidate.settled = True
            return Seen(path, "refused", reason=str(error) + (f" ({error.hint})" if error.hint else ""))
        except DimatError as error:  # it was changed while it was read, or the disk is full: again at the next look
            if candidate.reason != str(error):
                log.warning("%s is not absorbed yet: %s", path, error)
            candidate.reason = str(error)
            return None
        candidate.settled = True
        return Seen(path, "absorbed", entry)


def watch(
    ledger: Ledger,
    folder: Path,
    *,
    pattern: str = "*",
    interval_s: float = 2.0,
    once: bool = False,
    who: str = "",
    over: threading.Event | None = None,
    tell: Callable[[Seen], None] = lambda seen: None,
) -> list[Seen]:
    """Absorb what appears in `folder` until `over` is set; with `once` what is there now.

    Args:
        ledger: where models go; others may write to it meanwhile.
        folder: where they come from.
        pattern: names to look at, as in a shell.
        interval_s: seconds between two looks; what has not changed for that long is thought to be finished.
        once: end when nothing that was there at the first look is left to decide.
        who: noted in the journal.
        over: set by another thread, or a signal's handler: the model that is being absorbed is finished.
        tell: called with each model that is settled.

    Returns:
        What was settled; with `once` also what is unfinished.

    Raises:
        UsageError: there is no such folder, or an interval that is none.
    """
    if not folder.is_dir():
        raise UsageError(f"folder {folder} does not exist" if not folder.exists() else f"{folder} is no folder")
    if not interval_s > 0:
        raise UsageError(f"the interval is {interval_s} s, expected more than 0")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"folder {folder} may not be read")
    over = over or threading.Event()
    watcher = Watcher(ledger, folder, pattern, who)
    settled: list[Seen] = []
    num_looks = 0
    while not over.is_set():
        for seen in watcher.look(over.is_set):
            settled.append(seen)
            tell(seen)
        num_looks += 1
        if once and (num_looks > LOOKS_TO_HEAL or not watcher.unfinished()):
            left = watcher.unfinished()
            for seen in left:
                tell(seen)
            return settled + left
        over.wait(interval_s)
    return settled
