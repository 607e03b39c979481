"""Judge the versions of a ledger by a list of tasks, write down what was found, and tell how the merge fares.

A task belongs to one model of the ledger: by name, or by its place in the list and the model's place in the order of
arrival. A version is judged on the tasks whose models are in it. What is in the journal is not measured twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dimat.continual.entry import Entry, Version
from dimat.continual.evaluations import Judgement, read_judgements, write_judgements
from dimat.continual.judge import judge, merged_at
from dimat.continual.ledger import Ledger
from dimat.continual.metrics import average_accuracy, backward_transfer, negative_flips
from dimat.continual.tasklist import TaskEntry
from dimat.errors import UsageError
from dimat.plugins import closest

logger = logging.getLogger(__name__)
Judgements = Mapping[tuple[int, str], Judgement]


@dataclass(frozen=True, slots=True)
class Step:
    """One version, and what is known of it.

    Attributes:
        version: its number.
        action: `add` or `remove`.
        model: the model that came or went.
        accuracies: task -> accuracy, of those that were measured, in the order of the tasks.
        flips: task -> share of samples that were right in the version before and are wrong in this one; tasks that do
            not tell which samples are right are missing, as are those that the version before was not judged on.
    """

    version: int
    action: str
    model: str
    accuracies: Mapping[str, float]
    flips: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A ledger, judged.

    Attributes:
        version: the current version.
        tasks: label -> name of the task's model, in the models' order; of the tasks whose model is in.
        steps: every version that has a model in it, oldest first.
        accuracy: ACC of the current version; None when it was not measured on every task.
        backward_transfer: BWT of the current version; None when an accuracy that it needs was not measured.
        notes: what is not shown, and why.
    """

    version: int
    tasks: Mapping[str, str]
    steps: tuple[Step, ...]
    accuracy: float | None
    backward_transfer: float | None
    notes: tuple[str, ...]


def evaluate_ledger(
    ledger: Ledger,
    tasks: Sequence[TaskEntry],
    *,
    versions: Sequence[int] | None = None,
    again: bool = False,
    made: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Evaluation:
    """Judge versions, write what was found to the journal, and tell what is known of all.

    Args:
        ledger: the ledger.
        tasks: by what it is judged; see `dimat.continual.tasklist`.
        versions: which, by number; by default the current one. The state of each must be kept.
        again: measure also what was measured already.
        made: the tasks' objects by label, where they were made before.
        tell: is told what is being done.

    Raises:
        UsageError: no task's model is in, or a version that does not exist or is not kept.
        TaskError, SchemaError: a task that fails, or does not fit the ledger's model; what was judged before it stays.
    """
    page = ledger.journal.page()
    matched, notes = match_tasks(tasks, page.entries)
    if not matched:
        raise UsageError(
            f"ledger {ledger.path}: none of the {len(tasks)} tasks has its model in it"
            + (f": {'; '.join(notes)}" if page.entries else "; it has absorbed no model yet"),
            hint=f"dimat continual status {ledger.path} shows the models; a task says `after: NAME`",
        )
    history = ledger.journal.versions()
    objects, by_label = dict(made or {}), {task.label: task for task in tasks}
    for version in _chosen(history, [page.current.version] if versions is None else versions):
        known = read_judgements(ledger.journal)
        due = [label for label, entry in matched.items() if entry.version <= version.version]
        due = [label for label in due if again or (version.version, label) not in known]
        if not due:
            continue
        tell(f"reading version {version.version}")
        merged, found = merged_at(ledger, version), []
        for label in due:
            tell(f"version {version.version} on {label}")
            if label not in objects:
                objects[label] = by_label[label].make()
            found.append(judge(ledger, version, merged, objects[label], label))
        write_judgements(ledger.journal, found, again=again)
    told = report(matched, page.entries, history, read_judgements(ledger.journal))
    return replace(told, notes=(*notes, *told.notes))


def match_tasks(tasks: Sequence[TaskEntry], entries: Sequence[Entry]) -> tuple[dict[str, Entry], list[str]]:
    """The model of each task by the task's label, in the models' order; and why other tasks have none.

    Args:
        tasks: in the order of the list; one without `after` belongs to the model whose `order` is its place.
        entries: the models that are in.

    Raises:
        UsageError: two tasks belong to one model.
    """
    by_name, by_order = {entry.name: entry for entry in entries}, {entry.order: entry for entry in entries}
    found: dict[str, Entry] = {}
    notes = []
    for place, task in enumerate(tasks, 1):
        entry = by_order.get(place) if task.after is None else by_name.get(task.after)
        if entry is not None:
            twice = next((other for other, theirs in found.items() if theirs == entry), None)
            if twice is not None:
                raise UsageError(
                    f"the tasks {twice!r} and {task.label!r} both belong to the model {entry.name!r}",
                    hint="say `after: NAME` for each task, or for none",
                )
            found[task.label] = entry
        elif task.after is None:
            gone = place <= max(by_order, default=0)
            fate = "was removed (is another one meant? `after: NAME`)" if gone else "is not in yet"
            notes.append(f"{task.label} is left out: model number {place} {fate}")
        else:
            near = closest(task.after, by_name)
            hint = f" (did you mean {near!r}?)" if near else ""
            notes.append(f"{task.label} is left out: its model {task.after!r} is not in{hint}")
    return dict(sorted(found.items(), key=lambda pair: pair[1].order)), notes


def report(
    tasks: Mapping[str, Entry], entries: Sequence[Entry], history: Sequence[Version], judgements: Judgements
) -> Evaluation:
    """What the journal's rows come to: a pure function of them.

    Args:
        tasks: label -> its model, in the models' order; at least one.
        entries: the models that are in.
        history: every version from the empty one to the current.
        judgements: by version and label.
    """
    steps = [_step(tasks, *pair, judgements) for pair in pairwise(history) if pair[1].num_models]
    current = history[-1].version
    # Row k is the version that model k made, the last row the current one, which a `remove` may have made.
    rows = [entry.version for entry in tasks.values()]
    rows[-1] = current
    matrix = [
        [judgements[row, label].accuracy if (row, label) in judgements else math.nan for label in tasks] for row in rows
    ]
    accuracy, transfer = average_accuracy(matrix), backward_transfer(matrix)

    notes = []
    without = [entry.name for entry in entries if entry not in tasks.values()]
    needed = [*zip(rows, tasks, strict=True), *((current, label) for label in tasks)]
    lacking = dict.fromkeys(f"{label} at version {row}" for row, label in needed if (row, label) not in judgements)
    if without:
        transfer = math.nan
        notes.append(f"ACC leaves out, and there is no BWT for, models that no task belongs to: {', '.join(without)}")
    elif len(tasks) < 2:
        notes.append("no BWT: the only task has no later model")
    elif math.isnan(transfer):
        notes.append(
            f"no BWT, which compares with each task when its model came; not measured: {', '.join(lacking)} "
            "(--version N while its state is kept; add --evaluate FILE from the start)"
        )
    now = [judgements[current, label] for label in tasks if (current, label) in judgements]
    silent = [one.task for one in now if one.correct is None]
    if silent:
        notes.append(f"no negative flips for want of correct(model): {', '.join(silent)}")
    return Evaluation(
        version=current,
        tasks={label: entry.name for label, entry in tasks.items()},
        steps=tuple(steps),
        accuracy=None if math.isnan(accuracy) else accuracy,
        backward_transfer=None if math.isnan(transfer) else transfer,
        notes=tuple(notes),
    )


def _step(tasks: Mapping[str, Entry], before: Version, version: Version, judgements: Judgements) -> Step:
    now = {label: one for label in tasks if (one := judgements.get((version.version, label))) is not None}
    flips = {}
    for label, one in now.items():
        earlier = judgements.get((before.version, label))
        new, old = one.right, None if earlier is None else earlier.right
        if new is not None and old is not None and len(new) == len(old):  # else the test set is another one
            flips[label] = negative_flips(old, new)
    accuracies = {label: one.accuracy for label, one in now.items()}
    return Step(version.version, version.action, version.model, accuracies, flips)


def _chosen(history: Sequence[Version], asked: Sequence[int]) -> list[Version]:
    numbers = sorted(set(asked))
    known = {version.version: version for version in history if version.num_models}
    for number in numbers:
        if number not in known:
            kept = ", ".join(str(version.version) for version in known.values() if version.kept) or "none"
            raise UsageError(f"version {number} has no model in it, or does not exist. Kept with models: {kept}")
    return [known[number] for number in numbers]
