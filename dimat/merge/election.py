"""Sign election with disjoint combination, the pool of TIES: where task vectors pull both ways, one side is heard.

For every entry, over the models i whose entry is not zero (trimmed entries are zero):

    elected sign  s = sign(sum_i w_i tau_i)
    sum           m = sum of w_i tau_i over those with sign(w_i tau_i) = s
    mean          m / (sum of w_i over the same)

Both sides are kept until all models have come, so the election is held at the end and models may arrive in any order,
one at a time: the sums and the weights of the positive and of the negative entries are all that it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.merge.api import State
from dimat.merge.pool import Pool, holds_nothing, plus, sum_of_states

NOBODY = 2.0**-20
"""Of the whole weight: less than this is what rounding has left of weights that were taken out again."""


def election(*, normalize: bool, majority: bool = False) -> Pool:
    """The pool of signs.

    State: `positive` and `negative`, the weighted sums of either side; `positive_weight` and `negative_weight`, who
    spoke for it; each like the tensor. `weight`, sum_i |w_i|, 0-d float64.

    Args:
        normalize: the disjoint mean; false leaves the disjoint sum. Where the weights of a side cancel (one of them is
            negative), or are below a millionth of all, the sum stays undivided.
        majority: whether entries whose sum is zero take the sign that the whole model has more of, and the negative
            side when neither has; false gives them the positive side, and asks for no scalars.

    >>> pool = election(normalize=True)
    >>> state = {"weight": torch.zeros(())}
    >>> for tau in ([3.0, -1.0], [1.0, -2.0], [-2.0, 4.0]):
    ...     state = pool.add(state, torch.tensor(tau), 1.0, 1.0, False, False)
    >>> pool.read(state, {})
    tensor([2., 4.])
    """

    def read(state: State, scalars: Mapping[str, float]) -> torch.Tensor:
        rising = state["positive"] + state["negative"]
        # Arithmetic with 0 and 1: a select by a mask that nothing predicts costs ten times as much on a CPU.
        rising = rising.gt_(0) if majority and scalars["signs"] <= 0 else rising.ge_(0)
        falling = 1 - rising
        update = (state["positive"] * rising).addcmul_(state["negative"], falling)
        if normalize:
            heard = rising.mul_(state["positive_weight"]).addcmul_(state["negative_weight"], falling)
            nobody = torch.abs(heard, out=falling).le_(NOBODY * float(state["weight"]))
            update.div_(heard.add_(nobody))
        return update

    return Pool(add=_add, combine=sum_of_states, read=read, measure=_elected_signs if majority else None)


def _add(state: State, tau: torch.Tensor, w: float, factor: float, undo: bool, own: bool) -> State:
    towards = torch.clamp_min if w >= 0 else torch.clamp_max  # entries with w * tau > 0
    positive = towards(tau, 0)
    negative = tau.clamp_max_(0) if w >= 0 else tau.clamp_min_(0)
    sign = -1.0 if undo else 1.0
    answer = {"weight": state["weight"] + sign * abs(w)}
    for side, part in (("positive", positive), ("negative", negative)):
        answer[side] = plus(state.get(side), part, sign * w * factor, own)
        speakers = f"{side}_weight"
        answer[speakers] = plus(state.get(speakers), part.ne_(0), sign * w, own)
    return answer


def _elected_signs(state: State) -> Mapping[str, float]:
    if holds_nothing(state):
        return {"signs": 0.0}
    return {"signs": float((state["positive"] + state["negative"]).sign_().sum(dtype=torch.float64))}
