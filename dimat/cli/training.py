"""What `dimat methods` says of a run's algorithms (`-s algorithm=NAME`) and of schedules (`-s merge.schedule=NAME`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dimat.merge.describe import Option

KEYS = {"algorithms": "algorithm", "schedules": "merge.schedule"}
"""The config's key for each kind."""


@dataclass(frozen=True, slots=True)
class Way:
    """An algorithm or a schedule, described.

    Attributes:
        kind: `algorithms` or `schedules`.
        name: as users type it.
        summary: the first paragraph of its docstring.
        body: formulas and whatever else its module says.
        options: in the order of the signature.
        source: what it is taken from.
    """

    kind: str
    name: str
    summary: str
    body: str
    options: tuple[Option, ...]
    source: str


def find(name: str | None) -> dict[str, Way]:
    """All built-in algorithms and schedules by name; with a name that one, or none."""
    from dimat.agent.algorithms import builtin_algorithms
    from dimat.schedules import BUILTIN

    every: dict[str, tuple[str, Callable[..., Any]]] = {
        **{one: ("algorithms", maker) for one, maker in builtin_algorithms().items()},
        **{one: ("schedules", function) for one, function in BUILTIN.items()},
    }
    return {one: _described(one, kind, function) for one, (kind, function) in every.items() if name in (None, one)}


def _described(name: str, kind: str, function: Callable[..., Any]) -> Way:
    from dimat.merge.describe import options_in_words, parts_of

    summary, body, _, source, _ = parts_of(inspect.getdoc(function) or "")
    module = inspect.getdoc(inspect.getmodule(function)) or ""
    return Way(kind, name, summary, body or module.split("\n\nSource")[0], options_in_words(function), source)


def as_json(ways: Mapping[str, Way]) -> dict[str, list[dict[str, Any]]]:
    """Lists by kind, for programs."""
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KEYS}
    for way in ways.values():
        options = [
            {"name": one.name, "type": one.type, "required": one.required, "default": one.default,
             "what": one.explanation}
            for one in way.options
        ]  # fmt: skip
        told[way.kind].append(
            {"name": way.name, "summary": way.summary, "options": options, "source": way.source,
             "documentation": way.body}
        )  # fmt: skip
    return told


def print_table(console: Console, ways: Mapping[str, Way], shown: Callable[[Option], str]) -> None:
    """Both kinds, one after the other."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    titles = {
        "algorithms": "Algorithms of a run that exchange while they train: -s algorithm=NAME",
        "schedules": "Schedules, in which rounds models merge: -s merge.schedule=NAME",
    }
    for kind, title in titles.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 2, 1, 0), pad_edge=False)
        table.add_column("name", min_width=24)
        table.add_column("options", no_wrap=True)
        for way in ways.values():
            if way.kind == kind:
                options = "\n".join(f"{option.name}={shown(option)}" for option in way.options)
                table.add_row(Text.assemble((way.name, "bold"), "\n", way.summary), options or "none")
        console.print()
        console.print(table)


def print_one(console: Console, way: Way, shown: Callable[[Option], str], wrapped: Callable[..., str]) -> None:
    """One with its options explained, and what its module says of it."""
    width = min(console.width, 100)
    console.print(way.name, style="bold")
    console.print(wrapped(way.summary, width))
    console.print(f"\nin a config: {KEYS[way.kind]}: {way.name}")
    console.print("\nOptions" if way.options else "\nIt has no options.", style="bold")
    for option in way.options:
        kind = f" ({option.type})" if option.type else ""
        console.print(f"  {option.name}={shown(option)}{kind}")
        if option.explanation:
            console.print(wrapped(option.explanation, width, "      "))
    if way.body:
        console.print(f"\n{wrapped(way.body, width)}")
    if way.source:
        console.print(f"\n{wrapped(f'Source: {way.source}', width)}")
