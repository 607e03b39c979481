"""Correlations on a probe: exact, addable, right for blocks and parts, bounded in memory; when the identity stays."""

import copy
import dataclasses
import gc

import numpy as np
import pytest
import torch
from alignment_zoo import example, make
from hypothesis import given, settings
from hypothesis import strategies as st
from structured_zoo import ATTENTION, FIXED_BLOCKS, D, H, Module, Net, P, V, W, heads, tap_at
from torch import Tensor, nn

from dimat.align import (
    Correlations,
    PermutationSpec,
    correlations,
    match_activations,
    match_correlations,
    permutation_spec,
)
from dimat.align.units import BLOCKS, Place
from dimat.errors import AlignmentError, SchemaError


def together(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The oracle: numpy's correlations of the rows of x with the rows of y."""
    return np.corrcoef(x, y)[: len(x), len(x) :]


def small() -> tuple[PermutationSpec, nn.Module, nn.Module]:
    one, two = make("conv, global pool", 0).double(), make("conv, global pool", 1).double()
    return permutation_spec(one, example("conv, global pool").double()), one, two


@torch.no_grad()
def test_float64_models_are_compared_in_float64() -> None:
    spec, one, two = small()
    x = example("conv, global pool", 30, seed=3).double()
    found = correlations(spec, one, two, x.split(7))
    for group, last in zip(spec.groups, (1, 4), strict=True):  # the batch norms, before LeakyReLU and SiLU
        rows = [net.eval()[: last + 1](x).transpose(0, 1).flatten(1).numpy() for net in (one, two)]
        sums = found.sums[group.name, BLOCKS]
        np.testing.assert_allclose(sums.correlation().numpy(), together(*rows), atol=1e-12)
        assert sums.counts.tolist() == [rows[0].shape[1]]
        assert sums.live().all()


@torch.no_grad()
def test_a_group_read_at_several_taps_is_centred_at_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(torch.relu(h) + torch.tanh(h + 5 * self.second(x) + 7))

        def read(self, x: Tensor) -> np.ndarray:
            h = self.first(x)
            both = [h, h + 5 * self.second(x) + 7]
            return np.concatenate([(tap - tap.mean(0)).T.numpy() for tap in both], axis=1)

    torch.manual_seed(0)
    one, two = Two().double(), Two().double()
    x = torch.randn(40, 4, dtype=torch.float64)
    spec = permutation_spec(one, x)
    assert len(spec.groups) == 1
    assert len(spec.groups[0].taps) == 2
    found = correlations(spec, one, two, x.split([3, 20, 17])).sums[spec.groups[0].name, BLOCKS]
    np.testing.assert_allclose(found.correlation().numpy(), together(one.read(x), two.read(x)), atol=1e-12)
    assert found.counts.tolist() == [40, 40]


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 29), size=st.integers(1, 30), offset=st.sampled_from([0.0, 1e4]))
def test_two_probes_added_are_one_probe(cut: int, size: int, offset: float) -> None:
    spec, one, two = small()
    with torch.no_grad():
        for model in (one, two):
            model[1].bias.add_(offset)
    x = example("conv, global pool", 30, seed=3).double()
    whole = correlations(spec, one, two, [x])
    left, right = (correlations(spec, one, two, half.split(size)) for half in (x[:cut], x[cut:]))
    before = copy.deepcopy(left)
    for added in (left.combine(right), right.combine(left)):
        for key, sums in whole.sums.items():
            for name in ("cross", "squares", "means", "counts"):
                torch.testing.assert_close(getattr(added.sums[key], name), getattr(sums, name), rtol=1e-9, atol=1e-7)
        perms, expected = (match_correlations(spec, some).perms for some in (added, whole))
        assert all(torch.equal(perms[name], expected[name]) for name in expected)
    for key, sums in before.sums.items():  # neither was changed
        assert torch.equal(sums.cross, left.sums[key].cross)
        assert torch.equal(sums.means, left.sums[key].means)


def test_an_empty_batch_says_nothing() -> None:
    spec, one, two = small()
    x = example("conv, global pool", 8, seed=3).double()
    found, expected = (correlations(spec, one, two, x.split(sizes)) for sizes in ([5, 0, 3], [5, 3]))
    for key, sums in expected.sums.items():
        assert torch.equal(found.sums[key].cross, sums.cross)
        assert torch.equal(found.sums[key].means, sums.means)


def test_what_is_not_of_one_spec_is_not_added_or_solved() -> None:
    spec, one, two = small()
    found = correlations(spec, one, two, [example("conv, global pool").double()])
    other = Correlations("another", found.sums)
    with pytest.raises(AlignmentError, match="two different specs"):
        found.combine(other)
    with pytest.raises(AlignmentError, match="another spec"):
        match_correlations(spec, other)
    sums = found.sums[spec.groups[0].name, BLOCKS]
    with pytest.raises(AlignmentError, match=r"\(1, 2, 12\) and \(1, 2, 20\) cannot be added"):
        sums.combine(found.sums[spec.groups[1].name, BLOCKS])


def test_a_model_of_another_architecture_is_refused_before_anything_runs() -> None:
    spec, one, two = small()
    ran: list[int] = []
    for model in (one, two):
        model.register_forward_pre_hook(lambda *_: ran.append(1))
    two[3] = nn.Conv2d(12, 21, 3).double()
    for pair, role in (((one, two), "other"), ((two, one), "reference")):
        with pytest.raises(
            SchemaError, match=rf"the {role} model.*'3\.weight' has shape \(21, 12, 3, 3\).*\(20, 12, 3"
        ):
            match_activations(spec, *pair, [example("conv, global pool").double()])
    assert not ran


# ---- blocks and parts


def with_taps(net: Net, *places: tuple[str, int, Place]) -> Net:
    """The net with its first group read at (operator, argument, place)."""
    module, group = Module(net, net.state()), net.groups[0]
    taps = tuple(tap_at(module, net.x(), group, *where) for where in places)
    return dataclasses.replace(net, groups=(dataclasses.replace(group, taps=taps), *net.groups[1:]))


Q_TAP = ("scaled_dot_product_attention", 0, Place(3, part=0, outer=(1, 1)))
V_TAP = ("scaled_dot_product_attention", 2, Place(3, part=1, outer=(1, 1)))
HEAD_TAP = ("scaled_dot_product_attention", 0, Place(1))
STRUCTURED = {
    "heads": lambda: with_taps(ATTENTION, Q_TAP, V_TAP),
    "fixed blocks": lambda: with_taps(FIXED_BLOCKS, ("linear", 0, Place(1, P, 0, ((P, 1),), 0, (1, W * P)))),
}


@pytest.mark.parametrize("name", STRUCTURED)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_permuted_copy_is_recovered_with_its_blocks_and_parts(name: str, seed: int) -> None:
    net = STRUCTURED[name]()
    spec, state = net.spec, net.state(seed)
    read = net.groups[0].name
    hidden = {read: spec.random(seed)[read]}
    one, two = Module(net, state), Module(net, spec.apply(state, hidden))
    found = match_activations(spec, one, two, [net.x(seed, num=12), net.x(seed + 1, num=5)])
    match = found.groups[0]
    moved = spec.compose(hidden, found.perms)[read] != torch.arange(match.size)
    assert int(moved.sum()) <= match.constant <= (3 if name == "fixed blocks" else 0)  # ReLUs that never fire
    assert match.after == pytest.approx(1)
    assert match.before <= match.after + 1e-12
    assert match.similarity is not None
    assert match.similarity.max() == pytest.approx(1)
    assert match.similarity.sum() == pytest.approx(match.size - match.constant)


@torch.no_grad()
def test_parts_are_read_where_their_blocks_stand_in_another_dimension() -> None:
    net = STRUCTURED["heads"]()
    states, x = (net.state(0), net.state(1)), net.x(0, num=9)
    found = correlations(net.spec, *(Module(net, state) for state in states), x.split(4))
    for part, name, bias in ((0, "q", "q_bias"), (1, "v", None)):
        rows = [
            heads(nn.functional.linear(x, state[name], state[bias] if bias else None), H).movedim((1, 3), (0, 1))
            for state in states
        ]  # (heads, d, batch, time)
        expected = together(*(r.flatten(2).flatten(0, 1).numpy() for r in rows))
        np.testing.assert_allclose(found.sums["q:0", part].correlation().numpy(), expected, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("taps", "constant", "num_compared"),
    [((Q_TAP, V_TAP), 1 + V, 18 - 1 - V), ((V_TAP,), H * D + V, H * V - V), ((HEAD_TAP,), 18, H), ((), 18, 1)],
    ids=["both parts", "one part", "blocks", "nothing"],
)  # fmt: skip
def test_constant_units_of_blocks_are_counted_wherever_they_stand(
    taps: tuple[tuple[str, int, Place], ...], constant: int, num_compared: int
) -> None:
    net = with_taps(ATTENTION, *taps)
    spec, state = net.spec, net.state()
    state["q"][2], state["q_bias"][2] = 0, 0  # the first unit of the second head
    state["v"][:V] = 0  # all of the first head
    x = net.x(0, num=9)
    counts = []
    for seed in range(3):
        hidden = {"q:0": spec.random(seed)["q:0"]} if seed else {}
        found = match_activations(spec, Module(net, state), Module(net, spec.apply(state, hidden)), [x])
        match = found.groups[0]
        counts.append(match.constant)
        if len(taps) == 2:
            assert match.after == pytest.approx(1)
            assert match.similarity is not None
            assert match.similarity.sum() == pytest.approx(num_compared)
            wrong = spec.moved(spec.compose(hidden, found.perms)) * sum(group.size for group in spec.groups)
            assert wrong <= V  # which of the dead is which, nobody knows
    assert counts == [constant] * 3
    same = match_activations(spec, Module(net, state), Module(net, state), [x]).groups[0]
    assert same.before * num_compared == pytest.approx(num_compared if taps else 0)
    assert same.moved == 0
    assert same.similarity is not None
    expected = {(Q_TAP, V_TAP): 0, (V_TAP,): H * D, (HEAD_TAP,): 0, (): 18}[taps]
    assert int(same.similarity.isnan().sum()) == expected


# ---- the identity


def test_a_margin_holds_a_group_whose_rise_is_noise_and_lets_the_other_move() -> None:
    torch.manual_seed(0)
    one = make("mlp").double()
    with torch.no_grad():
        one[2].weight[8:] = one[2].weight[:8] + 0.005 * torch.randn(8, 24, dtype=torch.float64)  # units nearly equal
        one[2].bias[8:] = one[2].bias[:8]
        spec = permutation_spec(one, example("mlp").double())
        first, second = (group.name for group in spec.groups)
        two = copy.deepcopy(one)
        two[2].weight += 0.05 * torch.randn(16, 24, dtype=torch.float64)
        hidden = {first: spec.random(1)[first]}
        two.load_state_dict(spec.apply(two.state_dict(), hidden))
    found = correlations(spec, one, two, [example("mlp", 64, seed=5).double()])
    free, held, never = (match_correlations(spec, found, margin=margin) for margin in (0.0, 0.05, 1.5))
    here = torch.arange(16)
    rise = free.groups[1].after - free.groups[1].before
    assert 0 < rise < 0.05 * free.groups[1].after
    assert not torch.equal(free.perms[second], here)
    assert torch.equal(held.perms[second], here)
    assert torch.equal(held.perms[first], free.perms[first])
    assert spec.moved(spec.compose(hidden, held.perms)) == 0
    assert spec.moved(never.perms) == 0
    assert held.groups[1].after == held.groups[1].before == pytest.approx(free.groups[1].before)


# ---- memory


@torch.no_grad()
def test_memory_is_bounded_by_the_sizes_of_groups_squared_and_the_taps_of_one_batch() -> None:
    one, two = make("conv, global pool", 0), make("conv, global pool", 1)
    spec = permutation_spec(one, example("conv, global pool"))
    x = example("conv, global pool", 32)

    def living() -> int:
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
        tensors = [tensor for tensor in tensors if tensor.layout == torch.strided]  # others have no storage to ask
        with torch._C.DisableTorchFunction():  # the reader of taps counts what is called
            return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    held: list[int] = []
    done: list[int] = []
    two[3].register_forward_pre_hook(lambda *_: held.append(living()))  # where the reference's taps are all held
    two[-1].register_forward_pre_hook(lambda *_: done.append(living()))  # where all are paired
    tapped = 0
    for last in (1, 4):
        tapped += one.eval()[: last + 1](x).nbytes
    before = living()
    correlations(spec, one, two, (x.clone() for _ in range(3)))
    sums = sum(8 * (group.size**2 + 4 * group.size + 1) for group in spec.groups)
    in_flight = 3 * two.eval()[:3](x).nbytes + x.nbytes
    assert len(set(held)) == 1  # the same in every batch
    assert len(held) == 3
    assert held[0] - before <= sums + tapped + in_flight
    assert len(set(done)) == 1
    assert done[0] - before <= sums + x.nbytes + 4 * two.eval()[:-1](x).nbytes
