"""Partial matching: which pairs are kept, which units of either model stay apart."""

import copy

import pytest
import torch
from alignment_zoo import example, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimat.align import (
    Group,
    GroupMatch,
    Matching,
    PermutationSpec,
    match_activations,
    match_weights,
    partial_matching,
    permutation_spec,
)
from dimat.errors import AlignmentError, UsageError

SPEC = PermutationSpec((Group("a", 9, ()), Group("b", 12, (), structure="heads", parts=(1, 3))))


def matching(seed: int, nothing_known: bool = False) -> Matching:
    perms = SPEC.random(seed)
    generator = torch.Generator().manual_seed(seed)
    # Tenths, so that several pairs are alike to the same degree.
    alike = {name: torch.randint(0, 11, (len(p),), generator=generator).double() / 10 for name, p in perms.items()}
    if nothing_known:
        alike["b"][:5] = torch.nan
    groups = tuple(GroupMatch(name, len(p), 0, 0, 0, similarity=alike[name]) for name, p in perms.items())
    return Matching(perms, groups, 0, 0)


def similarities(found: Matching) -> dict[str, list[float]]:
    return {group.name: group.similarity.tolist() for group in found.groups if group.similarity is not None}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([-1.0, 0.0, 0.3, 0.7, 1.0, 1.1]), unknown=st.booleans())
def test_pairs_at_or_above_a_threshold_are_kept_and_every_unit_stands_once(
    seed: int, threshold: float, unknown: bool
) -> None:
    whole = matching(seed, unknown)
    found = partial_matching(SPEC, whole, threshold=threshold)
    assert list(found) == ["a", "b"]
    for name, alike in similarities(whole).items():
        perm, part = whole.perms[name].tolist(), found[name]
        expected = [[i, perm[i]] for i in range(len(perm)) if alike[i] >= threshold]
        assert part.kept.tolist() == expected
        assert part.kept.shape == (len(expected), 2)
        assert part.only_reference.tolist() == [i for i in range(len(perm)) if not alike[i] >= threshold]
        assert part.only_other.tolist() == sorted({*range(len(perm))} - {j for _, j in expected})
        assert part.size == 2 * len(perm) - len(expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), quantile=st.floats(0, 1), unknown=st.booleans())
def test_a_quantile_parts_that_share_of_the_pairs_and_none_that_is_as_good_as_one_it_keeps(
    seed: int, quantile: float, unknown: bool
) -> None:
    whole = matching(seed, unknown)
    found = partial_matching(SPEC, whole, quantile=quantile)
    for name, alike in similarities(whole).items():
        kept = {i for i, _ in found[name].kept.tolist()}
        known = [value for value in alike if value == value]
        num_parted = len(alike) - len(kept)
        assert num_parted <= max(quantile * len(alike), len(alike) - len(known) if quantile else 0)
        worst = min((alike[i] for i in kept if alike[i] == alike[i]), default=2.0)
        assert all(alike[i] < worst or alike[i] != alike[i] for i in range(len(alike)) if i not in kept)
        # Among different values, no more than the share is kept either.
        better = sum(value > worst for value in known)
        assert better <= len(alike) - int(quantile * len(alike))


def test_a_quantile_by_hand() -> None:
    alike = torch.tensor([0.5, 0.1, 0.9, torch.nan, 0.7])
    spec = PermutationSpec((Group("g", 5, ()),))
    whole = Matching({"g": torch.arange(5)}, (GroupMatch("g", 5, 0, 0, 0, similarity=alike),), 0, 0)
    for quantile, kept in ((0.0, [0, 1, 2, 3, 4]), (0.1, [0, 1, 2, 4]), (0.4, [0, 2, 4]), (0.8, [2]), (1.0, [2])):
        assert partial_matching(spec, whole, quantile=quantile)["g"].kept[:, 0].tolist() == kept, quantile


def test_each_group_may_have_its_own_limit_and_others_stay_whole() -> None:
    whole = matching(1)
    found = partial_matching(SPEC, whole, threshold={"b": 0.6})
    assert len(found["a"].kept) == 9
    assert found["b"].kept.tolist() == partial_matching(SPEC, whole, threshold=0.6)["b"].kept.tolist()
    assert 0 < len(found["b"].kept) < 12


def test_units_inside_of_matched_blocks_part_one_by_one() -> None:
    """Two heads of 1 + 3 units, swapped as a whole; two of eight pairs are unlike."""
    heads = Group("h", 8, (), structure="heads", parts=(1, 3))
    perm = torch.tensor([4, 6, 5, 7, 0, 1, 2, 3])
    alike = torch.tensor([0.9, 0.9, 0.2, 0.9, 0.1, 0.9, 0.9, 0.9])
    whole = Matching({"h": perm}, (GroupMatch("h", 8, 1, 0, 0, similarity=alike),), 0, 0)
    found = partial_matching(PermutationSpec((heads,)), whole, threshold=0.5)["h"]
    assert found.only_reference.tolist() == [2, 4]
    assert found.only_other.tolist() == [0, 5]
    assert all(j // 4 == 1 - i // 4 for i, j in found.kept.tolist())


@torch.no_grad()
def test_units_that_only_one_model_has_stay_apart() -> None:
    one = make("mlp").double()
    spec = permutation_spec(one, example("mlp").double())
    hidden = spec.random(3)
    two = copy.deepcopy(one)
    own = [1, 4, 10]
    generator = torch.Generator().manual_seed(9)
    two[0].weight[own] = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    two.load_state_dict(spec.apply(two.state_dict(), hidden))
    matched = match_activations(spec, one, two, [example("mlp", 200, seed=2).double()])
    found = partial_matching(spec, matched, threshold=0.99)[spec.groups[0].name]
    places = torch.argsort(hidden[spec.groups[0].name])
    assert found.only_reference.tolist() == own
    assert found.only_other.tolist() == sorted(places[own].tolist())
    assert found.kept.tolist() == [[i, int(places[i])] for i in range(24) if i not in own]


@torch.no_grad()
def test_weights_tell_which_units_are_alike_too() -> None:
    one = make("mlp").double()
    spec = permutation_spec(one, example("mlp").double())
    two = copy.deepcopy(one)
    own = [2, 7]
    generator = torch.Generator().manual_seed(9)
    two[0].weight[own] = 0.2 * torch.randn(2, 10, generator=generator, dtype=torch.float64)
    two[2].weight[:, own] = 0.1 * torch.randn(16, 2, generator=generator, dtype=torch.float64)
    matched = match_weights(spec, one.state_dict(), two.state_dict())
    found = partial_matching(spec, matched, threshold=0.95)[spec.groups[0].name]
    assert found.only_reference.tolist() == found.only_other.tolist() == own


def without(similarity: Tensor | None) -> Matching:
    return Matching(SPEC.identity(), (GroupMatch("a", 9, 0, 0, 0, similarity=similarity),), 0, 0)


def test_bad_input_is_refused() -> None:
    whole = matching(0)
    for both in ({}, {"threshold": 0.5, "quantile": 0.5}):
        with pytest.raises(UsageError, match="exactly one of the two"):
            partial_matching(SPEC, whole, **both)
    with pytest.raises(UsageError, match=r"quantile of group 'a' is 1\.5, expected a number in \[0, 1\]"):
        partial_matching(SPEC, whole, quantile=1.5)
    with pytest.raises(UsageError, match="threshold of group 'b' is nan"):
        partial_matching(SPEC, whole, threshold={"b": float("nan")})
    with pytest.raises(AlignmentError, match=r"unknown group 'bb'\. Did you mean 'b'"):
        partial_matching(SPEC, whole, threshold={"bb": 0.5})
    for wrong in (None, torch.zeros(8)):
        with pytest.raises(AlignmentError, match="does not tell how similar the 9 pairs of group 'a' are"):
            partial_matching(SPEC, without(wrong), threshold=0.5)
