"""The folder of a ledger, opened: who may write, which state is the current one, and what lies about for nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dimat.continual.create import ledger_fold
from dimat.continual.entry import Version
from dimat.continual.intact import check_intact
from dimat.continual.journal import DAMAGED, Journal, Page
from dimat.continual.lock import clear, locked
from dimat.continual.manifest import JOURNAL, LOCK, MANIFEST, STATES, Manifest, file_digest, read_manifest
from dimat.continual.state import RESCUE, Held, StateWriter, reading
from dimat.continual.verify import miscounts
from dimat.errors import DimatError, UsageError
from dimat.merge.api import Fold
from dimat.merge.source import OnDisk
from dimat.modelfile import open_model

_ATTEMPTS = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """A ledger's folder. Nothing is held open between calls: threads and processes may share one.

    Attributes:
        path: the folder.
        manifest: what it is.
        fold: its method with its options.
        base: the copy of the base inside.
        journal: which models are in.
    """

    path: Path
    manifest: Manifest
    fold: Fold
    base: OnDisk
    journal: Journal

    @classmethod
    def open(cls, path: Path) -> Self:
        """The ledger in the folder `path`.

        Raises:
            UsageError: it is no ledger (the closest one is named), or one of a newer format.
            DimatError: it is damaged.
        """
        path = Path(path)
        manifest, journal = read_manifest(path), Journal(path / JOURNAL)
        if file_digest(path / MANIFEST) != journal.files().get(MANIFEST):
            raise DimatError(
                f"{path / MANIFEST} was changed since init: what it says is not what the state was made with",
                hint="put it back as it was; another method or option needs a ledger of its own",
            )
        fold = ledger_fold(manifest.method, manifest.options)
        return cls(path, manifest, fold, OnDisk(open_model(path / manifest.base)), journal)

    @property
    def version(self) -> int:
        """The current version; 0 is the empty ledger, and no number is used twice."""
        return self.journal.page().current.version

    @contextmanager
    def current(self) -> Iterator[tuple[Page, Held]]:
        """The newest version, whose state stays as long as the block runs.

        Raises:
            UsageError: no model is in yet.
        """
        for attempt in range(_ATTEMPTS):
            page = self.journal.page()
            if not page.entries:
                raise UsageError(
                    f"ledger {self.path} has absorbed no model yet: its merged model would be the base itself",
                    hint=f"dimat continual add {self.path} MODEL",
                )
            with ExitStack() as stack:
                try:
                    held = stack.enter_context(self.state(page.current))
                except DimatError:
                    if attempt < _ATTEMPTS - 1 and self.version != page.current.version:
                        continue  # writers have made several versions since the journal was read
                    raise
                self.check_files()
                yield page, held
            return

    @contextmanager
    def state(self, version: Version) -> Iterator[Held]:
        """The state of a version, which stays as long as the block runs, in the bytes that the journal knows.

        Raises:
            DimatError: it is gone, or was changed.
        """
        path = self.state_path(version)
        with ExitStack() as stack:
            try:
                held = stack.enter_context(reading(path, self.manifest, self.base, version.digest))
            except FileNotFoundError as error:
                raise DimatError(f"state {path} of version {version.version} is gone", hint=RESCUE) from error
            yield held

    def check_files(self) -> None:
        """Whether the base, and what else `init` wrote, has the bytes that it had then.

        Raises:
            DimatError: a file was changed, or is gone.
        """
        for name, digest in self.journal.files().items():
            try:
                check_intact(self.path / name, digest, DAMAGED)
            except FileNotFoundError as error:
                raise DimatError(f"{self.path / name} is gone", hint=DAMAGED) from error

    @contextmanager
    def writing(self, what: str) -> Iterator[Page]:
        """The lock, and what the journal says under it; `what` is told to those who wait.

        Raises:
            DimatError: the folder cannot be written to, its disk is full, or the journal was changed by others.
        """
        try:
            with locked(self.path / LOCK, what):
                self.clear()
                page = self.journal.page()
                problems = self.journal.changed_rows() or miscounts(page, self.journal.versions())
                if problems:
                    raise DimatError(f"ledger {self.path} is damaged, and stays as it is: {problems[0]}", hint=DAMAGED)
                yield page
        except OSError as error:
            raise DimatError(
                f"ledger {self.path} cannot be written to: {error.strerror or error}; it is as it was"
            ) from error

    @contextmanager
    def next_state(self, page: Page) -> Iterator[tuple[Held, StateWriter]]:
        """The current state, and a writer for the one of the next version."""
        path = self.path / STATES / f"{page.last_version + 1:06}.safetensors"
        self.check_files()
        with (
            self.state(page.current) as old,
            StateWriter(path, self.manifest, self.base) as new,
        ):
            yield old, new

    def state_path(self, version: Version) -> Path | None:
        """Where the state of a version lies; None for the empty state."""
        return None if version.file is None else self.path / STATES / version.file

    def clear(self) -> None:
        """Delete what no version needs: states that are no longer kept, and what a kill left behind."""
        page = self.journal.page()
        kept = {version.file for version in (page.current, *page.previous)}
        for file in sorted((self.path / STATES).iterdir()):
            if file.name not in kept and not file.is_dir():  # a folder is of the file system's making
                try:
                    clear(file)
                except OSError as error:  # what lies about harms nobody: the next writer tries again
                    logger.warning("%s is not needed any more and cannot be deleted: %s", file, error)
