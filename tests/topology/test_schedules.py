"""Topologies that change from round to round, built in and plugged in."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from itertools import combinations

import networkx as nx
import numpy as np
import pytest

from dimat.errors import TopologyError
from dimat.topology import build, load_topology, periodic

Register = Callable[[Callable[..., object]], str]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Make a function reachable as `plugged_topologies:<its name>`."""
    module = types.ModuleType("plugged_topologies")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def register(function: Callable[..., object]) -> str:
        setattr(module, function.__name__, function)
        return f"{module.__name__}:{function.__name__}"

    yield register


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_random_matching_pairs_everyone_with_everyone_once_in_a_window(n: int) -> None:
    length = n - 1 + n % 2
    for window in (0, 1):
        met = [
            frozenset(edge)
            for round in range(window * length, (window + 1) * length)
            for edge in build("random_matching", n, round=round, seed=5).edges
        ]
        assert sorted(map(sorted, met)) == sorted(map(sorted, combinations(range(n), 2)))
    for round in range(length):
        degrees = dict(build("random_matching", n, round=round, seed=5).degree)
        assert sorted(degrees.values()) == [0] * (n % 2) + [1] * (n - n % 2)


def test_random_matching_is_shuffled_by_seed_and_window() -> None:
    def edges(seed: int, first: int) -> list[list[tuple[int, int]]]:
        return [sorted(build("random_matching", 8, round=r, seed=seed).edges) for r in range(first, first + 7)]

    assert edges(1, 0) == edges(1, 0)
    assert edges(1, 0) != edges(2, 0)
    assert edges(1, 0) != edges(1, 7)


def test_a_schedule_is_judged_by_its_window() -> None:
    topology = load_topology("one-peer-exponential", 8)
    assert (topology.static, topology.period, list(topology.window(5))) == (False, 3, [3, 4, 5])
    summary = topology.summary(1)
    assert summary["spectral_gap"] == 1 and summary["rounds_per_tenfold"] == 3 and summary["doubly_stochastic"]
    assert (summary["num_edges"], summary["max_degree"], summary["diameter"]) == (8, 1, 3)
    assert np.array(summary["mixing"])[0].tolist() == [0.5, 0, 0, 0, 0, 0, 0.5, 0]  # round 1: two places before
    assert topology.neighbours(0, 2) == [4] and topology.readers(0, 2) == [4]
    root, parents = topology.tree()
    assert root == 0 and set(parents) == set(range(1, 8))


def test_rounds_per_tenfold_of_a_schedule_counts_rounds() -> None:
    topology = load_topology("random_matching", 5)
    joint = np.linalg.multi_dot([topology.matrix(round) for round in reversed(range(5))])
    rho = np.linalg.norm(joint - 1 / 5, 2)
    assert topology.summary()["spectral_gap"] == pytest.approx(1 - rho)
    assert topology.summary()["rounds_per_tenfold"] == 5 * np.ceil(np.log(10) / -np.log(rho))


def test_a_plug_in_may_leave_agents_apart_in_a_round_if_it_declares_its_period(plugin: Register) -> None:
    def halves(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
        graph = nx.empty_graph(n)
        graph.add_edges_from((i, i + 1) for i in range(round % 2, n - 1, 2))
        return graph

    name = plugin(halves)
    with pytest.raises(TopologyError, match=r"in round 0 is not connected: it falls into 2 parts, \{0, 1\}, \{2, 3\}"):
        build(name, 4)
    halves.period = 2  # type: ignore[attr-defined]
    assert sorted(build(name, 4, round=1).edges) == [(1, 2)]
    assert load_topology(name, 4).diameter == 4


def test_a_window_that_stays_apart_is_refused(plugin: Register) -> None:
    @periodic(2)
    def apart(n: int, *, round: int = 0, seed: int = 0, after: int = 4) -> nx.Graph:
        graph = nx.complete_graph(n)
        if round >= after:
            graph.remove_edges_from([(0, other) for other in range(1, n)])
        return graph

    name = plugin(apart)
    assert build(name, 4, round=3).number_of_edges() == 6
    with pytest.raises(TopologyError, match="rounds 4 to 5 together, is not connected"):
        build(name, 4, round=5)
    with pytest.raises(TopologyError, match="rounds 4 to 5 together"):
        load_topology(name, 4)  # the first rounds are looked at before anything starts
    late = load_topology(name, 4, options={"after": 40})
    with pytest.raises(TopologyError, match="rounds 40 to 41 together"):
        late.graph(41)


@pytest.mark.parametrize("period", [0, 2.5, True, "two", lambda n: -1, lambda n: n / 0])
def test_a_period_that_is_none_is_refused(plugin: Register, period: object) -> None:
    def looped(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
        return nx.cycle_graph(n)

    looped.period = period  # type: ignore[attr-defined]
    with pytest.raises(TopologyError, match="period"):
        build(plugin(looped), 4)


def test_a_plug_in_that_grows_denser_is_seen_to_change(plugin: Register) -> None:
    def growing(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
        return nx.complete_graph(n) if round >= 3 else nx.cycle_graph(n)

    def steady(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
        return nx.complete_graph(n) if round >= 100 else nx.cycle_graph(n)

    growing_topology = load_topology(plugin(growing), 6)
    assert not growing_topology.static
    assert growing_topology.summary(2)["num_edges"] == 6 and growing_topology.summary(3)["num_edges"] == 15
    # What is called static by its first rounds is asked all the same when a later round comes.
    late = load_topology(plugin(steady), 6)
    assert late.static and late.graph(100).number_of_edges() == 15


def test_round_seed_and_options_reach_a_plug_in(plugin: Register) -> None:
    seen = []

    def noting(n: int, *, round: int = 0, seed: int = 0, depth: int = 1) -> nx.Graph:
        seen.append((n, round, seed, depth))
        return nx.cycle_graph(n)

    build(plugin(noting), 5, round=4, seed=9, depth=2)
    assert seen == [(5, 4, 9, 2)]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("ring", "gave a str; expected a networkx.Graph"),
        (None, "gave a NoneType"),
        (nx.MultiGraph([(0, 1), (1, 2), (2, 3)]), "MultiGraph, which may hold an edge twice"),
        (nx.path_graph(3), "has 3 agents, and 4 were asked for"),
        (nx.grid_2d_graph(2, 2), r"nodes that are no agents: \(0, 0\), .* expected the whole numbers 0 to 3"),
        (nx.relabel_nodes(nx.path_graph(4), {0: 4}), "nodes that are no agents: 4"),
        (nx.relabel_nodes(nx.path_graph(4), str), "nodes that are no agents: '0'"),
        (nx.Graph([(0, 1), (1, 2), (2, 3), (2, 2)]), r"from an agent to itself \(2\)"),
        (nx.Graph([(0, 1), (2, 3)]), r"not connected: it falls into 2 parts, \{0, 1\}, \{2, 3\}"),
        (nx.DiGraph([(0, 1), (1, 2), (2, 0), (2, 3)]), r"not strongly connected: .* \{0, 1, 2\}, \{3\}"),
    ],
)
def test_a_plug_in_that_gives_what_is_no_graph_of_agents(plugin: Register, graph: object, message: str) -> None:
    def given(n: int, *, round: int = 0, seed: int = 0) -> object:
        return graph

    with pytest.raises(TopologyError, match=message) as caught:
        build(plugin(given), 4)
    assert "plugged_topologies:given" in str(caught.value)


def test_a_plug_in_that_raises_is_named_with_what_it_raised(plugin: Register) -> None:
    def broken(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
        raise KeyError("site")

    with pytest.raises(TopologyError, match=r"'plugged_topologies:broken' failed for 4 agents in round 0: KeyError"):
        build(plugin(broken), 4)


def test_a_plug_in_without_the_contracts_signature(plugin: Register) -> None:
    def roundless(n: int, *, seed: int = 0) -> nx.Graph:
        return nx.cycle_graph(n)

    def needy(n: int, *, round: int = 0, seed: int = 0, sites: int) -> nx.Graph:
        return nx.cycle_graph(n)

    with pytest.raises(TopologyError, match="does not take the keyword 'round'"):
        build(plugin(roundless), 4)
    with pytest.raises(TopologyError, match="needs a value for sites"):
        build(plugin(needy), 4)
    assert build(plugin(needy), 4, sites=2).number_of_edges() == 4
    sys.modules["plugged_topologies"].table = {"a": 1}  # type: ignore[attr-defined]
    with pytest.raises(TopologyError, match="is a dict; expected a function"):
        build("plugged_topologies:table", 4)


def test_a_graph_from_build_is_the_callers_own() -> None:
    graph = build("ring", 4)
    graph.remove_edge(0, 1)
    assert build("ring", 4).has_edge(0, 1)
