"""Are two nets in one basin? The loss along the straight line between them, and how far it rises above its ends.

On the line θ(α) = (1 − α) A + α B the barrier is

    max_α  L(θ(α)) − ((1 − α) L(A) + α L(B)),

zero when nothing stands between the two (Frankle et al. 2020, arXiv 1912.05671; Git Re-Basin, arXiv 2209.04836). A
permutation changes no net and yet where it lies, so the barrier tells what an alignment is worth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimat.align.calls import evaluating, tensors_in
from dimat.errors import SchemaError

Loss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]
"""loss(model, batch): the mean loss of a batch, or (mean loss, mean metric) when one forward pass gives both."""
Calibrate = Callable[[nn.Module, float], object]
"""calibrate(net, α) puts an interpolated net right, in place."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """What the line between two models showed.

    Attributes:
        alphas: the points α from 0 to 1.
        losses: L(θ(α)) at each.
        metrics: the mean metric at each, such as accuracy; empty when the loss came alone.

    >>> curve = Barrier((0.0, 0.5, 1.0), (1.0, 2.5, 2.0))
    >>> curve.excess, curve.height, curve.peak
    ((0.0, 1.0, 0.0), 1.0, 0.5)
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: tuple[float, ...] = ()

    @property
    def excess(self) -> tuple[float, ...]:
        """L(θ(α)) − ((1 − α) L(A) + α L(B)) at each point; zero at the ends."""
        a, b = self.losses[0], self.losses[-1]
        inner = [loss - ((1 - x) * a + x * b) for x, loss in zip(self.alphas, self.losses, strict=True)][1:-1]
        return (0.0, *inner, 0.0)

    @property
    def height(self) -> float:
        """The barrier: the largest excess, at least zero; infinite where a loss was not a number."""
        return max(math.inf if math.isnan(value) else value for value in self.excess)

    @property
    def peak(self) -> float:
        """The α of the largest excess."""
        found = [math.inf if math.isnan(value) else value for value in self.excess]
        return self.alphas[found.index(max(found))]

    @property
    def middle(self) -> int:
        """Index of the point nearest to α = 1/2: the plain average of both models."""
        return min(range(len(self.alphas)), key=lambda index: abs(self.alphas[index] - 0.5))

    def plot(self, path: Path | str, label: str = "A to B") -> None:
        """Write the curve as a PNG; see `plot_barriers`."""
        from dimat.align.barrier_picture import plot_barriers

        plot_barriers({label: self}, path)


def barrier(
    model_a: nn.Module | Mapping[str, Tensor],
    model_b: nn.Module | Mapping[str, Tensor],
    loss: Loss,
    batches: Iterable[Any],
    *,
    num_points: int = 11,
    calibrate: Calibrate | None = None,
    model: nn.Module | None = None,
) -> Barrier:
    """The loss along the line from `model_a` to `model_b`, in eval mode.

    Args:
        model_a: a module, or a state dict to be run in `model`.
        model_b: a module or a state dict of the same architecture.
        loss: loss(net, batch), a mean over the batch's samples, or (loss, metric). Batches count by their samples.
        batches: anything that `loss` takes; they are kept and used at every point.
        num_points: points with equal steps, both ends included; an odd number holds the midpoint.
        calibrate: calibrate(net, α), called on each net between the ends, which are judged as they are: for instance
            `lambda net, _: recalibrate(net, probe)`, or
            `lambda net, alpha: repair(net, [a, b], probe, weights=[1 - alpha, alpha])`.
        model: a module of the architecture, needed when `model_a` is a state dict.

    Returns:
        A `Barrier`. None of the models is touched: the nets in between live in a copy. Integers (counters) do not
        interpolate and are those of the nearer end.

    Raises:
        SchemaError: the models differ in a tensor; the first is named, with both shapes.
        ValueError: fewer than three points, no batches, or a state dict without a `model`.

    >>> _ = torch.manual_seed(0)
    >>> a = nn.Linear(2, 1, bias=False)
    >>> curve = barrier(a, {"weight": -a.weight.detach()}, lambda net, x: net(x).abs().mean(), [torch.ones(4, 2)])
    >>> len(curve.alphas), curve.losses[curve.middle], curve.height
    (11, 0.0, 0.0)
    """
    if num_points < 3:
        raise ValueError(f"num_points is {num_points}: both ends and a point between them make three")
    if model is None:
        if not isinstance(model_a, nn.Module):
            raise ValueError("model_a is a state dict: model=, a module of its architecture, is needed to run it")
        model = model_a
    kept = list(batches)
    if not kept:
        raise ValueError("there are no batches to take the loss on")
    ends = [dict(one.state_dict() if isinstance(one, nn.Module) else one) for one in (model_a, model_b)]
    net = copy.deepcopy(model)
    for end in ends:
        _check_alike(net.state_dict(), end)
    alphas = tuple(point / (num_points - 1) for point in range(num_points))
    told = []
    for alpha in alphas:
        net.load_state_dict(interpolate(ends[0], ends[1], alpha))
        if calibrate is not None and 0 < alpha < 1:
            calibrate(net, alpha)
        told.append(_mean(net, loss, kept))
    return Barrier(alphas, tuple(one[0] for one in told), tuple(one[1] for one in told if len(one) > 1))


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 − α) a + α b for every tensor; integers of the nearer end, the ends themselves untouched by arithmetic.

    >>> a, b = ({"w": torch.tensor([w]), "n": torch.tensor(n)} for w, n in ((0.0, 3), (4.0, 7)))
    >>> interpolate(a, b, 0.75)
    {'w': tensor([3.]), 'n': tensor(7)}
    """
    if alpha in (0.0, 1.0):
        return dict(b if alpha else a)
    return {
        name: torch.lerp(tensor, b[name].to(tensor), alpha)
        if tensor.is_floating_point() or tensor.is_complex()
        else (tensor if alpha <= 0.5 else b[name])
        for name, tensor in a.items()
    }


def _mean(net: nn.Module, loss: Loss, batches: Sequence[Any]) -> tuple[float, ...]:
    """What `loss` answers, averaged over all samples."""
    totals: list[float] = []
    num_samples = 0
    with evaluating(net):
        for batch in batches:
            answer = loss(net, batch)
            count = len(tensors_in(batch)[0])
            parts = [float(part) * count for part in (answer if isinstance(answer, tuple) else (answer,))]
            totals = [one + other for one, other in zip(totals or [0.0] * len(parts), parts, strict=True)]
            num_samples += count
    return tuple(total / num_samples for total in totals)


def _check_alike(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in dict.fromkeys([*expected, *found]):
        shapes = [tuple(state[name].shape) if name in state else None for state in (expected, found)]
        if shapes[0] != shapes[1]:
            words = ["lacks it" if shape is None else f"has shape {shape}" for shape in shapes]
            raise SchemaError(f"the models differ in tensor {name!r}: one {words[0]}, the other {words[1]}")
