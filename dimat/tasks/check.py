"""Try a task as the runtime will use it, and tell its author what is wrong and what cures it.

Each check is a generator over findings and gets a fresh task, so that one mistake is told once and hides no other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dimat.errors import DimatError, PluginError, TaskError
from dimat.plugins import load_object
from dimat.tasks import findings
from dimat.tasks.base import REQUIRED, missing_methods
from dimat.tasks.check_data import check_data, check_optional, check_probe, check_probe_inputs, check_shards
from dimat.tasks.check_model import check_evaluate, check_loss, check_model, check_signatures
from dimat.tasks.findings import Finding, Trial, problem
from dimat.tasks.load import load_task

_NOT_THE_AUTHORS = tuple(str(Path(str(module.__file__)).parent) for module in (torch, findings))


def check_task(
    reference: str,
    *,
    model: str | Mapping[str, Any] = "cnn",
    data: str | None = None,
    partition: str | Mapping[str, Any] = "iid",
    batch_size: int = 32,
    options: Mapping[str, Any] | None = None,
    num_agents: int = 5,
    seed: int = 0,
) -> list[Finding]:
    """Run every check over the task that `reference` names (as for `load_task`, or a file with one task in it).

    The other arguments are those of `load_task`, and the number of agents and the seed to try with.

    Torch's global generator is left as it was. Nothing is written.

    Returns:
        The findings in the order of the checks, passed ones included. A check that needs what an earlier one found
        missing is left out.

    Raises:
        PluginError: `reference` names nothing that can be loaded.
        TaskError: `reference` is a file without a class's name, and not exactly one of its classes looks like a task.

    >>> {finding.status for finding in check_task("digits")}
    {'ok'}
    """

    def make() -> Any:
        return load_task(reference, model=model, data=data, partition=partition, batch_size=batch_size, options=options)

    reference = _with_class(reference)
    try:
        make()
    except PluginError:
        raise
    except DimatError as error:
        return [problem("methods", str(error), error.hint or "give the class what the contract asks for")]
    with torch.random.fork_rng(devices=[]):
        return _findings(Trial(make, num_agents, seed))


def _with_class(reference: str) -> str:
    """`file.py` completed by its only class that looks like a task."""
    if not reference.endswith(".py"):
        return reference
    contents = load_object("task", f"{reference}:__dict__")
    classes = [
        name for name, value in contents.items() if isinstance(value, type) and value.__module__ == contents["__name__"]
    ]
    tasks = [name for name in classes if len(missing_methods(contents[name])) < len(REQUIRED)]
    if len(tasks) != 1:
        which = f"several: {', '.join(tasks)}" if tasks else f"none of {', '.join(classes) or 'no class at all'}"
        raise TaskError(f"{reference}: which class is the task? Found {which}", hint=f"say {reference}:CLASS")
    return f"{reference}:{tasks[0]}"


def problems(found: list[Finding]) -> list[Finding]:
    """What must be mended before the task can run."""
    return [finding for finding in found if finding.status == "problem"]


def _findings(trial: Trial) -> list[Finding]:
    found = _guarded("methods", check_signatures, trial)
    if problems(found):
        return found
    found += _guarded("model", check_model, trial)
    has_model = not problems(found)
    data = _guarded("data", check_data, trial)
    found += data
    if problems(data):
        return found
    found += _guarded("shards", check_shards, trial)
    if has_model:
        found += _guarded("loss", check_loss, trial)
        found += _guarded("evaluate", check_evaluate, trial)
    found += _guarded("probe", check_probe, trial)
    if has_model and not problems(found):
        found += _guarded("probe inputs", check_probe_inputs, trial)
    found += _guarded("optional", check_optional, trial)
    return found


def _guarded(name: str, check: Callable[[Trial], Iterator[Finding]], trial: Trial) -> list[Finding]:
    """The check's findings; an exception of the author's code is one of them, and says where it was raised."""
    found: list[Finding] = []
    try:
        found.extend(check(trial))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # The deepest line that is neither ours nor a library's is where the author can mend it.
        theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_AUTHORS)]
        frame = (theirs or frames)[-1]
        hint = getattr(error, "hint", None) or f"look at {frame.filename}:{frame.lineno}, in {frame.name}"
        found.append(Finding(name, "problem", f"{type(error).__name__}: {error}", hint))
    return found
