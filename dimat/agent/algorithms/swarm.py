"""SwarmSGD: a few local steps, then the average with one neighbour drawn at random.

In exchange k a random matching M_k of the graph's edges is drawn, the same by all agents, from (seed, k): edges are
shuffled and taken one by one where both ends are still free. After `local_steps` steps of its own optimiser agent i
does

    x_i <- (x_i + x_j) / 2     for its partner j in M_k        and nothing when it has none

The paper draws one edge at a time, and many such interactions go on at once; a matching is as many as can. Every step
of the optimiser is local, so any will do, and its state is not averaged. Running statistics of batch norms are. A round
ends with an exchange, also when its number of steps is no multiple of `local_steps`.

Source: Nadiradze, Sabour, Davies, Li, Alistarh, «Asynchronous decentralized SGD with quantized and local updates»,
NeurIPS 2021, arXiv 1910.12308 (SwarmSGD, the blocking variant, without quantisation).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.exchange import STEP, Exchange
from dimat.agent.algorithms.mixing import local_step, mix
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.errors import ConfigError
from dimat.merge.options import whole
from dimat.seeds import derive_seed
from dimat.statedict import load_into
from dimat.topology import Topology


def swarm(*, local_steps: int = 3) -> Algorithm:
    """Random pair averaging (SwarmSGD): some local steps, then the mean with one neighbour drawn at random.

    Args:
        local_steps: steps of the agent's own optimiser from one exchange to the next.

    Source: Nadiradze et al., Asynchronous decentralized SGD with quantized and local updates, arXiv 1910.12308.
    """
    return Swarm(local_steps=whole("local_steps", local_steps, at_least=1))


@dataclass(frozen=True)
class Swarm(Algorithm):
    """Nothing is remembered: who meets whom follows from the seed and the number of the exchange."""

    local_steps: int = 3

    def check(self, config: RunConfig, topology: Topology) -> None:
        """Refuse directed graphs: a pair averages only when both read."""
        refuse_directed(config, topology, "a pair averages only when each of the two reads the other")

    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """The last local step, then the average with the partner of this exchange."""
        agent, clock = exchange.agent, exchange.clock
        with clock("train"):
            loss = local_step(agent, batch)
        partners = matching(exchange.graph.edges, derive_seed(agent.config.seed, "swarm", exchange.index))
        partner = partners.get(agent.id)
        if partner is None:
            exchange.tally.used({agent.id: 1.0})
            return state, loss
        mine = yield from exchange.publish(STEP, agent.model.state_dict())
        gathered = yield from exchange.gather(STEP, {agent.id: 0.5, partner: 0.5})
        exchange.tally.used(gathered.weights)
        with clock("fold"):
            load_into(agent.model, mix(agent.id, mine, gathered.states, gathered.weights))
        return state, loss


def matching(edges: Iterable[tuple[int, int]], seed: int) -> dict[int, int]:
    """A random matching that no further edge can be added to, as the partner of each agent that has one.

    Edges are sorted before they are shuffled, so that the order in which a graph holds them does not matter.

    >>> matching([(0, 1), (1, 2), (2, 3), (3, 0)], seed=1) in ({0: 1, 1: 0, 2: 3, 3: 2}, {0: 3, 3: 0, 1: 2, 2: 1})
    True
    """
    shuffled = sorted((min(edge), max(edge)) for edge in edges)
    random.Random(seed).shuffle(shuffled)
    partners: dict[int, int] = {}
    for one, other in shuffled:
        if one not in partners and other not in partners:
            partners[one], partners[other] = other, one
    return dict(sorted(partners.items()))


def refuse_directed(config: RunConfig, topology: Topology, why: str) -> None:
    """Pass when reading is mutual in every round of the graph's window.

    Raises:
        ConfigError: it is not.
    """
    name, graph = config.algorithm.name, config.topology.graph
    if any(topology.graph(round).is_directed() for round in topology.window()):
        raise ConfigError(
            f"algorithm {name!r} needs an undirected graph, and {graph!r} is directed: {why}",
            hint="-s topology.graph=ring; `sgp` is made for directed graphs",
        )
