"""results.md, from the tables and their side files and from nothing else: the same tables give the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.decentralized import machine, measures, table, tables
from benchmarks.decentralized.methods import METHODS
from benchmarks.decentralized.suites import SUITES, cells_of
from benchmarks.decentralized.table import Row
from dimat.files import write_atomically

INTRODUCTION = """\
# Results

Written by `python -m benchmarks.decentralized --report` from the tables in [results/](results); do not edit.

Every method gets the same shards, the same initialisations and the same learning rates. A round is local epochs and
one merge; for gradient methods it is a step and an exchange, as often as the largest shard has batches in these epochs,
for every agent. Accuracy is the mean over the agents on test samples that all share, right after the merge, as mean ±
standard deviation over the seeds; *least* is the worst agent and *averaged* the mean of all agents' models, both after
the last round. The averaged model gets its batch-norm statistics from 512 samples of all shards; nothing else here sees
another agent's data but `dimat_shared`. Data subsets, shards and initialisations change with the seed. Seconds were
taken while several cells ran side by side: read them as shares.

The command of each suite runs what its table lacks, so it resumes; `--dry-run` says what that is and how long it takes,
`--only PATTERN` and `--budget-minutes M` do a part of it, `--again PATTERN` does cells anew, `--data FOLDER` is where
`mnist.npz`, `fashion_mnist.npz`, `cifar10_20k.npz` and `har.npz` are. Pre-trained agents are kept in a cache
(`--cache FOLDER`) and shared by methods and graphs: delete it after a change to training. The columns of the tables are
explained in `benchmarks/decentralized/table.py`, settings and methods stand in `suites.py` and `methods.py` beside it.
"""


def write(docs: Path) -> list[Path]:
    """Write results.md and the figures of a docs folder; returns what was written."""
    from benchmarks.decentralized.figures import draw_all

    found = {suite: table.read(docs / "results" / f"{suite}.csv") for suite in SUITES}
    found = {suite: rows for suite, rows in found.items() if rows}
    written = []
    for suite, rows in found.items():
        for name, picture in draw_all(suite, rows):
            write_atomically(docs / "results" / name, picture)
            written.append(docs / "results" / name)
        for old in set((docs / "results").glob(f"{suite}-*.png")) - set(written):
            old.unlink()  # of settings that the suite does not have any more
    write_atomically(docs / "results.md", text_of(docs))
    return [*written, docs / "results.md"]


def text_of(docs: Path) -> str:
    """What results.md says when it is made from the tables of a docs folder."""
    parts = [INTRODUCTION, _methods()]
    for suite in SUITES:
        path = docs / "results" / f"{suite}.csv"
        if rows := table.read(path):
            parts.append(section(suite, rows, machine.read(path)))
    return "\n".join(parts)


def section(suite: str, rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> str:
    """All that the report says of one suite."""
    from benchmarks.decentralized.figures import planned

    found = measures.by_setting(rows)
    lines = [
        f"## Suite {suite}",
        "",
        f"    python -m benchmarks.decentralized --suite {suite}",
        "",
        *_progress(suite, rows),
    ]
    lines += [_machine(each) for each in machines]
    parts = [
        (
            "The default against the best of weight averaging, weight matching and DIMAT with local probe",
            tables.leads(found),
        ),
        ("DIMAT minus weight averaging and minus CDSGD in the first rounds", tables.claims(found)),
        ("Accuracy after the merge", tables.accuracy(found)),
        ("Gradient methods at the bytes that dimat's default had spent", tables.budgets(found, "bytes")),
        ("Gradient methods at the seconds that dimat's default had spent", tables.budgets(found, "seconds")),
        (f"Where the seconds go after round {measures.SETTLED}", tables.costs(found)),
        ("Figures", [f"![{words}](results/{name})" for name, words in planned(suite, rows)]),
    ]
    for heading, content in parts:
        if content:
            lines += ["", f"### {heading}", "", *content]
    return "\n".join(lines) + "\n"


def _methods() -> str:
    lines = ["| method | what | settings |", "| --- | --- | --- |"]
    for name, method in METHODS.items():
        said = " ".join(f"`-s {setting}`" for setting in method.settings) or "none"
        lines.append(f"| {name} | {method.what} | {said} |")
    return "\n".join(lines) + "\n"


def _progress(suite: str, rows: Sequence[Row]) -> list[str]:
    """How much of the suite is there, and what is not."""
    wanted, done = cells_of(suite), table.finished(rows)
    left = [cell for cell in wanted if cell not in done]
    lines = [f"{len(wanted) - len(left)} of {len(wanted)} cells are done."]
    absent = sorted({cell.method for cell in left} - {cell.method for cell in done})
    if absent:
        lines.append(f"Not run at all: {', '.join(absent)}.")
    lines += [
        f"{cell.method} diverged in round {last} on {cell.setting.title}, seed {cell.seed}: what it had then stands for"
        " the rounds after."
        for cell, last in measures.diverged(rows).items()
    ]
    return [" ".join(lines), ""]


def _machine(entry: Mapping[str, Any]) -> str:
    return (
        f"- {entry['cells']} cells at commit {entry['commit']}, {entry['cores']} at once, on {entry['processor']} with "
        f"{entry['num_cpus']} cores, Python {entry['python']}, torch {entry['torch']}"
    )
