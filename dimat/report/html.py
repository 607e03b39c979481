"""The report: one HTML file that needs nothing but itself, and the figures beside it as PNGs.

Every value passes jinja2's autoescape: names of agents, classes and events come from other machines.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dimat.coordinator.store import Event
from dimat.files import write_atomically
from dimat.report import numbers, words
from dimat.report.figures import FIGURES
from dimat.report.record import RunRecord, find_run, load_record
from dimat.report.style import png

MOST_EVENTS = 200
"""Newest events that the page lists; a long run on a bad network has thousands."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure as the template takes it; `source` is a data URL, empty when there is nothing to show."""

    name: str
    heading: str
    text: str
    source: str


def write_report(run_folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run's folder; returns the path of the page.

    Every file is written beside its place and renamed: a reader sees the old one or the new one, never half. A run that
    is still going on is reported as far as it has come.

    Raises:
        UsageError: `run_folder` is neither a run nor the name of one in `./runs`; the message lists the runs there are.
    """
    folder = find_run(run_folder)
    record = load_record(folder)
    drawn = draw_all(record)
    for name, image in drawn.items():
        write_atomically(folder / "figures" / f"{name}.png", image)
    page = folder / "report.html"
    write_atomically(page, render(record, drawn).encode())
    return page


def draw_all(record: RunRecord) -> dict[str, bytes]:
    """PNGs by figure name, of those figures for which the run has numbers."""
    figures = {entry.name: entry.draw(record) for entry in FIGURES}
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def render(record: RunRecord, drawn: Mapping[str, bytes]) -> str:
    """The page as text, with the PNGs of `drawn` inside."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dimat.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        accuracy=words.accuracy,
        plain=words.plain,
        size=words.size,
        duration=words.duration,
        count=words.count,
        share=words.share,
    )
    events = [event for event in record.events if event.kind != "round"]  # the curves tell these
    return environment.get_template("template.html.j2").render(
        record=record,
        result=numbers.summary(record),
        headlines=headlines(record),
        rows=(rows := numbers.agent_rows(record)),
        gated=any(row.num_gated for row in rows),
        matched=any(math.isfinite(row.matchings_skipped) for row in rows),
        figures=[
            Shown(
                name=entry.name,
                heading=entry.heading,
                text=entry.explanation if entry.name in drawn else entry.absent,
                source=_data_url(drawn[entry.name]) if entry.name in drawn else "",
            )
            for entry in FIGURES
        ],
        events=[(_when(event), event) for event in events[-MOST_EVENTS:]],
        num_events_left_out=max(0, len(events) - MOST_EVENTS),
        config=yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True),
        environment=flat(record.environment),
    )


def headlines(record: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers at the top: what, how much, and a remark."""
    result = numbers.summary(record)
    history = result["history"]
    mean, worst = (math.nan if result[key] is None else result[key] for key in ("mean_accuracy", "min_accuracy"))
    before = history[-1]["mean_accuracy_before_merge"] if history else None
    lines = [
        (
            "mean accuracy",
            words.accuracy(mean),
            f"{words.accuracy(before)} before the last merge" if before is not None else "over the agents alive",
        ),
        ("worst agent", words.accuracy(worst), "its accuracy after the last merge"),
    ]
    ends = numbers.consensus_ends(record)
    if ends is None:
        lines.append(("consensus distance", "–", "nothing was merged"))
    else:
        first, last = (each.consensus_distance for each in ends)
        change = f"{words.times(first, last)} than the {words.plain(first)} after round {ends[0].round}"
        since = (
            change if ends[0] is not ends[1] and min(first, last) > 0 else f"after the merge of round {ends[1].round}"
        )
        lines.append(("consensus distance", words.plain(last), since))
    asked = record.config.get("rounds")
    lines.append(("rounds", str(result["rounds"]), f"of {asked}, in {words.duration(result['seconds'])}"))
    share = numbers.merge_share(record)
    lines.append(("cost of merging", words.share(share), "of a round's time without waiting"))
    return lines


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as lines of a table.

    >>> flat({"python": "3.12", "packages": {"torch": "2.13"}})
    [('python', '3.12'), ('packages.torch', '2.13')]
    """
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", str(value)))
    return lines


def _when(event: Event) -> str:
    return datetime.fromtimestamp(event.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S") if event.time_s > 0 else ""


def _data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
