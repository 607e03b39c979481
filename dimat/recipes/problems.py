"""What is wrong with a recipe, one line for each problem: where it is, what was given, what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dimat.plugins import closest


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each problem, with the closest right name.

    Args:
        error: what pydantic found.
        model: what was validated.
    """
    return [_explain(problem, model) for problem in error.errors()]


def _explain(problem: Any, model: type[BaseModel]) -> str:
    path = tuple(problem["loc"])
    where = _told(path)
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = closest(str(path[-1]), known)
        did_you_mean = f" Did you mean {near!r}?" if near else ""
        return f"unknown key {where!r}.{did_you_mean} Keys here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} is missing; keys here: {', '.join(_keys_at(model, path[:-1]))}"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        near = closest(str(given), [name.strip(" '") for name in expected.replace(" or ", ",").split(",")])
        return f"{where}: got {given!r}, expected {expected}.{f' Did you mean {near!r}?' if near else ''}"
    if problem["type"] == "model_type":
        return f"{where}: got {given!r}, expected a group of keys: {', '.join(_keys_at(model, path))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {given!r}" if where else message


def _told(path: Sequence[str | int]) -> str:
    """`models[0].weight`."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys of the part that `path` leads to."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _part_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The model class in an annotation such as `list[Entry]` or `Alignment | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for inner in get_args(annotation) if (part := _part_in(inner)) is not None), None)
