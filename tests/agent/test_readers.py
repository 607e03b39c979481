"""Who may fetch from an agent is who reads it by the graph; the oracle is the mixing matrix itself."""

from typing import Any

import pytest

from dimat.agent.readers import may_read
from dimat.agent.state import Agent
from dimat.agent.status import Status
from dimat.config import load_config
from dimat.messages import Change
from dimat.topology import load_topology
from dimat.transport.base import HISTORY


def agent_of(
    graph: str, number: int, round: int, *settings: str, away: dict[int, tuple[int, ...]] | None = None
) -> Any:
    """An agent that knows its place and who is away from which round on, and nothing else."""
    config = load_config(None, ["agents=8", f"topology.graph={graph}", *settings])
    made = Agent.__new__(Agent)
    made.id, made.config, made.status = number, config, Status(round=round)
    made.topology = load_topology(graph, 8)
    made.repaired, made.algorithm = {}, None
    told = sorted((away or {}).items())
    made.changes = tuple(Change(number + 1, from_round, gone) for number, (from_round, gone) in enumerate(told))
    return made


def readers(agent: Any) -> set[int]:
    return {peer for peer in range(-2, 20) if may_read(agent, peer)}


@pytest.mark.parametrize("graph", ["ring", "star", "exponential", "complete", "torus"])
def test_it_is_who_has_a_weight_for_it(graph: str) -> None:
    matrix = load_topology(graph, 8).matrix(0)
    for number in range(8):
        expected = {peer for peer in range(8) if peer != number and matrix[peer, number] > 0}
        assert readers(agent_of(graph, number, 3)) == expected


def test_on_directed_graphs_reading_is_one_way() -> None:
    read_by = {number: readers(agent_of("exponential", number, 1)) for number in range(8)}
    assert any(a in read_by[b] and b not in read_by[a] for a in range(8) for b in range(8))


def test_where_the_graph_changes_the_rounds_that_are_kept_count() -> None:
    topology = load_topology("one_peer_exponential", 8)
    assert not topology.static
    for now in range(1, 12):
        for number in range(8):
            found = readers(agent_of("one_peer_exponential", number, now))
            for kept in range(max(1, now - HISTORY), now + 1):
                assert set(topology.readers(number, kept - 1)) <= found


def test_the_last_merge_is_for_everybody_in_the_run_and_for_nobody_before() -> None:
    settings = ("merge.final=complete", "rounds=5")
    assert readers(agent_of("ring", 0, 5, *settings)) == set(range(1, 8))
    assert readers(agent_of("ring", 0, 4, *settings)) == {1, 7}


@pytest.mark.parametrize("graph", ["ring", "star", "exponential", "one_peer_exponential"])
def test_what_goes_along_the_trees_of_the_basis_may_always_be_read(graph: str) -> None:
    topology = load_topology(graph, 8)
    for now in (0, 1, 7):
        for child, parent in topology.tree()[1].items():
            assert may_read(agent_of(graph, parent, now), child)
        for teller, hearer in topology.tree_up().items():
            assert may_read(agent_of(graph, teller, now), hearer)


def test_a_repair_opens_the_new_edge_from_its_round_on() -> None:
    """Agent 2 of the ring goes: 1 and 3 read each other from round 20 on, and not before."""
    change = {20: (2,)}
    assert readers(agent_of("ring", 1, 19, away=change)) == {0, 2}
    assert 3 in readers(agent_of("ring", 1, 20, away=change))
    assert 3 in readers(agent_of("ring", 1, 40, away=change))
    assert 4 not in readers(agent_of("ring", 1, 40, away=change))


def test_a_member_that_was_away_takes_a_model_from_anybody_until_it_is_back() -> None:
    change: dict[int, tuple[int, ...]] = {20: (4,), 40: ()}
    assert 4 not in readers(agent_of("ring", 0, 19, away=change))
    assert 4 in readers(agent_of("ring", 0, 30, away=change))
    assert 4 not in readers(agent_of("ring", 0, 40, away=change))


def test_a_newcomer_takes_its_first_model_from_anybody_and_then_reads_its_own_edge() -> None:
    elastic = ("membership.elastic=true", "membership.max_agents=9")
    assert readers(agent_of("ring", 3, 10, *elastic)) == {2, 4, 8}, "the seat is free, and there is one such seat"
    joined: dict[int, tuple[int, ...]] = {20: ()}
    found = [number for number in range(8) if 8 in readers(agent_of("ring", number, 30, *elastic, away=joined))]
    assert len(found) == 2, "it was woven into one edge"
    assert readers(agent_of("ring", 8, 30, *elastic, away=joined)) == set(found)


def test_where_models_travel_within_a_round_exchanges_are_what_counts() -> None:
    """In round 2 of an algorithm the agent is in exchange 7: the graphs of exchanges 5 to 7 are the ones read by."""
    agent = agent_of("one_peer_exponential", 0, 2)
    agent.algorithm, agent.exchange = object(), 7
    topology = load_topology("one_peer_exponential", 8)
    window = {peer for round in topology.window() for peer in topology.readers(0, round)}
    recent = {peer for exchange in range(7 - HISTORY, 8) for peer in topology.readers(0, exchange - 1)}
    assert readers(agent) == recent | window
    agent = agent_of("random_matching", 0, 1)
    agent.algorithm, agent.exchange = object(), 12
    topology = load_topology("random_matching", 8)
    assert readers(agent) >= {peer for exchange in (10, 11, 12) for peer in topology.readers(0, exchange - 1)}
