"""What an algorithm is: a few questions that are asked once, and one step.

A run with an `algorithm` other than `merge` goes through the same rounds, but in place of one merge at the end a round
is a fixed number of steps, the same for all agents, and every step (or every `local_steps`-th) exchanges. What an agent
remembers beyond its model and its optimiser is a value: a mapping of tensors, numbers among them as 0-d tensors, which
goes into a step and comes out of it, and into the checkpoint.

An algorithm is named by a function whose keyword-only arguments are its options and that returns an `Algorithm`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.messages import Schema
from dimat.topology import Topology

if TYPE_CHECKING:
    from dimat.agent.algorithms.exchange import Exchange

State = Mapping[str, torch.Tensor]
"""What an agent remembers from one exchange to the next."""


class Algorithm(ABC):
    """One way to train together; frozen once made. Only `step` has to be written.

    Attributes:
        local_steps: gradient steps from one exchange to the next, this one included.
        numbers: how many numbers one exchange uses up: what is published twice within it is told apart by them.
        spare: whether a second module is needed, in which other weights than the agent's are run.
    """

    local_steps: int = 1
    numbers: int = 1
    spare: bool = False

    def check(self, config: RunConfig, topology: Topology) -> None:  # noqa: B027  most have nothing to refuse
        """Refuse what the algorithm cannot run with, before anything starts.

        Raises:
            ConfigError: what was given, what was expected, what to do.
        """

    def schemas(self, agent: int, model: torch.nn.Module) -> Mapping[str, Schema]:
        """What payloads from others hold, by kind, where it is not a whole model; known without asking anybody."""
        del agent, model  # most exchange models
        return {}

    def begin(self, agent: int, model: torch.nn.Module, peers: frozenset[int]) -> State:
        """What is remembered before the first exchange; `peers` are all that the agent may ever read."""
        del agent, model, peers  # most remember nothing
        return {}

    @abstractmethod
    def step(self, exchange: Exchange, batch: Any, state: State) -> Steps[tuple[State, torch.Tensor]]:
        """One gradient step with its exchange: changes the agent's model in place.

        Args:
            exchange: the agent, and what it can do with its neighbours.
            batch: what to learn from.
            state: what was remembered; it is not changed.

        Returns:
            What to remember, and the loss on the batch (0-d, detached).
        """
