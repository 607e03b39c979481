"""`exchange.overlap` in simulation: the clock against a recurrence written by hand, turns, and the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dimat.config import RunConfig, SimulationConfig, load_config
from dimat.coordinator import Store
from dimat.messages import Header, Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.simulate.network import Conditions
from dimat.simulate.timeline import Timeline
from dimat.snapshot.encode import encode
from dimat.topology import load_topology
from dimat.transport.base import Buffer, Fetch, Wait
from dimat.transport.memory import MemoryHub, MemoryTransport

ROUNDS, AGENTS = 6, 5
SMALL = [
    "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=2", "train.batch_size=64", f"agents={AGENTS}",
    f"rounds={ROUNDS}", "init=same", "merge.align=none", "task.partition.scheme=iid", "exchange.mode=async",
    "exchange.overlap=true",
]  # fmt: skip
BYTES = 4 * (64 * 8 + 8 + 8 * 10 + 10)
LATENCY_S = 0.25
PACES = {0: 1.0, 1: 1.1, 2: 2.3, 3: 1.7, 4: 1.3}
"""No two agents publish at the same moment."""


def small(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def clock(bandwidth: float) -> list[str]:
    slow = ", ".join(f"{agent}: {pace}" for agent, pace in PACES.items())
    return [
        f"simulation.latency_s={LATENCY_S}", f"simulation.bandwidth_bytes_per_s={bandwidth}",
        "simulation.compute_s_per_sample=0.01", f"simulation.stragglers={{{slow}}}",
    ]  # fmt: skip


def run(config: RunConfig, folder: Path) -> Path:
    simulate(config, prepare(config, folder))
    return folder


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def bits(folder: Path) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / f"{ROUNDS}.safetensors").read_bytes() for a in range(AGENTS)]


def times(folder: Path) -> dict[tuple[int, int], float]:
    """When each agent had done each round, in virtual seconds."""
    rows = [json.loads(line) for path in (folder / "metrics").iterdir() for line in path.read_text().splitlines()]
    return {(row["agent"], row["round"]): row["time"] for row in rows}


@cache
def trains_s() -> dict[int, float]:
    from dimat.agent.build import build_task

    task, found = build_task(small()), {}
    for agent in range(AGENTS):
        task.data(agent, AGENTS, 0)
        found[agent] = 2 * task.num_samples * 0.01 * PACES[agent]
    return found


def expected(bandwidth: float) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], dict[int, int]]]:
    """The oracle: when each round ends, and which round of each neighbour it merges with.

    A round begins to read when it begins to train, and ends when it has done both. What it reads is what its neighbour
    had published by then; what it has read before costs the latency alone.
    """
    begun = dict.fromkeys(range(AGENTS), 0.0)
    published: dict[int, list[float]] = {agent: [] for agent in range(AGENTS)}
    held: dict[tuple[int, int], int] = {}
    ends: dict[tuple[int, int], float] = {}
    merged: dict[tuple[int, int], dict[int, int]] = {}
    for _ in range(ROUNDS * AGENTS):
        # Whoever begins first is done first: all that others had published by then is known.
        agent = min((a for a in begun if len(published[a]) < ROUNDS), key=lambda a: begun[a])
        start_s = begun[agent]
        lasts_s, read = [0.0], {}
        for peer in ((agent - 1) % AGENTS, (agent + 1) % AGENTS):
            newest = sum(time_s <= start_s for time_s in published[peer])
            if newest:
                read[peer] = newest
                lasts_s.append(LATENCY_S + (BYTES / bandwidth if held.get((agent, peer)) != newest else 0.0))
                held[agent, peer] = newest
        published[agent].append(start_s + trains_s()[agent])
        number = len(published[agent])
        merged[agent, number] = read
        ends[agent, number] = begun[agent] = start_s + max(trains_s()[agent], *lasts_s)
    return ends, merged


def weights(agent: int, number: int, read: Mapping[int, int]) -> dict[int, float]:
    row = load_topology("ring", AGENTS).weights(agent)
    used = {peer: row[peer] * (1 + max(0, number - newest)) ** -0.5 for peer, newest in read.items()}
    return {**used, agent: 1.0 - sum(used.values())}


@pytest.mark.parametrize("bandwidth", [1000.0, 150.0])
def test_transfers_hide_behind_training(tmp_path: Path, bandwidth: float) -> None:
    """Training lasts 5.7 to 13 s; a model travels for 2.7 s, or for 16.5 s."""
    folder = run(small(*clock(bandwidth)), tmp_path / "run")
    ends, merged = expected(bandwidth)
    assert times(folder) == pytest.approx(ends)
    hidden = 0.0
    for (agent, number), report in reports(folder).items():
        read = merged[agent, number]
        assert report.weights == pytest.approx(weights(agent, number, read)), (agent, number)
        begun_s = ends.get((agent, number - 1), 0.0)
        lasts_s = ends[agent, number] - begun_s
        assert report.seconds["gather"] == pytest.approx(lasts_s - trains_s()[agent]), "what it really waited"
        assert report.metrics["hidden_s"] <= trains_s()[agent] + 1e-9
        hidden += report.metrics["hidden_s"]
    assert hidden > 20 * LATENCY_S
    assert (max(report.seconds["gather"] for report in reports(folder).values()) > 1) == (bandwidth == 150.0)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = [*clock(300.0), "simulation.jitter=0.3"]
    one, two = (run(small(*settings), tmp_path / name) for name in ("one", "two"))
    assert bits(one) == bits(two)
    assert times(one) == times(two)
    assert {key: (r.seconds, r.metrics) for key, r in reports(one).items()} == {
        key: (r.seconds, r.metrics) for key, r in reports(two).items()
    }


def test_vectorised_agents_overlap_in_the_same_time(tmp_path: Path) -> None:
    plain = run(small(*clock(300.0)), tmp_path / "plain")
    together = run(small(*clock(300.0), "simulation.vectorise=on"), tmp_path / "together")
    assert times(together) == times(plain)
    for key, report in reports(plain).items():
        assert reports(together)[key].weights == report.weights


def test_a_transfer_that_outlasts_its_deadline_and_the_training_is_not_waited_for(tmp_path: Path) -> None:
    """23 s for a model: two seconds are over when training ends, which lasts 5.7 to 13 s."""
    settings = ["exchange.timeout_s=2", "exchange.deadline=fixed", "rounds=2"]
    folder = run(small(*clock(108.0), *settings), tmp_path / "run")
    told = reports(folder).values()
    assert all(report.seconds["gather"] == 0 for report in told)
    assert all(set(report.weights) == {report.agent} for report in told)
    assert any("was not read before the deadline" in reason for report in told for reason in report.missing.values())


def test_what_is_still_the_newest_costs_the_latency_and_no_bytes(tmp_path: Path) -> None:
    """Without overlap, where the wait can be seen: agent 0 reads agent 1, which is four times as slow."""
    settings = ["agents=2", "topology.graph=complete", "simulation.stragglers={1: 4}", "exchange.overlap=false"]
    folder = run(small(*clock(1000.0), *settings), tmp_path / "run")
    told, newest = reports(folder), {}
    for number in range(1, ROUNDS + 1):
        report = told[0, number]
        if 1 in report.weights:
            newest[number] = number + 1 - round((0.5 / report.weights[1]) ** 2)
    assert len(newest) >= 2
    for number, read in newest.items():
        same = newest.get(number - 1) == read
        assert told[0, number].bytes_received == {1: 0 if same else BYTES}
        lasts_s = LATENCY_S + (0 if same else BYTES / 1000)
        assert told[0, number].seconds["gather"] == pytest.approx(lasts_s)
    assert any(newest.get(number - 1) == read for number, read in newest.items())


def test_an_agent_that_is_killed_as_it_trains_leaves_nothing_behind(tmp_path: Path) -> None:
    fault = "faults=[{do: kill, at: {agent: 2, round: 3, phase: evaluate}}]"
    told = reports(run(small(*clock(300.0), fault), tmp_path / "run"))
    assert max(number for agent, number in told if agent == 2) == 2
    assert told[0, ROUNDS].weights.keys() == {0, 1, 4}


class Sleeper:
    """Something for a timeline to run: it sleeps ten seconds and ends."""

    def __init__(self, agent: int) -> None:
        self.agent = SimpleNamespace(id=agent)
        self.wait: Wait | None = None
        self.done = self.hosted = False
        self.error = ""

    def step(self, now: int) -> None:
        self.done = self.wait is not None
        self.wait = Wait("hosted", (), "train", 1, 10.0)


@pytest.mark.parametrize("gives_up", [False, True])
def test_a_publisher_learns_what_was_read_to_the_end(gives_up: bool) -> None:
    """A transfer of five seconds, and a reader that may lose interest in it."""
    sent = encode({"w": torch.ones(3)}, Header("snapshot", 1, 0))
    hub = MemoryHub()
    timeline = Timeline(Conditions(SimulationConfig(latency_s=5.0), 0), hub)
    alice, bob = (MemoryTransport(agent, "s", sent.schema, hub, lends=True) for agent in (0, 1))
    alice.start(), bob.start()
    alice.publish(sent)
    sleepers = [Sleeper(0), Sleeper(1)]
    answers = bob.gather((Fetch(0, "snapshot", None, Buffer(sent.schema)),), 1.0)
    transfers = timeline.begin(sleepers[1].agent, answers, {0: sent.num_bytes})
    if gives_up:
        transfers.drop(0)
    assert alice.readers("snapshot", 1) == frozenset(), "not yet"
    timeline.run(sleepers, work=lambda: None, on_end=lambda one: None, between=lambda: None)  # type: ignore[arg-type]
    assert alice.readers("snapshot", 1) == (frozenset() if gives_up else {1})


def test_a_link_is_cut_in_the_round_that_reads_over_it(tmp_path: Path) -> None:
    """Also where it reads before it has published anything of that round."""
    fault = "faults=[{do: drop_link, between: [0, 1], rounds: [3, 3]}]"
    told = reports(run(small(*clock(10_000.0), fault), tmp_path / "run"))
    cut = [(agent, number) for (agent, number), r in told.items() if any("is cut" in why for why in r.missing.values())]
    assert sorted(cut) == [(0, 3), (1, 3)]


def test_where_turns_are_the_clock_what_is_read_is_a_turn_old(tmp_path: Path) -> None:
    """Who has a higher id has not had its turn when training begins; who has a lower one has."""
    one, two = (run(small(), tmp_path / name) for name in ("one", "two"))
    assert bits(one) == bits(two)
    row = load_topology("ring", AGENTS)
    for (agent, number), report in reports(one).items():
        if number > 1:
            ages = {peer: int(peer > agent) for peer in report.weights if peer != agent}
            used = {peer: row.weights(agent)[peer] * (1 + age) ** -0.5 for peer, age in ages.items()}
            assert len(used) == 2
            assert {peer: report.weights[peer] for peer in used} == pytest.approx(used)
