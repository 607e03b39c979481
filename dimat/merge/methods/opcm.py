"""OPCM: each model is projected off what is merged already, then added, and the sum is scaled back to size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold, State
from dimat.merge.options import choice, flag, number, patterns
from dimat.merge.projection import project_off
from dimat.merge.registry import merge_method

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@merge_method
def opcm(
    *,
    alpha: float = 0.5,
    project: str | list[str] | tuple[str, ...] = ("*",),
    plain: str | list[str] | tuple[str, ...] = (),
    convolutions: bool = False,
    state_dtype: str = "float64",
) -> Fold:
    """Orthogonal-projection continual merging: models join one by one, without disturbing what is merged already.

    With tau_i = model_i - base and weights w_i, for each tensor

        S_1 = w_1 tau_1,    S_t = S_{t-1} + w_t Pi(tau_t)

        merged = base + (mean_i ||tau_i|| / ||S_t||) S_t

    where Pi takes out of a matrix its diagonal and its r x r leading block in the singular basis of S_{t-1} (see
    `dimat.merge.projection`), so that <Pi(tau_t), S_{t-1}> = 0. Both norms go over all floating-point tensors of the
    model, the mean is weighted by |w_i|: the merged update is as long as the models' updates are on average. Weights
    that are all equal cancel. The state is S alone, one tensor of the model's shape however many models it holds.

    Source: Tang et al., Merging Models on the Fly Without Retraining, arXiv 2501.09522, in the form of its published
    code: r is the 0-based index of the first cumsum(sigma)/sum(sigma) above alpha, one less than in the text of the
    paper; with alpha = 1 no share is above it, and r = 0 as with alpha = 0. The code keeps lambda_t and rescales the
    whole model at each step; S = lambda_t (merged - base) makes both needless. Here differs:
    directions in which S has nothing (sigma_i <= 1e-10 sigma_1: low-rank updates, untouched rows) take nothing out of
    a new model, where the code takes an arbitrary part; parameters that sit directly in a module with children are
    merged plainly like all others, where the code lets their updates fade.

    The order of the models matters, and is recorded: the first comes in whole.

    Args:
        alpha: share of the nuclear norm that the directions may hold whose mutual block is taken out, 0 to 1.
        project: patterns of tensor names; matrices (2-D) that match are projected, other tensors are added plainly.
        plain: patterns of names that are added plainly after all. The published code projects weights of nn.Linear
            alone; embeddings are matrices too, and `plain: ["*embed*"]` leaves them out where they are named so.
        convolutions: project tensors with 3 to 5 dimensions too, as matrices (out, in x kernel).
        state_dtype: float64 or float32, in which S is kept between models; what is computed is float64 either way.
            float32 halves the state, but its rounding grows: each model changes the singular basis of the next.

    >>> from dimat.merge import fold
    >>> base, models = {"w": torch.zeros(2, 2)}, [{"w": torch.diag(torch.tensor([3.0, 1.0]))}, {"w": torch.ones(2, 2)}]
    >>> fold("opcm", models, base)["w"]  # of the second, what is off the diagonal is new
    tensor([[2.2353, 0.7451],
            [0.7451, 0.7451]])
    """
    share = number("alpha", alpha, at_least=0, at_most=1)
    chosen, left_out = patterns("project", project), patterns("plain", plain)
    dims = range(2, 6) if flag("convolutions", convolutions) else range(2, 3)
    dtype = _DTYPES[choice("state_dtype", state_dtype, list(_DTYPES))]

    def update(state: State, task: torch.Tensor) -> torch.Tensor:
        if "sum" not in state or task.dim() not in dims or not task.numel():
            return task
        rows = task.reshape(task.shape[0], -1)
        return project_off(rows, state["sum"].double().reshape(rows.shape), share, out=rows).reshape(task.shape)

    whole = Fold(
        init=_init,
        absorb=_absorb(update, dtype),
        combine=_combine,
        finish=_finish,
        needs_base=True,
        commutative=False,
        measure=_measure,
        norms=True,
    )
    added = replace(whole, absorb=_absorb(lambda state, task: task, dtype), elementwise=True)

    def tailor(name: str, shape: tuple[int, ...]) -> Fold:
        wanted = any(fnmatchcase(name, one) for one in chosen) and not any(fnmatchcase(name, one) for one in left_out)
        return whole if wanted and len(shape) in dims else added

    return replace(whole, tailor=tailor)


def _init(base: torch.Tensor | None) -> State:
    del base  # before the first model there is no S, and the first is not projected
    return {}


def _absorb(update: Callable[[State, torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Any:
    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del stats, survey
        assert base is not None
        task = x.to(torch.float64, copy=True).sub_(base)
        total = update(state, task)  # either way memory of our own
        total = total if w == 1 else total.mul_(w)
        return {"sum": (total.add_(state["sum"]) if "sum" in state else total).to(dtype)}

    return absorb


def _combine(a: State, b: State) -> State:
    if "sum" not in a or "sum" not in b:
        return b if "sum" in b else a
    raise UsageError(
        "states of opcm cannot be joined: a model is projected off those before it, so the order matters",
        hint="absorb the models one after another into one state",
    )


def _measure(state: State) -> Mapping[str, float]:
    if "sum" not in state:
        return {"squared_norm": 0.0}
    flat = state["sum"].double().reshape(-1)
    return {"squared_norm": float(torch.dot(flat, flat))}


def _finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
    assert base is not None
    length = scalars.get("squared_norm", 0.0) ** 0.5
    if "sum" not in state or length == 0:  # models equal to the base: so is what they merge to
        return base.to(torch.float64, copy=True)
    return base.to(torch.float64, copy=True).add_(state["sum"], alpha=scalars["mean_norm"] / length)
