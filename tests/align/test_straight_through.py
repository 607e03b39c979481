"""Permutations that are chosen by the loss at the midpoint."""

import copy
from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from dimat.align import (
    PermutationSpec,
    match_straight_through,
    permutation_spec,
    straight_through,
    weight_matching,
)
from dimat.errors import AlignmentError, SchemaError

Batch = tuple[Tensor, Tensor]


def cross_entropy(net: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(net(batch[0]), batch[1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(),
        nn.Flatten(), nn.Linear(72, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    return list(zip(x[:1024].split(256), y[:1024].split(256), strict=True))


def trained(make: type[nn.Module], seed: int, batches: list[Batch]) -> nn.Module:
    torch.manual_seed(seed)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(40):
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(net, batch).backward()
            optimizer.step()
    optimizer.zero_grad()
    return net.eval()


@pytest.fixture(scope="module")
def pair(batches: list[Batch]) -> tuple[PermutationSpec, nn.Module, nn.Module]:
    one, two = (trained(mlp, seed, batches) for seed in (2, 3))
    return permutation_spec(one, batches[0][0][:2]), one, two


def cost_at_midpoint(one: nn.Module, other: dict[str, Tensor], batches: list[Batch]) -> float:
    """The oracle: load the average into a net and look."""
    net, a = copy.deepcopy(one), one.state_dict()
    net.load_state_dict({name: (a[name] + other[name]) / 2 for name in a})
    with torch.no_grad():
        return sum(float(cross_entropy(net, batch)) * len(batch[1]) for batch in batches) / 1024


def test_it_finds_a_lower_midpoint_than_weight_matching(
    pair: tuple[PermutationSpec, nn.Module, nn.Module], batches: list[Batch]
) -> None:
    spec, one, two = pair
    found = match_straight_through(spec, one, two, batches, cross_entropy, lr=0.1)
    before = cost_at_midpoint(one, two.state_dict(), batches)
    by_weights = spec.apply(two.state_dict(), weight_matching(spec, one.state_dict(), two.state_dict()))
    after = cost_at_midpoint(one, spec.apply(two.state_dict(), found.perms), batches)
    assert after < 0.85 * cost_at_midpoint(one, by_weights, batches) < 0.5 * before
    assert found.objective_before == pytest.approx(-before, rel=1e-4)
    assert found.objective_after == pytest.approx(-after, rel=1e-4)
    a, b = one.state_dict(), spec.apply(two.state_dict(), found.perms)
    inner = sum(float((a[name] * b[name]).sum()) for name in ("0.weight", "0.bias", "2.weight"))
    assert found.groups[0].after == pytest.approx(inner, rel=1e-4)
    assert found.moved == spec.moved(found.perms) > 0.5


def test_without_an_epoch_it_is_weight_matching(
    pair: tuple[PermutationSpec, nn.Module, nn.Module], batches: list[Batch]
) -> None:
    spec, one, two = pair
    found = straight_through(spec, one, two, batches, cross_entropy, epochs=0)
    by_weights = weight_matching(spec, one.state_dict(), two.state_dict())
    assert all(torch.equal(found[name], perm) for name, perm in by_weights.items())


def test_a_learning_rate_of_nothing_stays_with_weight_matching(
    pair: tuple[PermutationSpec, nn.Module, nn.Module], batches: list[Batch]
) -> None:
    spec, one, two = pair
    found = straight_through(spec, one, two, batches, cross_entropy, epochs=1, lr=1e-12)
    by_weights = weight_matching(spec, one.state_dict(), two.state_dict())
    assert all(torch.equal(found[name], perm) for name, perm in by_weights.items())


@pytest.mark.parametrize("make", [mlp, normed])
def test_a_permuted_copy_is_recovered(make: type[nn.Module], batches: list[Batch]) -> None:
    one = trained(make, 0, batches)
    spec, two = permutation_spec(one, batches[0][0][:2]), copy.deepcopy(one)
    hidden = spec.random(seed=1)
    two.load_state_dict(spec.apply(one.state_dict(), hidden))
    found = straight_through(spec, one, two, batches, cross_entropy, epochs=1)
    assert spec.moved(spec.compose(hidden, found)) == 0.0


def test_nothing_given_is_touched_and_equal_seeds_find_the_same(batches: list[Batch]) -> None:
    one, two = (trained(normed, seed, batches) for seed in (0, 1))
    spec = permutation_spec(one, batches[0][0][:2])
    one.train()
    one[4].eval()
    modes = [module.training for module in one.modules()]
    ends = [copy.deepcopy(net.state_dict()) for net in (one, two)]

    def generator() -> Iterator[Batch]:
        yield from batches

    random = torch.get_rng_state()
    found = straight_through(spec, one, two, batches, cross_entropy, epochs=2, lr=0.1)
    again = straight_through(spec, one, two, generator(), cross_entropy, epochs=2, lr=0.1)
    assert all(torch.equal(again[name], perm) for name, perm in found.items())
    assert torch.equal(torch.get_rng_state(), random), "dropout is off"
    assert [module.training for module in one.modules()] == modes
    for net, end in zip((one, two), ends, strict=True):
        assert all(torch.equal(end[name], tensor) for name, tensor in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())


def test_tied_weights_wander_once(batches: list[Batch]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 16), nn.Linear(16, 64)
            self.back, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
            self.back.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.back(torch.sigmoid(self.two(torch.relu(self.one(x)))))))

    one = trained(Tied, 0, batches)
    spec, two = permutation_spec(one, batches[0][0][:2]), copy.deepcopy(one)
    hidden = spec.random(seed=1)
    two.load_state_dict(spec.apply(one.state_dict(), hidden))
    found = straight_through(spec, one, two, batches, cross_entropy, epochs=1)
    assert spec.moved(spec.compose(hidden, found)) == 0.0


def test_what_cannot_be_judged_is_refused(
    pair: tuple[PermutationSpec, nn.Module, nn.Module], batches: list[Batch]
) -> None:
    spec, one, two = pair
    with pytest.raises(AlignmentError, match="no batches"):
        straight_through(spec, one, two, [], cross_entropy)
    with pytest.raises(AlignmentError, match="midpoint is nan"):
        straight_through(spec, one, two, batches, lambda net, batch: cross_entropy(net, batch) * torch.nan)
    with pytest.raises(AlignmentError, match="not finite after step 1"):
        straight_through(spec, one, two, batches, lambda net, batch: cross_entropy(net, batch) * 1e38, lr=1e30)
    with pytest.raises(SchemaError, match=r"0\.weight"):
        straight_through(spec, one, nn.Sequential(nn.Linear(64, 8)), batches, cross_entropy)
