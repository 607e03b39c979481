"""From a config's `task:` to a task object for one agent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dimat import plugins
from dimat.errors import DimatError, TaskError
from dimat.tasks.arrays import ArraysTask
from dimat.tasks.base import Task, require_methods
from dimat.tasks.digits import DigitsTask

BUILTIN: Mapping[str, Callable[..., Task]] = {"arrays": ArraysTask, "digits": DigitsTask}

ENTRY_POINTS = "dimat.tasks"

_CONFIGURED = ("model", "data", "partition", "batch_size")


def load_task(
    name: str,
    *,
    model: str | Mapping[str, Any] = "cnn",
    data: str | None = None,
    partition: str | Mapping[str, Any] = "iid",
    batch_size: int = 32,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """Make the task that `name` stands for.

    `model`, `partition` and `batch_size`, which a config always has, are handed over where the class has parameters of
    these names; so a class without arguments is a task too. `data` and `options`, which only someone who means them
    sets, must be accepted.

    Args:
        name: `digits`, `arrays`, an entry point of `dimat.tasks`, `package.module:Class` or `path/to/file.py:Class`.
        model: a model's name, or a mapping with `name` and options.
        data: where the data is, for tasks that read a file.
        partition: a scheme's name, or a mapping with `scheme` and options.
        batch_size: training samples per step.
        options: further keyword arguments of the class.

    Raises:
        PluginError: nothing answers to the name.
        TaskError: an argument that the class does not have or needs and was not given, a constructor that failed, or a
            task without a required method.

    >>> type(load_task("digits", partition={"scheme": "classes"})).__name__
    'DigitsTask'
    """
    task = make_task(name, model=model, data=data, partition=partition, batch_size=batch_size, options=options)
    require_methods(task, name)
    assert isinstance(task, Task)
    return task


def make_task(
    name: str,
    *,
    model: str | Mapping[str, Any] = "cnn",
    data: str | None = None,
    partition: str | Mapping[str, Any] = "iid",
    batch_size: int = 32,
    options: Mapping[str, Any] | None = None,
) -> object:
    """`load_task` for those who need fewer methods than an agent does, and check for these themselves.

    Raises:
        PluginError, TaskError: see `load_task`.
    """
    factory = plugins.resolve("task", name, BUILTIN, group=ENTRY_POINTS)
    if not callable(factory):
        raise TaskError(
            f"task {name!r} is a {type(factory).__name__}, expected a class or a function that makes a task"
        )
    configured = {"model": model, "data": data, "partition": partition, "batch_size": batch_size}
    arguments = _arguments(name, factory, configured, dict(options or {}))
    try:
        return factory(**arguments)
    except DimatError:
        raise
    except Exception as error:
        raise TaskError(f"task {name} could not be made: {type(error).__name__}: {error}") from error


def _arguments(
    name: str, factory: Callable[..., Any], configured: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """What the factory is called with: of `configured` what it accepts, of `options` everything."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a class of an extension module tells no signature
        parameters = inspect.signature(lambda **options: None).parameters
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [p.name for p in named]
    for key in options:
        if key in _CONFIGURED:
            raise TaskError(f"task {name}: {key} is given twice, among the options too")
        if key not in known and not accepts_all:
            raise TaskError(f"task {name}: {_unknown_option(str(key), [k for k in known if k not in _CONFIGURED])}")
    if configured["data"] is not None and "data" not in known and not accepts_all:
        raise TaskError(f"task {name} reads no file, data: {configured['data']!r} was given", hint="leave data out")
    # Without `data` in the config the class's own default holds.
    given = {key: value for key, value in configured.items() if value is not None}
    accepted = {key: value for key, value in given.items() if accepts_all or key in known}
    arguments = {**accepted, **options}
    needed = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    needed += [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if needed:
        key = "task.data" if needed[0] == "data" else f"task.options.{needed[0]}"
        raise TaskError(
            f"task {name} needs {', '.join(needed)}, which the config does not give",
            hint=f"for example -s {key}=..., or give the parameter a default",
        )
    return arguments


def _unknown_option(key: str, known: list[str]) -> str:
    return plugins.unknown("option", key, known) if known else f"unknown option {key!r}. It has none"
