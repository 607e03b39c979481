"""Every line that a fault plan can have, over memory: the run ends, the reason is told, the others are as they must be.

The oracles: an edge that is dropped is an edge that the topology does not have; whatever parts an agent from its
neighbours for a round (a wrong payload, a stall, its death) leaves the others with the bits of a run whose links to it
are cut in that round.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.agent.status import Status
from dimat.config import load_config
from dimat.errors import ConfigError, PeerUnavailable
from dimat.faults import FaultyTransport, phase_hook, planned
from dimat.messages import Header, Payload
from dimat.snapshot.encode import encode, schema_of
from dimat.transport.base import Buffer, Fetch
from dimat.transport.memory import MemoryHub, MemoryTransport

CULPRIT, ROUND = 1, 3
NEIGHBOURS, FAR = (0, 2), 3

DROP = ("membership.repair=drop",)
"""The lost agent's weights go to self, as those of a cut link do."""

Fault = dict[str, Any]


def at(do: str, phase: str | None = None, round: int = ROUND, **more: Any) -> Fault:
    where: dict[str, Any] = {"agent": CULPRIT, "round": round} | ({"phase": phase} if phase else {})
    return {"at": where, "do": do, **more}


def parted(first: int, last: int) -> list[Fault]:
    """Both links of the culprit cut."""
    return [{"do": "drop_link", "between": [CULPRIT, peer], "rounds": [first, last]} for peer in NEIGHBOURS]


# ------------------------------------------------------------------------------------------------------------- links


def test_a_dropped_link_is_an_edge_that_the_topology_does_not_have(run: Any, tmp_path: Path) -> None:
    """The oracle: the same ring as a function, without that edge in those rounds, its weights given one by one."""
    graph = tmp_path / "ring_without.py"
    graph.write_text(
        "import networkx as nx\n"
        "def build(n, *, round=0, seed=0, without=()):\n"
        "    graph = nx.cycle_graph(n)\n"
        "    nx.set_edge_attributes(graph, 1 / 3, 'weight')\n"
        "    graph.remove_edges_from([(0, 1)] if round + 1 in without else [])\n"
        "    return graph\n"
    )
    settings = [f"topology.graph={graph}:build", "topology.mixing=edge_weights", "exchange.timeout_s=900"]
    oracle = run(settings=(*settings, "topology.options.without=[2,3]"))
    told = run({"do": "drop_link", "between": [0, 1], "rounds": [2, 3]}, settings=tuple(settings))
    for agent in range(4):
        assert told.bits(agent) == oracle.bits(agent), agent
    undisturbed = run(settings=tuple(settings))
    assert told.bits(0) != undisturbed.bits(0)
    for one, other in ((0, 1), (1, 0)):
        assert "the link to agent" in told.reports[one, 2].missing[other]
        assert "drop_link (rounds 2 to 3)" in told.reports[one, 3].missing[other]
        assert other not in told.reports[one, 4].missing
    assert [told.summaries[round].num_missing for round in range(1, 6)] == [0, 1, 1, 0, 0]


def test_a_cut_drops_the_links_between_two_groups_and_heals(run: Any) -> None:
    told = run({"do": "cut", "groups": [[0, 1], [2, 3]], "rounds": [2, 4]})
    links = [{"do": "drop_link", "between": pair, "rounds": [2, 4]} for pair in ([1, 2], [0, 3])]
    by_links = run(*links)
    for agent in range(4):
        assert told.bits(agent) == by_links.bits(agent), agent
    rows = {agent: told.reports[agent, 3].weights for agent in range(4)}
    assert rows[0] == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert rows[2] == pytest.approx({2: 2 / 3, 3: 1 / 3})
    assert [told.summaries[round].num_missing for round in range(1, 6)] == [0, 2, 2, 2, 0]


# --------------------------------------------------------------------------------------------------- what is served


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("corrupt", "has a wrong digest in tensor"),
        ("truncate", "is truncated: it ended after"),
        ("stale", f"was answered with 'snapshot' of round {ROUND - 1} by agent {CULPRIT}"),
        ("nan", "holds NaN or Inf in tensor"),
        ("wrong_schema", "does not fit agent"),
    ],
)
def test_what_is_served_wrong_is_dropped_at_both_ends(run: Any, kind: str, words: str) -> None:
    told = run(at(kind))
    for neighbour in NEIGHBOURS:
        assert words in told.reports[neighbour, ROUND].missing[CULPRIT]
        assert "did not confirm" in told.reports[CULPRIT, ROUND].missing[neighbour]
        assert not told.reports[neighbour, ROUND + 1].missing, "the next round is whole again"
    assert not told.reports[FAR, ROUND].missing
    oracle = run(*parted(ROUND, ROUND), oracle=True)
    for agent in range(4):
        assert told.bits(agent) == oracle.bits(agent), (
            "its own model stays right, and the others never see the wrong one"
        )


# --------------------------------------------------------------------------------------------------- agents that stop


@pytest.mark.parametrize("phase", ["train", "publish", "gather"])
def test_who_is_killed_is_gone_and_the_others_go_on(run: Any, phase: str) -> None:
    told = run(at("kill", phase), settings=DROP)
    assert told.rounds_of(CULPRIT) == list(range(1, ROUND))
    assert [event.text for event in told.events if event.kind == "failed"] == [
        f"agent {CULPRIT} failed: killed in round {ROUND}, as the fault plan says"
    ]
    assert told.outcome is not None
    assert (told.outcome.kind, told.outcome.round) == ("rounds", 5)
    assert [told.summaries[round].num_agents for round in range(1, 6)] == [4, 4, 3, 3, 3]
    oracle = run(*parted(ROUND, 5), settings=DROP, oracle=True)
    for agent in (*NEIGHBOURS, FAR):
        assert told.bits(agent) == oracle.bits(agent), agent
        assert told.rounds_of(agent) == [1, 2, 3, 4, 5]


def test_who_is_killed_after_its_part_in_a_merge_had_a_part_in_it(run: Any) -> None:
    told, oracle = (run(*plan, settings=DROP) for plan in ([at("kill", "fold")], parted(ROUND + 1, 5)))
    for agent in (*NEIGHBOURS, FAR):
        assert told.bits(agent) == oracle.bits(agent), agent


def test_a_run_is_killed_once_and_continues_to_the_bits_of_an_undisturbed_one(run: Any, tmp_path: Path) -> None:
    """The plan says when; that it has happened is remembered in the folder."""
    first = run(at("kill"), folder=tmp_path / "killed")
    assert first.rounds_of(CULPRIT) == [1, 2]
    again, undisturbed = run(at("kill"), folder=tmp_path / "killed"), run(oracle=True)
    for agent in range(4):
        assert again.bits(agent) == undisturbed.bits(agent), agent
        assert again.rounds_of(agent) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("phase", ["train", "publish"])
def test_a_stall_longer_than_the_deadline_is_missed_for_that_round(run: Any, phase: str) -> None:
    """It happens in the middle of a round, wherever that is: agents are held, not put off to the next wait."""
    told = run(at("stall", phase, seconds=100), settings=("exchange.timeout_s=60",))
    oracle = run(*parted(ROUND, ROUND), oracle=True)
    for agent in range(4):
        assert told.bits(agent) == oracle.bits(agent), agent
    for neighbour in NEIGHBOURS:
        assert f"had not published round {ROUND} after 60 s" in told.reports[neighbour, ROUND].missing[CULPRIT]
        assert not told.reports[neighbour, ROUND + 1].missing
    assert told.rounds_of(CULPRIT) == [1, 2, 3, 4, 5]


def test_a_stall_in_the_middle_of_a_round_leaves_an_acknowledgement_out(run: Any) -> None:
    """It has published and was read; what it reads itself comes too late for its neighbours, but not for itself.

    That is the one bias that the handshake leaves: the last of three messages was sent and not waited for.
    """
    told, oracle = run(at("stall", "gather", seconds=100)), run(*parted(ROUND, ROUND), oracle=True)
    for neighbour in NEIGHBOURS:
        assert "did not confirm" in told.reports[neighbour, ROUND].missing[CULPRIT]
        assert told.bits(neighbour, ROUND) == oracle.bits(neighbour, ROUND)
    assert set(told.reports[CULPRIT, ROUND].weights) == {CULPRIT, *NEIGHBOURS}
    assert not any(told.reports[agent, ROUND + 1].missing for agent in range(4))


def test_a_stall_of_two_deadlines_is_missed_for_two_rounds(run: Any) -> None:
    told, oracle = run(at("stall", seconds=150)), run(*parted(ROUND, ROUND + 1), oracle=True)
    for agent in (*NEIGHBOURS, FAR):
        assert told.bits(agent) == oracle.bits(agent), agent
        assert sorted(told.reports[agent, ROUND + 1].missing) == ([CULPRIT] if agent in NEIGHBOURS else [])


def test_without_waiting_a_stall_lasts_as_many_turns_of_the_others(run: Any) -> None:
    """The others go on with what it published last; it comes to its own end after them."""
    plan, mode = at("stall", seconds=150), ("exchange.mode=async",)
    told, again, undisturbed = run(plan, settings=mode), run(plan, settings=mode), run(settings=mode)
    for agent in range(4):
        assert told.rounds_of(agent) == [1, 2, 3, 4, 5]
        assert told.bits(agent) == again.bits(agent)
    assert told.bits(0, ROUND - 1) == undisturbed.bits(0, ROUND - 1)
    assert told.bits(0) != undisturbed.bits(0)
    assert told.bits(CULPRIT) != undisturbed.bits(CULPRIT)


def test_a_stall_shorter_than_the_deadline_changes_nothing(run: Any) -> None:
    told, undisturbed = run(at("stall", seconds=59)), run(oracle=True)
    for agent in range(4):
        assert told.bits(agent) == undisturbed.bits(agent), agent


# ---------------------------------------------------------------------------------------------- disk and coordinator


def test_a_full_disk_costs_a_checkpoint_and_not_the_agent(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    told, undisturbed = run(at("fill_disk")), run(oracle=True)
    held = {
        agent: sorted(p.stem for p in (told.folder / "checkpoints" / str(agent)).glob("*.json")) for agent in (0, 1)
    }
    assert held == {0: ["2", "3", "4", "5"], 1: ["1", "2", "4", "5"]}
    assert f"agent {CULPRIT}: the checkpoint of round {ROUND} could not be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert told.rounds_of(CULPRIT) == [1, 2, 3, 4, 5], "its numbers are the coordinator's to keep"
    for agent in range(4):
        assert told.bits(agent) == undisturbed.bits(agent), agent


def test_metrics_that_cannot_be_written_cost_a_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dimat.agent import live

    honest = live.append_metrics

    def full(path: Path, report: Any, time_s: float) -> None:
        if report.round == ROUND:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(path, report, time_s)

    monkeypatch.setattr(live, "append_metrics", full)
    told = run()
    assert len((told.folder / "metrics" / "0.jsonl").read_text().splitlines()) == 4
    assert told.rounds_of(0) == [1, 2, 3, 4, 5]


def test_a_coordinator_that_restarts_loses_nothing(run: Any) -> None:
    told, undisturbed = run({"at": {"round": ROUND}, "do": "restart_coordinator"}), run(oracle=True)
    assert [event.kind for event in told.events].count("restarted") == 1
    assert told.summaries.keys() == undisturbed.summaries.keys()
    assert all(told.summaries[round].num_agents == 4 for round in told.summaries)
    assert told.outcome == undisturbed.outcome
    for agent in range(4):
        assert told.bits(agent) == undisturbed.bits(agent), agent


def test_a_coordinator_that_restarts_still_knows_who_was_killed(run: Any) -> None:
    told = run(at("kill"), {"at": {"round": ROUND + 1}, "do": "restart_coordinator"})
    assert told.outcome is not None
    assert told.outcome.kind == "rounds"
    assert [told.summaries[round].num_agents for round in range(1, 6)] == [4, 4, 3, 3, 3]


# ------------------------------------------------------------------------------------------------------ the plan itself


def test_the_same_plan_gives_the_same_bits_twice(run: Any) -> None:
    plan = [
        at("corrupt", round=2),
        {"do": "cut", "groups": [[0, 1], [2, 3]], "rounds": [3, 3]},
        {"at": {"agent": 2, "round": 4, "phase": "gather"}, "do": "stall", "seconds": 100},
        {"at": {"agent": 0, "round": 5}, "do": "kill"},
        {"at": {"round": 2}, "do": "restart_coordinator"},
    ]
    one, two = run(*plan), run(*plan)
    for agent in (1, 2, 3):
        assert one.bits(agent) == two.bits(agent), agent
    assert one.bits(0, 4) == two.bits(0, 4)
    assert {key: (r.missing, r.weights) for key, r in one.reports.items()} == {
        key: (r.missing, r.weights) for key, r in two.reports.items()
    }


def test_without_a_plan_nothing_is_wrapped_and_nothing_is_asked(tmp_path: Path) -> None:
    config = load_config(None, ["faults=[{at: {agent: 1, round: 2}, do: nan}]"])
    door = MemoryTransport(0, "s", None, MemoryHub())  # type: ignore[arg-type]
    assert planned(door, 0, ()) is door
    assert planned(door, 0, config.faults) is door, "another agent's fault is not this one's"
    assert planned(door, 1, config.faults) is not door
    assert phase_hook(config.faults, 1, tmp_path) is None
    assert Status().on_phase is None
    assert load_config(None).digest == load_config(None, ["faults=[]"]).digest


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("{at: {agent: 5, round: 3}, do: kill}", "faults.0: kill names agent 5; this run has agents 0 to 4"),
        ("{at: {agent: 0, round: 21}, do: kill}", "names round 21; this run has rounds 1 to 20"),
        ("{at: {agent: 0, round: 3, phase: gahter}, do: kill}", "Did you mean 'gather'?"),
        ("{at: {agent: 0, round: 3}, do: kil}", "Did you mean 'kill'?"),
        ("{at: {agnet: 0, round: 3}, do: kill}", "unknown key 'faults.0.at.agnet'. Did you mean 'faults.0.at.agent'?"),
        ("{at: {agent: 0, round: 3}, du: kill}", "unknown key 'faults.0.du'. Did you mean 'faults.0.do'?"),
        ("{at: {agent: 0, round: 3}, do: stall}", "stall needs seconds"),
        ("{at: {round: 3}, do: kill}", "kill needs at.agent"),
        ("{do: kill}", "kill needs at and at.agent"),
        ("{do: drop_link, between: [0, 1]}", "drop_link needs rounds"),
        ("{do: drop_link, between: [1, 1], rounds: [1, 2]}", "between agent 1 and itself"),
        ("{do: drop_link, between: [0, 9], rounds: [1, 2]}", "names agent 9"),
        ("{do: drop_link, between: [0, 1], rounds: [3, 2]}", "from round 3 to round 2: the first is later"),
        ("{do: cut, groups: [[0, 1], [1, 2]], rounds: [1, 2]}", "agents [1] in both groups"),
        ("{do: cut, groups: [[0, 1], []], rounds: [1, 2]}", "empty group"),
        ("{at: {agent: 0, round: 3, phase: train}, do: nan}", "nan takes no at.phase"),
        ("{at: {agent: 0, round: 1}, do: stale}", "none before it"),
        ("{at: {agent: 0, round: 3}, do: restart_coordinator}", "restart_coordinator takes no at.agent"),
        ("kill", "faults.0"),
    ],
)
def test_a_plan_is_refused_before_anything_starts(fault: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, [f"faults=[{fault}]"])
    assert words in str(refused.value)


def test_the_newest_round_does_not_come_over_a_cut_link(tmp_path: Path) -> None:
    """Who asks for whatever there is asks in the round that it published last itself."""
    state = {"w": torch.ones(3)}
    hub, schema = MemoryHub(), schema_of(state)
    faults = load_config(None, ["faults=[{do: drop_link, between: [0, 1], rounds: [2, 2]}]"]).faults
    alice, bob = (FaultyTransport(MemoryTransport(agent, "s", schema, hub), agent, faults) for agent in (0, 1))
    for door in (alice, bob):
        door.start()
    newest, answers = Fetch(0, "snapshot", None, Buffer(schema)), []
    for round in (1, 2, 3):
        for agent, door in enumerate((alice, bob)):
            door.publish(encode(state, Header("snapshot", round, agent)))
        answers.append(type(bob.gather((newest,), 1.0)[0]))
    assert answers == [Payload, PeerUnavailable, Payload]


# ------------------------------------------------------------------------------------------------------------ the basis


def test_a_root_that_dies_before_it_has_handed_its_basis_on_leaves_one_basis(run: Any) -> None:
    """The centre of a star: all others kept their own bases in round 1."""
    settings = ("train.epochs=4", "topology.graph=star", "merge.basis=agree")
    told = run({"at": {"agent": 0, "round": 1, "phase": "align"}, "do": "kill"}, settings=settings)
    moved = {
        (agent, round): max(told.reports[agent, round].moved.values(), default=0.0)
        for agent in (1, 2, 3)
        for round in (1, 2, 3)
    }
    came_to_the_new_root = {(1, 2), (3, 2)}  # they are a path now, with 2 in its centre
    assert all(moved[place] > 0.5 for place in came_to_the_new_root)
    assert not any(share for place, share in moved.items() if place not in came_to_the_new_root)
