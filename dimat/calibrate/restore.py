"""REPAIR: channels of a merged net get back the mean and the deviation that the endpoints' channels had.

Average two nets and their units, matched but not equal, partly cancel: deviations shrink from layer to layer until
little of the signal is left. Jordan et al. 2022 (REPAIR, arXiv 2211.08403) rescale each channel c of each layer,

    y_c ← a_c y_c + b_c,    a_c = σ*_c / σ_c,    b_c = μ*_c − a_c μ_c,

with (μ, σ) of the merged net and (μ*, σ*) interpolated between the endpoints, and fold that into the layer's weights
and bias. A corrected layer changes what all later ones see. So the corrections come from a pass in which every layer's
output is put right on the spot, before the next layer reads it. That is exact when the whole probe goes through as one
batch, which it does as long as the largest activation stays in bounds. The folded net is then measured as it is, and
what is left over (a probe in pieces, layers that are called twice) is folded in again until nothing is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from dimat.calibrate.batchnorm import recalibrate, running_norms
from dimat.calibrate.channels import (
    NEGLIGIBLE,
    ChannelStatistics,
    Moments,
    channel_statistics,
    check_alike,
    interpolate,
    measure,
    sizes_of,
)
from dimat.calibrate.hidden import Layer, channel_dimension, hidden_layers, num_channels
from dimat.calibrate.probe import at_least_two, call, evaluating, num_samples, regrouped

SPARE_FOLDS = 5
"""Folds beyond one a layer, for layers that are called twice. With the probe in one piece a single one is enough."""
MAX_NUMBERS = 1 << 26
"""Numbers in one layer's output at once: 256 MiB in float32, what a training step on few samples takes."""
_CLOSE = 1e-5
"""An error, as a share of the target's root mean square, at which a channel is right; float32 adds up to about 1e-6."""
WORTH_A_WARNING = 0.01
"""An error, in the same units, that is told when it is left in the end; it takes a layer that reads itself."""

logger = logging.getLogger(__name__)


def repair(
    merged: nn.Module,
    endpoints: Iterable[nn.Module],
    batches: Iterable[Any],
    weights: Sequence[float] | None = None,
    max_samples: int = 512,
) -> int:
    """Restore the channel statistics of `merged` = Σ_i w_i θ_i to the endpoints' interpolated ones, in its weights.

        μ* = Σ_i w_i μ_i,  σ* = Σ_i w_i σ_i    for every channel of every hidden linear and convolutional layer.

    Its batch norms are recalibrated on the same samples, since what enters them changes; layers right before a batch
    norm need nothing else, and the layer that makes the answer stays (see `hidden`). A layer without bias has no place
    for a shift: its deviations are restored, its means scale along. Channels that are constant on the probe, in the
    merged net or in all endpoints, stay as they are. When nothing is off by more than rounding, no weight is changed.

    Args:
        merged: changed in weights, biases and running statistics, all in place; modes, hooks, `requires_grad`,
            gradients and momenta stay.
        endpoints: the aligned nets that were merged, not changed. They are measured one after the other, so a generator
            may refill one module with one endpoint after the other.
        batches: a batch is a tensor, a tuple of arguments or a mapping of keyword arguments, samples along dimension 0.
        weights: w_i, scaled to sum to one; None: all equal.
        max_samples: how many samples are used; they are kept for the passes over them, and run in batches of any size.

    Returns:
        Number of samples used. 0 when there was nothing to do, fewer than two samples, or activations that are not
        finite (logged): the net is then what it was.

    Raises:
        ValueError: `max_samples` is not positive, or `weights` do not fit the endpoints.
        SchemaError: the endpoints are not of the merged net's architecture. What a model raises passes through, with
            the net as it was.

    >>> a, b, merged = (nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)) for _ in range(3))
    >>> for net, weight in ((a, 2.0), (b, 2.0), (merged, 0.5)):
    ...     _ = nn.init.constant_(net[0].weight, weight), nn.init.zeros_(net[0].bias)
    >>> repair(merged, [a, b], [torch.tensor([[1.0], [3.0]])])
    2
    >>> round(merged[0].weight.item(), 4), round(merged[0].bias.item(), 4)
    (2.0, 0.0)
    """
    probe = list(at_least_two(batches, max_samples))
    told = [channel_statistics(endpoint, probe, max_samples) for endpoint in endpoints]
    return restore_statistics(merged, interpolate(told, weights), probe, max_samples)


def restore_statistics(
    model: nn.Module, targets: Mapping[str, ChannelStatistics], batches: Iterable[Any], max_samples: int = 512
) -> int:
    """`repair` from statistics instead of endpoints: those that `channel_statistics` and `interpolate` made.

    Raises:
        ValueError: `max_samples` is not positive.
        SchemaError: the targets are not of the model's architecture. What the model raises passes through, with
            everything put back.
    """
    probe = list(at_least_two(batches, max_samples))
    if not probe:
        return 0
    layers, numbers = hidden_layers(model, probe)
    check_alike({name: num_channels(layer) for name, layer in layers.items()}, sizes_of(targets))
    if not layers:
        return recalibrate(model, probe, max_samples)
    probe = regrouped(probe, max(2, MAX_NUMBERS // numbers))
    if not all(target.is_finite() for target in targets.values()):
        logger.warning("the net is left as it was: the endpoints' activations on the probe are not finite")
        return 0
    used, done = sum(num_samples(batch) for batch in probe), False
    touched = _touched(model, layers)
    before = [tensor.clone() for tensor in touched]
    try:
        done = _restore(model, {name: _Fold(layer) for name, layer in layers.items()}, targets, probe, used)
    finally:
        if not done:
            with torch.no_grad():
                for tensor, value in zip(touched, before, strict=True):
                    tensor.copy_(value)
    return used if done else 0


def _restore(
    model: nn.Module,
    folds: Mapping[str, _Fold],
    targets: Mapping[str, ChannelStatistics],
    probe: Sequence[Any],
    used: int,
) -> bool:
    """Correct until all is right; False, with the reason logged, when the net is better left as it was."""
    layers = {name: fold.layer for name, fold in folds.items()}
    # A fold puts right every layer whose predecessors are right: as many folds as layers always suffice without loops.
    most, off = len(layers) + SPARE_FOLDS, 0.0
    for num_folded in range(most + 1):
        finite = not running_norms(model) or bool(recalibrate(model, probe, used))
        found = measure(model, layers, probe)
        if not finite or not all(one.is_finite() for one in found.values()):
            logger.warning("the net is left as it was: its activations on the probe are not finite")
            return False
        off = max(_error(layer, found[name], targets[name]) for name, layer in layers.items())
        if off <= _tolerance(layers):
            return True
        if num_folded == 0:
            found = _measure_corrected(model, layers, targets, probe, used)
        if num_folded < most:
            for name, fold in folds.items():
                fold.correct(found[name], targets[name])
    if off > WORTH_A_WARNING:
        logger.warning("REPAIR has not settled after %d passes: a channel is %.1g off its target", most, off)
    return True


def _measure_corrected(
    model: nn.Module,
    layers: Mapping[str, Layer],
    targets: Mapping[str, ChannelStatistics],
    probe: Sequence[Any],
    used: int,
) -> dict[str, ChannelStatistics]:
    """What each layer computes while all layers before it are corrected by what they have shown so far."""
    sums = {name: Moments() for name in layers}

    def put_right(name: str, layer: nn.Module, output: Tensor) -> Tensor:
        sums[name].add_output(layer, output)
        shape = (-1, *[1] * (-1 - channel_dimension(layer)))
        factors = affine(layer, sums[name].statistics(), targets[name])
        scale, shift = (one.to(output).view(shape) for one in factors)
        return output * scale + shift

    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: put_right(name, layer, output), prepend=True
        )
        for name, layer in layers.items()
    ]
    try:
        if not recalibrate(model, probe, used):  # which runs the net itself, with its batch norms in train mode
            with evaluating(model):
                for batch in probe:
                    call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: moments.statistics() for name, moments in sums.items()}


def affine(layer: nn.Module, found: ChannelStatistics, target: ChannelStatistics) -> tuple[Tensor, Tensor]:
    """(a, b) of y ← a y + b for every channel, float64; (1, 0) where a channel is constant, b = 0 without a bias."""
    live = _live(found, target)
    scale = torch.where(live, target.std / found.std, 1.0)
    shift = torch.where(live & (layer.bias is not None), target.mean - scale * found.mean, 0.0)
    return scale, shift


class _Fold:
    """A layer's own weights, and the correction y ← scale · y + shift that is folded into them so far."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._weight = layer.weight.detach().to(torch.float64, copy=True)
        self._bias = None if layer.bias is None else layer.bias.detach().to(torch.float64, copy=True)
        self._scale = torch.ones(num_channels(layer), dtype=torch.float64)
        self._shift = torch.zeros_like(self._scale)

    def correct(self, found: ChannelStatistics, target: ChannelStatistics) -> None:
        """Put one more correction on top, always from the weights of the beginning: rounding does not add up."""
        scale, shift = affine(self.layer, found, target)
        self._scale, self._shift = scale * self._scale, scale * self._shift + shift
        factor, offset = self._scale.to(self._weight.device), self._shift.to(self._weight.device)
        with torch.no_grad():
            if isinstance(self.layer, _ConvTransposeNd):  # (in, out / groups, ...): groups lie along the inputs
                parts = self._weight.view(self.layer.groups, -1, *self._weight.shape[1:])
                scaled = parts * factor.view(self.layer.groups, 1, -1, *[1] * (self._weight.ndim - 2))
                self.layer.weight.copy_(scaled.view_as(self._weight))
            else:
                self.layer.weight.copy_(self._weight * factor.view(-1, *[1] * (self._weight.ndim - 1)))
            if self._bias is not None and self.layer.bias is not None:
                self.layer.bias.copy_(factor * self._bias + offset)


def _live(found: ChannelStatistics, target: ChannelStatistics) -> Tensor:
    return (found.std > NEGLIGIBLE * found.rms) & (target.std > NEGLIGIBLE * target.rms)


def _error(layer: nn.Module, found: ChannelStatistics, target: ChannelStatistics) -> float:
    """The largest distance from the target of what can be corrected, as a share of the target's root mean square."""
    off = (found.std - target.std).abs()
    if layer.bias is not None:
        off = torch.maximum(off, (found.mean - target.mean).abs())
    return float(torch.where(_live(found, target), off / target.rms, 0.0).max())


def _tolerance(layers: Mapping[str, Layer]) -> float:
    return max(_CLOSE, *(8 * torch.finfo(layer.weight.dtype).eps for layer in layers.values()))


def _touched(model: nn.Module, layers: Mapping[str, Layer]) -> list[Tensor]:
    """Every tensor that may change."""
    weights = [one for layer in layers.values() for one in (layer.weight, layer.bias)]
    statistics = [one for norm in running_norms(model) for one in (norm.running_mean, norm.running_var)]
    return [one for one in (*weights, *statistics) if one is not None]
