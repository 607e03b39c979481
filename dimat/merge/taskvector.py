"""Task vectors: what training has added to a common ancestor, and the folds that merge it instead of the weights.

    tau_i = theta_i - theta_0        merged = theta_0 + scale * pool of (tau_1, w_1), (tau_2, w_2), ...

A method of this family is a *preparation* of each task vector (trim it, thin it) and a *pool* that takes the prepared
ones in (a sum, an election of signs); `task_vector_fold` makes a fold of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dimat.merge.api import Absorb, Fold, State, with_owned
from dimat.merge.pool import Pool, holds_nothing
from dimat.merge.survey import Found

Prepare = Callable[[torch.Tensor, Found], tuple[torch.Tensor, float]]
"""(tau, survey) -> (prepared tau, factor by which the pool multiplies it); tau may be changed in place."""


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """What task vectors of these dtypes are computed in: float64 where one of them is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def task_vector(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The difference x - base in memory of its own, at least in float32.

    >>> task_vector(torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16))
    tensor([0.5000])
    """
    wide = wide_dtype(x.dtype, base.dtype)
    if x.dtype == wide:
        return torch.sub(x, base.to(wide))
    return x.to(wide).sub_(base.to(wide))  # the widened copy is ours: one pass less


def keeping_l1(prepare: Prepare) -> Prepare:
    """The preparation `prepare`, then a rescaling of each whole tensor to the L1 norm that it had before.

    Its folds are not elementwise: the norm must be known before the first entry is pooled.
    """

    def prepared(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
        before = float(tau.abs().sum(dtype=torch.float64))
        tau, factor = prepare(tau, survey)
        after = float(tau.abs().sum(dtype=torch.float64))
        return tau, before / after if after else factor

    return prepared


def task_vector_fold(pool: Pool, *, scale: float = 1.0, prepare: Prepare | None = None) -> Fold:
    """The elementwise, commutative fold theta_0 + scale * pool of the prepared task vectors.

    Args:
        pool: what collects them.
        scale: by which the pooled update is multiplied before it is added to the base.
        prepare: what is done to each task vector first; nothing when None.
    """

    def step(undo: bool, own: bool = False) -> Absorb:
        def absorb(
            state: State,
            x: torch.Tensor,
            base: torch.Tensor | None,
            w: float,
            stats: Mapping[str, torch.Tensor] | None = None,
            survey: Mapping[str, torch.Tensor] | None = None,
        ) -> State:
            del stats
            assert base is not None  # whoever runs a fold with needs_base gives it
            tau, factor = task_vector(x, base), 1.0
            if prepare is not None:
                tau, factor = prepare(tau, survey or {})
            return pool.add(state, tau, w, factor, undo, own)

        return absorb

    def combine(a: State, b: State) -> State:
        if holds_nothing(a) or holds_nothing(b):
            return a if holds_nothing(b) else b
        return pool.combine(a, b)

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        assert base is not None
        if holds_nothing(state):
            return base.to(wide_dtype(base.dtype), copy=True)
        update = pool.read(state, scalars)
        return torch.add(base.to(update.dtype), update, alpha=scale)

    return Fold(
        init=_init,
        absorb=with_owned(step(undo=False), step(undo=False, own=True)),
        combine=combine,
        finish=finish,
        remove=step(undo=True) if pool.removable else None,
        needs_base=True,
        elementwise=True,
        measure=pool.measure,
    )


def _init(base: torch.Tensor | None) -> State:
    del base  # tensors come with the first task vector, so that an empty state costs nothing
    return {"weight": torch.zeros((), dtype=torch.float64)}
