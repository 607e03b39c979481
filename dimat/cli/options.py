"""Options that several commands share; every one is accepted after the command."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Format(StrEnum):
    """How results are printed on stdout."""

    text = "text"
    json = "json"


class Vectorise(StrEnum):
    """Whether a simulation trains its agents as one."""

    auto = "auto"
    on = "on"
    off = "off"


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
Together = Annotated[
    Optional[Vectorise],  # noqa: UP045
    typer.Option("--vectorise", help="Train all agents as one stack of models: short for -s simulation.vectorise=..."),
]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]


Certs = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--certs",
        metavar="DIR",
        help="Certificates (`dimat certs`): nothing is plain text, everybody proves who they are.",
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond this machine.")]
As = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--as", metavar="NAME", help="Which of the certificates to use, as agent-3, admin or onlooker."),
]


def overrides(settings: list[str], seed: int | None) -> list[str]:
    """The `-s` settings with `--seed` among them."""
    return settings if seed is None else [*settings, f"seed={seed}"]


def set_up_logging(verbose: int, quiet: bool, certs: Path | None = None) -> None:
    """Send dimat's log to stderr: warnings by default, more with -v, errors alone with -q.

    Handshakes that fail never reach Python: a server with certificates has gRPC itself log them, at its level INFO.
    gRPC reads that when it is imported, so this comes first.
    """
    # ERROR is what dimat itself asks for, and what a process inherits from the one that started it.
    if certs is not None and os.environ.get("GRPC_VERBOSITY", "ERROR") == "ERROR":
        os.environ["GRPC_VERBOSITY"] = "INFO"
    level = logging.ERROR if quiet else {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(handlers=[_Stderr()], level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)


class _Stderr(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: the live table replaces it, so that lines go above the table."""

    def emit(self, record: logging.LogRecord) -> None:
        # In one write: under torchrun nothing is buffered, and the processes of a machine write to one file.
        sys.stderr.write(self.format(record) + "\n")
