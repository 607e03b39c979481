"""From a YAML file and `-s key=value` to a config, or to a message for every problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dimat.config.learning import TaskConfig
from dimat.config.run import RunConfig
from dimat.errors import ConfigError
from dimat.plugins import closest


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in `path` (None: the embedded default) with `key=value` overrides.

    >>> load_config(None, ["merge.basis=adopt", "agents=4"]).agents
    4

    Raises:
        ConfigError: the file does not exist or is not YAML, a key is unknown, a value is not allowed; every problem is
            named with its key path, what was given and what was expected.
    """
    values = _read(path) if path is not None else {}
    for override in overrides:
        _set(values, override)
    config = parse_config(values, source=str(path) if path else "the default config")
    return _with_absolute_paths(config, [Path.cwd(), *([path.parent] if path else [])])


def parse_config(values: Mapping[str, Any], *, source: str) -> RunConfig:
    """The config that `values` spell out.

    Raises:
        ConfigError: as for `load_config`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, values) for problem in error.errors()]
        raise ConfigError(f"{source} cannot be run:\n" + "\n".join(f"  {line}" for line in problems)) from None


def _with_absolute_paths(config: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """Files that the config names, found from the current folder or beside the config, with their whole path.

    Agents read the resolved config from the run folder, and may stand in another one. What is not found stays as it
    is: it may be a name, or its own part of dimat says that the file does not exist.
    """

    def absolute(name: str) -> str:
        file, colon, attribute = name.partition(":") if ".py:" in name else (name, "", "")
        for folder in folders:
            if (folder / file).exists():
                return f"{(folder / file).resolve()}{colon}{attribute}"
        return name

    def is_file(name: str) -> bool:
        return ".py:" in name or "/" in name or Path(name).suffix in (".yaml", ".yml", ".json", ".graphml", ".edgelist")

    task = config.task
    found: dict[str, Any] = {
        "name": absolute(task.name) if is_file(task.name) else task.name,
        "data": None if task.data is None else absolute(task.data),
    }
    if isinstance(task.model, str) and is_file(task.model):
        found["model"] = absolute(task.model)
    graph, method, algorithm = config.topology.graph, config.merge.method, config.algorithm.name
    init, schedule = config.init, config.merge.schedule
    return config.model_copy(
        update={
            "task": task.model_copy(update=found),
            "topology": config.topology.model_copy(update={"graph": absolute(graph) if is_file(graph) else graph}),
            "merge": config.merge.model_copy(
                update={
                    "method": absolute(method) if is_file(method) else method,
                    "schedule": schedule.model_copy(
                        update={"name": absolute(schedule.name) if is_file(schedule.name) else schedule.name}
                    ),
                }
            ),
            "algorithm": config.algorithm.model_copy(
                update={"name": absolute(algorithm) if is_file(algorithm) else algorithm}
            ),
            "init": init if init in ("same", "different") else absolute(init),
        }
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {str(path)!r} holds a {type(values).__name__}, expected keys and values")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    """Put `a.b.c=value` into the nested dictionaries."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"-s {override!r} is not of the form key=value", hint="for example: -s train.epochs=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"-s {override!r}: {text!r} is not a YAML value") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        if parent == "model" and isinstance(values.get(parent, "cnn"), str):  # -s task.model.width=2 over a bare name
            values[parent] = {"name": values.get(parent, TaskConfig().model)}
        if parent in ("algorithm", "schedule") and isinstance(values.get(parent), str):
            values[parent] = {"name": values[parent]}
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"-s {override!r}: {parent!r} is a value ({inner!r}), not a group of keys")
        values = inner
    if last in ("algorithm", "schedule") and isinstance(value, str) and isinstance(values.get(last), dict):
        value = {**values[last], "name": value}  # a name after its options is no reason to forget them
    values[last] = value


def _explain(problem: Any, values: Mapping[str, Any]) -> str:
    """One line for one pydantic problem: key path, what was given, what was expected, the closest right name."""
    path = [str(part) for part in problem["loc"] if part not in ("str", "dict[str,any]")]
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = closest(path[-1], known)
        did_you_mean = f" Did you mean {'.'.join([*path[:-1], near])!r}?" if near else ""
        return f"unknown key {where!r}.{did_you_mean} Keys here: {', '.join(known)}"
    given = problem["input"]
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        near = closest(str(given), [name.strip(" '") for name in expected.replace(" or ", ",").split(",")])
        did_you_mean = f" Did you mean {near!r}?" if near else ""
        return f"{where}: got {given!r}, expected {expected}.{did_you_mean}"
    if problem["type"] == "model_type":
        return f"{where}: got {given!r}, expected a group of keys: {', '.join(_keys_at(path))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {given!r}" if where else message


def _keys_at(path: Sequence[str]) -> list[str]:
    part: type[BaseModel] = RunConfig
    for name in path:
        if name.isdigit():
            continue  # a place in a list: the keys are those of its items
        annotation = part.model_fields[name].annotation if name in part.model_fields else None
        annotation = next((inner for inner in get_args(annotation) if isinstance(inner, type)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
