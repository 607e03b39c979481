"""Axes that are products, segments and families: what may move where, told by nets that differ in one operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimat.align import permutation_spec

HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE


class Inside(nn.Module):
    """Linear to q, k, v, something in between that answers with (batch, WIDTH), linear to the output."""

    def __init__(self, something: Callable[[nn.Module, Tensor], Tensor], width: int = 3 * WIDTH) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(WIDTH, 2)
        self.shared, self.norm, self.gain = nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE), nn.Parameter(torch.rand(HEADS))
        self.mix = nn.Linear(HEADS, HEADS)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.something(self, self.first(x)))


def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of shape (batch, HEADS, SIZE), picked out of one view."""
    q, k, v = x.view(-1, 3, HEADS, SIZE).permute(1, 0, 2, 3)
    return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Samples attend to each other, head by head."""
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(0, 1).flatten(1)


def plain(net: Inside, x: Tensor) -> Tensor:
    return attended(*split(x))


def chunked(net: Inside, x: Tensor) -> Tensor:
    return attended(*(t.unflatten(-1, (HEADS, SIZE)) for t in x.chunk(3, -1)))


def shared_projection(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, net.shared(v))


def shared_norm(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(net.norm(q), net.norm(k), v)


def softmax_over_heads(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, v.softmax(1))


def normalised_over_heads(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, F.normalize(v, dim=1))


def norm_spelled_over_heads(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, v / v.pow(2).mean(1, keepdim=True))


def layer_norm_over_heads(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, F.layer_norm(v.mT, (HEADS,)).mT)


def heads_mixed(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, net.mix(v.mT).mT)


def heads_attend_to_each_other(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return ((q @ k.mT).softmax(-1) @ v).flatten(1)


def gain_for_each_head(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q * net.gain[:, None], k, v)


def q_added_to_v(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, v + q)


def summed(net: Inside, x: Tensor) -> Tensor:
    return x.view(-1, 3, HEADS, SIZE).sum(1).relu().flatten(1)


def normed_before_split(net: Inside, x: Tensor) -> Tensor:
    return attended(*net.norm(x.view(-1, 3, HEADS, SIZE)).unbind(1))


def rotated(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    angle = torch.arange(len(x))[:, None, None] * torch.ones(SIZE // 2).cumsum(0).repeat(2)

    def turn(t: Tensor) -> Tensor:
        half = torch.cat([-t[..., SIZE // 2 :], t[..., : SIZE // 2]], dim=-1)
        return t * angle.cos() + half * angle.sin()

    return attended(turn(q), turn(k), v)


def first_head_alone(net: Inside, x: Tensor) -> Tensor:
    q, k, v = split(x)
    return attended(q, k, torch.cat([v[:, :1] * 2, v[:, 1:]], dim=1))


FUSED = [("heads", WIDTH * 2, (SIZE, SIZE))]
SHARED, ORDER = ("plain", SIZE, ()), ("plain", HEADS, ())
CASES: list[tuple[Callable[..., Tensor], list[tuple[str, int, tuple[int, ...]]]]] = [
    (plain, FUSED),
    (chunked, FUSED),
    (shared_projection, [("heads", WIDTH, (SIZE,)), SHARED]),  # v has one order in all heads
    (shared_norm, [("heads", WIDTH, (SIZE,)), SHARED]),  # q and k have
    (softmax_over_heads, [("heads", WIDTH, (SIZE,)), SHARED]),
    (normalised_over_heads, [("heads", WIDTH, (SIZE,)), SHARED]),
    (norm_spelled_over_heads, [("heads", WIDTH, (SIZE,)), SHARED]),
    (layer_norm_over_heads, [("heads", WIDTH, (SIZE,)), SHARED]),
    (heads_mixed, [("heads", WIDTH, (SIZE,)), ORDER, SHARED]),  # v's heads are numbered on their own
    (heads_attend_to_each_other, [ORDER, SHARED, ORDER, SHARED]),  # q meets every k: one order within all heads
    (gain_for_each_head, FUSED),
    (q_added_to_v, [("heads", WIDTH, (SIZE,))]),
    (summed, [ORDER, ("heads", WIDTH, (SIZE,))]),  # the three that are summed may change places as well
    (normed_before_split, [ORDER, SHARED]),
    (rotated, [("heads", WIDTH, (SIZE,))]),
    (first_head_alone, [SHARED, ("plain", HEADS - 1, ()), SHARED]),  # the others still change places
]


@pytest.mark.parametrize(("something", "expected"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_may_move_follows_from_the_operators(
    something: Callable[..., Tensor], expected: list[tuple[str, int, tuple[int, ...]]]
) -> None:
    torch.manual_seed(0)
    model, x = Inside(something).double(), torch.randn(4, 5, dtype=torch.float64)
    spec = permutation_spec(model, x)
    assert spec.verify(model, x, tolerance=1e-12) <= 1e-12
    moving = [group for group in spec.groups if "first.weight" in {axis.tensor for axis in group.axes}]
    assert [(group.structure, group.size, group.parts) for group in moving] == expected
    assert all(group.taps for group in spec.groups)


class Joined(nn.Module):
    """Two layers whose units are joined in one order and in another, and read by one and the same layer."""

    def __init__(self, sizes: tuple[int, int], orders: list[tuple[int, int]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(5, size) for size in sizes)
        self.last = nn.Linear(sum(sizes), 2)
        self.orders = orders

    def forward(self, x: Tensor) -> Tensor:
        parts = [part(x).relu() for part in self.parts]
        return torch.stack([self.last(torch.cat([parts[i] for i in order], dim=1)) for order in self.orders]).sum(0)


@pytest.mark.parametrize(
    ("sizes", "orders", "expected"),
    [
        ((4, 6), [(0, 1)], [4, 6]),
        ((4, 6), [(1, 0)], [4, 6]),
        ((5, 5), [(0, 1), (1, 0)], [5]),  # both take each place once: they are tied
        ((4, 6), [(0, 1), (1, 0)], [2]),  # what stands at one place at any time moves alike: two by two
        ((3, 7), [(0, 1), (1, 0)], []),  # and one by one
    ],
)
def test_segments_with_other_bounds_are_cut_until_they_fit(
    sizes: tuple[int, int], orders: list[tuple[int, int]], expected: list[int]
) -> None:
    torch.manual_seed(0)
    model, x = Joined(sizes, orders).double(), torch.randn(4, 5, dtype=torch.float64)
    spec = permutation_spec(model, x)
    assert spec.verify(model, x, tolerance=1e-12) <= 1e-12
    assert [group.size for group in spec.groups] == expected
