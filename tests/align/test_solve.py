"""The best permutation of one group is that of brute force, whatever its structure; when the identity stays."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structured_zoo import num_permutations
from torch import Tensor

from dimat.align import Group
from dimat.align.solve import best_permutation, total_similarity, unit_similarity
from dimat.align.units import BLOCKS
from dimat.errors import AlignmentError

SEEDS = st.integers(0, 2**31)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Group, dict[int, Tensor]]:
    structure = draw(st.sampled_from(["plain", "heads", "blocks"]))
    if structure == "plain":
        group = Group("g", draw(st.integers(1, 5)), ())
    else:
        parts = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
        num = draw(st.integers(1, 3 if sum(parts) < 4 else 2))
        group = Group("g", num * sum(parts), (), structure=structure, parts=parts)
    keys = [BLOCKS, *range(len(group.parts))]
    chosen = [key for key in keys if draw(st.booleans())]
    generator = torch.Generator().manual_seed(draw(SEEDS))
    sizes = {key: group.num_units(key) for key in chosen}
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return group, {key: torch.rand(size, size, generator=generator, dtype=dtype) * 2 - 1 for key, size in sizes.items()}


def allowed(group: Group) -> list[Tensor]:
    """Every permutation that the structure allows, built from its definition."""
    if not group.parts:
        return [torch.tensor(perm) for perm in itertools.permutations(range(group.size))]
    one_part = [list(itertools.permutations(range(part))) for part in group.parts]
    inside = []
    for orders in itertools.product(*one_part):
        starts = itertools.accumulate((0, *group.parts))
        inside.append([start + unit for start, order in zip(starts, orders, strict=False) for unit in order])
    blocks = [tuple(range(group.num_blocks))]
    if group.structure == "heads":
        blocks = list(itertools.permutations(range(group.num_blocks)))
    return [
        torch.tensor([block * group.width + unit for block, order in zip(some, orders, strict=True) for unit in order])
        for some in blocks
        for orders in itertools.product(inside, repeat=group.num_blocks)
    ]


def worth(group: Group, similarities: dict[int, Tensor], perm: Tensor) -> Tensor:
    """By hand: the similarity of each unit with its partner, one list for each part, and of each block."""
    total = torch.zeros((), dtype=torch.float64)
    for place, old in enumerate(perm.tolist()):
        (a, u), (b, v) = divmod(place, group.width), divmod(old, group.width)
        if u == 0 and BLOCKS in similarities:
            total += similarities[BLOCKS][a, b]
        start = 0
        for part, size in enumerate(group.parts):
            if start <= u < start + size and part in similarities:
                total += similarities[part][a * size + u - start, b * size + v - start]
            start += size
    return total


@settings(max_examples=80, deadline=None)
@given(problem=problems(), stickiness=st.sampled_from([0.0, 0.0, 0.3, 5.0]))
def test_the_best_permutation_is_that_of_brute_force(
    problem: tuple[Group, dict[int, Tensor]], stickiness: float
) -> None:
    group, similarities = problem
    every = allowed(group)
    assert len(every) == (num_permutations(group) if group.parts else math.factorial(group.size))
    here = torch.arange(group.size)
    found = best_permutation(group, similarities, stickiness)
    assert group.torn(found) is None

    def value(perm: Tensor) -> float:
        return float(worth(group, similarities, perm)) + stickiness * int((perm == here).sum())

    assert total_similarity(group, similarities, found) == pytest.approx(float(worth(group, similarities, found)))
    assert value(found) == pytest.approx(max(value(perm) for perm in every), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_the_similarity_of_units_adds_up(problem: tuple[Group, dict[int, Tensor]]) -> None:
    group, similarities = problem
    perm = best_permutation(group, similarities)
    units = unit_similarity(group, similarities, perm)
    table = units.view(group.num_blocks, group.width)
    start, total = 0, 0.0
    for part, size in enumerate(group.parts):
        own = table[:, start : start + size]
        start += size
        if part in similarities:
            total += float(own.sum())
        elif BLOCKS in similarities:
            blocks = similarities[BLOCKS][torch.arange(group.num_blocks), group.order_of_blocks(perm)]
            assert torch.equal(own, blocks[:, None].double().expand_as(own))
        else:
            assert own.isnan().all()
    spoken = {part: matrix for part, matrix in similarities.items() if part != BLOCKS or not group.parts}
    if not group.parts and spoken:
        total = float(units.sum())
    assert total == pytest.approx(total_similarity(group, spoken, perm))


@settings(max_examples=40, deadline=None)
@given(problem=problems(), margin=st.floats(0, 1.5))
def test_a_margin_keeps_the_identity_unless_the_rise_is_a_larger_share(
    problem: tuple[Group, dict[int, Tensor]], margin: float
) -> None:
    group, similarities = problem
    free, held = (best_permutation(group, similarities, margin=m) for m in (0.0, margin))
    here = torch.arange(group.size)
    before, after = (total_similarity(group, similarities, perm) for perm in (here, free))
    assert torch.equal(held, free if after - before > margin * abs(after) else here)


def test_a_margin_weighs_a_negative_objective_by_its_size() -> None:
    alike = torch.tensor([[-1.0, -0.9], [-0.9, -1.0]], dtype=torch.float64)  # from -2 to -1.8: a ninth
    group = Group("g", 2, ())
    assert best_permutation(group, {BLOCKS: alike}, margin=0.1).tolist() == [1, 0]
    assert best_permutation(group, {BLOCKS: alike}, margin=0.12).tolist() == [0, 1]


def test_similarities_of_another_shape_are_refused() -> None:
    heads = Group("h", 6, (), structure="heads", parts=(1, 2))
    with pytest.raises(AlignmentError, match=r"'h': similarities of part 1 have shape \(2, 2\), expected \(4, 4\)"):
        best_permutation(heads, {1: torch.zeros(2, 2)})
    with pytest.raises(AlignmentError, match=r"'h' has parts \[1, 2\], similarities speak of 2"):
        best_permutation(heads, {2: torch.zeros(2, 2)})
