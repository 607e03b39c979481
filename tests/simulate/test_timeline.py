"""The virtual clock: durations against a recurrence written by hand, deadlines, staleness, the bits of no clock."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import ConfigError
from dimat.messages import Report
from dimat.report import load_record
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.simulate.network import Conditions
from dimat.tasks.digits import DigitsTask
from dimat.topology import load_topology

SMALL = [
    "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=2", "train.batch_size=64", "agents=5", "rounds=4",
    "init=same", "merge.align=none", "task.partition.scheme=iid",
]  # fmt: skip
CLOCK = ["simulation.latency_s=0.25", "simulation.bandwidth_bytes_per_s=1000", "simulation.compute_s_per_sample=0.01"]
BYTES = 4 * (64 * 8 + 8 + 8 * 10 + 10)
TRANSFER_S = 0.25 + BYTES / 1000


def small(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def run(config: RunConfig, folder: Path) -> Path:
    simulate(config, prepare(config, folder))
    return folder


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def samples(folder: Path, agent: int) -> int:
    with Store.open(folder, read_only=True) as store:
        return store.stored_members()[agent].join.num_samples


def bits(folder: Path) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / "4.safetensors").read_bytes() for a in range(5)]


def times(folder: Path) -> dict[tuple[int, int], float]:
    """When each agent had done each round, in virtual seconds."""
    lines = [line for path in (folder / "metrics").iterdir() for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return {(row["agent"], row["round"]): row["time"] for row in rows}


def expected_times(trains_s: Mapping[int, float], transfer_s: float, num_rounds: int) -> dict[tuple[int, int], float]:
    """The oracle for a ring in step: publish, wait for the neighbours, fetch, wait until they have fetched."""
    n = len(trains_s)
    sides = {agent: ((agent - 1) % n, (agent + 1) % n) for agent in range(n)}
    start = dict.fromkeys(range(n), 0.0)
    ends: dict[tuple[int, int], float] = {}
    for number in range(1, num_rounds + 1):
        published = {agent: start[agent] + trains_s[agent] for agent in range(n)}
        waited = {a: max(published[a], *(published[b] for b in sides[a])) for a in range(n)}
        fetched = {agent: waited[agent] + transfer_s for agent in range(n)}
        start = {a: max(fetched[a], *(fetched[b] for b in sides[a])) for a in range(n)}
        ends |= {(agent, number): start[agent] for agent in range(n)}
    return ends


@cache
def trains_s(factors: tuple[float, ...] = (1, 1, 1, 1, 1)) -> dict[int, float]:
    """What two epochs of the shards of these runs last."""
    from dimat.agent.build import build_task

    task, found = build_task(small()), {}
    for agent, factor in enumerate(factors):
        task.data(agent, 5, 0)
        found[agent] = 2 * task.num_samples * 0.01 * factor
    return found


def test_a_round_of_equals_lasts_training_and_one_transfer(tmp_path: Path) -> None:
    folder = run(small(*CLOCK), tmp_path / "run")
    spread = set(trains_s().values())
    assert max(spread) - min(spread) < 0.05, "shards differ by a sample or two"
    for (agent, number), time_s in times(folder).items():
        assert time_s == pytest.approx(number * (trains_s()[agent] + TRANSFER_S), abs=0.05 * number)
    assert times(folder) == pytest.approx(expected_times(trains_s(), TRANSFER_S, 4))
    for report in reports(folder).values():
        assert report.seconds["train"] == pytest.approx(trains_s()[report.agent])
        assert report.seconds["gather"] == pytest.approx(TRANSFER_S)
        assert all(report.seconds[phase] == 0 for phase in ("evaluate", "fold", "publish", "checkpoint"))
    assert load_record(folder).seconds == pytest.approx(max(times(folder).values()))


def test_the_clock_changes_no_bit_of_a_run_in_step(tmp_path: Path) -> None:
    plain = run(small("init=different", "merge.align=weights"), tmp_path / "plain")
    timed = run(
        small("init=different", "merge.align=weights", *CLOCK, "simulation.stragglers={2: 7}"), tmp_path / "timed"
    )
    assert bits(timed) == bits(plain)


def test_in_step_everybody_waits_for_the_straggler(tmp_path: Path) -> None:
    factors = (1, 1, 4, 1, 1.5)
    folder = run(small(*CLOCK, "simulation.stragglers={2: 4, 4: 1.5}"), tmp_path / "run")
    assert times(folder) == pytest.approx(expected_times(trains_s(factors), TRANSFER_S, 4))
    told = reports(folder)
    assert told[1, 1].seconds["wait"] == pytest.approx(trains_s(factors)[2] - trains_s(factors)[1])
    assert told[0, 1].seconds["wait"] > 0, "its neighbour 1 confirms late, because it waited for agent 2"
    assert not any(report.missing for report in told.values())


def test_out_of_step_nobody_waits_and_the_straggler_is_stale(tmp_path: Path) -> None:
    config = small(*CLOCK, "simulation.stragglers={2: 4}", "exchange.mode=async", "rounds=8")
    folder = run(config, tmp_path / "run")
    told, when = reports(folder), times(folder)
    for agent in (0, 1, 3, 4):
        pace_s = trains_s()[agent] + TRANSFER_S
        assert [when[agent, number] for number in (2, 5, 8)] == pytest.approx([2 * pace_s, 5 * pace_s, 8 * pace_s])
    pace_s = 4 * trains_s()[2] + TRANSFER_S
    assert when[2, 2] == pytest.approx(2 * pace_s)
    # The newest of agent 2 when its neighbour 1 fetches in a round: known from when it published.
    row = load_topology("ring", 5).weights(1)
    for number in range(4, 9):
        asked_s = when[1, number] - TRANSFER_S
        newest = sum(when[2, earlier] - TRANSFER_S <= asked_s for earlier in range(1, 9))
        weight = told[1, number].weights[2]
        assert weight == pytest.approx(row[2] * (1 + number - newest) ** -0.5), number


def test_a_run_is_the_same_each_time_and_jitter_comes_from_the_seed(tmp_path: Path) -> None:
    settings = [*CLOCK, "simulation.jitter=0.3", "exchange.mode=async"]
    one, two, other = (
        run(small(*settings, f"seed={seed}"), tmp_path / name) for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert bits(one) == bits(two)
    assert times(one) == times(two)
    assert {key: report.seconds for key, report in reports(one).items()} == {
        key: report.seconds for key, report in reports(two).items()
    }
    assert times(one) != times(other)
    for (agent, _), report in reports(one).items():
        assert 0.7 <= report.seconds["train"] / trains_s()[agent] <= 1.3


def test_deadlines_strike_in_virtual_time(tmp_path: Path) -> None:
    limits = ["exchange.timeout_s=20", "exchange.deadline=fixed", "rounds=2"]
    quick = ["simulation.bandwidth_bytes_per_s=10000", "simulation.stragglers={2: 100}"]
    folder = run(small(*CLOCK, *quick, *limits), tmp_path / "run")
    told = reports(folder)
    assert told[1, 1].seconds["wait"] == pytest.approx(20.0)
    assert "had not published round 1 after 20 s" in told[1, 1].missing[2]
    assert not told[0, 1].missing, "its neighbour came late, but in time"
    assert times(folder)[1, 2] < times(folder)[2, 1]


def test_deadlines_follow_the_waits_of_the_clock(tmp_path: Path) -> None:
    """A neighbour that is five times as slow is waited for; once it is known, one that stands still is not for long."""
    fault = "faults=[{do: stall, seconds: 500, at: {agent: 2, round: 8, phase: train}}]"
    settings = ["exchange.timeout_s=300", "exchange.min_timeout_s=1", "rounds=9", fault]
    told = reports(run(small(*CLOCK, *settings), tmp_path / "run"))
    assert not told[1, 7].missing
    assert 2 in told[1, 8].missing
    assert told[1, 8].seconds["wait"] < 10, "median and four deviations of the waits before, not 300 s"


def test_a_transfer_that_outlasts_its_deadline_does_not_come(tmp_path: Path) -> None:
    settings = ["exchange.timeout_s=2", "rounds=1", "exchange.mode=async", "exchange.deadline=fixed"]
    folder = run(small(*CLOCK, *settings, "simulation.bandwidth_bytes_per_s=100"), tmp_path / "run")
    told = reports(folder).values()
    assert all(set(report.weights) == {report.agent} for report in told)
    assert all(report.seconds["gather"] in (0.0, pytest.approx(2.0)) for report in told)
    reasons = [reason for report in told for reason in report.missing.values()]
    late = [reason for reason in reasons if "was not read before the deadline of 2 s" in reason]
    assert len(late) >= 3, "the others asked before a neighbour had published anything"
    assert all("it has published no 'snapshot' yet" in reason for reason in reasons if reason not in late)


def test_a_directed_graph_waits_for_its_readers_in_time(tmp_path: Path) -> None:
    """Agent a reads a+1, a+2 and a+4: the slow agent is read by all others, directly or in two steps."""
    folder = run(small(*CLOCK, "topology.graph=exponential", "simulation.stragglers={2: 3}"), tmp_path / "run")
    assert not any(report.missing for report in reports(folder).values())
    slow_s = trains_s()[2] * 3
    for agent in range(5):
        assert times(folder)[agent, 4] >= 3 * slow_s, "nobody is more than a round ahead of whom it reads"
    assert times(folder)[2, 4] == pytest.approx(4 * (slow_s + TRANSFER_S)), "and whoever is slowest waits for nobody"


def test_a_killed_agent_costs_its_neighbours_a_deadline_and_then_nothing(tmp_path: Path) -> None:
    fault = "faults=[{do: kill, at: {agent: 2, round: 2, phase: train}}]"
    settings = ["exchange.timeout_s=40", "exchange.deadline=fixed", fault]
    told = reports(run(small(*CLOCK, *settings), tmp_path / "run"))
    assert max(number for agent, number in told if agent == 2) == 1
    assert told[1, 2].seconds["wait"] == pytest.approx(40.0)
    assert told[1, 4].seconds["wait"] < 1.0
    assert told[1, 4].weights.keys() == {0, 1, 3}, "the ring is closed over the gap"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorised_agents_keep_the_same_time(tmp_path: Path, mode: str) -> None:
    settings = [*CLOCK, "simulation.stragglers={1: 2.5}", f"exchange.mode={mode}"]
    plain = run(small(*settings), tmp_path / "plain")
    together = run(small(*settings, "simulation.vectorise=on"), tmp_path / "together")
    assert times(together) == times(plain)
    for key, report in reports(plain).items():
        assert reports(together)[key].metrics["loss"] == pytest.approx(report.metrics["loss"], rel=1e-3)


def test_an_algorithm_that_exchanges_at_every_step_pays_for_every_transfer(tmp_path: Path) -> None:
    settings = ["algorithm=dsgd", "algorithm.steps=3", "rounds=2", "train.batch_size=50"]
    small_ones = [one for one in SMALL if not one.startswith("merge.")]
    folder = run(load_config(None, [*small_ones, *CLOCK, *settings]), tmp_path / "run")
    for (agent, number), time_s in times(folder).items():
        assert time_s == pytest.approx(3 * number * (50 * 0.01 + TRANSFER_S)), agent
    for report in reports(folder).values():
        assert report.seconds["train"] == pytest.approx(1.5)
        assert report.seconds["gather"] == pytest.approx(3 * TRANSFER_S)


def test_a_run_that_is_continued_goes_on_in_time(tmp_path: Path) -> None:
    whole = run(small(*CLOCK), tmp_path / "whole")
    folder = run(small(*CLOCK), tmp_path / "halves")
    for agent in range(5):
        for ending in ("json", "safetensors"):
            (folder / "checkpoints" / str(agent) / f"4.{ending}").unlink()
    run(small(*CLOCK), folder)
    assert bits(folder) == bits(whole)
    assert min(times(folder)[agent, 4] for agent in range(5)) > max(times(whole).values())


@pytest.mark.parametrize(("sharing", "seconds"), [("link", (1.25, 2.25)), ("reader", (3.25, 3.25))])
def test_a_link_is_ones_own_or_the_reader_shares_it_out(sharing: str, seconds: tuple[float, float]) -> None:
    config = small(*CLOCK, f"simulation.bandwidth_of={sharing}")
    lasts = Conditions(config.simulation, 0).transfers_ns(0, 0, {1: 1000, 4: 2000})
    assert (lasts[1] / 1e9, lasts[4] / 1e9) == seconds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["simulation.jitter=0.1"], "jitter has no meaning without"),
        (["simulation.latency_s=1", "simulation.stragglers={1: 2}"], "stragglers have no meaning without"),
        ([*CLOCK, "simulation.stragglers={7: 2}"], "names agent 7; the run has agents 0 to 4"),
        (["simulation.vectorise=maybe"], "expected 'off', 'auto' or 'on'"),
        (["simulation.bandwidth=1"], "bandwidth_bytes_per_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small(*settings)
    assert words in str(refused.value)


class Silent:
    """A task that does not say how many samples it has; the rest is that of another one."""

    def __init__(self, **options: Any) -> None:
        self._task = DigitsTask(**options)

    def model(self) -> Any:
        return self._task.model()

    def data(self, agent: int, num_agents: int, seed: int) -> Any:
        return self._task.data(agent, num_agents, seed)

    def loss(self, model: Any, batch: Any) -> Any:
        return self._task.loss(model, batch)

    def evaluate(self, model: Any) -> dict[str, float]:
        return self._task.evaluate(model)

    def probe(self) -> Any:
        return self._task.probe()


def test_a_task_that_does_not_tell_its_size_cannot_be_timed_by_samples(tmp_path: Path) -> None:
    silent = f"task.name={__file__}:Silent"
    with pytest.raises(ConfigError, match="Silent has no num_samples"):
        run(small(silent, *CLOCK), tmp_path / "timed")
    folder = run(small(silent, "rounds=1", "simulation.latency_s=0.25"), tmp_path / "latency")
    assert set(times(folder).values()) == {0.25}


def test_turns_and_a_clock_exclude_each_other(tmp_path: Path) -> None:
    config = small(*CLOCK)
    with pytest.raises(ConfigError, match=r"simulation\.stragglers"):
        simulate(config, prepare(config, tmp_path / "run"), pace={1: 2})
    assert small("simulation.vectorise=off").simulation.vectorise == "off", "YAML takes off for false"
