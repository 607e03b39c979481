"""The k-th largest magnitude of a task vector, exact, over models of any size, in constant memory and a few passes.

Non-negative float32 numbers are ordered as their bit patterns are, read as integers. So the first pass counts the 15
high bits below the sign of every |x - base|, which finds the bin of the wanted one, and the second pass counts the 16
low bits inside that bin. Counts do not depend on the order of the entries nor on how they are sliced.

Where exactly k entries are wanted and several are equal to the smallest, the first ones in row-major order count as
larger: a third pass finds where the last of these stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from dimat.merge.survey import Found, Survey
from dimat.merge.taskvector import task_vector

MAGNITUDES = "magnitudes"
PLACES = "places"
HIGH_BINS, LOW_BINS = 1 << 15, 1 << 16
PIECE_ENTRIES = 1 << 20
BEHIND_ALL, _UNKNOWN = 2**62, -1

State = Mapping[str, torch.Tensor]


def magnitudes_of_rank(
    scope: Literal["model", "tensor"], ranks: Callable[[int], Sequence[int]], *, places: bool = False
) -> Survey:
    """A survey that finds `magnitudes`: float32, one for each rank.

    Magnitudes are those of the difference to the base, rounded to float32 (from float64; all others are exact).

    Args:
        scope: whether to rank the entries of the whole model, or those of each tensor.
        ranks: number of entries n -> ranks wanted, from 1, the largest, to n. Without entries
            zeros are found.
        places: whether to find `places`, too: int64, where the entry of each rank stands in its tensor, in row-major
            order, when earlier entries rank before equal ones; of the last rank, behind all entries where that makes no
            difference. For the scope `tensor`.

    >>> from dimat.merge.survey import run_survey
    >>> survey = magnitudes_of_rank("tensor", lambda n: (1, n))
    >>> run_survey(survey, lambda: [(torch.tensor([1.0, -4.0]), torch.zeros(2)), (torch.ones(1) * 2, torch.zeros(1))])
    {'magnitudes': tensor([4., 1.])}
    """

    def turn(state: State) -> tuple[State, Found | None]:
        if "nth" in state:
            return state, {MAGNITUDES: state["patterns"].view(torch.float32), PLACES: state["places"]}
        if "low" in state:
            patterns, within, equal = _joined(state)
            if not places:
                return state, {MAGNITUDES: patterns.view(torch.float32)}
            found = torch.full_like(within, _UNKNOWN)
            if within[-1] == equal[-1]:  # all that are equal are kept, wherever they stand: often no pass more
                found[-1] = BEHIND_ALL
            searched = {"patterns": patterns, "nth": within, "places": found}
            if not bool((found == _UNKNOWN).any()):
                return turn(searched)
            return {**searched, "seen": torch.zeros(len(within) + 1, dtype=torch.int64)}, None
        n = int(state["high"].sum())
        if n == 0:
            nothing = torch.zeros(len(ranks(1)))
            return state, {MAGNITUDES: nothing} | ({PLACES: torch.full(nothing.shape, BEHIND_ALL)} if places else {})
        wanted = torch.tensor(ranks(n))
        bins, within = _locate(state["high"], wanted)
        return {"bins": bins, "within": within, "low": torch.zeros(len(bins), LOW_BINS, dtype=torch.int64)}, None

    return Survey(scope=scope, init=_init, observe=_observe, turn=turn)


def _init() -> State:
    return {"high": torch.zeros(HIGH_BINS, dtype=torch.int64)}


def _observe(state: State, x: torch.Tensor, base: torch.Tensor | None) -> State:
    assert base is not None  # task vectors need one
    if "nth" in state:
        return _search(state, x, base)
    if "low" not in state:
        high = state["high"].clone()
        for bits in _bit_patterns(x, base):
            high += torch.bincount(bits.bitwise_right_shift_(16), minlength=HIGH_BINS).cpu()
        return {"high": high}
    low = state["low"].clone()
    for bits in _bit_patterns(x, base):
        entries = bits.cpu().numpy()  # picking few of many takes numpy a fifth of the time
        for i, found in enumerate(state["bins"].tolist()):
            inside = entries[(entries >= found << 16) & (entries <= (found << 16 | 0xFFFF))] & 0xFFFF
            low[i] += torch.bincount(torch.from_numpy(inside), minlength=LOW_BINS)
    return {**state, "low": low}


def _search(state: State, x: torch.Tensor, base: torch.Tensor) -> State:
    """Look for the n-th entry of each pattern; `seen` counts those that were there, and last the entries so far."""
    seen, places = state["seen"].clone(), state["places"].clone()
    for bits in _bit_patterns(x, base):
        entries = bits.cpu().numpy()
        for i in (places == _UNKNOWN).nonzero()[:, 0].tolist():
            equal = np.flatnonzero(entries == int(state["patterns"][i]))
            missing = int(state["nth"][i] - seen[i])
            if missing <= len(equal):
                places[i] = int(seen[-1]) + int(equal[missing - 1])
            seen[i] += len(equal)
        seen[-1] += len(entries)
    return {**state, "seen": seen, "places": places}


def _bit_patterns(x: torch.Tensor, base: torch.Tensor) -> Iterator[torch.Tensor]:
    """The magnitudes' bit patterns, int32, piece by piece; each is the caller's to change."""
    x, base = x.reshape(-1), base.reshape(-1)
    for start in range(0, len(x), PIECE_ENTRIES):
        piece = slice(start, start + PIECE_ENTRIES)
        yield task_vector(x[piece], base[piece]).to(torch.float32).abs_().view(torch.int32)


def _locate(counts: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bin that holds each rank, counted from the top, and the rank inside of it."""
    reached = counts.flip(0).cumsum(0)
    steps = torch.searchsorted(reached, ranks)
    bins = len(counts) - 1 - steps
    return bins, ranks - (reached[steps] - counts[bins])


def _joined(state: State) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each rank: the bit pattern, the rank among the entries that are equal, and how many these are."""
    patterns, within, equal = [], [], []
    for high, rank, counts in zip(state["bins"], state["within"], state["low"], strict=True):
        low, inside = _locate(counts, rank[None])
        patterns.append(int(high) << 16 | int(low))
        within.append(int(inside))
        equal.append(int(counts[int(low)]))
    return torch.tensor(patterns, dtype=torch.int32), torch.tensor(within), torch.tensor(equal)
