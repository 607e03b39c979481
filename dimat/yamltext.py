"""YAML that somebody else wrote: whatever is wrong with it comes as one kind of error, and nothing small unfolds."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

import yaml

MOST_VALUES = 100_000
"""So many values a text may stand for, every alias counted as what it repeats."""


class Unreadable(yaml.YAMLError):
    """What the parser lets through or fails over: an impossible date, too deep brackets, aliases of aliases."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text, tags of Python objects refused.

    Raises:
        yaml.YAMLError: it is no YAML, or stands for more than `MOST_VALUES` values: ten aliases of ten aliases of ...
            do, and aliases that hold themselves.

    >>> load_yaml("density: 0.3")
    {'density': 0.3}
    >>> load_yaml("&a [*a]")
    Traceback (most recent call last):
    dimat.yamltext.Unreadable: its aliases unfold into more than 100,000 values
    """
    try:
        value = yaml.safe_load(text)
    except ValueError as error:  # a date of month 13, a number of more digits than Python reads
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise Unreadable("its brackets stand too deep in each other") from None
    _check(value)
    return value


def _check(value: Any) -> None:
    waiting, num_values = [value], 0
    while waiting:
        one = waiting.pop()
        num_values += 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
        elif isinstance(one, int) and one.bit_length() > 1023:  # not even a float holds it
            raise Unreadable("a number in it is out of all range")
        if num_values + len(waiting) > MOST_VALUES:
            raise Unreadable(f"its aliases unfold into more than {MOST_VALUES:,} values")


def shortened(value: object) -> str:
    """`repr(value)` for a message, cut where it is long.

    >>> shortened("a" * 200)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    brief = Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 72
    return brief.repr(value)
