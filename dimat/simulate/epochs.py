"""The local epochs of many agents at once: what each would draw, step by step, and one backward pass for all.

At step s of an epoch every agent that has an s-th batch takes part. Agents stand in the order of their numbers of
batches, so these are the first k, and those whose batches have one size stand side by side: each such group is one
`vmap` over views of the stack, nothing is copied. Where the task tells the loss of each sample and no layer looks at
the whole batch, batches of unequal size are filled up with samples that count nothing, and all k are one group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from dimat.simulate.stack import Named, Stack, update
from dimat.tasks.base import batch_size, speaks_for
from dimat.tasks.loader import TensorLoader


class Through(nn.Module):
    """A function of a model, as a module: so that `functional_call` puts other weights into the model meanwhile."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        """The function's value."""
        return self._function(self.model, *arguments)


@dataclass(slots=True)
class Epoch:
    """One agent's batches of one epoch. Those of a `TensorLoader` are row numbers until they are needed."""

    loader: Any
    batches: list[Any]

    @classmethod
    def drawn(cls, loader: Any) -> Epoch:
        """What the next pass through `loader` yields; the random streams move on as in that pass."""
        if type(loader) is TensorLoader:
            return cls(loader, list(loader.draw()))
        return cls(loader, list(loader))

    @property
    def in_rows(self) -> bool:
        """Whether batches are row numbers of a loader in memory."""
        return type(self.loader) is TensorLoader

    def form(self, step: int) -> Any:
        """What two batches must have in common to be stacked."""
        if self.in_rows:
            return len(self.batches[step])
        leaves, form = tree_flatten(self.batches[step])
        return form, tuple((one.shape, one.dtype) if isinstance(one, Tensor) else one for one in leaves)

    def order(self) -> tuple[int, int]:
        """Agents with more batches come first; the last batch is the one that differs in size."""
        return -len(self.batches), -batch_size(self.batches[-1]) if self.batches else 0


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of many loaders one after the other: a step's batches are one look-up and not one for each agent."""

    x: Tensor
    y: Tensor
    first: dict[int, int]
    """Where a loader's samples begin, by its `id`."""

    @classmethod
    def of(cls, loaders: Sequence[TensorLoader]) -> Samples:
        """Copies what the loaders hold, in their dtype.

        >>> one, two = (TensorLoader(torch.full((2, 1), n), torch.arange(2), 1, torch.Generator()) for n in (3, 4))
        >>> Samples.of([one, two]).x.tolist()
        [[3], [3], [4], [4]]
        """
        ends = list(itertools.accumulate(len(one.x) for one in loaders))
        first = {id(one): end - len(one.x) for one, end in zip(loaders, ends, strict=True)}
        return cls(torch.cat([one.x for one in loaders]), torch.cat([one.y for one in loaders]), first)


@dataclass(slots=True)
class Trainer:
    """Trains a stack; `model` and `optimizer` are one agent's, for their structure and options."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    task: Any
    _mean: Any = field(init=False)
    _weighted: Any = field(init=False)
    _pads: bool = field(init=False)
    _samples: Samples | None = None

    def __post_init__(self) -> None:
        self._mean = _over_models(Through(self.model, self.task.loss))
        losses = self.task.losses if speaks_for(self.task, "losses", "loss") else None
        self._pads = losses is not None and not any(isinstance(one, _NormBase) for one in self.model.modules())
        if losses is not None:
            self._weighted = _over_models(
                Through(self.model, lambda model, batch, weights: (losses(model, batch) * weights).sum())
            )

    def epoch(self, stacked: Stack, epochs: Sequence[Epoch], lr: Tensor) -> Iterator[Tensor]:
        """Go through one epoch in place; yields each step's losses (k,), of the agents that took part in it.

        Args:
            stacked: the models, in the order of `epochs`.
            epochs: sorted by `Epoch.order`.
            lr: (k,) float32.
        """
        self.model.train()
        in_memory = [one.loader for one in epochs if one.in_rows]
        if in_memory and self._samples is None:
            self._samples = Samples.of(in_memory)  # once a round: its epochs have the same loaders
        for step in range(max((len(one.batches) for one in epochs), default=0)):
            active = sum(step < len(one.batches) for one in epochs)
            yield torch.cat([
                self._step(stacked.part(first, end), epochs[first:end], step, lr[first:end])
                for first, end in self._groups(epochs[:active], step)
            ])  # fmt: skip

    def _groups(self, epochs: Sequence[Epoch], step: int) -> list[tuple[int, int]]:
        """First and end of those who are trained together."""
        if self._pads and all(one.in_rows for one in epochs):
            return [(0, len(epochs))]
        groups, first = [], 0
        for _, group in itertools.groupby(epochs, lambda one: one.form(step)):
            end = first + sum(1 for _ in group)
            groups.append((first, end))
            first = end
        return groups

    def _step(self, part: Stack, epochs: Sequence[Epoch], step: int, lr: Tensor) -> Tensor:
        batch, weights = stacked_batch(epochs, step, self._samples)
        if weights is None or not self._pads:
            gradients, losses = self._mean(part.parameters, part.buffers, batch)
        else:
            gradients, losses = self._weighted(part.parameters, part.buffers, batch, weights)
        update(part, gradients, self.optimizer, lr)
        found: Tensor = losses.detach()
        return found


def stacked_batch(epochs: Sequence[Epoch], step: int, samples: Samples | None) -> tuple[Any, Tensor | None]:
    """The agents' batches of a step as one, (k, batch, ...); for row numbers also what each sample counts, (k, batch).

    A sample that fills up a smaller batch counts 0, each of n others 1/n. `samples` are those that row numbers mean.
    """
    if samples is None or not all(one.in_rows for one in epochs):
        flat = [tree_flatten(one.batches[step]) for one in epochs]
        leaves, form = flat[0]
        places = range(len(leaves))
        joined = [
            torch.stack([one[place] for one, _ in flat]) if isinstance(leaves[place], Tensor) else leaves[place]
            for place in places
        ]
        return tree_unflatten(joined, form), None
    rows = [one.batches[step] for one in epochs]
    sizes = torch.tensor([len(one) for one in rows])[:, None]
    chosen = pad_sequence(rows, batch_first=True)  # filled up with each loader's first sample
    weights = (torch.arange(chosen.shape[1]) < sizes) / sizes
    chosen += torch.tensor([samples.first[id(one.loader)] for one in epochs])[:, None]
    x, y = samples.x[chosen], samples.y[chosen]
    scaling = epochs[0].loader.scaling
    return ((scaling.apply(x) if scaling else x), y), weights


def mean_losses(steps: Sequence[Tensor], num_models: int) -> list[float]:
    """Each model's mean over the steps that it took part in: the first ones, whatever their number.

    >>> mean_losses([torch.tensor([1.0, 4.0]), torch.tensor([3.0])], 3)
    [2.0, 4.0, nan]
    """
    if not steps:
        return [math.nan] * num_models
    sums, counts = torch.zeros(num_models), torch.zeros(num_models)
    for step in steps:
        sums[: len(step)] += step
        counts[: len(step)] += 1
    means: list[float] = (sums / counts).tolist()  # 0 / 0 is NaN
    return means


def scores(model: nn.Module, task: Any, stacked: Stack) -> list[list[dict[str, float]]]:
    """Each model's score on each test batch: `task.score` of the stack, in eval mode."""
    judged = Through(model, task.score)

    def score(parameters: Named, buffers: Named, batch: Any) -> dict[str, Tensor]:
        value: dict[str, Tensor] = functional_call(judged, _inner(parameters, buffers), (batch,))
        return value

    num_models = len(next(iter(stacked.parameters.values())))
    found: list[list[dict[str, float]]] = [[] for _ in range(num_models)]
    with torch.no_grad():
        for batch in task.test_batches():
            told = vmap(score, in_dims=(0, 0, None))(stacked.parameters, stacked.buffers, batch)
            columns = {name: values.tolist() for name, values in told.items()}
            for place, of in enumerate(found):
                of.append({name: float(values[place]) for name, values in columns.items()})
    return found


def _over_models(loss: Through) -> Any:
    """Gradients by parameter and losses (k,), from parameters, buffers and batches (k, ...)."""

    def value(parameters: Named, buffers: Named, *arguments: Any) -> Tensor:
        found: Tensor = functional_call(loss, _inner(parameters, buffers), arguments)
        return found

    # What draws random numbers is found out before, and is not trained so: each agent has a stream of its own.
    return vmap(grad_and_value(value), randomness="error")


def _inner(parameters: Named, buffers: Named) -> Named:
    return {f"model.{name}": tensor for name, tensor in (parameters | buffers).items()}
