from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import TaskError
from dimat.tasks.partition import SCHEMES, Partition, balanced_subset, deal, stratified_split


@st.composite
def dealings(draw: st.DrawFn) -> tuple[np.ndarray, int, Partition, int, np.ndarray]:
    """Labels, agents, a partition that fits them, a seed, and a column with at least as many values as agents."""
    num_agents = draw(st.integers(1, 8))
    num_classes = draw(st.integers(1, 6))
    size = draw(st.integers(num_agents * num_classes * 2, 120))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Each class has enough members for every agent, so that `classes` can always share it.
    labels = random.permutation(
        np.r_[np.repeat(np.arange(num_classes), num_agents), random.integers(0, num_classes, size)]
    )
    column = random.permutation(np.r_[np.arange(num_agents), random.integers(0, 12, len(labels) - num_agents)])
    scheme = draw(st.sampled_from(SCHEMES))
    alpha = draw(st.sampled_from([1e-3, 0.1, 0.5, 100.0]))
    return labels, num_agents, Partition(scheme, alpha=alpha, column="who"), draw(st.integers(0, 2**31)), column


@given(dealings())
@settings(max_examples=150, deadline=None)
def test_every_scheme_deals_each_sample_once_and_leaves_nobody_empty(dealing) -> None:
    labels, num_agents, partition, seed, column = dealing
    shards = deal(labels, num_agents, partition, seed, column)
    assert len(shards) == num_agents
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert min(map(len, shards)) >= 1
    again = deal(labels, num_agents, partition, seed, column)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


@given(dealings())
@settings(max_examples=50, deadline=None)
def test_iid_shards_differ_by_at_most_one_in_each_class_and_in_total(dealing) -> None:
    labels, num_agents, _, seed, _ = dealing
    shards = deal(labels, num_agents, Partition("iid"), seed)
    for counts in ([len(s) for s in shards], *([int((labels[s] == c).sum()) for s in shards] for c in set(labels))):
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "classes"])
def test_another_seed_deals_otherwise(scheme) -> None:
    labels = np.arange(600) % 3
    first, second = (deal(labels, 5, Partition(scheme), seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_classes_go_whole_to_agent_c_mod_n() -> None:
    labels = np.arange(100) % 10
    shards = deal(labels, 4, Partition("classes"), seed=0)
    assert [sorted(set(labels[s])) for s in shards] == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


def test_more_agents_than_classes_share_a_class_in_equal_parts() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    shards = deal(labels, 7, Partition("classes"), seed=0)
    assert [sorted(set(labels[s])) for s in shards] == [[0], [1], [2], [0], [1], [2], [0]]
    assert [len(s) for s in shards] == [4, 10, 15, 3, 10, 15, 3]
    with pytest.raises(TaskError, match="class 0 has 1 samples for 2 agents"):
        deal(np.array([0, 1, 1, 1]), 3, Partition("classes"), seed=0)


def test_classes_without_samples_leave_no_agent_empty() -> None:
    labels = np.repeat([1, 5, 9], 4)  # all of them 1 mod 4
    assert [sorted(set(labels[s])) for s in deal(labels, 3, Partition("classes"), seed=0)] == [[1], [5], [9]]


def test_small_alpha_is_more_skewed_than_large() -> None:
    labels = np.arange(5000) % 10

    def largest_share(alpha: float) -> float:
        shards = deal(labels, 5, Partition("dirichlet", alpha=alpha), seed=3)
        return float(np.mean([max(Counter(labels[s].tolist()).values()) / len(s) for s in shards]))

    assert largest_share(0.1) > 0.35 > 0.2 > largest_share(1000.0) > 0.1


def test_dirichlet_keeps_the_minimum_where_there_are_enough_samples() -> None:
    labels = np.zeros(40, int)
    for seed in range(20):
        assert min(map(len, deal(labels, 10, Partition("dirichlet", alpha=0.01), seed))) >= 2
        assert min(map(len, deal(labels, 10, Partition("dirichlet", alpha=0.01, min_samples=4), seed))) == 4
        assert min(map(len, deal(labels, 40, Partition("dirichlet", alpha=0.01), seed))) == 1


def test_column_keeps_each_value_together_and_balances_the_agents() -> None:
    people = np.repeat(["ann", "bob", "cat", "dan", "eve"], [50, 40, 30, 20, 10])
    shards = deal(np.zeros(150, int), 3, Partition("column", column="who"), 0, people)
    assert [sorted(set(people[s])) for s in shards] == [["ann"], ["bob", "eve"], ["cat", "dan"]]


def test_column_with_fewer_values_than_agents_or_another_length_is_refused() -> None:
    partition = Partition("column", column="who")
    with pytest.raises(TaskError, match="3 agents share the 2 values of who"):
        deal(np.zeros(4, int), 3, partition, 0, np.array([1, 1, 2, 2]))
    with pytest.raises(TaskError, match="one value per sample"):
        deal(np.zeros(4, int), 2, partition, 0, np.array([1, 2]))
    with pytest.raises(TaskError, match="NaN"):
        deal(np.zeros(2, int), 2, partition, 0, np.array([1.0, np.nan]))
    with pytest.raises(TaskError, match="no array 'who'"):
        deal(np.zeros(2, int), 2, partition, 0)


def test_more_agents_than_samples_are_refused() -> None:
    for scheme in ("iid", "dirichlet", "classes"):
        with pytest.raises(TaskError, match="7 agents share 6 training samples"):
            deal(np.zeros(6, int), 7, Partition(scheme), seed=0)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("dirichelt", "Did you mean 'dirichlet'"),
        ({"scheme": "dirichlet", "alfa": 1}, "Did you mean 'alpha'"),
        ({"scheme": "dirichlet", "alpha": 0}, "alpha is a positive number"),
        ({"scheme": "dirichlet", "alpha": float("nan")}, "alpha is a positive number"),
        ({"scheme": "dirichlet", "min_samples": 0}, "min_samples"),
        ({"scheme": "column"}, "needs the name of an array"),
        (["iid"], "a scheme or a mapping"),
    ],
)
def test_a_wrong_partition_says_what_is_expected(given_, message) -> None:
    with pytest.raises(TaskError, match=message):
        Partition.parse(given_)


def test_options_of_another_scheme_do_not_disturb() -> None:
    labels = np.arange(30) % 3
    plain, with_alpha = (
        deal(labels, 3, p, 0) for p in (Partition("iid"), Partition.parse({"scheme": "iid", "alpha": 9}))
    )
    assert all(np.array_equal(a, b) for a, b in zip(plain, with_alpha, strict=True))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_a_balanced_subset_takes_from_a_class_only_what_others_lack(labels, size) -> None:
    labels = np.array(labels)
    chosen = balanced_subset(labels, size)
    assert len(set(chosen.tolist())) == len(chosen) == min(size, len(labels))
    available, taken = Counter(labels.tolist()), Counter(labels[chosen].tolist())
    most = max(taken.values())
    assert all(taken[c] >= min(most - 1, available[c]) for c in available)


def test_a_stratified_split_takes_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 100, 5])
    train, test = stratified_split(labels, 0.2)
    assert sorted([*train, *test]) == list(range(155))
    assert np.bincount(labels[test]).tolist() == [10, 20, 1]
