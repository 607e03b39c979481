"""What the options of merge methods may be: each check answers with the value, or says what was given and allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dimat.plugins import closest


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """`value` as a float inside its range.

    Raises:
        ValueError: it is not a finite number, or outside.

    >>> number("density", 2, above=0, at_most=1)
    Traceback (most recent call last):
    ValueError: density is 2, expected a number above 0 and at most 1
    """
    ends = (("above", above), ("at least", at_least), ("at most", at_most))
    allowed = " and ".join(f"{word} {end}" for word, end in ends if end is not None)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not (
        (above is None or value > above)  # type: ignore[operator]
        and (at_least is None or value >= at_least)  # type: ignore[operator]
        and (at_most is None or value <= at_most)  # type: ignore[operator]
    ):
        raise ValueError(f"{name} is {value!r}, expected a number{' ' + allowed if allowed else ''}")
    return float(value)  # type: ignore[arg-type]


def whole(name: str, value: object, *, at_least: int = 0) -> int:
    """`value` as an integer of at least `at_least`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {at_least}")
    return value


def flag(name: str, value: object) -> bool:
    """`value` when it is true or false.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")
    return value


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """`value` when it is one of `allowed`.

    Raises:
        ValueError: it is not; the closest is named.

    >>> choice("trim", "globl", ("global", "tensor"))
    Traceback (most recent call last):
    ValueError: trim is 'globl'. Did you mean 'global'? Allowed: global, tensor
    """
    if value not in allowed:
        near = closest(str(value), allowed)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"{name} is {value!r}.{hint} Allowed: {', '.join(allowed)}")
    return str(value)


def patterns(name: str, value: object) -> tuple[str, ...]:
    """`value` as shell patterns of tensor names; one alone, or a list.

    Raises:
        ValueError: it is neither.
    """
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) and item for item in given):
        raise ValueError(
            f"{name} is {value!r}, expected a pattern of tensor names such as '*.weight', or a list of them"
        )
    return tuple(given)
