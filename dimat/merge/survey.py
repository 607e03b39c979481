"""A survey looks over a whole model, or a whole tensor, before its entries are absorbed: it finds a threshold, a norm.

It sees the entries in slices, in order, in one or several passes, and keeps a small state meanwhile, so that it runs
over models larger than memory:

    state = init()
    while state is not finished:
        for each slice: state = observe(state, x, base)
        state, found = turn(state)                         # found is None: another pass, please

"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Found = Mapping[str, torch.Tensor]
OFFSET = "offset"
"""Told beside what was found: 0-d int64, where in its tensor a slice starts that is absorbed."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What to find, and over what.

    Attributes:
        scope: whether one answer serves the whole model, or each tensor has its own.
        init: the empty state.
        observe: (state, x, base) -> state, with the slice `x` taken in; base as for `absorb`.
        turn: (state) -> (state, None) to ask for another pass, or (state, found) at the end.
    """

    scope: Literal["model", "tensor"]
    init: Callable[[], Mapping[str, torch.Tensor]]
    observe: Callable[[Mapping[str, torch.Tensor], torch.Tensor, torch.Tensor | None], Mapping[str, torch.Tensor]]
    turn: Callable[[Mapping[str, torch.Tensor]], tuple[Mapping[str, torch.Tensor], Found | None]]


def run_survey(survey: Survey, slices: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor | None]]]) -> Found:
    """What `survey` finds over `slices()`, which begins again for every pass: pairs (entries, entries of the base)."""
    state = survey.init()
    while True:
        for x, base in slices():
            state = survey.observe(state, x, base)
        state, found = survey.turn(state)
        if found is not None:
            return found
