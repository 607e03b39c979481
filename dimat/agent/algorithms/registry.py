"""Algorithms by name: built in, from an entry point, or the user's own; their options checked."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dimat.agent.algorithms.api import Algorithm
from dimat.errors import ConfigError, PluginError
from dimat.plugins import check_options, resolve

Maker = Callable[..., Algorithm]

MODULES: Mapping[str, str] = {
    "cga": "cga",
    "choco": "choco",
    "dsgd": "dsgd",
    "cdmsgd": "dsgd",
    "sgp": "sgp",
    "swarm": "swarm",
}
"""The module of this package in which each built-in algorithm stands, as a function of its name."""


def builtin_algorithms() -> dict[str, Maker]:
    """Every built-in algorithm by the name users type."""
    return {
        name: getattr(importlib.import_module(f"{__package__}.{module}"), name)
        for name, module in sorted(MODULES.items())
    }


def find_algorithm(name: str) -> Maker:
    """What `name` stands for: built-in, entry point `dimat.algorithms`, `module:function` or `file.py:function`.

    Raises:
        PluginError: nothing answers to the name (the closest is told), or what does is not callable.
    """
    if name == "merge":
        raise PluginError(
            "algorithm 'merge' is dimat's own round, and has no options of its own: see the keys of merge"
        )
    known: dict[str, Any] = {"merge": None, **builtin_algorithms()}
    found = resolve("algorithm", name, known, group="dimat.algorithms")
    if not callable(found):
        raise PluginError(
            f"algorithm {name!r} is a {type(found).__name__}, expected a function that returns an Algorithm"
        )
    maker: Maker = found
    return maker


def options_of(maker: Maker) -> dict[str, inspect.Parameter]:
    """The options of an algorithm: its keyword-only arguments."""
    parameters = inspect.signature(maker).parameters.values()
    return {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def make_algorithm(name: str, options: Mapping[str, Any] | None = None) -> Algorithm:
    """The algorithm `name` with its options bound.

    Raises:
        PluginError: no such algorithm, or what it returns is none.
        ConfigError: an option that it does not have (the closest is named), or a value that it refuses.

    >>> make_algorithm("dgsd")
    Traceback (most recent call last):
    dimat.errors.PluginError: unknown algorithm 'dgsd'. Did you mean 'dsgd'? ...
    """
    maker, options = find_algorithm(name), dict(options or {})
    known = options_of(maker)
    check_options("algorithm", name, options, known)
    try:
        made = maker(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"algorithm {name!r} refuses its options {options}: {error}") from error
    if not isinstance(made, Algorithm):
        raise PluginError(
            f"algorithm {name!r} returned a {type(made).__name__}, expected a dimat.agent.algorithms.Algorithm"
        )
    return made
