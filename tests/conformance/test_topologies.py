"""What every topology must do: built in, from the ready files, and the ready Python function."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from dimat.errors import TopologyError
from dimat.topology import BUILTIN, build, check_mixing, check_topology, load_topology, spectral_gap
from dimat.topology.schedule import union

READY = Path(__file__).parents[2] / "topologies"
FILES = [str(path) for path in sorted(READY.iterdir()) if path.suffix in (".yaml", ".graphml", ".json", ".edgelist")]
FUNCTIONS = [f"{path}:build" for path in sorted(READY.glob("*.py"))]
SIZES = (2, 3, 4, 5, 6, 8, 13, 16)

every_topology = pytest.mark.parametrize(
    "name", [*BUILTIN, *FILES, *FUNCTIONS], ids=lambda name: name.removeprefix(str(READY))
)


@lru_cache
def accepted_sizes(name: str) -> list[int]:
    """The sizes that a topology does not refuse; a file that fixes its size has that one."""
    sizes = []
    for n in (None, *SIZES):
        try:
            sizes.append(build(name, n).number_of_nodes())
        except TopologyError:
            continue
    return sorted(set(sizes))


def same(one: nx.Graph, other: nx.Graph) -> bool:
    return type(one) is type(other) and nx.utils.graphs_equal(one, other)


def test_the_ready_topologies_are_all_here() -> None:
    assert {Path(name).stem for name in FILES} >= {"ring", "torus", "exponential", "hospitals"}
    assert FUNCTIONS


@every_topology
def test_it_takes_the_sizes_it_promises(name: str) -> None:
    sizes = accepted_sizes(name)
    fixed = {"torus.yaml": [16], "hospitals.yaml": [6], "hypercube": [2, 4, 8, 16]}
    least = {"watts_strogatz": 3, "barbell": 4, "bipartite.py:build": 4}
    short = Path(name).name
    assert sizes == fixed.get(short, [n for n in SIZES if n >= least.get(short, 2)])


@every_topology
def test_its_graphs_are_simple_connected_and_on_the_agents(name: str) -> None:
    for n in accepted_sizes(name):
        topology = load_topology(name, n)
        for first in (0, topology.period):
            graphs = [build(name, n, round=round) for round in topology.window(first)]
            for graph in graphs:
                assert type(graph) in (nx.Graph, nx.DiGraph)
                assert list(graph) == list(range(n)) and all(type(node) is int for node in graph)
                assert nx.number_of_selfloops(graph) == 0
            joint = union(graphs)
            assert nx.is_strongly_connected(joint) if joint.is_directed() else nx.is_connected(joint)


@every_topology
def test_it_depends_on_round_and_seed_alone(name: str) -> None:
    n = accepted_sizes(name)[-1]
    for seed in (0, 7):
        for round in (5, 0, 2):
            assert same(build(name, n, round=round, seed=seed), build(name, n, round=round, seed=seed))


@every_topology
def test_static_means_that_every_round_is_the_same(name: str) -> None:
    n = accepted_sizes(name)[-1]
    rounds = [build(name, n, round=round) for round in range(6)]
    assert load_topology(name, n).static == all(same(rounds[0], graph) for graph in rounds)


@every_topology
def test_its_default_matrix_brings_the_agents_together(name: str) -> None:
    for n in accepted_sizes(name):
        topology = load_topology(name, n)
        x = np.random.default_rng(n).normal(size=(n, 3))
        mean, before = x.mean(axis=0), np.linalg.norm(x - x.mean(axis=0))
        rounds = topology.summary()["rounds_per_tenfold"]
        for round in range(rounds):
            matrix = topology.matrix(round)
            assert check_mixing(matrix, topology.graph(round)).doubly_stochastic
            x = matrix @ x
        assert np.allclose(x.mean(axis=0), mean)
        # Windows of `random_matching` are shuffled differently, and contract alike but not equally.
        slack = 1.0 if topology.static or name != "random_matching" else 3.0
        assert np.linalg.norm(x - mean) <= slack * 0.1 * before + 1e-12
        assert 0 < spectral_gap(topology.joint_matrix()) <= 1


@every_topology
def test_neighbours_readers_and_weights_tell_the_same_story(name: str) -> None:
    n = accepted_sizes(name)[-1]
    topology = load_topology(name, n)
    for round in (0, 1):
        matrix = topology.matrix(round)
        for agent in range(n):
            assert topology.neighbours(agent, round) == [j for j in range(n) if j != agent and matrix[agent, j] > 0]
            assert topology.readers(agent, round) == [i for i in range(n) if i != agent and matrix[i, agent] > 0]
            weights = topology.weights(agent, round)
            assert sum(weights.values()) == pytest.approx(1)
            assert list(weights) == sorted([agent, *topology.neighbours(agent, round)])


@every_topology
def test_its_tree_reaches_everyone_along_edges_that_are_read(name: str) -> None:
    n = accepted_sizes(name)[-1]
    topology = load_topology(name, n)
    root, parents = topology.tree()
    assert sorted([root, *parents]) == list(range(n))
    rounds = topology.window()
    for child, parent in parents.items():
        assert any(parent in topology.neighbours(child, round) for round in rounds)
        steps = 0
        while child != root:
            child, steps = parents[child], steps + 1
        assert steps <= topology.diameter


@every_topology
def test_its_contract_checks_out(name: str) -> None:
    assert check_topology(name, SIZES) == []
