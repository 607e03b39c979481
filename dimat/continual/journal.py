"""The journal of a ledger: an SQLite file that says which models are in, in what order, and which state is the current.

A change of the ledger is one transaction here; whatever else lies in the folder is nothing until a row names it.
SQLite writes the old pages beside before it changes them, waits for the disk (`synchronous=EXTRA`: also for the
folder's entry), and rolls back at the next opening what a kill left half done. Each row carries a seal, the SHA-256 of
its columns, so that a changed byte does not pass for a fact.

Tables: `models` (present and removed), `versions` (from the empty one to the current), `files` (digests of what `init`
wrote), `numbers` (the last version that was given). Others may add tables of their own: see `Journal.writing`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimat.continual.entry import Entry, Version
from dimat.errors import DimatError

DAMAGED = "take the ledger from a backup, or build it anew from its models"
TIMEOUT_S = 60.0
"""How long to wait for another process's transaction, which takes as long as the disk does."""

_SCHEMA = """
CREATE TABLE numbers (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE files (path TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, action TEXT NOT NULL, model TEXT NOT NULL, file TEXT, digest TEXT,
    num_models INTEGER NOT NULL, norm REAL NOT NULL, sketch BLOB, time TEXT NOT NULL, who TEXT NOT NULL,
    kept INTEGER NOT NULL, seal TEXT NOT NULL);
CREATE TABLE models (
    "order" INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, weight REAL NOT NULL, norm REAL NOT NULL,
    time TEXT NOT NULL, who TEXT NOT NULL, cosine REAL, version INTEGER NOT NULL, stats TEXT NOT NULL,
    sketch BLOB NOT NULL, removed INTEGER, seal TEXT NOT NULL);
"""
_VERSION = "version, action, model, file, digest, num_models, norm, time, who"
_MODEL = 'name, digest, "order", weight, norm, time, who, cosine, version, stats'


@dataclass(frozen=True, slots=True)
class Page:
    """What the journal says at one moment.

    Attributes:
        current: the newest version.
        previous: those before it that are kept, newest first.
        entries: the models that are in, in order.
        last_version: the highest number that was ever given to a version.
        last_order: the highest order of a model that is in, or was and could come back.
    """

    current: Version
    previous: tuple[Version, ...]
    entries: tuple[Entry, ...]
    last_version: int
    last_order: int


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal at `path`. Nothing is held open between calls, so threads and processes may share it."""

    path: Path

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one moment.

        Raises:
            DimatError: the file is damaged, or is not there.
        """
        with self._told(), closing(self._connect()) as database:
            database.execute("BEGIN")
            yield database

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it happens when the block ends, or nothing.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder) / "journal.sqlite")
        ...     journal.create({}, Version(0, "init", "", None, None, 0, 0.0, "", ""))
        ...     with journal.writing() as database:
        ...         _ = database.execute("CREATE TABLE IF NOT EXISTS scores (version INTEGER, score REAL)")
        ...         _ = database.execute("INSERT INTO scores VALUES (1, 0.5)")
        ...     journal.page().current.version
        0
        """
        with self._told(), closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def create(self, files: Mapping[str, str], empty: Version) -> None:
        """Make the file, with the digests of what lies beside it and the first version."""
        with self._told(), closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            database.executescript("PRAGMA synchronous=EXTRA; BEGIN;" + _SCHEMA)
            database.executemany("INSERT INTO files VALUES (?, ?)", sorted(files.items()))
            database.execute("INSERT INTO numbers VALUES ('last_version', ?)", (empty.version,))
            _insert_version(database, empty, None)
            database.execute("COMMIT")

    def page(self) -> Page:
        """What is in now."""
        with self.reading() as database:
            versions = _versions(database)
            last_version = database.execute("SELECT value FROM numbers WHERE key = 'last_version'").fetchone()
            (last_order,) = database.execute('SELECT coalesce(max("order"), 0) FROM models').fetchone()
            rows = database.execute(f'SELECT {_MODEL} FROM models WHERE removed IS NULL ORDER BY "order"')
            entries = tuple(_entry(row) for row in rows)
        if not versions or last_version is None:
            what = "last number of a version" if versions else "version"
            raise DimatError(f"journal {self.path} is damaged: it names no {what}", hint=DAMAGED)
        kept = tuple(version for version in versions[1:] if version.kept)
        return Page(versions[0], kept, entries, last_version[0], last_order)

    def versions(self) -> list[Version]:
        """Every version from the empty one to the current, those that are no longer kept among them."""
        with self.reading() as database:
            return _versions(database)[::-1]

    def files(self) -> dict[str, str]:
        """Digest by path of what `init` wrote."""
        with self.reading() as database:
            return dict(database.execute("SELECT path, digest FROM files ORDER BY path"))

    def sketches(self) -> tuple[bytes | None, dict[int, bytes]]:
        """The sketch of the current update, and of each model that is in, by order."""
        with self.reading() as database:
            (merged,) = database.execute("SELECT sketch FROM versions ORDER BY version DESC LIMIT 1").fetchone()
            return merged, dict(database.execute('SELECT "order", sketch FROM models WHERE removed IS NULL'))

    def add(self, version: Version, entry: Entry, update: bytes, sketch: bytes, keep: int) -> None:
        """Make `version` the current one, with `entry` in it.

        Args:
            version: the new version.
            entry: the model.
            update: the sketch of merged - base.
            sketch: the sketch of model - base.
            keep: how many versions before it are kept.
        """
        row = (*_columns(entry), sketch, None)
        with self.writing() as database:
            _insert_version(database, version, update)
            marks = ", ".join("?" * (len(row) + 1))
            database.execute(
                f"INSERT INTO models ({_MODEL}, sketch, removed, seal) VALUES ({marks})", (*row, _seal(row))
            )
            _advance(database, version.version, keep)

    def remove(self, version: Version, entry: Entry, update: bytes | None, keep: int) -> None:
        """Make `version` the current one, without `entry`."""
        with self.writing() as database:
            _insert_version(database, version, update)
            _mark_removed(database, entry.order, version.version)
            _advance(database, version.version, keep)

    def undo(self, current: Version) -> Entry:
        """Go back to the version before `current`; the entry that went, or came back."""
        with self.writing() as database:
            where = "removed" if current.action == "remove" else "version"
            found = database.execute(f"SELECT {_MODEL} FROM models WHERE {where} = ?", (current.version,)).fetchone()
            entry = _entry(found)
            if current.action == "remove":
                _mark_removed(database, entry.order, None)
            else:
                database.execute("DELETE FROM models WHERE version = ?", (current.version,))
            database.execute("DELETE FROM versions WHERE version = ?", (current.version,))
            return entry

    def problems(self) -> list[str]:
        """What is wrong inside of the file: SQLite's own check, and rows that do not answer to their seals."""
        with self.reading() as database:
            found = [f"journal: {row[0]}" for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"]
        return found + self.changed_rows()

    def changed_rows(self) -> list[str]:
        """The rows that do not answer to their seals, each a sentence."""
        found = []
        with self.reading() as database:
            for row in database.execute(f"SELECT {_VERSION}, sketch, kept, seal FROM versions ORDER BY version"):
                if _seal(row[:-1]) != row[-1]:
                    found.append(f"journal: the row of version {row[0]} was changed")
            for row in database.execute(f'SELECT {_MODEL}, sketch, removed, seal FROM models ORDER BY "order"'):
                if _seal(row[:-1]) != row[-1]:
                    found.append(f"journal: the row of model {row[0]!r} (order {row[2]}) was changed")
        return found

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a journal that is gone is an error, not an empty one.
        address = f"{self.path.resolve().as_uri()}?mode=rw"
        database = sqlite3.connect(address, uri=True, timeout=TIMEOUT_S, isolation_level=None)
        database.execute("PRAGMA synchronous=EXTRA")
        return database

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            hint: str | None = "make room on its disk, and give the same command again; the ledger is as it was"
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_FULL:
                hint = None if self.path.exists() else DAMAGED
            raise DimatError(f"journal {self.path} cannot be used: {error}", hint=hint) from error
        except sqlite3.DatabaseError as error:
            raise DimatError(f"journal {self.path} is damaged: {error}", hint=DAMAGED) from error


def _versions(database: sqlite3.Connection) -> list[Version]:
    rows = database.execute(f"SELECT {_VERSION}, kept FROM versions ORDER BY version DESC")
    return [Version(*(*row[:-1], bool(row[-1]))) for row in rows]


def _entry(row: tuple[Any, ...]) -> Entry:
    try:
        entry = Entry(*(*row[:-1], json.loads(row[-1])))
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"the statistics of model {row[0]!r} are not what was written: {error}") from error
    numbers = (entry.weight, entry.norm, 0.0 if entry.cosine is None else entry.cosine)
    if not all(isinstance(number, float) for number in numbers) or not isinstance(entry.stats, dict):
        raise sqlite3.DatabaseError(f"the row of model {row[0]!r} holds other kinds of values than were written")
    return entry


def _columns(entry: Entry) -> tuple[Any, ...]:
    return (entry.name, entry.digest, entry.order, entry.weight, entry.norm, entry.time, entry.who, entry.cosine,
            entry.version, json.dumps(dict(entry.stats), sort_keys=True))  # fmt: skip


def _insert_version(database: sqlite3.Connection, version: Version, update: bytes | None) -> None:
    row = (version.version, version.action, version.model, version.file, version.digest, version.num_models,
           version.norm, version.time, version.who, update, 1)  # fmt: skip
    marks = ", ".join("?" * len(row))
    sql = f"INSERT INTO versions ({_VERSION}, sketch, kept, seal) VALUES ({marks}, ?)"
    database.execute(sql, (*row, _seal(row)))


def _advance(database: sqlite3.Connection, version: int, keep: int) -> None:
    """The number is taken, and of the versions before it only the newest `keep` can be come back to."""
    database.execute("UPDATE numbers SET value = ? WHERE key = 'last_version'", (version,))
    newest = "SELECT version FROM versions ORDER BY version DESC LIMIT ?"
    sql = f"SELECT {_VERSION}, sketch FROM versions WHERE kept AND version NOT IN ({newest})"
    for row in database.execute(sql, (keep + 1,)).fetchall():
        sealed = (_seal((*row[:-1], None, 0)), row[0])  # the sketch is read of kept versions alone
        database.execute("UPDATE versions SET kept = 0, sketch = NULL, seal = ? WHERE version = ?", sealed)


def _mark_removed(database: sqlite3.Connection, order: int, version: int | None) -> None:
    sql = f'SELECT {_MODEL}, sketch FROM models WHERE "order" = ?'
    row = (*database.execute(sql, (order,)).fetchone(), version)
    database.execute('UPDATE models SET removed = ?, seal = ? WHERE "order" = ?', (version, _seal(row), order))


def _seal(row: tuple[Any, ...]) -> str:
    plain = [hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else one for one in row]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
