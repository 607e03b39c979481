"""Schedules of merges: their rounds by hand, what holds for all of them, and how far agents drift apart between two."""

from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.config import load_config
from dimat.errors import ConfigError, PluginError
from dimat.schedules import Schedule, make_schedule


@pytest.mark.parametrize(
    ("name", "options", "rounds", "expected"),
    [
        ("period", {}, 4, [1, 2, 3, 4]),
        ("period", {"every": 3}, 10, [3, 6, 9]),
        ("period", {"every": 11}, 10, []),
        ("growing", {}, 20, [1, 3, 7, 15]),
        ("growing", {"first": 2, "factor": 1.5}, 20, [2, 5, 10, 17]),  # gaps 2, 3, 4.5 -> 5, 6.75 -> 7
        ("shrinking", {}, 18, [8, 12, 14, 15, 16, 17, 18]),
        ("shrinking", {"first": 9, "factor": 0.34}, 18, [9, 13, 15, 16, 17, 18]),  # 9, 3.06 -> 4, 1.04 -> 2, then 1
        ("late", {"budget": 1}, 7, [7]),
        ("late", {"budget": 3}, 20, [18, 19, 20]),
        ("late", {"budget": 3, "window": 10}, 20, [14, 17, 20]),
        ("late", {"budget": 4, "window": 20}, 20, [5, 10, 15, 20]),
    ],
)
def test_the_rounds_by_hand(name: str, options: dict[str, float], rounds: int, expected: list[int]) -> None:
    assert list(make_schedule(name, options, rounds).merging) == expected


@given(st.data())
def test_a_budget_is_what_is_spent_evenly_and_to_the_end(data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, 200))
    window = data.draw(st.integers(1, rounds))
    budget = data.draw(st.integers(1, window))
    merging = make_schedule("late", {"budget": budget, "window": window}, rounds).merging
    assert len(merging) == budget
    assert merging[-1] == rounds and merging[0] > rounds - window
    gaps = [later - earlier for earlier, later in pairwise(merging)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(1, 40), st.floats(1.01, 4), st.integers(1, 400))
def test_gaps_grow_and_their_mirror_shrinks(first: int, factor: float, rounds: int) -> None:
    for name, by, grows in (("growing", factor, True), ("shrinking", 1 / factor, False)):
        meetings = [0, *make_schedule(name, {"first": first, "factor": by}, rounds).merging]
        gaps = [later - earlier for earlier, later in pairwise(meetings)]
        assert gaps == sorted(gaps, reverse=not grows)
        assert not gaps or gaps[0] == first


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_final_merge_comes_on_top(every: int, rounds: int) -> None:
    plain = set(make_schedule("period", {"every": every}, rounds).merging)
    assert set(make_schedule("period", {"every": every}, rounds, final=True).merging) == plain | {rounds}


def furthest(schedule: Schedule, num_agents: int) -> list[int]:
    """Agents on a path take rounds in any order that their waits allow: the largest lead by hops, over all of them.

    An agent finishes a round that merges only when its neighbours have published in it, which they do before they
    finish it: when they have finished the one before.
    """
    start = (0,) * num_agents
    seen, todo, lead = {start}, deque([start]), [0] * num_agents
    while todo:
        done = todo.popleft()
        for i in range(num_agents):
            for hops in range(1, num_agents):
                for j in (i - hops, i + hops):
                    if 0 <= j < num_agents:
                        lead[hops] = max(lead[hops], done[i] - done[j])
            round = done[i] + 1
            neighbours = [j for j in (i - 1, i + 1) if 0 <= j < num_agents]
            waits = schedule.merges(round) and any(done[j] < round - 1 for j in neighbours)
            if round <= schedule.rounds and not waits:
                after = (*done[:i], round, *done[i + 1 :])
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
    return lead


@given(st.sets(st.integers(1, 7)), st.integers(2, 4))
def test_the_lead_is_what_agents_that_wait_in_merges_alone_can_have(merging: set[int], num_agents: int) -> None:
    schedule = Schedule(7, tuple(sorted(merging)))
    found = furthest(schedule, num_agents)
    for hops in range(1, num_agents):
        assert found[hops] <= schedule.lead(hops) <= found[hops] + 1


@given(st.integers(1, 6), st.integers(1, 5), st.integers(40, 60))
def test_with_a_period_it_is_the_hops_times_the_period(every: int, hops: int, rounds: int) -> None:
    assert make_schedule("period", {"every": every}, rounds).lead(hops) == hops * every


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["merge.schedule=lte"], "unknown merge schedule 'lte'. Did you mean 'late'"),
        (["merge.schedule=late", "merge.schedule.buget=3"], "has no option 'buget'. Did you mean 'budget'"),
        (["merge.schedule=late"], "missing 1 required keyword-only argument: 'budget'"),
        (["merge.schedule={name: late, budget: 30}"], "budget <= window <= rounds"),
        (["merge.schedule={name: growing, factor: 0.5}"], "gaps are to grow"),
        (["merge.schedule={name: shrinking, first: 2.5}"], "expected a whole number"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(settings: list[str], message: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=message):
        load_config(None, settings).merge_schedule()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["merge.schedule={name: late, budget: 3}", "merge.every=2"], "take one or the other"),
        (["merge.schedule={name: period, every: 3}"], "its length is merge.every"),
        (["merge.schedule={name: late, budget: 3}", "algorithm=dsgd"], "merge.schedule belongs to algorithm 'merge'"),
    ],
)
def test_what_does_not_go_together(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_a_function_of_ones_own_in_a_file_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def twice(round, rounds, *, at):\n    return round in (at, rounds)\n"
        "def vague(round, rounds):\n    return round\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["merge.schedule=mine.py:twice", "merge.schedule.at=4", "rounds=9"])
    assert config.merge_schedule().merging == (4, 9)
    assert str(tmp_path) in config.merge.schedule.name, "agents may stand in another folder"
    with pytest.raises(PluginError, match="answered 1 for round 1, expected True or False"):
        load_config(None, ["merge.schedule=mine.py:vague"]).merge_schedule()
