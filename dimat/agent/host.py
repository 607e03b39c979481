"""Work that whoever runs many agents in one process may do in an agent's place: train, evaluate, let a transfer last.

An agent that is a process of its own has no host and does its work itself. In a simulation a `Host` may collect what
many agents are about to do and do it at once, and it knows the time: so these are steps, which may have to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from dimat.agent.ahead import Ahead, Transfers
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

    def gradient(self, agent: Agent, num_samples: int) -> Steps[None]:
        """Let a gradient on so many samples last; the agent finds it itself."""

    def evaluate(self, agent: Agent) -> Steps[Mapping[str, float]]:
        """As `evaluate` below."""

    def fetch(self, agent: Agent, fetches: tuple[Fetch, ...], timeout_s: float) -> Steps[Answers]:
        """As `fetch` below."""

    def begin(self, agent: Agent, fetches: tuple[Fetch, ...]) -> Ahead:
        """As `begin` below."""


def train(agent: Agent, number: int) -> Steps[float]:
    """One round's local training, by the agent or its host; returns the mean loss of the last epoch."""
    if agent.host is None:
        return train_agent(agent, number)
    return (yield from agent.host.train(agent, number))


def gradient_lasts(agent: Agent, num_samples: int) -> Steps[None]:
    """The time that a gradient on so many samples takes where there is a virtual clock; elsewhere it takes its own."""
    if agent.host is not None:
        yield from agent.host.gradient(agent, num_samples)


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


def begin(agent: Agent, fetches: tuple[Fetch, ...]) -> Ahead:
    """Let transfers go on while the agent does something else; they carry what is there now."""
    if agent.host is None:
        return Transfers(fetches, agent.status.now).start(agent.transport)
    return agent.host.begin(agent, fetches)
