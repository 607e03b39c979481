"""A run as a report sees it: everything that its folder holds, read once, nothing written.

A run that is still going on can be read too: the database is opened for reading only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from dimat.coordinator.convergence import Outcome
from dimat.coordinator.store import FILE_NAME, Event, Store
from dimat.errors import UsageError
from dimat.messages import Member, Report, RoundSummary
from dimat.plugins import closest

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run: its resolved config, what its agents reported, what the coordinator made of it."""

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    summaries: tuple[RoundSummary, ...] = ()
    members: tuple[Member, ...] = ()
    events: tuple[Event, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None
    """How the run ended; None while it has not."""
    seconds: float = math.nan
    """Wall-clock seconds from the start to the end (or to the newest report)."""

    @property
    def reason(self) -> str:
        """Why the run ended, in words; empty while it has not."""
        return self.outcome.reason if self.outcome else ""


def find_run(run: Path, *, runs: Path = Path("runs")) -> Path:
    """The run folder that `run` names: a path, or the name of a folder in `runs`.

    Raises:
        UsageError: there is no such folder, or it holds no run; the message lists the runs in `runs`.
    """
    for candidate in (run, runs / run):
        if (candidate / CONFIG).is_file():
            return candidate
    known = sorted(path.parent.name for path in runs.glob(f"*/{CONFIG}"))
    what = "is a folder without a config.yaml" if run.is_dir() else "is a file" if run.exists() else "does not exist"
    message = f"{str(run)!r} is not a run: it {what}; a run's folder holds {CONFIG} and {FILE_NAME}."
    if near := closest(run.name, known):
        message += f" Did you mean {str(runs / near)!r}?"
    found = f"Runs in {str(runs)!r}: {', '.join(known)}" if known else f"There are no runs in {str(runs)!r}"
    raise UsageError(f"{message} {found}", hint="dimat run --out DIR makes one")


def load_record(run_folder: Path) -> RunRecord:
    """Everything in a run's folder but weights and sketches; a run that has only begun has little of it.

    Raises:
        UsageError: the folder is no run (see `find_run`), or its config or its database cannot be read.
    """
    folder = find_run(run_folder)
    config = _mapping(folder / CONFIG)
    if not (folder / FILE_NAME).is_file():
        return RunRecord(name=_name(config, folder), folder=folder, config=config, environment=_environment(folder))
    with Store.open(folder, read_only=True) as store:
        events = tuple(store.events())
        return RunRecord(
            name=_name(config, folder),
            folder=folder,
            config=config,
            # 32 KiB of sketches a report would fill the memory in a long run; what they say is in the summaries.
            reports=tuple(store.reports(sketches=False)),
            summaries=tuple(store.summaries()),
            members=tuple(store.members()),
            events=events,
            environment=_environment(folder),
            outcome=store.outcome(),
            seconds=seconds_of(events),
        )


def seconds_of(events: Sequence[Event]) -> float:
    """Wall-clock seconds from the first event to the last, without the pauses of a run that ended and was continued.

    NaN for fewer than two events.
    """
    if len(events) < 2:
        return math.nan
    return sum(max(0.0, later.time_s - each.time_s) for each, later in pairwise(events) if each.kind != "ended")


def _name(config: Mapping[str, Any], folder: Path) -> str:
    return str(config.get("name", folder.name))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{str(path)!r} holds a {type(values).__name__}, expected the keys of a run's config")
    return values


def _environment(folder: Path) -> dict[str, Any]:
    """What the run wrote of its surroundings; a file that is not there or broken ends no report."""
    path = folder / ENVIRONMENT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {ENVIRONMENT: f"cannot be read: {error}"}
    return values if isinstance(values, dict) else {ENVIRONMENT: "is not a JSON object"}
