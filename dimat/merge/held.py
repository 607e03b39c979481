"""Folds that hold every model until all have come: where one may lie, no sum taken on the way tells it from the rest.

State: `x0`, `x1`, ... the models' tensors in the order of arrival, `w0`, `w1`, ... their weights (0-d float64). What is
read out does not depend on the order, since whoever needs one sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dimat.errors import UsageError
from dimat.merge.api import Absorb, Fold, State

Finish = Callable[[State, torch.Tensor | None, Mapping[str, float]], torch.Tensor]


def holding(
    finish: Finish,
    *,
    measure: Callable[[State], Mapping[str, float]] | None = None,
    centred: bool = False,
) -> Fold:
    """The elementwise fold that keeps all models and reads the merged tensor out of them.

    Args:
        finish: see `Fold.finish`; `stacked` gives it the models.
        measure: see `Fold.measure`.
        centred: whether models are kept as differences to the base, which for an agent is its own present model.
    """

    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del stats, survey  # the models themselves are all that is asked for
        if w < 0:
            raise UsageError(f"a robust merge got the weight {w}, expected one of at least 0")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if centred:
            assert base is not None, "the engine gives the base to folds that need one"
            wide = wide - base.to(wide.dtype)
        number = num_models(state)
        return {**state, f"x{number}": wide, f"w{number}": torch.tensor(w, dtype=torch.float64)}

    step: Absorb = absorb
    return Fold(
        init=lambda base: {},
        absorb=step,
        combine=_combine,
        finish=finish,
        needs_base=centred,
        memory="linear",
        elementwise=True,
        measure=measure,
        own_base=centred,
    )


def num_models(state: State) -> int:
    """How many models a state holds."""
    return len(state) // 2


def weights_of(state: State) -> torch.Tensor:
    """Their weights, float64 (n)."""
    return torch.stack([state[f"w{i}"] for i in range(num_models(state))])


def shares_of(state: State) -> torch.Tensor:
    """Their shares of the whole weight, float64 (n); equal ones where no model has any."""
    weights = weights_of(state)
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def stacked(state: State) -> torch.Tensor:
    """The models, (n, *shape), in the widest of their dtypes."""
    tensors = [state[f"x{i}"] for i in range(num_models(state))]
    wide = torch.float64 if any(one.dtype == torch.float64 for one in tensors) else torch.float32
    return torch.stack([one.to(wide) for one in tensors])


def _combine(a: State, b: State) -> State:
    shift = num_models(a)
    return {**a, **{f"{key[0]}{int(key[1:]) + shift}": tensor for key, tensor in b.items()}}
