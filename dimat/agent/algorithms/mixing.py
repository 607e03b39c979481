"""The weighted sum of models, and a gradient: what the algorithms of this package share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dimat.agent.state import Agent
from dimat.statedict import StateDict


def mix(
    agent: int, mine: StateDict, others: Mapping[int, StateDict], row: Mapping[int, float]
) -> dict[str, torch.Tensor]:
    """sum_j w_j x_j over the agents in `row`, in the order of their ids: float addition is not associative.

    Parameters and floating-point buffers (the running statistics of batch norms) alike; counters are the agent's own.

    >>> mix(0, {"w": torch.tensor([1.0])}, {1: {"w": torch.tensor([5.0])}}, {0: 0.5, 1: 0.5})
    {'w': tensor([3.])}
    """
    models = {**others, agent: mine}
    mixed: dict[str, torch.Tensor] = {}
    for name, own in mine.items():
        if not own.is_floating_point():
            mixed[name] = own
            continue
        total = torch.zeros_like(own)
        for peer in sorted(row):
            total.add_(models[peer][name], alpha=row[peer])
        mixed[name] = total
    return mixed


def gradient(agent: Agent, batch: Any) -> torch.Tensor:
    """Put the gradient of the task's loss on `batch` into the model's parameters; returns the loss, detached."""
    agent.optimizer.zero_grad(set_to_none=True)
    loss: torch.Tensor = agent.task.loss(agent.model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def local_step(agent: Agent, batch: Any) -> torch.Tensor:
    """One step of the agent's optimiser by itself; returns the loss, detached."""
    loss = gradient(agent, batch)
    agent.optimizer.step()
    return loss
