"""Work that whoever runs many agents in one process may do in an agent's place: train, evaluate, let a transfer last.

An agent that is a process of its own has no host and does its work itself. In a simulation a `Host` may collect what
many agents are about to do and do it at once, and it knows the time: so these are steps, which may have to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from dimat.agent.ranks import train_agent
from dimat.agent.steps import Steps
from dimat.errors import TransportError
from dimat.messages import Payload
from dimat.transport.base import Fetch

if TYPE_CHECKING:
    from dimat.agent.state import Agent

Answers = dict[int, Payload | TransportError]


class Host(Protocol):
    """What a simulation does for its agents."""

    def train(self, agent: Agent, number: int) -> Steps[float]:
        """As `train` below."""

    def compute(self, agent: Agent, number: int, num_samples: int) -> Steps[None]:
        """As `compute` below."""

    def evaluate(self, agent: Agent) -> Steps[Mapping[str, float]]:
        """As `evaluate` below."""

    def fetch(self, agent: Agent, fetches: tuple[Fetch, ...], timeout_s: float) -> Steps[Answers]:
        """As `fetch` below."""


def train(agent: Agent, number: int) -> Steps[float]:
    """One round's local training, by the agent or its host; returns the mean loss of the last epoch."""
    if agent.host is None:
        return train_agent(agent, number)
    return (yield from agent.host.train(agent, number))


def compute(agent: Agent, number: int, num_samples: int) -> Steps[None]:
    """Let the time pass that a training step of round `number` takes, where there is a clock that has to be told."""
    if agent.host is not None:
        yield from agent.host.compute(agent, number, num_samples)


def evaluate(agent: Agent) -> Steps[Mapping[str, float]]:
    """The task's numbers for the agent's model as it is now."""
    if agent.host is None:
        numbers: Mapping[str, float] = agent.task.evaluate(agent.model)
        return numbers
    return (yield from agent.host.evaluate(agent))


def fetch(agent: Agent, fetches: tuple[Fetch, ...], timeout_s: float) -> Steps[Answers]:
    """What `Transport.gather` brings, once it has arrived."""
    if agent.host is None:
        return agent.transport.gather(fetches, timeout_s)
    return (yield from agent.host.fetch(agent, fetches, timeout_s))
