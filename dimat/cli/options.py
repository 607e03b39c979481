"""Options that several commands share; every one is accepted after the command."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Format(StrEnum):
    """How results are printed on stdout."""

    text = "text"
    json = "json"


class Shape(StrEnum):
    """How agents are launched."""

    together = "together"
    per_agent = "per-agent"


Config = Annotated[
    Optional[Path],  # noqa: UP045  typer reads the annotation at run time
    typer.Argument(metavar="[CONFIG]", help="A YAML file. Without one: five agents on a ring, scikit-learn's digits."),
]
Set = Annotated[
    list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, such as train.lr=0.1.")
]
Seed = Annotated[Optional[int], typer.Option("--seed", help="Short for -s seed=N.", min=0)]  # noqa: UP045
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", metavar="DIR", help="The run folder; by default runs/<name>-<digest of the config>."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds a run.")]
OutputFormat = Annotated[
    Format, typer.Option("--format", help="What stdout gets: text, or one JSON object at the end.")
]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]


def overrides(settings: list[str], seed: int | None) -> list[str]:
    """The `-s` settings with `--seed` among them."""
    return settings if seed is None else [*settings, f"seed={seed}"]


def set_up_logging(verbose: int, quiet: bool) -> None:
    """Send dimat's log to stderr: warnings by default, more with -v, errors alone with -q."""
    level = logging.ERROR if quiet else {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(handlers=[_Stderr()], level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)


class _Stderr(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: the live table replaces it, so that lines go above the table."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
