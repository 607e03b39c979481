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
    def mean(*, normalize: bool = True) -> Fold: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from dimat.merge.survey import Survey

State = Mapping[str, torch.Tensor]


class Absorb(Protocol):
    """Take in (or, as `Fold.remove`, take out again) one model's tensor `x` with weight `w`."""

    def __call__(
        self,
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        """Return the state that has `x` in it; the one passed in is not changed.

        Args:
            state: what `init`, `absorb` or `combine` returned.
            x: the model's tensor, in the model's dtype (floats of 8 bits come as float32): widen it before adding.
            base: the same tensor of the common ancestor, for folds with `needs_base`; else None.
            w: the model's weight, finite.
            stats: the model's statistics of this tensor by kind, shaped like `x`, for folds with `stats`.
            survey: what was found before: the results of `Fold.survey`; for folds with `digests` also `digest` (32
                bytes, uint8). Either comes with `offset` (0-d int64, position of the first entry of `x` in its whole
                tensor), so that no survey may call a result by that name.
        """


def with_owned(absorb: Absorb, owned: Absorb) -> Absorb:
    """`absorb`, which has `owned` beside it: the same step for a state that nobody else holds and that may be changed.

    The same bits in less time. It belongs to this very function: neither a fold with another `absorb` keeps it, nor a
    wrapper that takes over the function's attributes.
    """
    absorb.owned = absorb, owned  # type: ignore[attr-defined]  # a function takes attributes
    return absorb


def owned_step(absorb: Absorb) -> Absorb:
    """The step for a state that nobody else holds."""
    belongs_to, owned = getattr(absorb, "owned", (absorb, absorb))
    found: Absorb = owned if belongs_to is absorb else absorb
    return found


@dataclass(frozen=True, slots=True)
class Fold:
    """One merge method with its options bound."""

    init: Callable[[torch.Tensor | None], State]
    absorb: Absorb
    combine: Callable[[State, State], State]
    finish: Callable[[State, torch.Tensor | None, Mapping[str, float]], torch.Tensor]
    remove: Absorb | None = None
    """Take a model out again, for additive folds: remove(absorb(state, x, ...), x, ...) is state up to rounding."""
    needs_base: bool = False
    """Whether the models' common ancestor takes part (as in task vectors)."""
    own_base: bool = False
    """Whether the base that an agent gives is its own present model, not that of its last merge."""
    commutative: bool = True
    """Whether the order of arrival does not matter; else the order is recorded."""
    memory: Literal["constant", "linear"] = "constant"
    """linear: the state holds every model (a median), so that streams and ledgers refuse it by name."""
    stats: tuple[str, ...] = ()
    """Statistics each model must bring along (Fisher, Gram)."""
    elementwise: bool = False
    """Whether entry i of the result depends on the entries i alone, given survey and scalars: then a tensor may be
    folded in slices. Every entry of the state then has the shape of `x` or is 0-d."""
    survey: Survey | None = None
    """What must be known of a whole model, or a whole tensor, before its entries are absorbed (a top-k threshold)."""
    digests: bool = False
    """Whether `absorb` gets the model's digest and the slice's offset in its survey (a random stream per model)."""
    measure: Callable[[State], Mapping[str, float]] | None = None
    """Numbers of one tensor's state that, summed over all tensors, `finish` gets as scalars (a squared norm)."""
    norms: bool = False
    """Whether `finish` gets `mean_norm`: the weighted mean over models of ||model - base||, over all tensors."""
    tailor: Callable[[str, tuple[int, ...]], Fold] | None = None
    """The fold of one tensor by name and shape, where a method treats tensors differently (OPCM projects matrices).
    `survey` with scope model, `measure`, `norms` and `digests` are read from the untailored fold."""

    @property
    def needs_scalars(self) -> bool:
        """Whether every tensor's state must be known before the first tensor can be read out."""
        return self.norms or self.measure is not None

    def of(self, name: str, shape: tuple[int, ...]) -> Fold:
        """The fold of the tensor `name`."""
        return self if self.tailor is None else self.tailor(name, shape)
