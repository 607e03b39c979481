"""Whether a step of the stack is the step of the plain loop: both are done on copies, and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dimat.agent.randomness import Randomness, restore
from dimat.agent.state import Agent
from dimat.agent.train import make_optimizer
from dimat.simulate.epochs import Epoch, Trainer
from dimat.simulate.stack import Stack, stack

LIKE = 1e-3
"""How far a step may lie from the plain loop's, as a share of its length: rounding is some orders below."""


class CannotStack(Exception):
    """These models cannot be trained as one, or it gives something else; the text says why."""


@contextmanager
def stackable() -> Iterator[None]:
    """What torch has against stacking a model or a loss, as `CannotStack`."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise CannotStack(f"{type(error).__name__}: {lines[0]}") from error


def check_first_step(agents: Sequence[Agent], rates: Sequence[float], streams: Callable[[int], Randomness]) -> None:
    """Do the agents' next training step both ways; models, optimisers and random streams stay as they are.

    Args:
        agents: all of one kind of model and optimiser.
        rates: their learning rates.
        streams: reads an agent's random streams.

    Raises:
        CannotStack: a loss, a buffer or the change of a model differs, or random numbers are drawn for it.
    """
    plain = {agent.id: plain_step(agent, rate, streams(agent.id)) for agent, rate in zip(agents, rates, strict=True)}
    epochs = {}
    for agent in agents:
        restore(streams(agent.id), agent.loader)
        epochs[agent.id] = Epoch.drawn(agent.loader)
        restore(streams(agent.id), agent.loader)
    rate_of = {agent.id: rate for agent, rate in zip(agents, rates, strict=True)}
    ordered = sorted((agent for agent in agents if epochs[agent.id].batches), key=lambda one: epochs[one.id].order())
    if not ordered:
        return
    stacked = stack([agent.model for agent in ordered], [agent.optimizer for agent in ordered])
    trainer = Trainer(ordered[0].model, ordered[0].optimizer, ordered[0].task)
    lr = torch.tensor([rate_of[agent.id] for agent in ordered])
    with stackable():
        losses = next(iter(trainer.epoch(stacked, [epochs[agent.id] for agent in ordered], lr)))
    for place, agent in enumerate(ordered):
        loss, state = plain[agent.id]
        if why := difference(agent.model, stacked, place, state, float(losses[place]), loss):
            raise CannotStack(f"the first step of agent {agent.id} is another one than the plain loop's: {why}")


def plain_step(agent: Agent, rate: float, streams: Randomness) -> tuple[float, dict[str, Tensor]]:
    """Loss and model after one step of the plain loop, on a copy; nothing where the loader is empty.

    Raises:
        CannotStack: the loss draws random numbers.
    """
    model = copy.deepcopy(agent.model).train()
    optimizer = make_optimizer(agent.config.train, model)
    optimizer.load_state_dict(copy.deepcopy(agent.optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = rate
    restore(streams, agent.loader)
    try:
        for batch in agent.loader:
            before = torch.get_rng_state()
            optimizer.zero_grad(set_to_none=True)
            loss: Tensor = agent.task.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not torch.equal(before, torch.get_rng_state()):
                raise CannotStack("its model or loss draws random numbers (dropout?), each agent from its own stream")
            return float(loss.detach()), dict(model.state_dict())
    finally:
        restore(streams, agent.loader)
    return float("nan"), {}


def difference(
    model: nn.Module, stacked: Stack, place: int, plain: Mapping[str, Tensor], loss: float, plain_loss: float
) -> str:
    """In what the stack's step differs from the plain one; empty when in nothing but rounding.

    Args:
        model: before the step.
        stacked: after it.
        place: of the model in it.
        plain: the state dict after the plain step.
        loss: of the stack's step.
        plain_loss: of the plain step.
    """
    if not abs(loss - plain_loss) <= LIKE * max(1.0, abs(plain_loss)):
        return f"its loss is {loss:.6g} and {plain_loss:.6g}"
    apart, length = 0.0, 0.0
    for name, parameter in model.named_parameters():
        both = (stacked.parameters[name][place], plain[name])
        change, plain_change = (after.detach() - parameter.detach() for after in both)
        apart += float((change - plain_change).double().square().sum())
        length += float(plain_change.double().square().sum())
    # Written so that NaN differs.
    if not apart <= LIKE**2 * length:
        share = (apart / length) ** 0.5 if length else float("inf")
        return f"the changes of the parameters are {share:.2g} of a step apart"
    for name in stacked.buffers:
        if name in plain and not torch.allclose(stacked.buffers[name][place], plain[name], rtol=LIKE, atol=1e-5):
            return f"buffer {name!r} differs"
    return ""


def check_verdict(agent: Agent, found: Mapping[str, float]) -> None:
    """Compare what a stack's evaluation says of an agent with the task's own.

    Raises:
        CannotStack: they differ by more than rounding.
    """
    plain = agent.task.evaluate(agent.model)
    for name, value in plain.items():
        if name not in found or not abs(found[name] - value) <= 1e-2 * max(1.0, abs(value)):
            raise CannotStack(f"its evaluation says {name} {found.get(name)} where the task says {value}")
