"""Stochastic gradient push: SGD over directed graphs, whose weights each sender makes from its own out-degree.

Agent j gives itself and each of its d_j readers the same share, P_ij = 1 / (1 + d_j): columns of P sum to one, which no
reader can see to on a directed graph. Mixing with P keeps the sum of all models, though not their mean at each agent; a
number w_i that travels along and is mixed alike tells by how much, and z_i = x_i / w_i is rid of it. In every step

    x_i <- x_i - a g_i(z_i)
    x_i <- sum_j P_ij x_j        w_i <- sum_j P_ij w_j        over i itself and those it reads
    z_i <- x_i / w_i                                          w_i = 1 at first

A sender that is missing adds nothing, in neither sum, so z_i stays a weighted mean of models. The agent's model is z;
x = w z is never stored. In terms of z the same step is

    z_i <- z_i - (a / w_i) g_i(z_i)
    z_i <- sum_j R_ij z_j        R_ij = P_ij w_j / sum_l P_il w_l

so z_j travels, with w_j in its header, and R is the row that is reported: it sums to one. Batch norms' running
statistics are mixed with R. The optimiser is the agent's own (momentum too), at the learning rate a / w_i.

Source: Assran, Loizou, Ballas, Rabbat, «Stochastic gradient push for distributed deep learning», ICML 2019,
arXiv 1811.10792, algorithm 1 (without overlap).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.exchange import STEP, Exchange
from dimat.agent.algorithms.mixing import local_step, mix
from dimat.agent.steps import Steps
from dimat.messages import REFUSED
from dimat.statedict import load_into

PUSH_WEIGHT = "push_weight"
"""What headers and checkpoints call w."""


def sgp() -> Algorithm:
    """Stochastic gradient push: for directed graphs, exact in the mean whatever the agents' degrees.

    Source: Assran et al., Stochastic gradient push for distributed deep learning, arXiv 1811.10792.
    """
    return GradientPush()


@dataclass(frozen=True)
class GradientPush(Algorithm):
    """What is remembered is w."""

    def begin(self, agent: int, model: torch.nn.Module, peers: frozenset[int]) -> State:
        """Every agent's weight is one."""
        del agent, model, peers
        return {PUSH_WEIGHT: torch.ones((), dtype=torch.float64)}

    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """Descend; then push model and weight."""
        agent, clock, weight = exchange.agent, exchange.clock, float(state[PUSH_WEIGHT])
        groups = agent.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        with clock("train"):
            for group in groups:
                group["lr"] = group["lr"] / weight
            loss = local_step(agent, batch)
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        owed = () if exchange.mutual else exchange.readers()
        scalars = {PUSH_WEIGHT: weight}
        mine = yield from exchange.publish(STEP, agent.model.state_dict(), scalars, owed=owed)
        gathered = yield from exchange.gather(STEP, exchange.row())
        told = {peer: numbers.get(PUSH_WEIGHT, math.nan) for peer, numbers in gathered.scalars.items()}
        good = {peer: number for peer, number in told.items() if math.isfinite(number) and number > 0}
        exchange.tally.missed(
            {peer: f"{REFUSED}its push-sum weight is {told[peer]}" for peer in sorted(told.keys() - good.keys())}
        )
        row, weight = pushed_row(agent.id, shares(exchange, (agent.id, *good)), {**good, agent.id: weight})
        exchange.tally.used(row)
        with clock("fold"):
            load_into(agent.model, mix(agent.id, mine, gathered.states, row))
        return {PUSH_WEIGHT: torch.tensor(weight, dtype=torch.float64)}, loss


def shares(exchange: Exchange, senders: tuple[int, ...]) -> dict[int, float]:
    """P_ij for each sender j: what it gives to each of its readers and to itself."""
    topology = exchange.agent.topology_in(exchange.round)
    return {peer: 1 / (1 + len(topology.readers(peer, exchange.index - 1))) for peer in senders}


def pushed_row(agent: int, shares: Mapping[int, float], weights: Mapping[int, float]) -> tuple[dict[int, float], float]:
    """The row R that mixes de-biased models, and the agent's new weight.

    Args:
        agent: who reads.
        shares: P_ij by sender j, the agent itself among them; who is missing is not.
        weights: w_j by sender j.

    >>> pushed_row(0, {0: 0.5, 1: 0.25}, {0: 1.0, 1: 2.0})
    ({0: 0.5, 1: 0.5}, 1.0)
    """
    assert agent in shares, "an agent always has its own share"
    pushed = {peer: shares[peer] * weights[peer] for peer in sorted(shares)}
    total = math.fsum(pushed.values())
    return {peer: part / total for peer, part in pushed.items()}, total
