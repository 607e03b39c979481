"""Many models in one basis: copies are all recovered, the objective never falls, maps compose, two are a matching."""

import itertools

import pytest
import torch
from torch import Tensor

from dimat.align import Axis, Group, PermutationSpec, TensorInfo, match_many, weight_matching
from dimat.errors import AlignmentError, SchemaError

State = dict[str, Tensor]
Perms = dict[str, Tensor]


def chain(*widths: int) -> PermutationSpec:
    """A perceptron with biases; the first and last width are fixed."""
    infos, groups = [], []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        infos += [TensorInfo(f"{i}.weight", (after, before)), TensorInfo(f"{i}.bias", (after,))]
        if i < len(widths) - 2:
            axes = (Axis(f"{i}.weight", 0), Axis(f"{i}.bias", 0), Axis(f"{i + 1}.weight", 1))
            groups.append(Group(f"{i}.weight:0", after, axes))
    return PermutationSpec(tuple(groups), (*infos, TensorInfo("steps", (), False)))


SPEC = chain(6, 20, 16, 4)


def draw(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = {info.name: torch.randn(info.shape, generator=generator).to(dtype) for info in SPEC.tensors[:-1]}
    return {**state, "steps": torch.tensor(seed)}


def relatives(
    num: int, noise: float, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[State], list[Perms]]:
    """Noisy copies of one model, each in an order of its own."""
    root, hidden = draw(seed), [SPEC.random(seed + 10 * i) for i in range(num)]
    states = []
    for i, perms in enumerate(hidden):
        own = draw(1000 + seed + i)
        noisy = {name: (t + noise * own[name]).to(dtype) if name != "steps" else t for name, t in root.items()}
        states.append(SPEC.apply(noisy, perms))
    return states, hidden


def objective(states: list[State], perms: list[Perms]) -> float:
    """Σ_{i<j} ⟨π_i(A_i), π_j(A_j)⟩ by its definition."""
    moved = [SPEC.apply(state, one) for state, one in zip(states, perms, strict=True)]
    return sum(
        float((a[name].double() * b[name].double()).sum())
        for a, b in itertools.combinations(moved, 2)
        for name in a
        if name in SPEC.members
    )


def is_identity(perms: Perms) -> bool:
    return SPEC.moved(perms) == 0


@pytest.mark.parametrize("num", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_permuted_copies_are_all_recovered(num: int, dtype: torch.dtype) -> None:
    states, hidden = relatives(num, 0.0, dtype=dtype)
    found = match_many(SPEC, states)
    assert is_identity(found[0])
    for state, one in zip(states, found, strict=True):
        aligned = SPEC.apply(state, one)
        assert all(torch.equal(aligned[name], states[0][name]) for name in SPEC.members)
    assert all(is_identity(SPEC.compose(SPEC.compose(hidden[i], found[i]), SPEC.invert(hidden[0]))) for i in range(num))


def test_together_they_recover_what_pairs_do_not() -> None:
    """With much noise one model is a poor witness of the order of another; all others together are a good one."""
    states, hidden = relatives(12, 0.9)

    def wrong(perms: list[Perms]) -> float:
        return sum(
            SPEC.moved(SPEC.compose(SPEC.compose(one, own), SPEC.invert(hidden[0])))
            for one, own in zip(hidden, perms, strict=True)
        )

    pairs = [SPEC.identity(), *(weight_matching(SPEC, states[0], state) for state in states[1:])]
    together = match_many(SPEC, states)
    assert is_identity(together[0])
    assert wrong(together) < 0.5 * wrong(pairs)
    assert objective(states, together) > objective(states, pairs)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_never_falls_and_ends_where_no_model_can_be_improved(seed: int) -> None:
    states, _ = relatives(4, 3.0, seed)
    reached = [objective(states, match_many(SPEC, states, seed=seed, max_passes=n)) for n in (0, 1, 2, 100)]
    assert reached == sorted(reached)
    assert reached[3] > reached[0]
    perms = match_many(SPEC, states, seed=seed)
    for model, group in itertools.product(range(4), SPEC.groups):
        for shift in (1, 5):
            other = [dict(one) for one in perms]
            other[model][group.name] = other[model][group.name].roll(shift)
            assert objective(states, other) < reached[3]


def test_maps_between_models_compose() -> None:
    """From i to j and on to k is from i to k: what permutations into one basis mean."""
    states, _ = relatives(4, 2.0)
    perms = match_many(SPEC, states)

    def between(i: int, j: int) -> Perms:
        return SPEC.compose(perms[i], SPEC.invert(perms[j]))

    for i, j, k in itertools.permutations(range(4), 3):
        around = SPEC.compose(SPEC.compose(between(i, j), between(j, k)), between(k, i))
        assert is_identity(around)
    into_third = SPEC.apply(states[1], between(1, 3))
    in_common = [SPEC.apply(into_third, perms[3]), SPEC.apply(states[1], perms[1])]
    assert all(torch.equal(in_common[0][name], in_common[1][name]) for name in states[0])


def test_two_models_are_a_weight_matching_and_one_stays() -> None:
    states, _ = relatives(2, 3.0)
    one = match_many(SPEC, states, seed=3)
    pair = [SPEC.identity(), weight_matching(SPEC, *states, seed=3)]
    assert objective(states, one) >= objective(states, pair)
    assert is_identity(one[0])
    assert [is_identity(perms) for perms in match_many(SPEC, states[:1])] == [True]


def test_the_answer_is_seeded_and_the_models_are_left_alone() -> None:
    states, _ = relatives(4, 3.0)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    found = [match_many(SPEC, states, seed=7) for _ in range(2)]
    assert all(torch.equal(found[0][i][name], found[1][i][name]) for i in range(4) for name in found[0][i])
    assert all(torch.equal(state[name], old[name]) for state, old in zip(states, before, strict=True) for name in state)


def test_bad_input_is_refused() -> None:
    states, _ = relatives(3, 0.0)
    with pytest.raises(AlignmentError, match="no model to bring into one basis"):
        match_many(SPEC, [])
    with pytest.raises(SchemaError, match=r"'0\.bias' has shape \(3,\)"):
        match_many(SPEC, [*states, states[0] | {"0.bias": torch.zeros(3)}])
    with pytest.raises(AlignmentError, match=r"'1\.bias' holds NaN"):
        match_many(SPEC, [*states, states[0] | {"1.bias": torch.full((16,), torch.nan)}])
