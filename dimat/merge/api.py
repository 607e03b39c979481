"""A merge is a fold: four pure functions over tensors, and what the fold says of itself.

    init(base)                                          -> state     an empty state for one tensor
    absorb(state, x, base, w, stats=None, survey=None)  -> state     take in one model's tensor with weight w
    combine(a, b)                                       -> state     join two states (commutative folds)
    finish(state, base, scalars)                        -> tensor    read the merged tensor out

The same fold serves a list of models (absorb all, finish), models that arrive one by one (keep the state, absorb what
comes) and agents on a graph (absorb oneself and one's neighbours, weighted by a row of the mixing matrix).
A state is a mapping of tensors, scalars among them as 0-d tensors, so that any state can be written as safetensors.

A *method* is a function whose keyword-only arguments are its options and that returns a `Fold`:

    @merge_method
    def mean() -> Fold: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from dimat.errors import ConfigError, PluginError
from dimat.plugins import closest, resolve

State = Mapping[str, torch.Tensor]


class Absorb(Protocol):
    """Take in one model's tensor `x` with weight `w`."""

    def __call__(
        self,
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        """Return the state that has `x` in it; the one passed in is not changed."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One merge method with its options bound."""

    init: Callable[[torch.Tensor | None], State]
    absorb: Absorb
    combine: Callable[[State, State], State]
    finish: Callable[[State, torch.Tensor | None, Mapping[str, float]], torch.Tensor]
    needs_base: bool = False
    """Whether the models' common ancestor takes part (as in task vectors)."""
    commutative: bool = True
    """Whether the order of arrival does not matter; else the order is recorded."""
    memory: Literal["constant", "linear"] = "constant"
    """linear: the state holds every model (a median), so that streams and ledgers refuse it by name."""
    stats: tuple[str, ...] = ()
    """Statistics each model must bring along (Fisher, Gram)."""


Method = Callable[..., Fold]

METHODS: dict[str, Method] = {}
"""The built-in methods by the name users type; filled by `merge_method`."""


def merge_method(method: Method) -> Method:
    """Register a built-in method under its function name; its keyword-only arguments are its options."""
    METHODS[method.__name__] = method
    return method


def options_of(method: Method) -> dict[str, inspect.Parameter]:
    """The options of a method: its keyword-only arguments.

    >>> from dimat.merge.mean import mean
    >>> options_of(mean)
    {}
    """
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def find_method(name: str) -> Method:
    """The method that `name` stands for: built-in, entry point `dimat.merges`, `module:function` or `file.py:function`.

    Raises:
        PluginError: nothing answers to the name, or what does is not callable.
    """
    import dimat.merge.mean  # noqa: F401  registering is what the import is for

    method = resolve("merge method", name, METHODS, group="dimat.merges")
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
    for key in options:
        if key not in known:
            near = closest(key, known)
            exists = f"its options: {', '.join(known)}" if known else "it has no options"
            did_you_mean = f" Did you mean {near!r}?" if near else ""
            raise ConfigError(f"merge method {name!r} has no option {key!r}.{did_you_mean} {exists}")
    try:
        fold = method(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"merge method {name!r} refuses its options {options}: {error}") from error
    if not isinstance(fold, Fold):
        raise PluginError(f"merge method {name!r} returned a {type(fold).__name__}, expected a dimat.merge.Fold")
    return fold
