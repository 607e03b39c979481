"""The mean and deviation of every channel that REPAIR restores, on a probe.

A channel is an output unit of a hidden linear or convolutional layer, over all samples and positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dimat.calibrate.hidden import Layer, channel_dimension, hidden_layers
from dimat.calibrate.probe import at_least_two, call, evaluating
from dimat.errors import SchemaError

NEGLIGIBLE = 1e-6
"""A channel whose deviation is below this share of its root mean square is constant: what is left is rounding."""
_SAMPLES_AT_ONCE = 64


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each output channel of one layer; float64 of shape (channels,), on the CPU.

    Two numbers a channel: little enough to travel beside the weights.
    """

    mean: Tensor
    std: Tensor

    @property
    def rms(self) -> Tensor:
        """Root mean square, √(μ² + σ²)."""
        return torch.hypot(self.mean, self.std)

    def is_finite(self) -> bool:
        """Whether no channel holds NaN or Inf."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.std).all())


def channel_statistics(
    model: nn.Module, batches: Iterable[Any], max_samples: int = 512
) -> dict[str, ChannelStatistics]:
    """The statistics of every channel that REPAIR restores, by the name of its layer, in eval mode and one pass.

        μ = E[y_c], σ = √(E[y_c²] − μ²) over all samples, positions and calls of the layer.

    Args:
        model: not changed.
        batches: a batch is a tensor, a tuple of arguments or a mapping of keyword arguments, samples along dimension 0.
        max_samples: where to stop; the last batch is cut.

    Returns:
        Empty when there are fewer than two samples, or no such layer.

    Raises:
        ValueError: `max_samples` is not positive. What the model raises passes through.

    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    >>> found = channel_statistics(model, [torch.tensor([[1.0], [3.0]])])
    >>> {name: (mean.tolist(), std.tolist()) for name, (mean, std) in found.items()}
    {'0': ([2.0, 2.0], [1.0, 1.0])}
    """
    probe = list(at_least_two(batches, max_samples))
    return measure(model, hidden_layers(model, probe).layers, probe)


def interpolate(
    statistics: Sequence[Mapping[str, ChannelStatistics]], weights: Sequence[float] | None = None
) -> dict[str, ChannelStatistics]:
    """μ* = Σ_i w_i μ_i and σ* = Σ_i w_i σ_i: what the channels of Σ_i w_i θ_i should have (arXiv 2211.08403).

    Args:
        statistics: of each endpoint.
        weights: w_i, scaled to sum to one; None: all equal.

    Raises:
        ValueError: there are no endpoints, or not as many weights, or weights that are negative or sum to zero.
        SchemaError: the endpoints are not of one architecture; the first layer that differs is named.
    """
    weights = [1.0] * len(statistics) if weights is None else list(weights)
    if not statistics or len(weights) != len(statistics):
        raise ValueError(f"{len(statistics)} endpoints and {len(weights)} weights: one weight for each is needed")
    total = sum(weights)
    if not all(weight >= 0 for weight in weights) or not 0 < total < float("inf"):
        raise ValueError(f"weights {weights} are no shares: none may be negative and they cannot sum to zero")
    for other in statistics[1:]:
        check_alike(sizes_of(statistics[0]), sizes_of(other))
    shares = torch.tensor(weights, dtype=torch.float64)[:, None] / total
    return {
        name: ChannelStatistics(
            (shares * torch.stack([one[name].mean for one in statistics])).sum(0),
            (shares * torch.stack([one[name].std for one in statistics])).sum(0),
        )
        for name in statistics[0]
    }


def check_alike(one: Mapping[str, int], other: Mapping[str, int]) -> None:
    """Raise SchemaError at the first layer in which two nets' numbers of channels by layer differ."""
    for name in dict.fromkeys([*one, *other]):
        sizes = [f"{found[name]} channels" if name in found else "nothing" for found in (one, other)]
        if sizes[0] != sizes[1]:
            raise SchemaError(f"layer {name!r} has {sizes[0]} to restore in one net and {sizes[1]} in the other")


def sizes_of(statistics: Mapping[str, ChannelStatistics]) -> dict[str, int]:
    """Number of channels by layer."""
    return {name: len(one.mean) for name, one in statistics.items()}


class Moments:
    """Streaming mean and deviation of each channel, in float64 (Chan, Golub, LeVeque 1979: batches joined by mean)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in a matrix (channels, n); n may be zero."""
        count = rows.shape[1]
        if not count:
            return
        variance, mean = torch.var_mean(rows.detach().to(torch.float64), dim=1, correction=0)
        shift, total = mean.cpu() - self.mean, self.count + count
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + variance.cpu() * count + shift**2 * (self.count * count / total)
        self.count = total

    def add_output(self, layer: nn.Module, output: Tensor) -> None:
        """Take in what a layer computed, some samples at a time: they are copied in float64."""
        where = channel_dimension(layer)
        for part in torch.split(output, _SAMPLES_AT_ONCE) if output.ndim > -where else [output]:
            self.add(part.movedim(where, 0).flatten(1) if part.ndim > 1 else part[:, None])

    def statistics(self) -> ChannelStatistics:
        """What was seen so far."""
        return ChannelStatistics(self.mean, (self.squares / max(1, self.count)).sqrt())


def measure(model: nn.Module, layers: Mapping[str, Layer], probe: Sequence[Any]) -> dict[str, ChannelStatistics]:
    """The statistics of `layers` over a probe in eval mode, all in one pass."""
    sums = {name: Moments() for name in layers}
    hooks = [
        # First among the hooks: what is wanted is what the weights make, whatever a hook of the user's makes of it.
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: sums[name].add_output(layer, output), prepend=True
        )
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model):
            for batch in probe:
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: moments.statistics() for name, moments in sums.items() if moments.count}
