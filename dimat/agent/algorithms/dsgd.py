"""Decentralised SGD: mix with the neighbours and descend, in every step.

With agent i's model x_i, its gradient g_i on its own batch, the mixing matrix W and the learning rate a,

    dsgd      x_i <- sum_j W_ij x_j - a g_i(x_i)

    cdmsgd    v_i <- m v_i - a g_i(x_i)
              x_i <- sum_j W_ij x_j + v_i

(CDSGD and CDMSGD of the paper.) The gradient is taken where the agent stood before mixing. The momentum is that of
torch's SGD, -a times the sum of m^s g(k - s): the same for a constant learning rate; when the rate falls, torch scales
the whole sum by the new one. Weight decay pulls at the mixed model. Running statistics of batch norms are mixed with W
like the parameters, after the batch has moved them.

Source: Jiang, Balu, Hegde, Sarkar, «Collaborative deep learning in fixed topology networks», NeurIPS 2017,
arXiv 1706.07880, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.exchange import STEP, Exchange
from dimat.agent.algorithms.mixing import gradient, mix
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.errors import ConfigError
from dimat.statedict import load_into
from dimat.topology import Topology


def dsgd() -> Algorithm:
    """Decentralised SGD (CDSGD): mixes with all neighbours at every step; without momentum.

    Source: Jiang et al., Collaborative deep learning in fixed topology networks, arXiv 1706.07880.
    """
    return DecentralizedSgd(momentum=False)


def cdmsgd() -> Algorithm:
    """`dsgd` with the momentum of `train.momentum`, which stays with each agent.

    Source: Jiang et al., Collaborative deep learning in fixed topology networks, arXiv 1706.07880.
    """
    return DecentralizedSgd(momentum=True)


@dataclass(frozen=True)
class DecentralizedSgd(Algorithm):
    """Both of them: the optimiser's state is all that makes the difference."""

    momentum: bool

    def check(self, config: RunConfig, topology: Topology) -> None:
        """Refuse other optimisers than the one that the name says."""
        del topology  # any graph will do; on a directed one W is row-stochastic, and the average drifts
        name, train = config.algorithm.name, config.train
        if train.optimizer != "sgd":
            raise ConfigError(
                f"algorithm {name!r} descends by sgd, and train.optimizer is {train.optimizer!r}",
                hint="-s train.optimizer=sgd; `swarm` and `choco` take any",
            )
        if self.momentum != (train.momentum > 0):
            expected, other = ("some", "dsgd") if self.momentum else ("none", "cdmsgd")
            raise ConfigError(
                f"algorithm {name!r} has {expected} momentum, and train.momentum is {train.momentum:g}",
                hint=f"-s algorithm={other}, or another train.momentum",
            )

    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """Gradient where the agent stands; mix; descend."""
        agent, clock = exchange.agent, exchange.clock
        with clock("train"):
            loss = gradient(agent, batch)
        owed = () if exchange.mutual else exchange.readers()
        mine = yield from exchange.publish(STEP, agent.model.state_dict(), owed=owed)
        gathered = yield from exchange.gather(STEP, exchange.row())
        exchange.tally.used(gathered.weights)
        with clock("fold"):
            load_into(agent.model, mix(agent.id, mine, gathered.states, gathered.weights))
        with clock("train"):
            agent.optimizer.step()
        return state, loss
