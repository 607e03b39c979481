"""Merge methods by name: built in, from an entry point, or the user's own; their options checked."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from dimat.errors import ConfigError, PluginError
from dimat.merge.api import Fold
from dimat.plugins import check_options, resolve

Method = Callable[..., Fold]

METHODS: dict[str, Method] = {}
"""The built-in methods by the name users type; `builtin_methods` fills it."""


def merge_method(method: Method) -> Method:
    """Register a built-in method under its function name; its keyword-only arguments are its options."""
    METHODS[method.__name__] = method
    return method


def builtin_methods() -> dict[str, Method]:
    """Every built-in method by name; each lives in a module of its family under `dimat.merge.methods`."""
    from dimat.merge import methods

    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(METHODS.items()))


def options_of(method: Method) -> dict[str, inspect.Parameter]:
    """The options of a method: its keyword-only arguments.

    >>> list(options_of(find_method("mean")))
    ['normalize']
    """
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def find_method(name: str) -> Method:
    """The method that `name` stands for: built-in, entry point `dimat.merges`, `module:function` or `file.py:function`.

    Raises:
        PluginError: nothing answers to the name, or what does is not callable.
    """
    method = resolve("merge method", name, builtin_methods(), group="dimat.merges")
    if not callable(method):
        raise PluginError(
            f"merge method {name!r} is a {type(method).__name__}, expected a function that returns a Fold"
        )
    found: Method = method
    return found


def make_fold(name: str, options: Mapping[str, Any] | None = None) -> Fold:
    """The fold `name` with its options bound.

    Raises:
        PluginError: no such method, or it does not return a `Fold`.
        ConfigError: an option the method does not have (the closest is named), or a value that it refuses.
    """
    method = find_method(name)
    options = dict(options or {})
    known = options_of(method)
    check_options("merge method", name, options, known)
    try:
        fold = method(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"merge method {name!r} refuses its options {options}: {error}") from error
    if not isinstance(fold, Fold):
        raise PluginError(f"merge method {name!r} returned a {type(fold).__name__}, expected a dimat.merge.Fold")
    return fold
