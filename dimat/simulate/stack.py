"""Many models of one shape as one: a tensor per name, whose first dimension counts the models.

    stack          models -> Stack                 parameters, buffers and optimiser state, copied
    Stack.part     the models first..end of it     views: what is done to them is done to the stack
    unstack        Stack -> models                 copied back in place, so that whoever holds a parameter keeps it

The update rules are those of torch's optimisers, with a learning rate and a step count of each model's own:

    sgd     g += wd p;  m <- mu m + g;  p -= lr m
    adam    g += wd p;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p -= lr m_hat / (sqrt(v_hat) + eps)
    adamw   p -= lr wd p;  then as adam, with the gradient alone

with m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t). They agree with torch's up to rounding.

Sources: Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101; sgd with momentum as torch has it,
where the first momentum is the first gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dimat.errors import UsageError

Named = dict[str, Tensor]

_SLOTS: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}
_UNKNOWN = ("nesterov", "maximize", "amsgrad", "differentiable", "dampening")
"""Options of torch's optimisers that the rules here do not have; all are off in what a config can name."""


@dataclass(frozen=True, slots=True)
class Stack:
    """k models; every tensor is (k, ...)."""

    parameters: Named
    buffers: Named
    slots: dict[str, Named] = field(default_factory=dict)
    """The optimiser's tensors: by its own name for them, then by parameter."""
    steps: Tensor | None = None
    """(k,) updates so far, for adam and adamw."""

    def part(self, first: int, end: int) -> Stack:
        """The models `first` to `end` - 1, as views."""
        return Stack(
            {name: tensor[first:end] for name, tensor in self.parameters.items()},
            {name: tensor[first:end] for name, tensor in self.buffers.items()},
            {slot: {name: tensor[first:end] for name, tensor in of.items()} for slot, of in self.slots.items()},
            None if self.steps is None else self.steps[first:end],
        )


def stack(models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer] = ()) -> Stack:
    """Models of one shape, and their optimisers where they are to be trained.

    Raises:
        UsageError: an optimiser that is not known here.
    """
    named = [dict(model.named_parameters()) for model in models]
    held = [dict(model.named_buffers()) for model in models]
    with torch.no_grad():
        parameters = {name: torch.stack([one[name].detach() for one in named]) for name in named[0]}
        buffers = {name: torch.stack([one[name] for one in held]) for name in held[0]}
        if not optimizers:
            return Stack(parameters, buffers)
        kind = check_optimizer(optimizers[0])
        keys = () if kind is torch.optim.SGD and not optimizers[0].param_groups[0]["momentum"] else _SLOTS[kind]
        slots = {
            slot: {
                name: torch.stack([_slot(one.state, of[name], slot) for one, of in zip(optimizers, named, strict=True)])
                for name in parameters
            }
            for slot in keys
        }
    steps = None
    if kind is not torch.optim.SGD:
        first = next(iter(parameters))
        done = [one.state.get(of[first], {}).get("step", 0.0) for one, of in zip(optimizers, named, strict=True)]
        steps = torch.tensor([float(step) for step in done], dtype=torch.float64)
    return Stack(parameters, buffers, slots, steps)


def unstack(stacked: Stack, models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
    """Give every model, and its optimiser, what its place in the stack holds."""
    into: list[Tensor] = []
    values: list[Tensor] = []
    parts = {name: tensor.unbind() for name, tensor in stacked.parameters.items()}
    buffers = {name: tensor.unbind() for name, tensor in stacked.buffers.items()}
    slots = {slot: {name: tensor.unbind() for name, tensor in of.items()} for slot, of in stacked.slots.items()}
    for place, model in enumerate(models):
        parameters = dict(model.named_parameters())
        into += [parameter.detach() for parameter in parameters.values()]
        values += [parts[name][place] for name in parameters]
        for name, buffer in model.named_buffers():
            into.append(buffer)
            values.append(buffers[name][place])
        for name, parameter in parameters.items() if optimizers else ():
            state = optimizers[place].state[parameter]
            for slot, of in slots.items():
                if state.get(slot) is None:
                    state[slot] = torch.empty_like(parameter, requires_grad=False)
                into.append(state[slot])
                values.append(of[name][place])
            if stacked.steps is not None:
                state["step"] = torch.tensor(float(stacked.steps[place]))
    with torch.no_grad():
        torch._foreach_copy_(
            into, values
        )  # one call for all: a copy of its own for each would cost more than the bytes


def check_optimizer(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer]:
    """The kind of an optimiser whose rule is known here.

    Raises:
        UsageError: it is another one, or has options that are not known.
    """
    kind = type(optimizer)
    groups = optimizer.param_groups
    strange = [name for name in _UNKNOWN if groups[0].get(name)]
    if kind not in _SLOTS or strange or len(groups) != 1:
        what = f"{kind.__name__} with {', '.join(strange)}" if strange else kind.__name__
        raise UsageError(
            f"models cannot be trained as one by the optimiser {what}, expected sgd, adam or adamw with one group"
        )
    return kind


def update(stacked: Stack, gradients: Named, optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    """One step of every model in place.

    Args:
        stacked: the models.
        gradients: by parameter; used up as scratch memory.
        optimizer: one of the models' optimisers, for its options; all have the same.
        lr: (k,) float32.
    """
    options: dict[str, Any] = optimizer.param_groups[0]
    decay, kind = options["weight_decay"], type(optimizer)
    with torch.no_grad():
        if kind is torch.optim.SGD:
            rate = float(lr[0])
            alike = bool((lr == rate).all())
            for name, parameter in stacked.parameters.items():
                gradient = gradients[name]
                if decay:
                    gradient = gradient.add_(parameter, alpha=decay)
                if options["momentum"]:
                    moving = stacked.slots["momentum_buffer"][name]
                    gradient = torch.add(gradient, moving, alpha=options["momentum"], out=moving)
                if alike:  # one pass without broadcasting, twice as fast
                    parameter.add_(gradient, alpha=-rate)
                else:
                    parameter.addcmul_(gradient, _over(lr, parameter), value=-1.0)
            return
        assert stacked.steps is not None
        stacked.steps.add_(1)
        (beta1, beta2), eps = options["betas"], options["eps"]
        size = (lr / (1 - beta1**stacked.steps)).to(lr.dtype)  # in float64 where it cancels
        root = (1 - beta2**stacked.steps).sqrt().to(lr.dtype)
        for name, parameter in stacked.parameters.items():
            gradient = gradients[name]
            if decay and kind is torch.optim.AdamW:
                parameter.mul_(1 - _over(lr, parameter) * decay)
            elif decay:
                gradient = gradient.add_(parameter, alpha=decay)
            first, second = stacked.slots["exp_avg"][name], stacked.slots["exp_avg_sq"][name]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = second.sqrt().div_(_over(root, parameter)).add_(eps)
            parameter.addcmul_(first.div(denominator), _over(size, parameter), value=-1.0)


def _slot(state: Mapping[Any, Any], parameter: nn.Parameter, slot: str) -> Tensor:
    """An optimiser's tensor for a parameter; zeros before the first step, where it has none."""
    value = state.get(parameter, {}).get(slot)
    return torch.zeros_like(parameter.detach()) if value is None else value


def _over(values: Tensor, tensor: Tensor) -> Tensor:
    """(k,) for a tensor (k, ...), to be broadcast."""
    return values.view(-1, *[1] * (tensor.dim() - 1))
