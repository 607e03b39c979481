"""Built-in graphs: their shape, their options, and what a wrong option gets."""

from __future__ import annotations

import itertools
import subprocess
import sys

import networkx as nx
import pytest

from dimat.errors import PluginError, TopologyError
from dimat.topology import BUILTIN, build, load_topology


def edges(name: str, n: int, **options: object) -> set[frozenset[int]]:
    return {frozenset(edge) for edge in build(name, n, **options).edges}


def test_the_simple_ones_have_the_edges_everyone_expects() -> None:
    assert edges("ring", 4) == {frozenset(p) for p in [(0, 1), (1, 2), (2, 3), (3, 0)]}
    assert edges("path", 4) == {frozenset(p) for p in [(0, 1), (1, 2), (2, 3)]}
    assert edges("star", 4) == {frozenset(p) for p in [(0, 1), (0, 2), (0, 3)]}
    assert edges("complete", 4) == {frozenset(p) for p in itertools.combinations(range(4), 2)}
    assert edges("grid", 6) == {frozenset(p) for p in [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]}
    assert edges("barbell", 5) == {frozenset(p) for p in [(0, 1), (1, 2), (2, 3), (3, 4)]}
    assert edges("barbell", 6) == {frozenset(p) for p in [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (3, 5)]}
    assert edges("hypercube", 8) == {frozenset((i, j)) for i in range(8) for j in range(8) if (i ^ j).bit_count() == 1}
    assert edges("torus", 7) == edges("ring", 7)  # a prime has no better rectangle
    assert nx.is_isomorphic(build("torus", 16), nx.hypercube_graph(4))


@pytest.mark.parametrize("n", [2, 3, 8, 13])
def test_in_the_exponential_graph_agent_i_reads_those_a_power_of_two_before_it(n: int) -> None:
    graph = build("exponential", n)
    for agent in range(n):
        assert set(graph.predecessors(agent)) == {(agent - 2**k) % n for k in range(10) if 2**k < n}


def test_hyphen_underscore_and_case_are_alike() -> None:
    assert edges("Erdos-Renyi", 9, seed=3) == edges("erdos_renyi", 9, seed=3)


@pytest.mark.parametrize("name", ["erdos_renyi", "random_regular", "watts_strogatz"])
def test_random_graphs_follow_their_seed(name: str) -> None:
    assert edges(name, 16, seed=1) == edges(name, 16, seed=1)
    assert len({frozenset(edges(name, 16, seed=seed)) for seed in range(4)}) == 4
    assert edges(name, 16, seed=1) == edges(name, 16, seed=1, round=9)


def test_options_reach_the_generator() -> None:
    assert {degree for _, degree in build("random_regular", 12, degree=5).degree} == {5}
    assert build("erdos_renyi", 9, p=1.0).number_of_edges() == 36
    assert build("watts_strogatz", 20, k=6).number_of_edges() == 60
    assert edges("torus", 12, rows=1) == edges("ring", 12)
    assert edges("grid", 12, cols=12) == edges("path", 12)
    assert max(dict(build("barbell", 10, bridge=4).degree).values()) == 3  # two triangles and a path of four


def test_a_sparse_random_graph_is_drawn_again_until_connected() -> None:
    p = 0.13  # most draws of 16 agents fall apart
    single = [nx.is_connected(nx.gnp_random_graph(16, p, seed=seed)) for seed in range(40)]
    assert sum(single) < 20
    assert all(nx.is_connected(build("erdos_renyi", 16, p=p, seed=seed)) for seed in range(10))


@pytest.mark.parametrize(
    ("name", "n", "options", "message"),
    [
        ("hypercube", 6, {}, "power of two, not 6; the nearest sizes are 4 or 8"),
        ("torus", 12, {"rows": 5}, "rows=5 cannot hold 12 agents exactly; .* one of 1 × 12, 2 × 6, 3 × 4"),
        ("grid", 12, {"rows": 3, "cols": 5}, "rows=3 and cols=5 cannot hold 12"),
        ("torus", 12, {"rows": 24}, "rows=24 cannot hold 12"),
        ("torus", 12, {"cols": 24}, "cols=24 cannot hold 12"),
        ("torus", 12, {"rows": "3"}, "rows must be a whole number at least 1, not '3'"),
        ("erdos_renyi", 8, {"p": 0}, "p must be a number above 0 and at most 1, not 0"),
        ("erdos_renyi", 8, {"p": "often"}, "p must be a number above 0"),
        ("erdos_renyi", 30, {"p": 0.001}, "none of 100 graphs drawn from seed 0 is connected; p=0.001 is too small"),
        ("random_regular", 7, {"degree": 3}, "no graph of 7 agents has degree 3 .* try degree 2"),
        ("random_regular", 6, {"degree": 6}, "degree must be a whole number between 1 and 5, not 6"),
        ("random_regular", 6, {"degree": 1}, "none of 100 graphs .* degree 1 is too small"),
        ("random_regular", 6, {"degree": True}, "degree must be a whole number"),
        ("watts_strogatz", 2, {}, "at least 3 agents"),
        ("watts_strogatz", 8, {"k": 3}, "must be even, not 3"),
        ("barbell", 3, {}, "at least 4 agents, not 3"),
        ("barbell", 9, {"bridge": 2}, "bridge=2 leaves 7 of 9 agents"),
        ("ring", 1, {}, "at least 2 agents, not 1"),
        ("ring", 0, {}, "at least 2 agents, not 0"),
        ("ring", 4.0, {}, "at least 2 agents, not 4.0"),
        ("ring", None, {}, "say how many"),
        ("ring", 5, {"round": -1}, "rounds are counted from 0; -1 is none"),
        ("ring", 5, {"seed": "x"}, "seed of a topology must be a whole number"),
        ("ring", 5, {"degree": 3}, "ring has no options, and 'degree' was given"),
        ("random_regular", 8, {"degre": 3}, "unknown option of random_regular 'degre'. Did you mean 'degree'"),
    ],
)
def test_what_a_wrong_option_gets(name: str, n: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        build(name, n, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", range(4, 40))
def test_the_bridge_that_an_error_proposes_works(n: int) -> None:
    for bridge in range(n - 3):
        try:
            build("barbell", n, bridge=bridge)
        except TopologyError as error:
            build("barbell", n, bridge=int(str(error).rsplit(" ", 1)[1]))


def test_a_wrong_name_is_answered_with_the_closest() -> None:
    with pytest.raises(PluginError, match="Did you mean 'hypercube'"):
        build("hypercub", 8)


def test_every_built_in_has_a_line_for_the_list() -> None:
    for named in BUILTIN.values():
        assert len(named.what) > 20 and len(named.when) > 20


def test_the_package_loads_nothing_heavy_and_never_torch() -> None:
    code = """
import sys, dimat.topology
heavy = {"networkx", "numpy", "matplotlib", "torch", "yaml"} & set(sys.modules)
assert not heavy, heavy
for name in dimat.topology.__all__:
    getattr(dimat.topology, name)
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_lists_what_it_has() -> None:
    import dimat.topology

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dimat.topology.nothing  # noqa: B018


def test_a_topology_answers_by_round_and_agent() -> None:
    topology = load_topology("exponential", 6)
    assert (topology.mixing, topology.period, topology.static) == ("uniform", 1, True)
    assert topology.neighbours(0) == [2, 4, 5] and topology.readers(0) == [1, 2, 4]
    assert topology.weights(0, 3) == {0: 0.25, 2: 0.25, 4: 0.25, 5: 0.25}
    assert topology.graph(7) is topology.graph(0) and topology.matrix(7) is topology.matrix(0)
    with pytest.raises(ValueError, match="read-only"):
        topology.matrix()[0, 0] = 1
    with pytest.raises(nx.NetworkXError, match=r"[Ff]rozen"):
        topology.graph().add_edge(0, 3)
    assert (topology.diameter, topology.tree()) == (2, (0, {1: 0, 2: 0, 4: 0, 3: 1, 5: 1}))


def test_the_summary_is_the_json_that_others_read() -> None:
    summary = load_topology("path", 4).summary()
    mixing = summary.pop("mixing")
    assert mixing[0] == pytest.approx([2 / 3, 1 / 3, 0, 0]) and len(mixing) == 4
    assert summary.pop("spectral_gap") == pytest.approx(1 - (1 / 3 + 2 / 3 * 0.5**0.5), abs=1e-9)
    assert summary == {
        "name": "path",
        "num_agents": 4,
        "num_edges": 3,
        "min_degree": 1,
        "max_degree": 2,
        "diameter": 3,
        "doubly_stochastic": True,
        "rounds_per_tenfold": 11,
    }
    assert load_topology("star", 4, "uniform").summary()["doubly_stochastic"] is False


def test_a_wrong_mixing_is_refused_when_loading() -> None:
    with pytest.raises(TopologyError, match="need an undirected graph"):
        load_topology("exponential", 8, "metropolis")
    with pytest.raises(TopologyError, match="Did you mean 'uniform'"):
        load_topology("ring", 8, "unifrom")
    with pytest.raises(TopologyError, match="no attribute `weight`"):
        load_topology("ring", 8, "edge_weights")
