"""Weight matching: what it keeps is true at every moment, and one group is solved as an exhaustive search does."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimat.align import Axis, Group, PermutationSpec, TensorInfo, match_weights, weight_matching
from dimat.align.crossed import improve_crossed
from dimat.align.grams import Grams
from dimat.align.solve import total_similarity
from dimat.align.weights import descend, outside_in

State = dict[str, Tensor]


def heads(num: int = 2, d_qk: int = 2, d_v: int = 2) -> PermutationSpec:
    """Attention with separate q, k (part 0) and v, o (part 1), between a stream of 5 units."""
    group = Group(
        "q:0",
        num * (d_qk + d_v),
        tuple(
            axis
            for name, dimension, part, width in (
                ("q", 0, 0, d_qk),
                ("k", 0, 0, d_qk),
                ("v", 0, 1, d_v),
                ("o", 1, 1, d_v),
            )
            for axis in (
                Axis(name, dimension, width, 0, ((width, 1),)),
                Axis(name, dimension, 1, 0, (), part, (dimension, width)),
            )
        ),
        structure="heads",
        parts=(d_qk, d_v),
    )
    stream = Group("q:1", 5, (Axis("q", 1), Axis("k", 1), Axis("v", 1), Axis("o", 0), Axis("in", 0)))
    shapes = {"q": (num * d_qk, 5), "k": (num * d_qk, 5), "v": (num * d_v, 5), "o": (5, num * d_v), "in": (5, 3)}
    return PermutationSpec((group, stream), tuple(TensorInfo(name, shape) for name, shape in shapes.items()))


def grouped_query(kv: int = 2, queries: int = 2, d: int = 2) -> PermutationSpec:
    """Grouped-query attention with rotary positions: q and k fixed inside; part 0 the queries, part 1 inside of v."""
    both = queries * d
    group = Group(
        "k:0",
        kv * (queries + d),
        (
            Axis("q", 0, both, 0, ((both, 1),)),
            Axis("q", 0, d, 0, ((d, 1),), 0, (0, both)),
            Axis("k", 0, d, 0, ((d, 1),)),
            Axis("v", 0, d, 0, ((d, 1),)),
            Axis("v", 0, 1, 0, (), 1, (0, d)),
            Axis("o", 1, both, 0, ((both, 1),)),
            Axis("o", 1, d, 0, ((d, 1),), 0, (1, both)),
            Axis("o", 1, 1, 0, ((queries, d),), 1, (1, both)),
        ),
        structure="heads",
        parts=(queries, d),
    )
    shapes = {"q": (kv * both, 5), "k": (kv * d, 5), "v": (kv * d, 5), "o": (5, kv * both)}
    return PermutationSpec((group,), tuple(TensorInfo(name, shape) for name, shape in shapes.items()))


def packed(num: int = 2, d: int = 2) -> PermutationSpec:
    """q, k, v one under the other, each a segment of one dimension; the insides of q and k are fixed."""
    width = num * d
    group = Group(
        "qkv:0",
        num * d,
        (
            *(Axis("qkv", 0, d, segment * width, ((d, 1),)) for segment in range(3)),
            Axis("qkv", 0, 1, 2 * width, (), 0, (0, d)),
            Axis("o", 1, d, 0, ((d, 1),)),
            Axis("o", 1, 1, 0, (), 0, (1, d)),
        ),
        structure="heads",
        parts=(d,),
    )
    return PermutationSpec((group,), (TensorInfo("qkv", (3 * width, 5)), TensorInfo("o", (5, width))))


def grouped_convolution(structure: str = "blocks") -> PermutationSpec:
    """Two layers with 3 groups: out-channels, and in-channels of the next one, whose blocks sit in dimension 0."""
    group = Group(
        "one:0",
        6,
        (
            Axis("one", 0, 2),
            Axis("one", 0, 1, 0, (), 0, (0, 2)),
            Axis("two", 0, 2),
            Axis("two", 1, 1, 0, (), 0, (0, 2)),
        ),
        structure=structure,
        parts=(2,),
    )
    after = Group(
        "two:0",
        6,
        (
            Axis("two", 0, 2),
            Axis("two", 0, 1, 0, (), 0, (0, 2)),
            Axis("three", 1, 2),
            Axis("three", 1, 1, 0, (), 0, (1, 2)),
        ),
        structure=structure,
        parts=(2,),
    )
    shapes = {"one": (6, 4), "two": (6, 2, 3), "three": (5, 6)}
    tensors = tuple(TensorInfo(name, shape) for name, shape in shapes.items())
    return PermutationSpec((group, after) if structure == "blocks" else (group,), tensors)


def recurrent(size: int = 5) -> PermutationSpec:
    """A weight with two gates, one under the other, that holds its units in both dimensions."""
    axes = (
        Axis("w", 0, 1, 0, ()),
        Axis("w", 0, 1, size, ()),
        Axis("w", 1),
        Axis("u", 0, 1, 0, ()),
        Axis("u", 0, 1, size, ()),
    )
    group = Group("h", size, axes)
    return PermutationSpec((group,), (TensorInfo("w", (2 * size, size)), TensorInfo("u", (2 * size, 3))))


def three_in_one() -> PermutationSpec:
    """A tensor that three groups share, and one of which two groups are segments of a dimension, beside a third."""
    groups = (
        Group("t:0", 4, (Axis("t", 0), Axis("cat", 1, 1, 0, ()), Axis("in", 0))),
        Group("t:1", 3, (Axis("t", 1), Axis("cat", 1, 1, 4, ()))),
        Group("t:2", 2, (Axis("t", 2), Axis("cat", 0))),
    )
    return PermutationSpec(groups, (TensorInfo("t", (4, 3, 2)), TensorInfo("cat", (2, 8)), TensorInfo("in", (4, 30))))


SPECS = {
    "heads": heads(),
    "three heads": heads(3, 1, 2),
    "grouped query": grouped_query(),
    "packed": packed(),
    "grouped convolution": grouped_convolution(),
    "grouped convolution, moving": grouped_convolution("heads"),
    "three in one": three_in_one(),
    "recurrent": recurrent(),
}
CROSSED = {"grouped query", "recurrent"}


def draw(spec: PermutationSpec, seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {info.name: torch.randn(info.shape, generator=generator).to(dtype) for info in spec.tensors}


def inner(spec: PermutationSpec, one: State, two: State, perms: State) -> float:
    moved = spec.apply(two, perms)
    return sum(float((one[name].double() * moved[name].double()).sum()) for name in one)


def all_permutations(group: Group) -> Iterator[Tensor]:
    """Every permutation that the structure allows, by plain loops."""
    if not group.parts:
        yield from map(torch.tensor, itertools.permutations(range(group.size)))
        return
    num = group.num_blocks
    orders = [tuple(range(num))] if group.structure == "blocks" else list(itertools.permutations(range(num)))
    insides = [
        sum(
            (
                tuple(start + one for one in inside)
                for start, inside in zip(np.cumsum((0, *group.parts)).tolist(), choice, strict=False)
            ),
            (),
        )
        for choice in itertools.product(*(itertools.permutations(range(size)) for size in group.parts))
    ]
    for order in orders:
        for choice in itertools.product(insides, repeat=num):
            yield torch.tensor(
                [block * group.width + unit for block, inside in zip(order, choice, strict=True) for unit in inside]
            )


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_one_group_is_solved_as_well_as_by_an_exhaustive_search(name: str, seed: int) -> None:
    spec = SPECS[name]
    group = spec.groups[0]
    one, two = draw(spec, seed), draw(spec, 100 + seed)
    alone = PermutationSpec((group,), spec.tensors)
    values = [inner(alone, one, two, {group.name: perm}) for perm in all_permutations(group)]
    found = match_weights(alone, one, two)
    assert found.objective_after - found.objective_before == pytest.approx(
        inner(alone, one, two, found.perms) - inner(alone, one, two, {}), abs=1e-4
    )
    assert found.objective_after >= found.objective_before
    reached = inner(alone, one, two, found.perms)
    if name in CROSSED:  # a quadratic assignment: no promise, but better than nearly all there is
        assert np.mean(np.array(values) > reached + 1e-4) <= 0.02
    else:
        assert reached == pytest.approx(max(values), abs=1e-4)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(4))
def test_a_permuted_copy_is_recovered(name: str, seed: int) -> None:
    spec = SPECS[name]
    one, hidden = draw(spec, seed), spec.random(seed + 1)
    noise = draw(spec, seed + 50)
    moved = spec.apply({key: tensor + 0.05 * noise[key] for key, tensor in one.items()}, hidden)
    assert spec.moved(spec.compose(hidden, weight_matching(spec, one, moved, seed=seed))) == 0


def test_larger_attention_is_recovered() -> None:
    for spec in (heads(6, 8, 8), grouped_query(4, 3, 8), packed(6, 8), recurrent(40)):
        one, hidden = draw(spec, 0), spec.random(3)
        assert spec.moved(spec.compose(hidden, weight_matching(spec, one, spec.apply(one, hidden)))) == 0


@pytest.mark.parametrize("name", SPECS)
def test_kept_similarities_follow_every_change(name: str) -> None:
    """After any changes, what is kept says of every single move what the objective says; so do grams made anew."""
    spec = SPECS[name]
    one, two = draw(spec, 0, torch.float64), draw(spec, 1, torch.float64)
    kept = Grams(spec, one, two)
    perms = spec.identity()
    for step in range(6):
        for group in spec.groups:
            other = spec.random(10 * step)[group.name]
            similarity, fresh = kept.linear(group.name, perms), Grams(spec, one, two).linear(group.name, perms)
            assert similarity.keys() == fresh.keys()
            for part, matrix in similarity.items():
                torch.testing.assert_close(matrix, fresh[part])
            linear = [
                sum(
                    value
                    for tensor, value in kept.inner({**perms, group.name: perm}).items()
                    if tensor in kept.tensors_of(group.name) and tensor not in kept.evidence[group.name].crossed
                )
                for perm in (perms[group.name], other)
            ]
            promised = [total_similarity(group, similarity, perm) for perm in (perms[group.name], other)]
            assert promised[1] - promised[0] == pytest.approx(linear[1] - linear[0], abs=1e-9)
            perms[group.name] = other


def test_sums_that_take_too_much_memory_are_made_anew() -> None:
    """A group of 30 units in 2 short vectors: its sums would be larger than the model."""
    spec = PermutationSpec(
        (Group("g", 30, (Axis("a", 0), Axis("b", 0))), Group("h", 2, (Axis("b", 1),))),
        (TensorInfo("a", (30,)), TensorInfo("b", (30, 2))),
    )
    one, two = draw(spec, 0), draw(spec, 1)
    grams = Grams(spec, one, two)
    grams.linear("g", spec.identity())
    grams.linear("h", spec.identity())
    assert list(grams._sums) == ["h"]
    hidden = spec.random(0)
    assert spec.moved(spec.compose(hidden, weight_matching(spec, one, spec.apply(one, hidden)))) == 0


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("start", ["identity", "random", "outside in"])
def test_the_objective_never_falls(name: str, start: str) -> None:
    spec = SPECS[name]
    one, two = draw(spec, 5), draw(spec, 6)
    grams = Grams(spec, one, two)
    perms = {"identity": spec.identity, "random": lambda: spec.random(0), "outside in": lambda: outside_in(grams)}[
        start
    ]()
    value = inner(spec, one, two, perms)
    for sweep in range(4):  # descents of one sweep each
        perms, gain = descend(grams, perms, seed=sweep, max_sweeps=1)
        reached = inner(spec, one, two, perms)
        assert reached - value == pytest.approx(gain, abs=1e-3)
        assert gain >= 0
        value = reached


def test_a_crossed_group_takes_nothing_that_does_not_raise_the_objective() -> None:
    for name in CROSSED:
        spec = SPECS[name]
        for seed in range(10):
            grams, perms = Grams(spec, draw(spec, seed), draw(spec, seed + 20)), spec.random(seed)
            group = spec.groups[0].name
            better, gain = improve_crossed(grams, group, perms, 1e-9)
            before, after = (sum(grams.inner(some).values()) for some in (perms, {**perms, group: better}))
            assert gain == pytest.approx(after - before, abs=1e-4)
            assert gain >= -1e-6


def test_who_is_affected_by_a_change() -> None:
    """Exactly the groups whose similarities are others afterwards, also by a tensor that holds them twice."""
    stream = Group("x", 5, (Axis("q", 1), Axis("o", 0), Axis("in", 0)))
    base, more = grouped_query(), (TensorInfo("in", (5, 3)), TensorInfo("far", (3, 4)))
    far = Group("far", 4, (Axis("far", 1),))
    spec = PermutationSpec((*base.groups, stream, far), (*base.tensors, *more))
    one, two = draw(spec, 0), draw(spec, 1)
    changed: dict[str, set[str]] = {}
    for mover in spec.groups:
        found = []
        for perms in (spec.identity(), spec.identity() | {mover.name: spec.random(1)[mover.name]}):
            grams = Grams(spec, one, two)
            found.append({g.name: (grams.linear(g.name, perms), grams.crossed(g.name, perms)) for g in spec.groups})
        changed[mover.name] = {
            name
            for name, sums in found[0].items()
            if any(
                not torch.allclose(matrix, other[part])
                for before, other in zip(sums, found[1][name], strict=True)
                for part, matrix in before.items()
            )
        }
        assert grams.affected_by(mover.name) == changed[mover.name]
    assert changed == {"k:0": {"k:0", "x"}, "x": {"k:0"}, "far": set()}


def test_blocks_speak_for_what_no_part_speaks_for() -> None:
    """The queries' and keys' rows of packed attention have no order inside, and still tell heads apart."""
    spec = packed(4, 3)
    one = draw(spec, 0)
    one["qkv"][24:] = 1.0  # the values' rows are all alike
    one["o"].fill_(1.0)
    hidden = spec.random(2)
    found = spec.compose(hidden, weight_matching(spec, one, spec.apply(one, hidden)))
    assert spec.groups[0].order_of_blocks(found["qkv:0"]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    spec = heads(4, 4, 4)
    one, hidden = draw(spec, 0, dtype), spec.random(1)
    two = spec.apply(one, hidden)
    found = match_weights(spec, one, two)
    assert spec.moved(spec.compose(hidden, found.perms)) == 0
    assert found.objective_after == pytest.approx(
        sum(float(tensor.double().square().sum()) for tensor in one.values()), rel=1e-6
    )
    mixed = match_weights(spec, {key: tensor.double() for key, tensor in one.items()}, two)
    assert mixed.objective_after == pytest.approx(found.objective_after, rel=1e-6)


def test_cosines_tell_how_alike_partners_are() -> None:
    spec = heads(3, 2, 2)
    one, hidden = draw(spec, 0), spec.random(1)
    exact = match_weights(spec, one, spec.apply(one, hidden))
    for group in exact.groups:
        assert group.similarity is not None
        torch.testing.assert_close(group.similarity, torch.ones(group.size, dtype=torch.float64), rtol=0, atol=1e-6)
    two = draw(spec, 1)
    found = match_weights(spec, one, two)
    moved = spec.apply(two, found.perms)
    stream = next(group for group in found.groups if group.name == "q:1")
    rows = [torch.cat([state["q"].T, state["k"].T, state["v"].T, state["o"], state["in"]], 1) for state in (one, moved)]
    expected = torch.nn.functional.cosine_similarity(*(some.double() for some in rows))
    torch.testing.assert_close(stream.similarity, expected)


@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_chain_ends_where_no_single_group_can_be_improved(seed: int, widths: list[int]) -> None:
    """Against all permutations of each group; widths at random, so also groups that say nothing of each other."""
    shape = [3, *widths, 2]
    infos = [TensorInfo(f"w{i}", (shape[i + 1], shape[i])) for i in range(len(shape) - 1)]
    groups = tuple(Group(f"g{i}", n, (Axis(f"w{i}", 0), Axis(f"w{i + 1}", 1))) for i, n in enumerate(widths))
    spec = PermutationSpec(groups, tuple(infos))
    one, two = draw(spec, seed, torch.float64), draw(spec, seed + 1, torch.float64)
    found = match_weights(spec, one, two, seed=seed)
    reached = inner(spec, one, two, found.perms)
    assert reached >= inner(spec, one, two, {})
    for group in groups:
        if group.size <= 4:
            best = max(inner(spec, one, two, found.perms | {group.name: perm}) for perm in all_permutations(group))
            assert best == pytest.approx(reached, abs=1e-9)
