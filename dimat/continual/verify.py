"""Look at every byte of a ledger again: is everything what the journal says it is?"""

from __future__ import annotations

from pathlib import Path

from dimat.continual.entry import Version
from dimat.continual.journal import Journal, Page
from dimat.continual.manifest import JOURNAL, STATES, Manifest, file_digest, read_manifest
from dimat.continual.state import open_state
from dimat.errors import DimatError, UsageError
from dimat.merge.digest import digest_of
from dimat.merge.source import OnDisk
from dimat.modelfile import open_model


def verify(folder: Path) -> list[str]:
    """What is wrong with the ledger in `folder`, each a sentence that names the file; empty when nothing is.

    Reads the base and every kept state once. Runs beside a writer: a state that was cleared away meanwhile is none.

    Raises:
        UsageError: there is no ledger, or one of a newer format.
    """
    try:
        manifest = read_manifest(folder)
    except UsageError:
        raise
    except DimatError as error:
        return [str(error)]
    journal = Journal(folder / JOURNAL)
    try:
        problems = journal.problems()
        page, versions = journal.page(), journal.versions()
        problems += _files(folder, journal.files())
    except DimatError as error:
        return [str(error)]
    if problems:  # what follows would only say it again, or trip over it
        return problems
    problems += miscounts(page, versions)
    base = OnDisk(open_model(folder / manifest.base))
    digest = digest_of(base)
    if digest != manifest.base_digest:
        problems.append(
            f"{base.label} has the digest {digest[:12]}, the ledger was made of {manifest.base_digest[:12]}"
        )
    for version in versions:
        if version.kept and version.file is not None:
            found = _state(folder, manifest, base, version)
            if found and version.version in {one.version for one in _kept(journal.page())}:
                problems += found
    return problems


def _kept(page: Page) -> tuple[Version, ...]:
    return (page.current, *page.previous)


def _files(folder: Path, expected: dict[str, str]) -> list[str]:
    problems = []
    for name, digest in expected.items():
        try:
            found = file_digest(folder / name)
        except OSError as error:
            problems.append(f"{folder / name} cannot be read: {error.strerror or error}")
            continue
        if found != digest:
            problems.append(f"{folder / name} was changed since init: its SHA-256 is {found[:12]}, not {digest[:12]}")
    return problems


def miscounts(page: Page, versions: list[Version]) -> list[str]:
    """What the journal's rows, each right by itself, do not agree on."""
    problems = []
    if page.current.num_models != len(page.entries):
        problems.append(
            f"journal: version {page.current.version} counts {page.current.num_models} models, and names "
            f"{len(page.entries)}"
        )
    made = [entry.version for entry in page.entries]
    if made != sorted(set(made)) or any(entry.version > page.current.version for entry in page.entries):
        problems.append("journal: the models' order is not the order of the versions that they made")
    known = {version.version: version for version in versions}
    for entry in page.entries:
        version = known.get(entry.version)
        if version is None or (version.action, version.model) != ("add", entry.name):
            problems.append(f"journal: model {entry.name!r} says it made version {entry.version}, which did not add it")
    count = 0
    for version in versions:
        count += {"add": 1, "remove": -1}.get(version.action, 0)
        if version.num_models != count:
            problems.append(f"journal: version {version.version} counts {version.num_models} models, expected {count}")
            break
    if page.last_version < page.current.version:
        problems.append(f"journal: version {page.current.version} is newer than the newest number, {page.last_version}")
    return problems


def _state(folder: Path, manifest: Manifest, base: OnDisk, version: Version) -> list[str]:
    assert version.file is not None
    path = folder / STATES / version.file
    try:
        found = file_digest(path)
        if found != version.digest:
            return [
                f"{path} (version {version.version}) was changed: its SHA-256 is {found[:12]}, not "
                f"{(version.digest or '')[:12]}"
            ]
        held = open_state(path, manifest, base)
    except OSError as error:
        return [f"{path} (version {version.version}) cannot be read: {error.strerror or error}"]
    except DimatError as error:
        return [str(error)]
    if held.totals.num_models != version.num_models:
        return [f"{path} holds {held.totals.num_models} models, the journal says {version.num_models}"]
    return []
