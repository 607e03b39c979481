"""Checks for the numbers that a graph is made from; each answers with the value, or says what would have been right.

They are written for users' values, which may come out of YAML or a shell as anything: `4.0`, `"4"` or `true` is no
count.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from dimat import plugins
from dimat.errors import TopologyError


def whole(graph: str, option: str, value: object, low: int, high: int | None = None) -> int:
    """`value` when it is a whole number in [low, high].

    >>> whole("random_regular", "degree", 4, 2, 7)
    4

    Raises:
        TopologyError: it is not.
    """
    span = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise TopologyError(f"{graph}: {option} must be a whole number {span}, not {value!r}")
    return value


def fraction(graph: str, option: str, value: object) -> float:
    """`value` when it is a number in (0, 1].

    Raises:
        TopologyError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise TopologyError(f"{graph}: {option} must be a number above 0 and at most 1, not {value!r}")
    return float(value)


def factors(n: int) -> list[tuple[int, int]]:
    """All (rows, cols) with rows × cols = n and rows ≤ cols; the last is the one nearest to a square.

    >>> factors(12)
    [(1, 12), (2, 6), (3, 4)]
    """
    return [(rows, n // rows) for rows in range(1, math.isqrt(n) + 1) if n % rows == 0]


def rectangle(graph: str, n: int, rows: int | None, cols: int | None) -> tuple[int, int]:
    """Rows and columns of a mesh of n agents: what was asked for, else as square as possible.

    >>> rectangle("torus", 12, None, None), rectangle("torus", 12, 6, None)
    ((3, 4), (6, 2))

    Raises:
        TopologyError: rows × cols is not n; the message lists the pairs that are.
    """
    if rows is None and cols is None:
        return factors(n)[-1]
    rows = None if rows is None else whole(graph, "rows", rows, 1)
    cols = None if cols is None else whole(graph, "cols", cols, 1)
    given = f"rows={rows}" if cols is None else f"cols={cols}" if rows is None else f"rows={rows} and cols={cols}"
    height = rows or n // (cols or 1)
    width = cols or n // height if height else 0
    if height * width != n:
        pairs = ", ".join(f"{a} × {b}" for a, b in factors(n))
        raise TopologyError(f"{graph}: {given} cannot hold {n} agents exactly; rows × cols must be one of {pairs}")
    return height, width


def check_call(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that `function(n, round=, seed=, **options)` can be called, before it is.

    Raises:
        TopologyError: the function has not the contract's signature, or an option is not one of its own.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # callables written in C tell no signature; the call itself will judge
        return
    contract = (
        "a topology is a function `fn(n, *, round=0, seed=0) -> Graph`; further keyword-only arguments are options"
    )
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for needed in ("round", "seed"):
        if needed not in parameters:
            raise TopologyError(f"topology {name!r} does not take the keyword {needed!r}", hint=contract)
    known = schema(function)
    for option in options:
        if option not in known:
            sentence = plugins.unknown(f"option of {name}", option, known) if known else f"{name} has no options"
            raise TopologyError(sentence if known else f"{sentence}, and {option!r} was given")
    missing = [key for key, p in parameters.items() if key in known and p.default is p.empty and key not in options]
    if missing:
        raise TopologyError(f"topology {name!r} needs a value for {', '.join(missing)}")


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a topology function with their defaults: its keyword-only arguments but `round` and `seed`.

    >>> def mesh(n, *, round=0, seed=0, rows=None): ...
    >>> schema(mesh)
    {'rows': None}
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("round", "seed")}
