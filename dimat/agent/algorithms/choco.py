"""CHOCO-SGD: gossip in which only the largest changes travel, and nothing is lost for good.

Every agent i keeps a copy h_i of itself as its neighbours know it, and copies h_j of them, all zero at first. In a step

    x_i <- x_i - a g_i(x_i)
    q_i  = top-k of (x_i - h_i)
    h_j <- h_j + q_j               for itself and each neighbour
    x_i <- x_i + gamma * sum_j W_ij (h_j - h_i)

The first line is a step of the agent's own optimiser, momentum included. What travels is q: values and places. What
top-k leaves out stays in x_i - h_i and travels later. Running statistics of batch norms are few; they travel whole
and are mixed with W.

Both ends of an edge must hold the same h_j, bit for bit, or the sum drifts. So the header carries a checksum of h_j
after the addition, and who finds another one (a step was missed, the neighbour is another process now) fetches h_j
whole (kind `copy`), which is always published beside the difference; in a run that nothing disturbs nobody reads it. A
neighbour whose copy does not come has no part in the step.

Sources: Koloskova, Stich, Jaggi, «Decentralized stochastic optimization and gossip algorithms with compressed
communication», ICML 2019, arXiv 1902.00340, algorithm 2; for deep networks, Koloskova, Lin, Stich, Jaggi,
«Decentralized deep learning with arbitrary communication compression», ICLR 2020, arXiv 1907.09356.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.exchange import Exchange
from dimat.agent.algorithms.mixing import local_step, mix
from dimat.agent.algorithms.swarm import refuse_directed
from dimat.agent.algorithms.topk import add, compress, empty
from dimat.agent.gather import Gathered, realised_row
from dimat.agent.host import fetch
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.errors import ConfigError, PayloadError, TransportError
from dimat.merge.options import number
from dimat.messages import REFUSED, Schema
from dimat.snapshot.encode import decode, schema_of
from dimat.statedict import StateDict, parameters_of
from dimat.topology import Topology

DIFFERENCE, COPY = "difference", "copy"
"""The kinds of what is added to a copy, and of a whole copy."""
CHECKSUM = "copy"
"""What the header calls the checksum of the copy after the addition."""


def choco(*, ratio: float = 0.01, gamma: float = 0.3) -> Algorithm:
    """CHOCO-SGD: compressed gossip; of every tensor only the largest changes travel.

    Args:
        ratio: the share of each tensor's entries that travels in a step; every entry costs its value and its place.
        gamma: the step towards the neighbours; the less travels the smaller it has to be.

    Source: Koloskova et al., arXiv 1902.00340 and arXiv 1907.09356.
    """
    return Choco(ratio=number("ratio", ratio, above=0, at_most=1), gamma=number("gamma", gamma, above=0, at_most=1))


@dataclass(frozen=True)
class Choco(Algorithm):
    """What is remembered: `<agent>.<tensor>` for each copy, the agent's own among them."""

    ratio: float
    gamma: float

    def check(self, config: RunConfig, topology: Topology) -> None:
        """Refuse graphs in which neighbours change: their copies would be of no use."""
        refuse_directed(config, topology, "copies are kept of those who keep one of mine")
        if not topology.static:
            raise ConfigError(
                f"algorithm 'choco' keeps a copy of each neighbour, and those of {config.topology.graph!r} change",
                hint="take a graph that stays: ring, torus, complete",
            )

    def schemas(self, agent: int, model: torch.nn.Module) -> Mapping[str, Schema]:
        """Sizes follow from the own model and the ratio."""
        del agent
        copied = parameters_of(model)
        return {DIFFERENCE: schema_of({**empty(copied, self.ratio), **buffers_of(model)}), COPY: schema_of(copied)}

    def begin(self, agent: int, model: torch.nn.Module, peers: frozenset[int]) -> State:
        """Nobody knows anything of anybody: a copy that is not there is zero."""
        del peers
        return {f"{agent}.{name}": torch.zeros_like(one) for name, one in parameters_of(model).items()}

    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """Descend; tell the largest changes; step towards the copies."""
        agent, clock = exchange.agent, exchange.clock
        with clock("train"):
            loss = local_step(agent, batch)
        mine = parameters_of(agent.model)
        with clock("fold"):
            own = {name: copy.clone() for name, copy in copy_in(state, agent.id, mine).items()}
            told = compress({name: mine[name] - own[name] for name in mine}, self.ratio)
            add(own, told)
            scalars = {CHECKSUM: checksum(own)}
        yield from exchange.publish(COPY, own, scalars)  # first: whoever sees the difference must find it
        statistics = yield from exchange.publish(DIFFERENCE, {**told, **buffers_of(agent.model)}, scalars)
        gathered = yield from exchange.gather(DIFFERENCE, exchange.row())
        copies = yield from self.updated(exchange, state, gathered)
        row = realised_row(agent.id, exchange.row(), frozenset(copies))
        exchange.tally.used(row)
        with clock("fold"), torch.no_grad():
            for name, parameter in mine.items():
                for peer in sorted(copies):
                    parameter.add_(copies[peer][name] - own[name], alpha=self.gamma * row[peer])
            buffers = buffers_of(agent.model)
            mixed = mix(agent.id, {name: statistics[name] for name in buffers}, gathered.states, row)
            for name, buffer in buffers.items():
                buffer.copy_(mixed[name])
        kept = {**state, **named(agent.id, own)}
        for peer, copy in copies.items():
            kept.update(named(peer, copy))
        return kept, loss

    def updated(
        self, exchange: Exchange, state: State, gathered: Gathered
    ) -> Steps[dict[int, dict[str, torch.Tensor]]]:
        """The neighbours' copies after this exchange, of those who have a part in it."""
        mine = parameters_of(exchange.agent.model)
        copies: dict[int, dict[str, torch.Tensor]] = {}
        missed: dict[int, str] = {}
        for peer in sorted(gathered.states):
            expected = gathered.scalars[peer].get(CHECKSUM)
            copy = {name: tensor.clone() for name, tensor in copy_in(state, peer, mine).items()}
            try:
                with exchange.clock("fold"):
                    add(copy, gathered.states[peer])
                if checksum(copy) != expected:
                    copy = yield from self.fetched(exchange, peer, expected)
            except PayloadError as error:
                missed[peer] = f"{REFUSED}{error}"
                continue
            except TransportError as error:
                missed[peer] = str(error)
                continue
            copies[peer] = copy
        exchange.tally.missed(missed)
        return copies

    def fetched(self, exchange: Exchange, peer: int, expected: float | None) -> Steps[dict[str, torch.Tensor]]:
        """The whole copy of a neighbour whose differences did not add up here.

        Raises:
            TransportError: it did not come, or is another one than the neighbour's header said.
        """
        agent = exchange.agent
        with exchange.clock("gather"):
            wanted = (agent.fetch_from(peer, COPY, exchange.number),)
            answer = (yield from fetch(agent, wanted, agent.config.exchange.timeout_s))[peer]
        if isinstance(answer, TransportError):
            raise answer
        exchange.tally.received({peer: answer.num_bytes})
        copy = {name: tensor.clone() for name, tensor in decode(answer).items()}
        if checksum(copy) != expected:
            raise PayloadError(f"agent {peer}'s copy of itself is not the one that its differences add up to")
        return copy


def buffers_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point entries of the state dict that are no parameters: running statistics."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and tensor.is_floating_point()
    }


def copy_in(state: State, agent: int, like: StateDict) -> dict[str, torch.Tensor]:
    """The copy of `agent` that is remembered, zero before anything is."""
    return {
        name: held if (held := state.get(f"{agent}.{name}")) is not None else torch.zeros_like(tensor)
        for name, tensor in like.items()
    }


def named(agent: int, copy: StateDict) -> dict[str, torch.Tensor]:
    """A copy as it is remembered."""
    return {f"{agent}.{name}": tensor for name, tensor in copy.items()}


def checksum(copy: StateDict) -> float:
    """A whole number below 2**53, which a float holds exactly, of all bytes of a copy.

    >>> checksum({"w": torch.tensor([0.0])}) != checksum({"w": torch.tensor([1.0])})
    True
    """
    digest = xxhash.xxh3_64()
    for tensor in copy.values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return float(digest.intdigest() >> 11)
