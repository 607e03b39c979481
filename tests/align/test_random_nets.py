"""Nets that nobody wrote: chains, streams, gates and joins of random widths all verify and come back."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dimat.align import match_activations, permutation_spec

WIDTHS = st.integers(1, 7)
ACTIVATIONS = st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU, nn.ELU])


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Joined(nn.Module):
    """What goes in, beside what two bodies make of it."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(body(x) for body in self.bodies)], dim=1)


class Gated(nn.Module):
    """One half of what a body makes, weighed by the other half: cut by chunk, split, slices or GLU."""

    def __init__(self, body: nn.Module, way: str) -> None:
        super().__init__()
        self.body, self.way = body, way

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.way == "glu":
            return F.glu(x, dim=1)
        half = x.shape[1] // 2
        if self.way == "slices":
            a, b = x[:, :half], x[:, half:]
        else:
            a, b = x.chunk(2, dim=1) if self.way == "chunk" else x.split(half, 1)
        return torch.sigmoid(a) * b


class Excited(nn.Module):
    """Channels weighed by what a small net makes of their means."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        rest = (1,) * (x.ndim - 2)
        return x * self.net(x.flatten(2).mean(2) if x.ndim > 2 else x).view(*x.shape[:2], *rest)


class Parted(nn.Module):
    """Unequal parts go through different layers and meet again in another order."""

    def __init__(self, sizes: tuple[int, int], *bodies: nn.Module) -> None:
        super().__init__()
        self.sizes, self.bodies = sizes, nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.split(self.sizes, dim=1)
        return torch.cat([self.bodies[1](two), self.bodies[0](one)], dim=1)


@dataclass(frozen=True)
class Net:
    """A net and what is known about it.

    Attributes:
        shape: of a sample.
        inner: weights whose rows nothing else reads, so that they must move.
        num_grouped: layers that see channels in groups. Orders inside of orders are compared without knowing either.
        exact: every dimension of every weight must move but those at the ends, and nothing is reported as frozen.
    """

    model: nn.Module
    shape: tuple[int, ...]
    inner: tuple[str, ...]
    num_grouped: int
    exact: bool


class Builder:
    """Draws blocks one after the other; `spatial` chooses convolutions or linear layers."""

    def __init__(self, draw: st.DrawFn, spatial: bool) -> None:
        self.draw, self.spatial = draw, spatial
        self.side = 6
        self.num_cuts = self.num_grouped = 0
        self.exact = True  # until pieces of one unit, which cannot move, or groups that a cut does not respect

    def linear(self, inside: int, out: int) -> nn.Module:
        if not self.spatial:
            return nn.Linear(inside, out, bias=self.draw(st.booleans()))
        return nn.Conv2d(inside, out, *self.draw(st.sampled_from([(1,), (3, 1, 1)])))

    def norm(self, width: int) -> nn.Module:
        if not self.spatial:
            return self.draw(st.sampled_from([nn.LayerNorm, nn.BatchNorm1d]))(width)
        groups = self.groups(width)
        self.exact &= groups in (1, width)
        return nn.GroupNorm(groups, width) if self.draw(st.booleans()) else nn.BatchNorm2d(width)

    def groups(self, width: int) -> int:
        self.num_grouped += 1
        return self.draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))

    def body(self, inside: int, out: int) -> nn.Module:
        """Two layers around a hidden width that nothing else reads."""
        hidden = self.draw(WIDTHS)
        middle = [self.norm(hidden)] if self.draw(st.booleans()) else []
        return nn.Sequential(self.linear(inside, hidden), *middle, self.draw(ACTIVATIONS)(), self.linear(hidden, out))

    def block(self, width: int) -> tuple[list[nn.Module], int]:
        """The layers of one block, and the width behind it."""
        kinds = ["layer", "norm", "residual", "joined", "gated", "excited", "parted", "activation"]
        kind = self.draw(st.sampled_from(kinds + (["grouped", "pool", "up"] if self.spatial else [])))
        after = self.draw(WIDTHS)
        if kind == "layer":
            return [self.linear(width, after), self.draw(ACTIVATIONS)()], after
        if kind == "norm":
            return [self.norm(width)], width
        if kind == "residual":
            return [Residual(self.body(width, width))], width
        if kind == "joined" and width < 12:
            return [Joined(self.linear(width, after), self.body(width, 2))], width + after + 2
        if kind == "gated":
            way = self.draw(st.sampled_from(["chunk", "split", "slices", "glu"]))
            self.exact &= after > 1
            return [Gated(self.linear(width, 2 * after), way)], after
        if kind == "excited":
            return [Excited(width, after)], width
        if kind == "parted" and width > 1:
            cut = self.draw(st.integers(1, width - 1))
            self.num_cuts += 1
            self.exact &= 1 < cut < width - 1 and self.num_cuts == 1
            bodies = [self.linear(cut, after), self.draw(st.sampled_from([nn.Identity(), nn.Tanh()]))]
            return [Parted((cut, width - cut), *bodies)], width - cut + after
        if kind == "grouped":
            groups = self.groups(width)
            self.exact &= groups == 1 or (groups, after) == (width, 1)
            return [nn.Conv2d(width, groups * after, 3, padding=1, groups=groups)], groups * after
        if kind == "pool" and self.side > 2:
            self.side //= 2
            return [self.draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2)]))], width
        if kind == "up" and self.side < 6:
            self.side *= 2
            return [nn.ConvTranspose2d(width, after, 2, 2)], after
        return [self.draw(ACTIVATIONS)()], width


@st.composite
def nets(draw: st.DrawFn) -> Net:
    builder = Builder(draw, spatial=draw(st.booleans()))
    inside = draw(st.integers(1, 4))
    layers: list[nn.Module] = [builder.linear(inside, draw(WIDTHS))]
    width = layers[0].weight.shape[0]
    for _ in range(draw(st.integers(1, 4))):
        if width <= 16:
            more, width = builder.block(width)
            layers += more
    if builder.spatial and draw(st.booleans()):
        layers += [nn.Flatten(), nn.Linear(width * builder.side**2, 2)]
        builder.exact &= width > 1  # the pixels of one channel
    elif builder.spatial:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
    else:
        layers.append(nn.Linear(width, 2))
    model = nn.Sequential(*layers)
    inner = [f"{name}.body.0.weight" for name, module in model.named_modules() if isinstance(module, Residual)]
    inner += [f"{name}.bodies.1.0.weight" for name, module in model.named_modules() if isinstance(module, Joined)]
    inner += [f"{name}.net.0.weight" for name, module in model.named_modules() if isinstance(module, Excited)]
    return Net(
        model, (inside, 6, 6) if builder.spatial else (inside,), tuple(inner), builder.num_grouped, builder.exact
    )


@given(nets(), st.integers(0, 1000))
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_nets_verify_and_a_permuted_copy_computes_the_same_and_is_matched(net: Net, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = net.model.eval().double()
    x = torch.randn(16, *net.shape, dtype=torch.float64)
    spec = permutation_spec(model, x[:2])
    shapes = {name: shape for name, shape in spec.shapes.items() if name.endswith("weight")}
    first, last = next(iter(shapes)), next(reversed(shapes))
    moving = {name: {axis.dimension for _, axis in pairs} for name, pairs in spec.members.items()}
    assert all(0 in moving.get(name, ()) for name in net.inner if shapes[name][0] > 1)
    if net.exact:
        assert not spec.frozen
        for name, shape in shapes.items():
            hidden = {dimension for dimension, end in ((0, last), (1, first)) if name != end and dimension < len(shape)}
            assert moving.get(name, set()) == {dimension for dimension in hidden if shape[dimension] > 1}, name
    assert spec.verify(model, x, seed=seed, tolerance=1e-11) <= 1e-11
    hidden_order = spec.random(seed)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden_order))
    torch.testing.assert_close(other(x), model(x), rtol=1e-9, atol=1e-11)
    # Every unit that is not constant finds one that fires exactly as it does. (Which one is not determined when units
    # are multiples of each other, as those of a layer behind a single input are.)
    for group in match_activations(spec, model, other, [x]).groups:
        assert group.after >= group.before - 1e-9
        if not net.num_grouped:
            assert group.after == pytest.approx(1.0, abs=1e-6) or group.constant == group.size
