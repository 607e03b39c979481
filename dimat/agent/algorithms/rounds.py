"""One round of an algorithm that exchanges within it: a fixed number of steps, the same for all agents.

Agents have shards of different sizes, and a step is an exchange: so all do as many steps as the agent with most data
needs for `train.epochs` epochs,

    steps = epochs * ceil(largest shard / batch size)        or what `algorithm.steps` says

and whoever has less goes through its own data again meanwhile. The sizes are known to the coordinator from the joining;
the number is remembered in the checkpoint, so that nobody who comes back counts differently. Every round begins an
epoch of the agent's loader anew, so that a continued run draws the batches of an undisturbed one.

What the report calls «before» is the agent as its last exchange found it; weights are the mean over the round's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from dimat.agent.algorithms.api import State
from dimat.agent.algorithms.exchange import Exchange, Tally
from dimat.agent.algorithms.mixing import local_step
from dimat.agent.host import compute
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.train import learning_rate
from dimat.errors import ConfigError, TaskError
from dimat.messages import Report
from dimat.snapshot.sketch import sketch
from dimat.statedict import parameters_of
from dimat.tasks.base import batch_size

NUM_STEPS = "num_steps"
"""What a checkpoint calls the number of steps of a round."""


def run_steps(agent: Agent, number: int) -> Steps[Report]:
    """All steps of round `number`; yields each thing it waits for and returns the numbers of the round."""
    config, clock, tally = agent.config, PhaseClock(agent.status), Tally()
    algorithm = agent.algorithm
    assert algorithm is not None, "asked only where there is one"
    agent.status.round = number
    num_steps = steps_a_round(agent)
    num_exchanges = exchanges_a_round(num_steps, algorithm.local_steps)
    state: State = {name: tensor for name, tensor in agent.remembered.items() if name != NUM_STEPS}
    agent.model.train()
    batches = endless(agent.loader)
    losses: list[torch.Tensor] = []
    before: dict[str, float] = {}
    sketch_before, made = b"", 0
    for step in range(num_steps):
        epoch = epoch_of(step, num_steps, config.train.epochs)
        set_learning_rate(
            agent,
            learning_rate(
                config.train, epoch + (number - 1) * config.train.epochs, config.rounds * config.train.epochs
            ),
        )
        if epoch > epoch_of(max(0, step - 1), num_steps, config.train.epochs):
            losses.clear()
        with clock("train"):
            batch = next(batches)
            yield from compute(agent, number, batch_size(batch))
        last = step == num_steps - 1
        if not last and (step + 1) % algorithm.local_steps:
            with clock("train"):
                losses.append(local_step(agent, batch))
            continue
        if last:
            with clock("evaluate"):
                before = agent.task.evaluate(agent.model)
            with clock("sketch"):
                sketch_before = sketch(parameters_of(agent.model), seed=config.seed)
        made += 1
        agent.exchange = index = (number - 1) * num_exchanges + made
        exchange = Exchange(agent, number, index, (index - 1) * algorithm.numbers + 1, clock, tally)
        state, loss = yield from algorithm.step(exchange, batch, state)
        losses.append(loss)
    agent.remembered = {**state, NUM_STEPS: torch.tensor(num_steps)}
    with clock("publish"):
        agent.publish("snapshot", number)  # for an agent that comes back later, and needs a model to go on from
    with clock("evaluate"):
        after = agent.task.evaluate(agent.model)
    with clock("sketch"):
        sketch_after = sketch(parameters_of(agent.model), seed=config.seed)
    metrics = {
        "loss": float(torch.stack(losses).mean()),
        "lr": float(agent.optimizer.param_groups[0]["lr"]),
        "accuracy_before": before["accuracy"],
        "loss_before": before["loss"],
        "accuracy": after["accuracy"],
        "loss_after": after["loss"],
    }
    return Report(
        agent=agent.id, session=agent.session, round=number, metrics=metrics, seconds=clock.seconds,
        weights=tally.mean_row(), bytes_received=dict(sorted(tally.bytes_received.items())), missing=tally.reasons(),
        sketch_before=sketch_before, sketch_after=sketch_after,
    )  # fmt: skip


def steps_a_round(agent: Agent) -> int:
    """How many steps every agent does in a round.

    Raises:
        ConfigError: nobody told how many samples there are, and the config says no number.
    """
    config = agent.config
    if config.algorithm.steps is not None:
        return config.algorithm.steps
    if NUM_STEPS in agent.remembered:
        return int(agent.remembered[NUM_STEPS])
    if agent.largest_shard < 1:
        raise ConfigError(
            f"algorithm {config.algorithm.name!r} needs one number of steps for all agents, and the task does not tell "
            "how many samples an agent has (`num_samples`)",
            hint="-s algorithm.steps=20 says how many steps a round has",
        )
    return config.train.epochs * math.ceil(agent.largest_shard / config.train.batch_size)


def exchanges_a_round(num_steps: int, local_steps: int) -> int:
    """How often a round exchanges: after every `local_steps` steps, and after its last one.

    >>> exchanges_a_round(10, 1), exchanges_a_round(10, 4)
    (10, 3)
    """
    return math.ceil(num_steps / local_steps)


def epoch_of(step: int, num_steps: int, num_epochs: int) -> int:
    """The local epoch, from 0, that step `step` of `num_steps` counts to: its learning rate goes by it.

    >>> [epoch_of(step, 5, 2) for step in range(5)]
    [0, 0, 0, 1, 1]
    """
    return step * num_epochs // num_steps


def set_learning_rate(agent: Agent, lr: float) -> None:
    """Have all groups of the agent's optimiser step by `lr`."""
    for group in agent.optimizer.param_groups:
        group["lr"] = lr


def endless(loader: Any) -> Iterator[Any]:
    """The loader's batches, epoch after epoch.

    Raises:
        TaskError: an epoch without a batch.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise TaskError("the task's loader has no batch: every agent needs data to train on")
