"""The file that says what a ledger is judged by: tasks, in the order in which their models arrive.

    - name: digits                        # as in a run's config: built-in, entry point, package.module:object,
      model: cnn                          #   path/to/file.py:object (found beside this file); model, data, options
      label: upright                      # what tables call it; by default its name
      after: upright-model                # the ledger's name of its model; by default the model of the same place
    - tasks.py:Turned

A list of names alone may be a plain text file, one a line. Of a task's methods, judging needs `model()`, and
`correct(model)`, a bool for each test sample, or `evaluate(model)`, a mapping with `accuracy`. With `correct` the
accuracy is its mean, and samples that were right before can be followed; `evaluate` is then not called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dimat.errors import ConfigError, TaskError
from dimat.plugins import unknown
from dimat.tasks.load import make_task

_KEYS = ("name", "model", "data", "options", "label", "after")


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task of the list.

    Attributes:
        name: what finds it, with files made absolute.
        label: what tables and the journal call it.
        after: the name of the model it belongs to; None for the model of the task's place in the list.
        arguments: `model`, `data` and `options`, as `dimat.tasks.load_task` takes them.
    """

    name: str
    label: str
    after: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """The task object.

        Raises:
            PluginError: nothing answers to its name.
            TaskError: it cannot be made, or has not the methods that judging needs.
        """
        task = make_task(self.name, **self.arguments)
        if not callable(getattr(task, "model", None)):
            raise TaskError(f"task {self.label} has no method model, which makes the module to judge")
        if not any(callable(getattr(task, method, None)) for method in ("correct", "evaluate")):
            raise TaskError(
                f"task {self.label} has neither correct(model), one bool for each test sample, nor evaluate(model), "
                "a mapping with `accuracy`",
                hint="write one of them; with correct, samples that break from one version to the next are counted",
            )
        return task


def read_tasks(path: Path) -> tuple[TaskEntry, ...]:
    """The tasks that the file `path` lists; nothing is imported yet.

    Raises:
        ConfigError: it cannot be read, an entry has an unknown key or a wrong value, or two have one label.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"list of tasks {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    entries = [_entry(item, path, number) for number, item in enumerate(_items(text, path), 1)]
    if not entries:
        raise ConfigError(f"list of tasks {path} is empty, expected at least one task")
    for key, cure in (("label", "give each one a label of its own"), ("after", "a model has one task")):
        values = [value for entry in entries if (value := getattr(entry, key)) is not None]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"list of tasks {path}: two tasks have the {key} {twice!r}", hint=cure)
    return tuple(entries)


def _items(text: str, path: Path) -> list[Any]:
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"list of tasks {path} is neither YAML nor a plain list: {error}") from None
    if isinstance(told, Mapping) and list(told) == ["tasks"]:
        told = told["tasks"]
    if told is None:
        return []
    if isinstance(told, str):  # to YAML, lines without a mark are one sentence
        lines = (line.partition(" #")[0].strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    if not isinstance(told, list):
        raise ConfigError(f"list of tasks {path} holds a {type(told).__name__}, expected a list of tasks")
    return told


def _entry(item: Any, path: Path, number: int) -> TaskEntry:
    where = f"list of tasks {path}, task {number}"
    item = {"name": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        raise ConfigError(f"{where} is {item!r}, expected a name, or keys and values")
    for key in item:
        if key not in _KEYS:
            raise ConfigError(f"{where}: {unknown('key', str(key), _KEYS)}")
    if "name" not in item:
        raise ConfigError(f"{where} has no name: say which task, as in name: digits or name: my_task.py:Task")
    given = {key: value for key, value in item.items() if value is not None}
    for key, kinds, expected in _TYPES:
        if key in given and not isinstance(given[key], kinds):
            raise ConfigError(f"{where}: {key} is {given[key]!r}, expected {expected}")
    name = str(given["name"])
    arguments = {key: given[key] for key in ("model", "data", "options") if key in given}
    if isinstance(arguments.get("model"), str):
        arguments["model"] = _found(arguments["model"], path)
    if "data" in arguments:
        arguments["data"] = _found(arguments["data"], path)
    return TaskEntry(_found(name, path), given.get("label", name), given.get("after"), arguments)


_TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("name", (str,), "a text"),
    ("model", (str, Mapping), "a model's name, or a mapping with its name and options"),
    ("data", (str,), "a path"),
    ("options", (Mapping,), "a mapping"),
    ("label", (str,), "a text"),
    ("after", (str,), "the name of a model in the ledger"),
)


def _found(name: str, path: Path) -> str:
    """`name` with the file in it absolute, where it lies beside the list."""
    file, colon, attribute = name.partition(":") if ".py:" in name else (name, "", "")
    beside = path.resolve().parent / file
    return f"{beside.resolve()}{colon}{attribute}" if beside.is_file() else name
