"""Merging without waiting: what is merged with, how much it weighs, and that nobody waits for the slow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.agent.newest import discounted_row
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import ConfigError, Interrupted
from dimat.messages import Report, View
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.topology import load_topology

SMALL = [
    "task.model.name=mlp", "task.model.hidden=[16]", "train.epochs=1", "train.batch_size=64", "agents=4", "rounds=12",
    "exchange.mode=async", "merge.calibrate=none", "init=same",
]  # fmt: skip
SLOW = 1
PACE = {SLOW: 4}


def small(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def run(config: RunConfig, folder: Path, on_view: Callable[[View], None] | None = None) -> Path:
    simulate(config, prepare(config, folder), on_view, PACE)
    return folder


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def bits(folder: Path) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / "12.safetensors").read_bytes() for a in range(4)]


def test_the_same_turns_end_with_the_same_bits(tmp_path: Path) -> None:
    one, two = run(small(), tmp_path / "one"), run(small(), tmp_path / "two")
    assert bits(one) == bits(two)


def test_nobody_waits_for_the_slow_one(tmp_path: Path) -> None:
    """The others are through while it is in its third of twelve rounds; then it goes on alone."""
    seen: list[tuple[int, ...]] = []
    run(small(), tmp_path / "run", lambda view: seen.append(tuple(member.round for member in view.members)))
    assert any(rounds[0] == rounds[2] == rounds[3] == 12 and rounds[SLOW] <= 3 for rounds in seen)
    assert seen[-1] == (12, 12, 12, 12)


def test_each_merges_with_the_newest_there_is_discounted_by_its_age(tmp_path: Path) -> None:
    """The oracle: the weight tells the age, and sketches, being linear, tell which snapshot it was."""
    told = reports(run(small("exchange.max_staleness=100", "exchange.staleness_power=1"), tmp_path / "run"))
    matrix = load_topology("ring", 4).matrix()
    ages = set()
    for agent in (0, 2, 3):
        for number in range(2, 13):
            report = told[agent, number]
            assert sum(report.weights.values()) == pytest.approx(1.0)
            expected = np.zeros(4096)
            for peer, weight in report.weights.items():
                age = 0 if peer == agent else round(matrix[agent, peer] / weight) - 1
                ages.add((peer == SLOW, age))
                # Lower ids have had their turn already: they are one round ahead, which counts as no age.
                ahead = peer < agent and peer != SLOW and number < 12
                expected += weight * np.frombuffer(told[peer, number - age + ahead].sketch_before, "<f4").astype(float)
            np.testing.assert_allclose(np.frombuffer(report.sketch_after, "<f4"), expected, atol=1e-4)
    assert {age for slow, age in ages if not slow} == {0}
    assert max(age for slow, age in ages if slow) >= 8


def test_newer_snapshots_count_in_full_and_are_there_to_the_end(tmp_path: Path) -> None:
    told = reports(run(small(), tmp_path / "run"))
    for number in range(2, 13):
        assert told[SLOW, number].weights == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
        assert not told[SLOW, number].missing


def test_what_is_too_old_is_left_out_and_said_so(tmp_path: Path) -> None:
    told = reports(run(small("exchange.max_staleness=3"), tmp_path / "run"))
    assert SLOW in told[0, 4].weights
    assert told[0, 12].weights == pytest.approx({0: 2 / 3, 3: 1 / 3})
    assert "rounds old in round 12; exchange.max_staleness is 3" in told[0, 12].missing[SLOW]
    assert SLOW not in told[3, 12].missing, "who does not read it does not miss it"


def test_a_run_that_was_stopped_goes_on_from_each_agents_own_newest_round(tmp_path: Path) -> None:
    """The slow agent's newest checkpoint is long gone elsewhere: there is no round that all of them hold."""

    def stop(view: View) -> None:
        if view.members[0].round >= 9:
            raise Interrupted("enough")

    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(small(), folder, stop)
    before = {agent: (folder / "metrics" / f"{agent}.jsonl").read_text() for agent in range(4)}
    assert before[0].count("\n") == 9
    assert before[SLOW].count("\n") == 1
    run(small(), folder)
    for agent in range(4):
        lines = (folder / "metrics" / f"{agent}.jsonl").read_text()
        assert lines.startswith(before[agent]), "nothing is done again"
        assert lines.count("\n") == 12
    told = reports(folder)
    assert sorted(told) == [(agent, number) for agent in range(4) for number in range(1, 13)]
    assert told[0, 5].metrics["accuracy"] > 0


@pytest.mark.parametrize(
    "settings", [["merge.basis=adopt"], ["merge.basis=each_round"], ["topology.graph=exponential"]]
)
def test_every_policy_of_basis_and_directed_graphs_carry_it(tmp_path: Path, settings: list[str]) -> None:
    told = reports(run(small("rounds=4", "init=different", *settings), tmp_path / "run"))
    assert len(told) == 16
    assert all(len(told[agent, 4].weights) > 1 for agent in range(4))


def test_a_merge_over_all_at_one_moment_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no such moment"):
        small("merge.final=complete")


ages = st.dictionaries(st.integers(1, 5), st.integers(0, 30), max_size=5)


@given(ages, st.floats(0.0, 4.0), st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6))
def test_a_discounted_row_is_a_row_and_never_gives_a_neighbour_more(
    staleness: dict[int, int], power: float, parts: list[float]
) -> None:
    row = {peer: part / sum(parts) for peer, part in enumerate(parts)}
    used = discounted_row(0, row, staleness, power)
    assert list(used) == sorted({0, *staleness})
    assert sum(used.values()) == pytest.approx(1.0)
    assert all(0 <= used[peer] <= row[peer] for peer in staleness)
    assert used[0] >= row[0] - 1e-12
    assert all(used[peer] == row[peer] for peer, age in staleness.items() if age == 0)
