"""Norm and cosine checks against plain numpy, and what liars can and cannot do to them."""

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.agent.checks import MEMORY, Verdict, cosine, distance, judge
from dimat.config import ChecksConfig, load_config
from dimat.errors import ConfigError

NAMES = ("a.weight", "a.bias")
PARAMETERS = frozenset(NAMES)
FAR = ChecksConfig(max_norm_ratio=3.0)


def model(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": scale * torch.randn(4, 3, generator=generator),
        "a.bias": scale * torch.randn(4, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7 * seed),
    }


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in NAMES])


def at(*distances: float) -> dict[int, dict[str, torch.Tensor]]:
    """Neighbours of the origin, each at such a distance from it."""
    return {peer: {"a.weight": torch.tensor([apart, 0.0])} for peer, apart in enumerate(distances, start=1)}


ORIGIN = {"a.weight": torch.zeros(2)}


def verdict(
    *distances: float, usual: dict[str, tuple[float, ...]] | None = None, limits: ChecksConfig = FAR
) -> Verdict:
    return judge(ORIGIN, at(*distances), limits, parameters=PARAMETERS, usual=usual)


def test_distance_and_cosine_are_those_of_numpy() -> None:
    mine, other = model(1), model(2)
    assert distance(mine, other, NAMES) == pytest.approx(np.linalg.norm(flat(other) - flat(mine)), rel=1e-12)
    a, b = flat(mine), flat(other)
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine(mine, other, NAMES) == pytest.approx(expected, rel=1e-12)


def test_nothing_is_refused_where_nothing_is_checked() -> None:
    assert verdict(1.0, 1e9, limits=ChecksConfig()).refused == {}


def test_who_lies_far_off_is_refused_and_told_how_far() -> None:
    found = verdict(1.0, 2.0, 30.0, 1.5)
    assert list(found.refused) == [3]
    assert "its parameters lie 30 from mine, 20 times the usual 1.5" in found.refused[3]
    assert "merge.checks.max_norm_ratio is 3" in found.refused[3]
    assert verdict(1.0, 2.0, 4.5, 1.5).refused == {}, "three times the usual is allowed"


def test_of_two_neighbours_the_nearer_one_is_the_usual() -> None:
    assert list(verdict(1.0, 30.0).refused) == [2]


def test_a_lone_neighbour_is_held_against_the_past() -> None:
    assert verdict(30.0).refused == {}
    assert list(verdict(30.0, usual={"parameters": (1.0, 1.2, 0.9)}).refused) == [1]


def test_the_memory_holds_the_last_merges_and_grows_by_the_ratio_at_most() -> None:
    assert verdict(1.0, 2.0, 3.0).usual == {"parameters": (2.0,)}
    assert verdict(5.0, usual={"parameters": (1.0,) * 9}).usual == {"parameters": (1.0,) * (MEMORY - 1) + (3.0,)}


def test_a_healed_partition_is_let_in_again() -> None:
    """All neighbours lie 50 times as far off as ever: refused at first, not for good."""
    usual: dict[str, tuple[float, ...]] = {"parameters": (1.0,) * MEMORY}
    refused = []
    for _ in range(12):
        found = verdict(50.0, 50.0, 50.0, usual=usual)
        usual = dict(found.usual)
        refused.append(len(found.refused))
    assert refused[0] == 3 and refused[-1] == 0 and sorted(refused, reverse=True) == refused


def test_a_lie_in_the_buffers_is_seen_and_a_wide_buffer_hides_no_lie_in_the_weights() -> None:
    mine, honest = model(1), [model(seed) for seed in (2, 3, 4)]
    others = dict(enumerate(honest, start=1))
    lie = {**model(5), "norm.running_var": torch.full((4,), 1e4)}
    found = judge(mine, {**others, 4: lie}, FAR, parameters=PARAMETERS)
    assert list(found.refused) == [4] and "its buffers" in found.refused[4]

    for state, variance in zip([mine, *honest], (1e4, 2e4, 3e4, 4e4), strict=True):
        state["norm.running_var"] = torch.full((4,), variance)
    lie = {**model(5, scale=100.0), "norm.running_var": torch.full((4,), 2e4)}
    found = judge(mine, {**others, 4: lie}, FAR, parameters=PARAMETERS)
    assert list(found.refused) == [4] and "its parameters" in found.refused[4]


def test_rounding_is_no_lie() -> None:
    mine = {"a.weight": torch.full((4,), 100.0)}
    near = {"a.weight": mine["a.weight"] + 1e-5}
    assert judge(mine, {1: dict(mine), 2: dict(mine), 3: near}, FAR, parameters=PARAMETERS).refused == {}


def test_who_points_elsewhere_is_refused() -> None:
    mine, limits = model(1), ChecksConfig(min_cosine=0.2)
    near = {name: tensor + 0.1 for name, tensor in mine.items()}
    flipped = {name: -tensor for name, tensor in mine.items()}
    found = judge(mine, {1: near, 2: flipped, 3: model(9)}, limits, parameters=PARAMETERS)
    assert list(found.refused) == [2, 3]
    assert "the cosine of its parameters to mine is -1.00" in found.refused[2]


def test_zeros_judge_nobody_and_point_nowhere() -> None:
    limits = ChecksConfig(min_cosine=0.1)
    assert judge(ORIGIN, at(1.0), limits, parameters=PARAMETERS).refused == {}
    assert list(judge(at(1.0)[1], {1: ORIGIN}, limits, parameters=PARAMETERS).refused) == [1]


@settings(max_examples=200, deadline=None)
@given(
    honest=st.lists(st.floats(1.0, 3.0), min_size=1, max_size=8),
    lies=st.lists(st.one_of(st.floats(0.0, 0.01), st.floats(9.1, 1e12)), max_size=7),
    ratio=st.floats(3.0, 3.03),
)
def test_liars_that_are_fewer_than_half_get_nobody_refused_and_none_that_is_far_gets_in(
    honest: list[float], lies: list[float], ratio: float
) -> None:
    """Honest distances differ by three times at most; a lie is far above or far below them."""
    lies = lies[: (len(honest) - 1)]
    found = verdict(*honest, *lies, limits=ChecksConfig(max_norm_ratio=ratio)).refused
    far = {peer for peer, lie in enumerate(lies, start=len(honest) + 1) if lie > 1}
    assert set(found) == far


@settings(max_examples=100, deadline=None)
@given(
    distances=st.lists(st.floats(0.0, 100.0, width=32), min_size=1, max_size=9),
    past=st.lists(st.floats(0.1, 9.0), max_size=5),
)
def test_the_verdict_is_the_plain_rule_and_knows_no_order(distances: list[float], past: list[float]) -> None:
    usual = {"parameters": tuple(past)}
    found = verdict(*distances, usual=usual)
    typical = statistics.median_low(distances + past)
    expected = {peer for peer, apart in enumerate(distances, start=1) if apart > 3 * typical}
    assert set(found.refused) == expected
    turned = judge(ORIGIN, dict(reversed(at(*distances).items())), FAR, parameters=PARAMETERS, usual=usual)
    assert turned == found


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("merge.checks.max_norm_ratio=0.5", "merge.checks.max_norm_ratio"),
        ("merge.checks.min_cosine=1", "merge.checks.min_cosine"),
        ("merge.checks.min_cosin=0", "Did you mean 'merge.checks.min_cosine'"),
        ("merge.gate.margin=-0.1", "merge.gate.margin"),
        ("merge.check.min_cosine=0", "Did you mean 'merge.checks'"),
    ],
)
def test_limits_that_cannot_be_are_refused(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, [setting])
