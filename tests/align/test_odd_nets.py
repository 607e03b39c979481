"""Nets that are odd and plausible: what is not understood freezes, what is proven is proven."""

import pytest
import torch
from torch import Tensor, nn

from dimat.align import PermutationSpec, permutation_spec
from dimat.align.units import Axis, Group
from dimat.errors import AlignmentError


class Mixer(nn.Module):
    """Tokens and channels of one length: nothing but the dimension's place tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 1)
        self.b = nn.Linear(8, 16)
        self.c = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.a(x).mT))).mean(1)


def test_a_transpose_of_equal_sides_is_not_overlooked() -> None:
    model, x = Mixer(), torch.randn(2, 3, 8)
    spec = permutation_spec(model, x)
    assert spec.verify(model, x) < 1e-5
    axes = {(axis.tensor, axis.dimension) for group in spec.groups for axis in group.axes}
    assert {("a.weight", 0), ("b.weight", 1)} <= axes, "the channels of `a` are read by `b`"


class Picks(nn.Module):
    """A buffer says which units go on."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(3, 2)
        self.register_buffer("keep", torch.tensor([4, 0, 2]))
        self.keep: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))[:, self.keep])


class Scaled(nn.Module):
    """A buffer of integers takes part in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 2)
        self.register_buffer("order", torch.arange(6))
        self.order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * (self.order + 1))


@pytest.mark.parametrize("net", [Picks, Scaled])
def test_what_an_integer_buffer_orders_stays_in_order(net: type[nn.Module]) -> None:
    """Integers do not average: neighbours whose constants are permuted differently could not be merged."""
    model, x = net(), torch.randn(2, 4)
    spec = permutation_spec(model, x)
    spec.verify(model, x)
    members = {axis.tensor for group in spec.groups for axis in group.axes}
    assert not members & {"keep", "order"}
    assert not members & {"a.weight"}
    assert spec.frozen


def wrong_spec(size: int) -> tuple[nn.Module, PermutationSpec]:
    """The first layer's units move, and the second layer is not told."""
    model = nn.Sequential(nn.Linear(4, size), nn.ReLU(), nn.Linear(size, 2))
    right = permutation_spec(model, torch.zeros(2, 4))
    (group,) = right.groups
    half = Group(group.name, group.size, (Axis("0.weight", 0), Axis("0.bias", 0)), group.taps)
    return model, PermutationSpec((half,), right.tensors, right.frozen)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_group_is_refused_however_small_and_whatever_is_drawn(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, spec = wrong_spec(size)
    with pytest.raises(AlignmentError, match=r"0\.weight"):
        spec.verify(model, torch.randn(2, 4), seed=seed)


def test_state_that_is_no_tensor_is_named() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: object) -> None:
            del state

    with pytest.raises(AlignmentError, match="_extra_state"):
        permutation_spec(nn.Sequential(Extra(3, 4), nn.Linear(4, 2)), torch.zeros(2, 3))
