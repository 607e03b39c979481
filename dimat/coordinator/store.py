"""The coordinator's memory on disk: one SQLite file in the run folder, and `events.jsonl` beside it for people.

What is acknowledged is committed: a report is answered after its transaction has ended. The journal is a write-ahead
log, so a report page may read while the run goes on; `synchronous=FULL` has every commit reach the disk, not only the
kernel, which costs a few milliseconds once per agent and round and survives a power cut. A transaction that a kill
interrupted is as if it had never begun.

`events.jsonl` is a copy of the events table, one flushed line each; opening the file for writing makes it anew from the
table, so a crash leaves no half line for long.

A report takes about 33 KiB (two sketches): 50 agents over 1000 rounds take 1.6 GB.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from dimat.coordinator.convergence import Outcome
from dimat.coordinator.rows import (
    join_columns,
    join_of,
    report_columns,
    report_of,
    summary_columns,
    summary_of,
)
from dimat.errors import DimatError, UsageError
from dimat.files import write_atomically
from dimat.messages import Join, Member, Report, RoundSummary

FILE_NAME = "coordinator.sqlite"
VERSION = 1
"""Of the tables; a file of another version is refused."""

TABLES = """
CREATE TABLE reports (
    agent INTEGER NOT NULL, round INTEGER NOT NULL, session TEXT NOT NULL, numbers TEXT NOT NULL,
    sketch_before BLOB NOT NULL, sketch_after BLOB NOT NULL, PRIMARY KEY (agent, round)) WITHOUT ROWID;
CREATE TABLE members (
    agent INTEGER PRIMARY KEY, state TEXT NOT NULL, start_round INTEGER NOT NULL, error TEXT NOT NULL,
    session TEXT NOT NULL, joined TEXT NOT NULL);
CREATE TABLE summaries (round INTEGER PRIMARY KEY, numbers TEXT NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, time_s REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, round INTEGER, agent INTEGER);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened and is worth a line."""

    time_s: float
    """Seconds since the epoch."""
    kind: str
    """`joined`, `forming`, `started`, `lost`, `back`, `left`, `failed`, `round`, `stop`, `dropped`, `ended`, ..."""
    text: str
    round: int | None = None
    agent: int | None = None


@dataclass(frozen=True, slots=True)
class StoredMember:
    """An agent as it was last written down."""

    join: Join
    state: str
    start_round: int
    error: str


class Store:
    """The tables of one run. Open with `Store.open`; close when done. One thread at a time inside a transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, read_only: bool) -> None:
        self.path = path
        self._connection = connection
        self._read_only = read_only
        self._lock = threading.RLock()
        self._new_events: list[Event] = []
        self._log: TextIO | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Store:
        """Open a run's store, making it if it does not exist.

        Args:
            path: the file, or the run folder that holds `coordinator.sqlite`.
            read_only: for reporters, also while a coordinator writes; nothing is made.

        Raises:
            UsageError: nothing is there (when reading only), or the file is not a store of this version.
        """
        path = path / FILE_NAME if path.is_dir() else path
        if read_only and not path.is_file():
            raise UsageError(
                f"{str(path)!r} does not exist: no coordinator has written there yet", hint="name the folder of a run"
            )
        where = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            # Autocommit mode: transactions begin and end where `transaction` says so, nowhere else.
            connection = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False, timeout=30.0)
            store = cls(path, connection, read_only=read_only)
            store._prepare()
        except sqlite3.Error as error:
            raise UsageError(f"{str(path)!r} cannot be opened as a coordinator's store: {error}") from None
        return store

    def _prepare(self) -> None:
        version = self._one("PRAGMA user_version")
        if not self._read_only:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
        if version == 0 and not self._read_only:
            self._connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            self._connection.close()
            raise UsageError(
                f"{str(self.path)!r} has tables of version {version}, this dimat reads version {VERSION}",
                hint="use the dimat that made the run, or start over with --fresh",
            )
        if not self._read_only:
            self._rewrite_log()

    def _rewrite_log(self) -> None:
        log = self.path.with_name("events.jsonl")
        write_atomically(log, "".join(_line(event) for event in self.events()))
        self._log = log.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        with self._lock:
            if not self._read_only:
                # A plain file again: a finished run can be copied, and read where nothing may be written. A reader who
                # is at work prevents it, a closed connection has done it: both are fine.
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
            if self._log is not None:
                self._log.close()
                self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: on disk when the block ends, untouched when it raises.

        Raises:
            DimatError: the disk refused.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:  # an interrupt too must not leave a transaction open; it is raised again
                    self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise DimatError(f"{str(self.path)!r} cannot be written: {error}") from error
            finally:
                new, self._new_events = self._new_events, []
            if self._log is not None and new:
                self._log.write("".join(_line(event) for event in new))
                self._log.flush()

    def add_report(self, report: Report) -> None:
        """Keep a report. The same one again changes nothing; a new process's one of the same round takes its place."""
        self._connection.execute(
            "INSERT INTO reports VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (agent, round) DO UPDATE SET "
            "session = excluded.session, numbers = excluded.numbers, sketch_before = excluded.sketch_before, "
            "sketch_after = excluded.sketch_after WHERE session <> excluded.session",
            report_columns(report),
        )

    def add_summary(self, summary: RoundSummary) -> None:
        """Keep a round's summary."""
        self._connection.execute("INSERT OR REPLACE INTO summaries VALUES (?, ?)", summary_columns(summary))

    def put_member(self, agent: int, member: StoredMember) -> None:
        """Keep what is known of an agent."""
        row = (agent, member.state, member.start_round, member.error, member.join.session, join_columns(member.join))
        self._connection.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_event(self, event: Event) -> None:
        """Keep an event; its line is written once the transaction has ended."""
        row = (event.time_s, event.kind, event.text, event.round, event.agent)
        self._connection.execute("INSERT INTO events (time_s, kind, text, round, agent) VALUES (?, ?, ?, ?, ?)", row)
        self._new_events.append(event)

    def put_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value by name."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def drop_rounds_after(self, round: int) -> None:
        """Forget reports and summaries of later rounds: they are done again."""
        self._connection.execute("DELETE FROM reports WHERE round > ?", (round,))
        self._connection.execute("DELETE FROM summaries WHERE round > ?", (round,))

    # ---------------------------------------------------------------------------------------------------- reading

    def reports(self, *, after: int = 0, sketches: bool = True) -> list[Report]:
        """The reports of rounds above `after`, by round and agent; without `sketches` these are empty."""
        columns = "sketch_before, sketch_after" if sketches else "x'', x''"
        query = f"SELECT agent, round, session, numbers, {columns} FROM reports WHERE round > ? ORDER BY round, agent"
        return [report_of(row) for row in self._rows(query, (after,))]

    def summaries(self) -> list[RoundSummary]:
        """All summaries by round."""
        return [summary_of(row) for row in self._rows("SELECT round, numbers FROM summaries ORDER BY round")]

    def stored_members(self) -> dict[int, StoredMember]:
        """The agents that ever joined, by id."""
        rows = self._rows("SELECT agent, joined, state, start_round, error FROM members ORDER BY agent")
        return {agent: StoredMember(join_of(joined), *rest) for agent, joined, *rest in rows}

    def members(self) -> list[Member]:
        """The agents that ever joined, by id, with their histograms and the numbers of their last reports."""
        newest = {report.agent: report for report in self.reports(sketches=False)}
        return [
            Member(
                agent=agent,
                address=member.join.address,
                state=member.state,
                round=newest[agent].round if agent in newest else member.start_round,
                metrics=newest[agent].metrics if agent in newest else {},
                num_samples=member.join.num_samples,
                histogram=member.join.histogram,
            )
            for agent, member in self.stored_members().items()
        ]

    def events(self) -> list[Event]:
        """All events in the order in which they happened."""
        return [Event(*row) for row in self._rows("SELECT time_s, kind, text, round, agent FROM events ORDER BY id")]

    def meta(self, key: str) -> Any:
        """The value kept by that name; None when there is none."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def outcome(self) -> Outcome | None:
        """How the run ended; None while it has not."""
        value = self.meta("outcome")
        return Outcome(**value) if value else None

    def address(self) -> str | None:
        """Where the run's coordinator listens, or listened last."""
        value: str | None = self.meta("address")
        return value

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()

    def _one(self, query: str) -> Any:
        return self._rows(query)[0][0]


def _line(event: Event) -> str:
    return json.dumps({key: value for key, value in asdict(event).items() if value is not None}) + "\n"
