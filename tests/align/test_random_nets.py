"""Nets that nobody wrote: random chains and residual streams of random widths all verify and come back."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dimat.align import match_activations, permutation_spec

WIDTHS = st.integers(1, 7)
ACTIVATIONS = st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU, nn.ELU])


Net = tuple[nn.Sequential, tuple[int, ...], int, bool]
"""The model, the shape of a sample, the width of its stream at the end, whether a layer has made that stream."""


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@st.composite
def dense_nets(draw: st.DrawFn) -> Net:
    inside = width = draw(WIDTHS)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["linear", "norm", "residual", "activation"]))
        if kind == "linear":
            after = draw(WIDTHS)
            layers += [nn.Linear(width, after, bias=draw(st.booleans())), draw(ACTIVATIONS)()]
            width = after
        elif kind == "norm":
            layers.append(draw(st.sampled_from([nn.LayerNorm(width), nn.BatchNorm1d(width)])))
        elif kind == "residual":
            hidden = draw(WIDTHS)
            layers.append(
                Residual(nn.Sequential(nn.Linear(width, hidden), draw(ACTIVATIONS)(), nn.Linear(hidden, width)))
            )
        else:
            layers.append(draw(ACTIVATIONS)())
    free = any(isinstance(layer, nn.Linear) for layer in layers)
    return nn.Sequential(*layers, nn.Linear(width, 2)), (inside,), width, free


@st.composite
def conv_nets(draw: st.DrawFn) -> Net:
    inside = width = draw(st.integers(1, 3))
    layers: list[nn.Module] = []
    side = 6
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "residual", "depthwise", "pool"]))
        if kind == "conv":
            after = draw(WIDTHS)
            layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), draw(ACTIVATIONS)()]
            width = after
        elif kind == "residual":
            hidden = draw(WIDTHS)
            body = [nn.Conv2d(width, hidden, 3, padding=1), nn.GroupNorm(1, hidden), draw(ACTIVATIONS)()]
            layers.append(Residual(nn.Sequential(*body, nn.Conv2d(hidden, width, 1))))
        elif kind == "depthwise":
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), draw(ACTIVATIONS)()]
        elif side > 2:
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2)])))
            side //= 2
    if draw(st.booleans()):
        head = [nn.Flatten(), nn.Linear(width * side * side, 2)]
    else:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
    free = any(isinstance(layer, nn.Conv2d) and layer.groups == 1 for layer in layers)
    return nn.Sequential(*layers, *head), (inside, 6, 6), width, free


@given(st.one_of(dense_nets(), conv_nets()), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_nets_verify_and_a_permuted_copy_computes_the_same_and_is_matched(net: Net, seed: int) -> None:
    model, shape, width, free = net
    model.eval().double()
    x = torch.randn(24, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spec = permutation_spec(model, x[:2])
    # The last layer's columns follow the stream, which is free once some layer has made it anew.
    last = [name for name in spec.shapes if name.endswith(".weight")][-1]
    assert any(axis.dimension == 1 for _, axis in spec.members.get(last, ())) == (free and width > 1)
    # So is the inside of every residual body.
    inner = [m.body[0] for m in model if isinstance(m, Residual)]
    assert len(spec.groups) >= sum(m.weight.shape[0] > 1 for m in inner)
    assert spec.verify(model, x, seed=seed, tolerance=1e-11) <= 1e-11
    hidden = spec.random(seed)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    torch.testing.assert_close(other(x), model(x), rtol=1e-9, atol=1e-11)
    # Every unit that is not constant finds one that fires exactly as it does. (Which one is not determined when units
    # are multiples of each other, as those of a layer behind a single input are.)
    for group in match_activations(spec, model, other, [x]).groups:
        assert group.after == pytest.approx(1.0, abs=1e-6) or group.constant == group.size
