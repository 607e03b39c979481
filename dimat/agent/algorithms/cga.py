"""Cross-gradient aggregation: neighbours say which way my model would have to go for their data.

In every step agent i reads its neighbours' models, and each finds the gradient of the other's model on its own batch:

    g_ii = gradient of agent i's loss at x_i          g_ij = gradient of neighbour j's loss at x_i, from j
    z_i  = the vector nearest to g_ii with <z_i, g_ij> >= 0 for all j          (`dimat.agent.algorithms.projection`)
    v_i <- m v_i - a z_i
    x_i <- sum_j W_ij x_j + v_i

Two things travel over an edge in a step, both as large as the model: models (kind `step`), then for each reader the
gradient of its model (kind `gradient:<id>`, in the header's number one later). A neighbour that missed the first has no
part in the second. One that sends no gradient is no constraint. Models are judged in training mode, on the batch's own
statistics; running statistics of batch norms are one's own batches', mixed with W.

Source: Esfandiari, Tan, Jiang, Balu, Herron, Hegde, Sarkar, «Cross-gradient aggregation for decentralized learning from
non-IID data», ICML 2021, arXiv 2103.02051.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.exchange import STEP, Exchange
from dimat.agent.algorithms.mixing import gradient, mix
from dimat.agent.algorithms.projection import multipliers
from dimat.agent.algorithms.swarm import refuse_directed
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.merge.options import number
from dimat.messages import Schema
from dimat.snapshot.encode import schema_of
from dimat.statedict import StateDict, load_into
from dimat.topology import Topology


def cga(*, margin: float = 0.0) -> Algorithm:
    """Cross-gradient aggregation: descends along what no neighbour's data objects to; for shards that differ.

    Args:
        margin: how much of every neighbour's gradient is taken in at least; 0 for the projection alone.

    Source: Esfandiari et al., Cross-gradient aggregation, arXiv 2103.02051.
    """
    return CrossGradients(margin=number("margin", margin, at_least=0))


@dataclass(frozen=True)
class CrossGradients(Algorithm):
    """Nothing is remembered beyond the optimiser's momentum."""

    margin: float
    numbers: int = 2
    spare: bool = True

    def check(self, config: RunConfig, topology: Topology) -> None:
        """Refuse directed graphs: whom I read must read me."""
        refuse_directed(config, topology, "a neighbour can judge a model only when each of the two reads the other")

    def schemas(self, agent: int, model: torch.nn.Module) -> Mapping[str, Schema]:
        """A gradient has the names and shapes of the parameters."""
        return {f"gradient:{agent}": schema_of(dict(model.named_parameters()))}

    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """Gradient; models; gradients of each other's models; project; mix and descend."""
        agent, clock = exchange.agent, exchange.clock
        with clock("train"):
            loss = gradient(agent, batch)
        mine = yield from exchange.publish(STEP, agent.model.state_dict())
        gathered = yield from exchange.gather(STEP, exchange.row())
        exchange.tally.used(gathered.weights)
        # An edge that both ends have agreed on: each has the other's model, and expects an answer.
        partners = [peer for peer in sorted(gathered.weights) if peer != agent.id]
        for peer in partners:
            with clock("train"):
                crossed = cross_gradient(agent, gathered.states[peer], batch)
            yield from exchange.publish(f"gradient:{peer}", crossed, after=1, owed=(peer,))
        answers = yield from exchange.gather(
            f"gradient:{agent.id}", dict.fromkeys([agent.id, *partners], 1.0), after=1, agree=False
        )
        with clock("fold"):
            project(agent, answers.states, self.margin)
            load_into(agent.model, mix(agent.id, mine, gathered.states, gathered.weights))
        with clock("train"):
            agent.optimizer.step()
        return state, loss


def cross_gradient(agent: Agent, model: StateDict, batch: Any) -> dict[str, torch.Tensor]:
    """The gradient of this agent's loss on `batch` at another's model; its own model and gradient stay as they are."""
    spare = agent.spare
    assert spare is not None, "made where the algorithm asks for it"
    load_into(spare, model)
    spare.train()
    names, parameters = zip(*spare.named_parameters(), strict=True)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(agent.task.loss(spare, batch), wanted, allow_unused=True)
    by_id = {id(parameter): slope for parameter, slope in zip(wanted, found, strict=True)}
    return {
        name: torch.zeros_like(parameter) if (slope := by_id.get(id(parameter))) is None else slope
        for name, parameter in zip(names, parameters, strict=True)
    }


def project(agent: Agent, others: Mapping[int, StateDict], margin: float) -> None:
    """Put the projected gradient in the place of the agent's own; sums are in float64, in the order of ids."""
    own = {name: one.grad for name, one in agent.model.named_parameters() if one.grad is not None}
    peers = sorted(others)

    def product(a: StateDict, b: StateDict) -> float:
        return sum(float(torch.dot(a[name].reshape(-1).double(), b[name].reshape(-1).double())) for name in own)

    gram = np.array([[product(others[i], others[j]) for j in peers] for i in peers]).reshape(len(peers), len(peers))
    with_own = np.array([product(others[i], own) for i in peers])
    for peer, share in zip(peers, multipliers(gram, with_own, margin), strict=True):
        if share:
            for name, slope in own.items():
                slope.add_(others[peer][name], alpha=float(share))
