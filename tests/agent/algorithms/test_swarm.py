"""Random pair averaging against plain numpy; what a matching is, for any graph."""

from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from least_squares import LR, assert_same, config_of, expected, gradient, gradients, reports, trajectory

from dimat.agent.algorithms.swarm import matching
from dimat.agent.build import build_algorithm
from dimat.errors import ConfigError
from dimat.seeds import derive_seed
from dimat.topology import load_topology


def pairs(index: int, graph: str = "ring") -> np.ndarray:
    """The matrix of one exchange: halves for those who meet."""
    partners = matching(load_topology(graph, 4).graph().edges, derive_seed(0, "swarm", index))
    w = np.eye(4)
    for one, other in partners.items():
        w[one, one] = w[one, other] = 0.5
    return w


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_pairs_average_after_their_local_step(tmp_path: Path, graph: str) -> None:
    settings = ["algorithm=swarm", "algorithm.local_steps=1", "train.momentum=0", f"topology.graph={graph}"]
    found = trajectory(tmp_path, *settings)
    assert_same(found, expected(found[0], 4, lambda k, x: pairs(k + 1, graph) @ (x - LR * gradients(x))))
    met = {tuple(sorted(report.weights)) for report in reports(tmp_path).values()}
    assert len(met) > 2, "not the same pairs every time"
    if graph == "star":
        assert any(len(pair) == 1 for pair in met), "two of four have nobody"


def test_local_steps_come_first_and_a_round_ends_with_an_exchange(tmp_path: Path) -> None:
    """Seven steps by three: exchanges after the third, the sixth and the last."""
    settings = ["algorithm=swarm", "train.momentum=0", "algorithm.steps=7", "rounds=2"]
    found = trajectory(tmp_path, *settings)
    x, index = found[0], 0
    for round in (1, 2):
        for step in range(1, 8):
            x = x - LR * gradients(x)
            if step in (3, 6, 7):
                index += 1
                x = pairs(index) @ x
        np.testing.assert_allclose(found[round], x, atol=1e-12)
    assert sum(reports(tmp_path)[0, 1].bytes_received.values()) == 3 * 32


def test_momentum_is_not_averaged(tmp_path: Path) -> None:
    settings = ["algorithm=swarm", "algorithm.local_steps=1", "train.momentum=0.9", "rounds=3"]
    found = trajectory(tmp_path, *settings)
    x, v = found[0], np.zeros_like(found[0])
    for k, (_, after) in enumerate(pairwise(found)):
        v = 0.9 * v + np.stack([gradient(agent, x[agent]) for agent in range(4)])
        x = pairs(k + 1) @ (x - LR * v)
        np.testing.assert_allclose(after, x, atol=1e-12)


@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 2**32), st.randoms())
def test_a_matching_is_maximal_and_does_not_depend_on_the_order_of_edges(n: int, p: float, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    graph = nx.gnp_random_graph(n, p, seed=seed)
    partners = matching(graph.edges, seed)
    assert all(partners[partners[one]] == one and graph.has_edge(one, other) for one, other in partners.items())
    assert all(one in partners or other in partners for one, other in graph.edges)
    turned = [(b, a) for a, b in graph.edges]
    random.shuffle(turned)
    assert matching(turned, seed) == partners


def test_every_edge_of_a_ring_is_drawn() -> None:
    ring = load_topology("ring", 6).graph().edges
    drawn = {(one, other) for seed in range(60) for one, other in matching(ring, seed).items() if one < other}
    assert drawn == {tuple(sorted(edge)) for edge in ring}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=swarm", "topology.graph=exponential"], "needs an undirected graph"),
        (["algorithm=swarm", "algorithm.local_steps=0"], "expected a whole number of at least 1"),
        (["algorithm=swarm", "algorithm.local_step=2"], "Did you mean 'local_steps'"),
    ],
)
def test_what_it_refuses(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config_of(*settings))
