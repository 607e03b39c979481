"""Networks with structured groups as plain functions of a state dict, each with its spec written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimat.align import Axis, Group, PermutationSpec, Tap, TensorInfo
from dimat.align.taps import read_taps
from dimat.align.units import Place
from dimat.errors import AlignmentError

Function = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Net:
    """y = function(state, x); `groups` may be permuted."""

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    input_shape: tuple[int, ...]
    function: Function

    @property
    def spec(self) -> PermutationSpec:
        return PermutationSpec(self.groups, tuple(TensorInfo(*item) for item in self.shapes.items()))

    def state(self, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in self.shapes.items()}

    def x(self, seed: int = 0, num: int | None = None) -> Tensor:
        shape = self.input_shape if num is None else (num, *self.input_shape[1:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)


class Module(nn.Module):
    """A `Net` as a module."""

    def __init__(self, net: Net, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = net.function
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(dict(self.named_parameters()), x)


def tap_at(module: nn.Module, x: Tensor, group: Group, operator: str, argument: int, place: Place, nth: int = 0) -> Tap:
    """The tap at the nth call of an operator, found by trying call numbers."""
    for call in range(1, 200):
        tap = Tap(call, operator, argument, place)
        spec = PermutationSpec((Group(group.name, group.size, (), (tap,), group.structure, group.parts),))
        try:
            with torch.no_grad():
                read_taps(spec, module, x, lambda *_: None)
        except AlignmentError:
            continue
        if not nth:
            return tap
        nth -= 1
    raise AssertionError(f"{operator} is never called so")


def heads(x: Tensor, num: int) -> Tensor:
    """(batch, time, num · d) -> (batch, num, time, d)."""
    return x.unflatten(-1, (num, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


# ---- heads with parts (d_qk, d_v); a plain group behind them in the same tensor

H, D, V, E = 3, 2, 4, 5


def attention(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    q = heads(F.linear(x, state["q"], state["q_bias"]), H)
    k, v = heads(F.linear(x, state["k"]), H), heads(F.linear(x, state["v"]), H)
    mixed = attend(q, k, v) * state["gate"][:, None, None]
    return F.linear(torch.relu(F.linear(joined(mixed), state["o"])), state["last"])


ATTENTION = Net(
    (
        Group(
            "q:0", H * (D + V),
            (  # parts before blocks: the order in which axes are written must not matter
                Axis("q", 0, 1, 0, (), 0, (0, D)), Axis("q", 0, D),
                Axis("q_bias", 0, 1, 0, (), 0, (0, D)), Axis("q_bias", 0, D),
                Axis("k", 0, D), Axis("k", 0, 1, 0, (), 0, (0, D)),
                Axis("v", 0, V), Axis("v", 0, 1, 0, (), 1, (0, V)),
                Axis("gate", 0),
                Axis("o", 1, V), Axis("o", 1, 1, 0, (), 1, (1, V)),
            ),
            structure="heads", parts=(D, V),
        ),
        Group("o:0", 7, (Axis("o", 0), Axis("last", 1))),
    ),
    {
        "q": (H * D, E), "q_bias": (H * D,), "k": (H * D, E), "v": (H * V, E),
        "gate": (H,), "o": (7, H * V), "last": (2, 7),
    },
    (2, 3, E),
    attention,
)  # fmt: skip


# ---- one packed weight, in segments of q, k and v


def packed(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    # The tanh is there for the bias of k, which softmax would not notice.
    q, k, v = (heads(part, H) for part in torch.tanh(F.linear(x, state["in"], state["bias"])).chunk(3, dim=-1))
    return F.linear(joined(attend(q, k, v)), state["out"])


PACKED = Net(
    (
        Group(
            "in:0", H * 2 * V,
            (
                *(Axis(name, 0, V, third * H * V, ((V, 1),)) for name in ("in", "bias") for third in range(3)),
                *(
                    Axis(name, 0, 1, third * H * V, (), part, (0, V))
                    for name in ("in", "bias")
                    for third, part in enumerate((0, 0, 1))
                ),
                Axis("out", 1, V), Axis("out", 1, 1, 0, (), 1, (1, V)),
            ),
            structure="heads", parts=(V, V),
        ),
    ),
    {"in": (3 * H * V, E), "bias": (3 * H * V,), "out": (2, H * V)},
    (2, 3, E),
    packed,
)  # fmt: skip


# ---- one packed weight, each head's q, k and v side by side


def interleaved(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    q, k, v = F.linear(x, state["in"]).unflatten(-1, (H, 3, V)).movedim(3, 0)
    return F.linear(joined(attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))), state["out"])


INTERLEAVED = Net(
    (
        Group(
            "in:0", H * 2 * V,
            (
                Axis("in", 0, 3 * V),
                *(Axis("in", 0, 1, third * V, (), part, (0, 3 * V)) for third, part in enumerate((0, 0, 1))),
                Axis("out", 1, V), Axis("out", 1, 1, 0, (), 1, (1, V)),
            ),
            structure="heads", parts=(V, V),
        ),
    ),
    {"in": (3 * H * V, E), "out": (2, H * V)},
    (2, 3, E),
    interleaved,
)  # fmt: skip


# ---- raw weights in which heads and the units inside have dimensions of their own, in either order


def raw(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    q = torch.einsum("bte,hed->bhtd", x, state["q"])
    k = torch.einsum("bte,edh->bhtd", x, state["k"])
    v = torch.einsum("bte,dhe->bhtd", x, state["v"])
    return torch.einsum("bhtd,hyd->bty", attend(q, k, v), state["o"])


RAW = Net(
    (
        Group(
            "q:0", H * (D + V),
            (
                Axis("q", 0), Axis("q", 2, part=0, outer=(0, 1)),
                Axis("k", 2), Axis("k", 1, part=0, outer=(2, 1)),
                Axis("v", 1), Axis("v", 0, part=1, outer=(1, 1)),
                Axis("o", 0), Axis("o", 2, part=1, outer=(0, 1)),
            ),
            structure="heads", parts=(D, V),
        ),
    ),
    {"q": (H, E, D), "k": (E, D, H), "v": (V, H, E), "o": (H, 2, V)},
    (2, 3, E),
    raw,
)  # fmt: skip


# ---- grouped-query attention with positions that pin the inside of q and k

KV, R, K = 2, 3, 4


def grouped_query(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    angle = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None] * torch.arange(1, K + 1, dtype=x.dtype)
    q = heads(F.linear(x, state["q"]), KV * R) * torch.cos(angle)
    k = heads(F.linear(x, state["k"]), KV) * torch.cos(angle)
    v = heads(F.linear(x, state["v"]), KV)
    several = [t.repeat_interleave(R, dim=1) for t in (k, v)]
    return F.linear(joined(attend(q, *several)), state["o"])


GROUPED_QUERY = Net(
    (
        Group(
            "q:0", KV * (R + D),
            (
                Axis("q", 0, R * K), Axis("q", 0, K, 0, ((K, 1),), 0, (0, R * K)),
                Axis("k", 0, K),
                Axis("v", 0, D), Axis("v", 0, 1, 0, (), 1, (0, D)),
                Axis("o", 1, R * D),
                Axis("o", 1, D, 0, ((D, 1),), 0, (1, R * D)), Axis("o", 1, 1, 0, ((R, D),), 1, (1, R * D)),
            ),
            structure="heads", parts=(R, D),
        ),
    ),
    {"q": (KV * R * K, E), "k": (KV * K, E), "v": (KV * D, E), "o": (2, KV * R * D)},
    (2, 3, E),
    grouped_query,
)  # fmt: skip


# ---- a grouped convolution with a norm over its groups

G, I, O = 3, 2, 4  # noqa: E741 - the letters of the weight's shape


def grouped_convolution(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    inside = torch.tanh(F.conv1d(x, state["before"]))
    out = F.group_norm(F.conv1d(inside, state["grouped"], padding=1, groups=G), G, state["scale"], state["shift"])
    return F.conv1d(torch.relu(out), state["after"]).mean(-1)


GROUPED_CONVOLUTION = Net(
    (
        Group(
            "before:0", G * (I + O),
            (
                Axis("before", 0, I), Axis("before", 0, 1, 0, (), 0, (0, I)),
                Axis("grouped", 0, O), Axis("grouped", 1, 1, 0, (), 0, (0, O)), Axis("grouped", 0, 1, 0, (), 1, (0, O)),
                Axis("scale", 0, O), Axis("scale", 0, 1, 0, (), 1, (0, O)),
                Axis("shift", 0, O), Axis("shift", 0, 1, 0, (), 1, (0, O)),
                Axis("after", 1, O), Axis("after", 1, 1, 0, (), 1, (1, O)),
            ),
            structure="heads", parts=(I, O),
        ),
    ),
    {"before": (G * I, 2, 1), "grouped": (G * O, I, 3), "scale": (G * O,), "shift": (G * O,), "after": (2, G * O, 1)},
    (2, 2, 5),
    grouped_convolution,
)  # fmt: skip


# ---- blocks that stay: each has an activation of its own; pixels behind each unit

W, P = 4, 3


def fixed_blocks(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    one, two = (F.conv1d(x, state["w"]) + state["bias"][:, None]).chunk(2, dim=1)
    return F.linear(torch.cat([torch.relu(one), torch.tanh(two)], dim=1).flatten(1), state["last"])


FIXED_BLOCKS = Net(
    (
        Group(
            "w:0", 2 * W,
            (
                Axis("w", 0, 1, 0, (), 0, (0, W)),
                Axis("bias", 0, 1, 0, (), 0, (0, W)),
                Axis("last", 1, P, 0, ((P, 1),), 0, (1, W * P)),
            ),
            structure="blocks", parts=(W,),
        ),
    ),
    {"w": (2 * W, 2, 1), "bias": (2 * W,), "last": (2, 2 * W * P)},
    (3, 2, P),
    fixed_blocks,
)  # fmt: skip


# ---- plain groups in segments: a gated unit has two rows, and two layers are concatenated


def segments(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    gated = F.glu(F.linear(x, state["gated"]))
    return F.linear(torch.cat([gated, torch.tanh(F.linear(x, state["side"]))], dim=-1), state["last"])


SEGMENTS = Net(
    (
        Group("gated:0", 4, (Axis("gated", 0, 1, 0, ((2, 4),)), Axis("last", 1, 1, 0, ()))),
        Group("side:0", 3, (Axis("side", 0), Axis("last", 1, 1, 4, ()))),
    ),
    {"gated": (8, E), "side": (3, E), "last": (2, 7)},
    (3, E),
    segments,
)


NETS = {
    "attention": ATTENTION,
    "packed": PACKED,
    "interleaved": INTERLEAVED,
    "raw": RAW,
    "grouped query": GROUPED_QUERY,
    "grouped convolution": GROUPED_CONVOLUTION,
    "fixed blocks": FIXED_BLOCKS,
    "segments": SEGMENTS,
}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def num_permutations(group: Group) -> int:
    """How many permutations a group allows."""
    inside = math.prod(math.factorial(part) for part in group.parts) ** group.num_blocks
    return inside * (1 if group.structure == "blocks" else math.factorial(group.num_blocks))
