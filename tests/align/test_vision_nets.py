"""Vision nets: what may move is found, is proven, and brings a permuted copy back."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from zoo_vision import FIRST, NETS, Padded, Squeeze, conv, example, make

from dimat.align import PermutationSpec, match_activations, match_weights, permutation_spec


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def spec_of(name: str) -> PermutationSpec:
    return permutation_spec(make(name), example(name))


def permuted_copy(spec: PermutationSpec, model: nn.Module, seed: int = 5) -> tuple[nn.Module, dict[str, Tensor]]:
    hidden = spec.random(seed)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    return other, hidden


def wrong_units(spec: PermutationSpec, hidden: dict[str, Tensor], found: dict[str, Tensor]) -> int:
    """How many units are not where they came from."""
    return sum(int((perm != torch.arange(len(perm))).sum()) for perm in spec.compose(hidden, found).values())


@pytest.mark.parametrize("name", NETS)
def test_all_that_may_move_is_found_and_leaves_the_outputs_unchanged(name: str) -> None:
    model, x, net, spec = make(name), example(name), NETS[name], spec_of(name)
    assert spec.coverage() == pytest.approx(net.coverage, abs=1e-4)
    assert len(spec.groups) == net.groups
    assert not spec.frozen
    assert all(group.taps for group in spec.groups)
    assert spec.verify(model, x, tolerance=1e-5, seed=0) <= 1e-5
    assert spec.verify(model.double(), x.double(), tolerance=1e-12, seed=1) <= 1e-12


def test_the_nets_that_everybody_merges_move_nearly_all_of_their_parameters() -> None:
    assert min(NETS[name].coverage for name in FIRST) >= 0.95


@pytest.mark.parametrize("name", NETS)
def test_a_permuted_copy_computes_the_same_by_nothing_but_its_weights(name: str) -> None:
    """The same as `verify`, with nothing of it."""
    model, x = make(name).double(), example(name, 3, seed=4).double()
    other, _ = permuted_copy(spec_of(name), model)
    with torch.no_grad():
        assert (other(x) - model(x)).norm() <= 1e-12 * model(x).norm()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", NETS)
def test_a_permuted_copy_is_recovered_by_activations_and_merging_returns_the_net(name: str) -> None:
    model, spec = make(name), spec_of(name)
    other, hidden = permuted_copy(spec, model)
    found = match_activations(spec, model, other, example(name, 48, seed=2).split(20))
    assert found.constant == 0
    assert wrong_units(spec, hidden, found.perms) == 0
    aligned = spec.apply(other.state_dict(), found.perms)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert ((tensor + aligned[key]) / 2 - tensor).abs().max() <= 1e-6


@pytest.mark.parametrize("name", NETS)
def test_a_permuted_copy_is_recovered_by_weights(name: str) -> None:
    model, spec = make(name), spec_of(name)
    other, hidden = permuted_copy(spec, model)
    found = match_weights(spec, model.state_dict(), other.state_dict(), seed=1)
    assert wrong_units(spec, hidden, found.perms) <= 0.01 * sum(group.size for group in spec.groups)


def test_units_that_a_net_left_dead_are_counted_apart() -> None:
    model = make("lenet")
    with torch.no_grad():
        model[3].weight[:5], model[3].bias[:5] = 0, 0.1
    spec = permutation_spec(model, example("lenet"))
    other, hidden = permuted_copy(spec, model)
    found = match_activations(spec, model, other, [example("lenet", 40, seed=2)])
    constant = {group.name: group.constant for group in found.groups}
    assert constant.pop("3.weight:0") >= 5
    assert not any(constant.values())
    assert 0 < wrong_units(spec, hidden, found.perms) <= found.constant
    with torch.no_grad():  # nothing tells them apart, so whichever is taken for whichever, the net is the same
        model.double(), other.double()
        x = example("lenet", 3).double()
        other.load_state_dict(spec.apply(other.state_dict(), found.perms))
        assert (other(x) - model(x)).norm() <= 1e-12 * model(x).norm()


# ---- single operators, between two convolutions


class Between(nn.Module):
    """Two convolutions and a head around what is asked about; `width` channels come out of it."""

    def __init__(self, something: nn.Module, inside: int, width: int) -> None:
        super().__init__()
        self.first, self.something, self.second = nn.Conv2d(3, inside, 3, padding=1), something, nn.Conv2d(width, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.something(torch.relu(self.first(x)))))))


class Call(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def folded(x: Tensor) -> Tensor:
    return nn.functional.fold(nn.functional.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)


def unpooled(x: Tensor) -> Tensor:
    small, places = nn.functional.max_pool2d(x, 2, return_indices=True)
    return nn.functional.max_unpool2d(small * 2, places, 2)


def grid(x: Tensor) -> Tensor:
    places = torch.linspace(-1, 1, 5).expand(len(x), 5, 5)
    return nn.functional.grid_sample(x, torch.stack((places, places.mT), -1).to(x.dtype), align_corners=False)


def response(x: Tensor) -> Tensor:
    """Global response normalisation (ConvNeXt V2)."""
    size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
    return x * (size / (size.mean(dim=1, keepdim=True) + 1e-6))


def attended(x: Tensor) -> Tensor:
    """Spatial attention (CBAM): the largest and the mean channel weigh every pixel."""
    return x * torch.sigmoid(x.max(dim=1, keepdim=True)[0] + x.mean(1, keepdim=True))


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))


def spectral_normed() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))


# name -> (what stands between, channels before, channels behind, (size, structure) of the groups)
Row = tuple[nn.Module, int, int, list[tuple[int, str]]]
PLAIN = [(6, "plain"), (8, "plain")]
BETWEEN: dict[str, Row] = {
    "fold and unfold": (Call(folded), 8, 8, PLAIN),
    "pool and unpool": (Call(unpooled), 8, 8, PLAIN),
    "grid": (Call(grid), 8, 8, PLAIN),
    "global response": (Call(response), 8, 8, PLAIN),
    "spatial attention": (Call(attended), 8, 8, PLAIN),  # max also tells which channel was the largest: nobody asks
    "largest of channels": (Call(lambda x: x - x.amax(1, keepdim=True)), 8, 8, PLAIN),
    "pixel shuffle": (nn.PixelShuffle(2), 8, 2, [(2, "plain"), (6, "plain")]),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 8, 32, PLAIN),
    "channel shuffle": (nn.ChannelShuffle(2), 8, 8, [(6, "plain"), (8, "heads")]),
    "squeeze and excitation by convolutions": (Squeeze(8, 4, linear=False), 8, 8, [(4, "plain"), *PLAIN]),
    "padded channels": (Padded(4), 8, 12, [(2, "plain"), (2, "plain"), *PLAIN]),  # zeros stand for each other, too
    "halves": (Call(lambda x: torch.cat([x[:, 3:], x[:, :3].exp()], 1)), 8, 8, [(n, "plain") for n in (3, 5, 6)]),
    "gated": (nn.GLU(1), 8, 4, [(4, "plain"), (6, "plain")]),
    "grouped convolution": (conv(8, 12, groups=4), 8, 12, [(6, "plain"), (20, "heads")]),
    "depthwise with a multiplier": (nn.Conv2d(8, 16, 3, groups=8), 8, 16, [(6, "plain"), (16, "heads")]),
    "transposed": (nn.ConvTranspose2d(8, 10, 2, 2), 8, 10, [(6, "plain"), (8, "plain"), (10, "plain")]),
    "transposed, grouped": (nn.ConvTranspose2d(8, 12, 2, 2, groups=4), 8, 12, [(6, "plain"), (20, "heads")]),
    "transposed, depthwise": (nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8, 8, PLAIN),
    "group norm": (nn.GroupNorm(4, 8), 8, 8, [(6, "plain"), (8, "heads")]),
    "instance norm": (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8, 8, PLAIN),
    "weight norm": (weight_normed(), 8, 8, [(6, "plain"), (8, "plain"), (8, "plain")]),
    "spectral norm": (spectral_normed(), 8, 8, [(6, "plain"), (8, "plain"), (8, "plain")]),
    "lazy": (nn.LazyConv2d(7, 1), 8, 7, [(6, "plain"), (7, "plain"), (8, "plain")]),
    "local response norm": (nn.LocalResponseNorm(3), 8, 8, [(6, "plain")]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_single_operators(name: str) -> None:
    torch.manual_seed(0)
    something, inside, width, expected = BETWEEN[name]
    model, x = Between(something, inside, width).eval(), torch.randn(2, 3, 6, 6)
    model(x)
    spec = permutation_spec(model, x)
    assert sorted((group.size, group.structure) for group in spec.groups) == sorted(expected)
    assert spec.verify(model, x, tolerance=1e-5) <= 1e-5
    assert spec.verify(model.double(), x.double(), tolerance=1e-12) <= 1e-12
