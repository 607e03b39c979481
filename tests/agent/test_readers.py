"""Who may fetch from an agent is who reads it by the graph; the oracle is the mixing matrix itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from dimat.agent.readers import may_read
from dimat.agent.status import Status
from dimat.config import RunConfig, load_config
from dimat.topology import Topology, load_topology, with_newcomers, without_agents
from dimat.transport.base import HISTORY


def stand_in(config: RunConfig, topology: Topology, agent: int, round: int) -> Any:
    return SimpleNamespace(
        id=agent, config=config, topology=topology, status=Status(round=round), topology_in=lambda round: topology
    )


@pytest.mark.parametrize("graph", ["ring", "star", "exponential", "complete"])
def test_it_is_who_has_a_weight_for_it(graph: str) -> None:
    config = load_config(None, ["agents=6", f"topology.graph={graph}"])
    topology = load_topology(graph, 6)
    matrix = topology.matrix(0)
    for agent in range(6):
        for peer in range(-1, 8):
            reads = 0 <= peer < 6 and peer != agent and matrix[peer, agent] > 0
            assert may_read(stand_in(config, topology, agent, round=3), peer) == reads


def test_on_directed_graphs_reading_is_one_way() -> None:
    config = load_config(None, ["agents=8", "topology.graph=exponential"])
    topology = load_topology("exponential", 8)
    one_way = [
        (reader, read)
        for reader in range(8)
        for read in range(8)
        if may_read(stand_in(config, topology, read, 1), reader)
        and not may_read(stand_in(config, topology, reader, 1), read)
    ]
    assert one_way


def test_where_the_graph_changes_the_rounds_that_are_kept_count() -> None:
    name = "one_peer_exponential"
    config = load_config(None, ["agents=8", f"topology.graph={name}"])
    topology = load_topology(name, 8)
    assert not topology.static
    for now in range(1, 12):
        for agent in range(8):
            readers = {peer for peer in range(8) if may_read(stand_in(config, topology, agent, now), peer)}
            for kept in range(max(1, now - HISTORY), now + 1):
                assert set(topology.readers(agent, kept - 1)) <= readers


def test_the_last_merge_is_for_everybody_in_the_run_and_for_nobody_before() -> None:
    config = load_config(None, ["agents=6", "merge.final=complete", "rounds=5"])
    topology = load_topology("ring", 6)
    assert [peer for peer in range(-1, 7) if may_read(stand_in(config, topology, 0, 5), peer)] == [1, 2, 3, 4, 5]
    assert [peer for peer in range(-1, 7) if may_read(stand_in(config, topology, 0, 4), peer)] == [1, 5]


@pytest.mark.parametrize("graph", ["ring", "star", "exponential", "one_peer_exponential"])
def test_a_child_may_always_read_its_parent_in_the_tree_of_the_basis(graph: str) -> None:
    config = load_config(None, ["agents=8", f"topology.graph={graph}"])
    topology = load_topology(graph, 8)
    for child, parent in topology.tree()[1].items():
        for now in (0, 1, 7):
            assert may_read(stand_in(config, topology, parent, now), child)


def test_a_bridge_lets_its_ends_read_each_other_and_a_former_neighbour_may_come_back() -> None:
    config = load_config(None, ["agents=6"])
    topology = load_topology("ring", 6)
    agent = stand_in(config, topology, 0, 9)
    assert not may_read(agent, 2)
    agent.topology_in = lambda round: without_agents(topology, [1] if round >= 10 else [])
    assert may_read(agent, 2)  # in the next round, which 2 may have begun
    assert may_read(agent, 1)
    assert not may_read(agent, 3)


def test_a_newcomer_may_ask_anybody_and_is_read_by_its_neighbours() -> None:
    config = load_config(None, ["agents=6", "membership.elastic=true", "membership.max_agents=8"])
    topology = load_topology("ring", 6)
    assert may_read(stand_in(config, topology, 3, 9), 7)
    newcomer = stand_in(config, topology, 6, 9)
    newcomer.topology_in = lambda round: with_newcomers(topology, 8, [6])
    assert [peer for peer in range(9) if may_read(newcomer, peer)] == [0, 1, 7]
