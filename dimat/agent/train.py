"""Local training: the epochs between two merges."""

from __future__ import annotations

import math
from typing import Any

import torch

from dimat.config import TrainConfig


def make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the config names, over all parameters of the model."""
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, epoch: int, num_epochs: int) -> float:
    """The learning rate of local epoch `epoch` (from 0) of `num_epochs` in the whole run.

    cosine: `lr/2 * (1 + cos(pi * epoch / num_epochs))`; small last steps let the agents end close together.

    >>> learning_rate(TrainConfig(lr=0.1), 0, 40)
    0.1
    """
    if config.lr_schedule == "constant":
        return config.lr
    return config.lr / 2 * (1 + math.cos(math.pi * epoch / num_epochs))


def train_locally(
    task: Any,
    model: torch.nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    round: int,
    rounds: int,
) -> float:
    """Train for one round's epochs in place; returns the mean loss over all batches of the last epoch."""
    model.train()
    losses: list[torch.Tensor] = []
    for epoch in range(config.epochs):
        lr = learning_rate(config, (round - 1) * config.epochs + epoch, rounds * config.epochs)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.clear()
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    optimizer.zero_grad(set_to_none=True)  # nobody reads them, and in a simulation every agent would keep its own
    # One synchronisation an epoch instead of one a batch.
    return float(torch.stack(losses).mean()) if losses else math.nan
