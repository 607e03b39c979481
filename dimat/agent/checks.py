"""Which neighbours this merge does without, because what they sent lies too far off or points elsewhere.

Two checks, each off unless the config gives its limit. With x_i the agent's own model and x_j a neighbour's,

    norm      d_j = ||x_j - x_i||        refused when d_j > max_norm_ratio * usual
              usual = the lower median of the d_j of this merge and of what was usual in the last `MEMORY` merges
    cosine    cos(x_j, x_i)              refused when below min_cosine

Norms are taken over the parameters and, apart from them, over the floating-point buffers (a running variance of 1e4
would hide what is done to the weights); cosines over the parameters. Sums are in float64. NaN and Inf never come here:
the transport refuses them. Cosines of what was learnt since the last merge were tried as well: on skewed shards those
of honest neighbours are as low as a liar's, and nearly everybody was refused.

Liars are bounded where they are fewer than half of the neighbours: then the lower median lies between honest distances.
With two neighbours of whom one lies, the one that sends the reader's own model back makes the other look far off.
What a merge adds to the memory is its own lower median, at most the limit: a healed partition, whose halves have grown
apart, is let in again after a few merges, and a liar that is the only one to answer lifts the limit only slowly.

A refusal is one-sided: reader i gives the weight w_ij of neighbour j to itself, and j, honest or not, goes on reading.
Rows of W still sum to one; column j lacks w_ij and column i has it on top. So the mean of all models, which a doubly
stochastic W keeps, moves in this merge by w_ij (x_i - x_j) / n, towards the reader: against a liar that is the purpose.
To agree on it would cost one more message per edge, and would tell a liar that it was found out. The matrix in the
reports is the one really used, and the coordinator notes which edges were read one way (`coordinator.refusals`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dimat.agent.gather import Gathered, realised_row
from dimat.agent.state import Agent
from dimat.config import ChecksConfig
from dimat.messages import REFUSED
from dimat.statedict import StateDict

MEMORY = 5
"""Merges whose usual distance is remembered."""
ROUNDING = 1e-6
"""Of the own norm: a difference this small is rounding, however alike the others are."""

Usual = Mapping[str, tuple[float, ...]]
"""What was usual in the last merges, oldest first, for `parameters` and `buffers`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is refused and why, and what the next merge compares with."""

    refused: Mapping[int, str]
    usual: Usual


def judge(
    mine: StateDict,
    others: Mapping[int, StateDict],
    limits: ChecksConfig,
    *,
    parameters: frozenset[str],
    usual: Usual | None = None,
) -> Verdict:
    """Hold every neighbour's tensors against `limits`.

    Args:
        mine: the agent's own model.
        others: the neighbours' by agent, in its basis.
        limits: what is allowed.
        parameters: names of the parameters; other floating-point tensors are buffers.
        usual: what the last verdict said.

    >>> import torch
    >>> near, far = ({"w": torch.tensor([x, 1.0])} for x in (1.1, 40.0))
    >>> others = {1: near, 2: far, 3: near}
    >>> limits = ChecksConfig(max_norm_ratio=3.0)
    >>> verdict = judge({"w": torch.tensor([1.0, 1.0])}, others, limits, parameters=frozenset({"w"}))
    >>> verdict.refused
    {2: 'its parameters lie 39 from mine, 390 times the usual 0.1 (merge.checks.max_norm_ratio is 3)'}
    """
    floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
    groups = {
        "parameters": [name for name in floats if name in parameters],
        "buffers": [name for name in floats if name not in parameters],
    }
    refused: dict[int, str] = {}
    memory: dict[str, tuple[float, ...]] = {}
    if limits.max_norm_ratio is not None and others:
        for what, names in groups.items():
            if not names:
                continue
            distances = {peer: distance(mine, other, names) for peer, other in sorted(others.items())}
            past = tuple((usual or {}).get(what, ()))
            typical = statistics.median_low([*distances.values(), *past])
            limit = max(limits.max_norm_ratio * typical, ROUNDING * distance(mine, {}, names))
            for peer, apart in distances.items():
                if apart > limit:
                    times = f"{apart / typical:.3g} times the usual {typical:.3g}" if typical else "the usual is 0"
                    reason = f"its {what} lie {apart:.3g} from mine, {times}"
                    refused.setdefault(peer, f"{reason} (merge.checks.max_norm_ratio is {limits.max_norm_ratio:g})")
            memory[what] = (*past, min(statistics.median_low(distances.values()), limit))[-MEMORY:]
    else:
        memory = dict(usual or {})
    if limits.min_cosine is not None:
        for peer, other in sorted(others.items()):
            alike = cosine(mine, other, groups["parameters"])
            if alike < limits.min_cosine:
                reason = f"the cosine of its parameters to mine is {alike:.2f} (merge.checks.min_cosine is"
                refused.setdefault(peer, f"{reason} {limits.min_cosine:g})")
    return Verdict(dict(sorted(refused.items())), memory)


def distance(mine: StateDict, other: StateDict, names: Iterable[str]) -> float:
    """||other - mine|| over the tensors `names`, in float64; tensors that `other` has not are zero.

    >>> import torch
    >>> distance({"w": torch.tensor([3.0, 4.0])}, {}, ["w"])
    5.0
    """
    squares = [
        float((mine[name].double() - (other[name].double() if name in other else 0.0)).square().sum()) for name in names
    ]
    return math.sqrt(math.fsum(squares))


def cosine(mine: StateDict, other: StateDict, names: Iterable[str]) -> float:
    """cos(other, mine) over the tensors `names`, in float64.

    1 when `mine` is zero, which no direction can be held against; 0 when only `other` is.

    >>> import torch
    >>> round(cosine({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}, ["w"]), 4)
    0.7071
    """
    dots, ours, theirs = [], [], []
    for name in names:
        a, b = mine[name].double(), other[name].double()
        dots.append(float((a * b).sum()))
        ours.append(float(a.square().sum()))
        theirs.append(float(b.square().sum()))
    own, its = math.sqrt(math.fsum(ours)), math.sqrt(math.fsum(theirs))
    if own == 0:
        return 1.0
    return math.fsum(dots) / own / its if its > 0 else 0.0


def screen(agent: Agent, mine: StateDict, states: Mapping[int, StateDict], gathered: Gathered) -> Gathered:
    """What is left of a merge when the neighbours that fail the checks are taken out, their weight given to self.

    `states` are the neighbours' tensors in the agent's basis. The agent remembers what was usual.
    """
    verdict = judge(
        mine,
        states,
        agent.config.merge.checks,
        parameters=frozenset(name for name, _ in agent.model.named_parameters(remove_duplicate=False)),
        usual=agent.usual,
    )
    agent.usual = verdict.usual
    kept = {peer: state for peer, state in states.items() if peer not in verdict.refused}
    return replace(
        gathered,
        states=kept,
        weights=realised_row(agent.id, gathered.weights, frozenset(kept)),
        missing={**gathered.missing, **{peer: f"{REFUSED}{reason}" for peer, reason in verdict.refused.items()}},
    )
