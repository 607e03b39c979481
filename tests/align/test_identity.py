"""When no group of two models would gain by another order: the certificate against scipy, and against every order."""

import math
from collections.abc import Callable, Mapping
from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment
from structured_zoo import FIXED_BLOCKS, NETS, Net, P, W
from torch import Tensor, nn

from dimat.align import identity_is_best, permutation_spec, weight_matching
from dimat.align.grams import Grams
from dimat.align.identity import strongest_rival
from dimat.align.weights import descend
from dimat.errors import SchemaError
from dimat.tasks.models.cnn import cnn
from dimat.tasks.models.mlp import mlp
from dimat.tasks.models.resnet20 import resnet20

State = dict[str, Tensor]
MLP = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
SPEC = permutation_spec(MLP, torch.zeros(2, 3))
SEEDS = st.integers(0, 2**16)


def drawn(like: State, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in like.items()
    }


def near(state: State, noise: float | Mapping[str, float], seed: int) -> State:
    off, size = drawn(state, seed), noise if isinstance(noise, Mapping) else dict.fromkeys(state, noise)
    return {
        name: tensor + size[name] * off[name] if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def worth(one: State, other: State) -> float:
    return sum(float((tensor.double() * other[name].double()).sum()) for name, tensor in one.items())


def swapped(size: int, i: int, j: int) -> Tensor:
    perm = torch.arange(size)
    perm[i], perm[j] = j, i
    return perm


@settings(max_examples=300, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 7), lead=st.sampled_from([0.0, 0.5, 1.0, 2.0]), scales=st.booleans())
def test_what_is_settled_is_what_the_assignment_finds(seed: int, size: int, lead: float, scales: bool) -> None:
    """The oracle is scipy: no pairing is worth more, and below 1 none is worth as much."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((size, size)) + lead * np.eye(size)
    if scales:  # large units and small ones
        matrix *= np.outer(*np.exp(2 * rng.standard_normal((2, size))))
    rival = strongest_rival(torch.from_numpy(matrix))
    rows, best = linear_sum_assignment(matrix, maximize=True)
    if rival <= 1:
        assert matrix[rows, best].sum() <= np.trace(matrix) + 1e-12 * np.abs(matrix).sum()
    if rival < 1 - 1e-9:
        assert best.tolist() == list(range(size))


def test_the_examples_above_are_of_both_kinds() -> None:
    """So that the property is not true of nothing."""
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        found.append(strongest_rival(torch.from_numpy(rng.standard_normal((3, 3)) + 2 * np.eye(3))) <= 1)
    assert 30 < sum(found) < 90


def test_a_rival_is_measured_by_what_both_units_are_to_themselves() -> None:
    """The sums of rows and columns are zero here; what is the same for every pairing changes nothing."""
    alike = torch.tensor(
        [[4.0, 3.0, -3.0, -4.0], [3.0, 9.0, -9.0, -3.0], [-3.0, -9.0, 9.0, 3.0], [-4.0, -3.0, 3.0, 4.0]]
    )
    assert strongest_rival(alike) == pytest.approx(3 / math.sqrt(4 * 9))
    shifted = alike + torch.tensor([5.0, -7.0, 0.0, 1.0])[:, None] + torch.tensor([0.0, 2.0, 30.0, -4.0])
    assert strongest_rival(shifted) == pytest.approx(0.5)
    assert strongest_rival(-alike) == math.inf
    assert strongest_rival(torch.ones(1, 1)) == 0.0


@settings(max_examples=60, deadline=None)
@given(one=SEEDS, two=SEEDS, noise=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_no_order_of_any_group_is_worth_more_than_the_identity_that_is_settled(
    one: int, two: int, noise: float
) -> None:
    """The oracle: the inner product of all weights, for every one of the 24 orders of each group."""
    a = drawn(MLP.state_dict(), one)
    b = near(a, noise, two)
    if not identity_is_best(SPEC, a, b):
        return
    here = worth(a, b)
    for group in SPEC.groups:
        for order in permutations(range(4)):
            moved = SPEC.apply(b, {**SPEC.identity(), group.name: torch.tensor(order)})
            assert worth(a, moved) <= here + 1e-5 * abs(here)


@pytest.mark.parametrize(
    ("build", "shape"), [(mlp, (64,)), (cnn, (1, 8, 8)), (resnet20, (3, 32, 32))], ids=["mlp", "cnn", "resnet20"]
)
def test_near_models_are_settled_and_others_are_not(build: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, apart = (build(shape, 10) for _ in range(2))
    spec, state = permutation_spec(model, torch.randn(2, *shape)), model.state_dict()
    scale = {key: float(tensor.float().square().mean().sqrt()) for key, tensor in state.items()}
    tuned = near(state, {key: 0.2 * size for key, size in scale.items()}, seed=1)
    assert identity_is_best(spec, state, state)
    assert identity_is_best(spec, state, tuned)
    assert identity_is_best(spec, tuned, state)
    assert not identity_is_best(spec, state, apart.state_dict())
    assert not identity_is_best(spec, state, spec.apply(tuned, spec.random(seed=2)))
    for group in spec.groups:  # two units of one group are enough
        perms = {**spec.identity(), group.name: swapped(group.size, 0, group.size - 1)}
        assert not identity_is_best(spec, state, spec.apply(tuned, perms)), group.name


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, noise=st.sampled_from([0.3, 0.6]))
def test_a_descent_from_a_settled_identity_ends_there(seed: int, noise: float) -> None:
    a = drawn(MLP.state_dict(), seed)
    b = near(a, noise, seed + 1)
    if identity_is_best(SPEC, a, b, margin=1e-3):
        perms, gain = descend(Grams(SPEC, a, b), SPEC.identity())
        assert (SPEC.moved(perms), gain) == (0.0, 0.0)


def test_a_margin_asks_for_more() -> None:
    a = drawn(MLP.state_dict(), 0)
    told = [identity_is_best(SPEC, a, a, margin=margin) for margin in (0.0, 0.01, 0.5, 0.99)]
    assert told == sorted(told, reverse=True)
    assert (told[0], told[-1]) == (True, False)


def test_both_ends_of_an_edge_find_the_same() -> None:
    told = set()
    for seed in range(40):
        a = drawn(MLP.state_dict(), seed)
        b = near(a, 0.6, seed + 1)
        there, back = identity_is_best(SPEC, a, b), identity_is_best(SPEC, b, a)
        assert there == back
        told.add(there)
    assert told == {True, False}


def test_units_of_blocks_that_stay_do_not_compete() -> None:
    """Two units of different blocks have changed places: the best order of all, and one that is not allowed."""
    rows = torch.eye(2 * W, 2 + 1 + 2 * P)
    rows[W] = 0.5 * rows[0] + math.sqrt(0.75) * rows[W]

    def state(units: Tensor) -> State:
        last = units[:, 3:].reshape(2 * W, 2, P).transpose(0, 1).reshape(2, 2 * W * P)
        return {"w": units[:, :2, None].contiguous(), "bias": units[:, 2].contiguous(), "last": last}

    spec, one = FIXED_BLOCKS.spec, state(rows)
    crossing, within = (state(rows[swapped(2 * W, *places)]) for places in ((0, W), (0, 1)))
    assert identity_is_best(spec, one, crossing)
    assert not identity_is_best(spec, one, within)


@pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
def test_structured_groups(net: Net) -> None:
    """What is settled no search improves; a group that meets itself in a tensor never is."""
    one = net.state(seed=0)
    crossed = any(evidence.crossed for evidence in Grams(net.spec, one, one).evidence.values())
    assert identity_is_best(net.spec, one, one) != crossed
    assert not identity_is_best(net.spec, one, net.spec.apply(one, net.spec.random(seed=1)))
    if not crossed:
        assert net.spec.moved(weight_matching(net.spec, one, one)) == 0


def test_nothing_is_certain_of_recurrent_units() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.RNN(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]

    model = Reader()
    spec = permutation_spec(model, torch.randn(2, 4, 3))
    assert spec.groups
    assert not identity_is_best(spec, model.state_dict(), model.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_certain_of_a_weight_that_is_no_number(bad: float) -> None:
    """A liar's model must not end the round of those who look at it."""
    a = drawn(MLP.state_dict(), 0)
    spoiled = {name: tensor.clone() for name, tensor in a.items()}
    spoiled["0.weight"][0, 0] = bad
    assert not identity_is_best(SPEC, a, spoiled)


def test_another_architecture_is_refused() -> None:
    a = drawn(MLP.state_dict(), 0)
    with pytest.raises(SchemaError, match=r"0\.weight"):
        identity_is_best(SPEC, a, {**a, "0.weight": torch.zeros(9, 3)})
