"""`dimat continual evaluate`: a table of tasks and versions, ACC, BWT and what broke; the same as JSON or a picture."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimat.continual.evaluate import Evaluation, evaluate_ledger
from dimat.continual.ledger import Ledger
from dimat.continual.picture import Panel, plot_accuracies
from dimat.continual.tasklist import TaskEntry, read_tasks
from dimat.errors import EXIT_DONE

_SHOWN_STEPS = 10
logger = logging.getLogger(__name__)


def evaluate_command(
    path: Path, tasks: Path, versions: Sequence[int], again: bool, picture: Path | None, format: str
) -> int:
    """Judge, write to the journal and tell; the exit code."""
    listed = read_tasks(tasks)
    ledger = Ledger.open(path)
    evaluation = evaluate_ledger(ledger, listed, versions=versions or None, again=again)
    if picture is not None:
        draw_evaluation(evaluation, picture, title=f"{path.resolve().name}: {ledger.manifest.method}")
    if format == "json":
        print(json.dumps(as_json(evaluation)))
    else:
        print_evaluation(evaluation)
    return EXIT_DONE


def prepare_tasks(tasks: Path) -> tuple[tuple[TaskEntry, ...], dict[str, Any]]:
    """The list and its objects by label: what `add --evaluate` checks before it adds."""
    listed = read_tasks(tasks)
    return listed, {task.label: task.make() for task in listed}


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """{version, accuracy, backward_transfer, tasks, history: [{version, model, accuracies, negative_flips}], notes}."""
    return {
        "version": evaluation.version,
        "accuracy": evaluation.accuracy,
        "backward_transfer": evaluation.backward_transfer,
        "tasks": [{"task": label, "model": model} for label, model in evaluation.tasks.items()],
        "history": [
            {
                "version": step.version,
                "action": step.action,
                "model": step.model,
                "accuracies": dict(step.accuracies),
                "negative_flips": dict(step.flips),
            }
            for step in evaluation.steps
        ],
        "notes": list(evaluation.notes),
    }


def draw_evaluation(evaluation: Evaluation, path: Path, *, title: str) -> None:
    """The picture of accuracy by task and step."""
    steps = [step.model if step.action == "add" else f"− {step.model}" for step in evaluation.steps]
    lines = {task: [step.accuracies.get(task, math.nan) for step in evaluation.steps] for task in evaluation.tasks}
    heading = "accuracy by task and step"
    plot_accuracies({heading: Panel(steps, lines)}, path, title=title)


def print_evaluation(evaluation: Evaluation) -> None:
    """A table with a row for each task and a column for each version; then what it comes to."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    shown = evaluation.steps[-_SHOWN_STEPS:]
    table = Table(title="Accuracy by task and version", title_justify="left")
    table.add_column("task")
    for step in shown:
        sign = "+" if step.action == "add" else "−"
        table.add_column(f"{step.version}: {sign}{step.model}", justify="right", overflow="fold")
    table.add_column("broke", justify="right")
    last = shown[-1]
    for task in evaluation.tasks:
        row = (_number(step.accuracies.get(task)) for step in shown)
        table.add_row(task, *row, _percent(last.flips.get(task)))
    means = [_mean(step.accuracies.values()) for step in shown]
    table.add_section()
    table.add_row("mean", *(_number(one) for one in means), _percent(_mean(last.flips.values())))
    console.print(table)
    if len(evaluation.steps) > len(shown):
        earlier = len(evaluation.steps) - len(shown)
        console.print(f"{earlier} earlier versions are left out; --format json has all of them")
    facts = Table(show_header=False)
    facts.add_row("ACC", _number(evaluation.accuracy), "mean accuracy of the current version over its tasks")
    facts.add_row("BWT", _signed(evaluation.backward_transfer), "mean change since each task's model came, by T − 1")
    flips = _mean(last.flips.values())
    facts.add_row("broke", _percent(flips), "right one version before, wrong now: negative flips, mean over tasks")
    console.print(facts)
    for note in evaluation.notes:
        console.print(note)


def _mean(values: Any) -> float | None:
    told = list(values)
    return sum(told) / len(told) if told else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
