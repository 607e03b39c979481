"""Parameters of a mergekit recipe: one value for all tensors, or one for each by depth and by name.

    weight: 0.5                                 everywhere
    weight: [0, 0.5, 1]                         a gradient over the layers, interpolated linearly
    weight:                                     the first filter that is part of the tensor's name
      - {filter: self_attn, value: [0, 1]}
      - {value: 0.5}                            every other tensor

Where several places give a parameter the nearest one that has a value for the tensor counts: the model, the slice, the
recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

Settings = Mapping[str, Any]
Read = Callable[[Any], Any]
"""What one scalar of a setting stands for."""

_NUMBER, _FLAG = TypeAdapter(FiniteFloat), TypeAdapter(bool)


def number(value: Any) -> float:
    """A number, also when YAML takes it for text (`1e-3`).

    Raises:
        ValueError: it is none.
    """
    return float(_read(_NUMBER, value, "a finite number"))


def flag(value: Any) -> bool:
    """True or false.

    Raises:
        ValueError: it is neither.
    """
    return bool(_read(_FLAG, value, "true or false"))


def _read(adapter: TypeAdapter[Any], value: Any, expected: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise ValueError(f"got {value!r}, expected {expected}") from None


def check_setting(value: Any) -> Any:
    """`value` when it has the form of a setting.

    Raises:
        ValueError: it has not.
    """
    if _is_scalar(value) or (isinstance(value, list) and all(_is_scalar(one) for one in value)):
        return value
    conditions = [value] if isinstance(value, dict) else value
    if isinstance(conditions, list) and all(_is_condition(one) for one in conditions):
        return value
    raise ValueError(f"got {value!r}, expected a value, a list of values, or a list of {{filter: ..., value: ...}}")


def value_at(setting: Any, name: str, depth: float, read: Read) -> Any:
    """What a setting gives a tensor; None when it says nothing about it.

    Args:
        setting: what `check_setting` lets pass.
        name: of the tensor.
        depth: of its layer, 0 for the first of a slice to 1 for its last one.
        read: `number` or `flag`; numbers are interpolated, flags are picked.

    >>> value_at([0, 1, 4], "layers.3.weight", 0.75, number)
    2.5
    >>> value_at([{"filter": "mlp", "value": 1}, {"value": 2}], "layers.3.attn.weight", 0.75, number)
    2.0
    """
    if _is_scalar(setting):
        return read(setting)
    if isinstance(setting, list) and not setting:
        return None
    if isinstance(setting, list) and _is_scalar(setting[0]):
        values = [read(one) for one in setting]
        place = depth * (len(values) - 1)
        low = int(place)
        if read is flag:
            return values[low]
        high = min(low + 1, len(values) - 1)
        return (1 - (place - low)) * values[low] + (place - low) * values[high]
    for condition in [setting] if isinstance(setting, dict) else setting:
        where = condition.get("filter")
        if where in (None, "*") or where in name:
            return value_at(condition["value"], name, depth, read)
    return None


def resolve(
    key: str, places: Iterable[Settings | None], name: str, depth: float, read: Read, default: Any = None
) -> Any:
    """The value of the parameter `key` for a tensor: of the first place that has one; else the default.

    Args:
        key: the parameter.
        places: settings by parameter, the nearest first.
        name: of the tensor.
        depth: of its layer; see `value_at`.
        read: `number` or `flag`.
        default: where no place says anything about the tensor.

    Raises:
        ValueError: a setting holds what `read` cannot read.
    """
    for place in places:
        if place is not None and key in place:
            try:
                value = value_at(place[key], name, depth, read)
            except ValueError as error:
                raise ValueError(f"parameter {key!r}: {error}") from None
            if value is not None:
                return value
    return default


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _is_condition(value: Any) -> bool:
    if not isinstance(value, dict) or "value" not in value or not value.keys() <= {"filter", "value"}:
        return False
    inner, where = value["value"], value.get("filter")
    fits = _is_scalar(inner) or (isinstance(inner, list) and all(_is_scalar(one) for one in inner))
    return fits and (where is None or isinstance(where, str))
