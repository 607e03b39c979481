"""Stochastic gradient push against its published form in plain numpy: numerators x, weights w, z = x / w."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from least_squares import LR, assert_same, expected, gradient, gradients, reports, start, trajectory
from safetensors.torch import load_file

from dimat.agent.algorithms.sgp import pushed_row
from dimat.topology import load_topology

DIRECTED = """
from networkx import DiGraph

def lopsided(n, *, round=0, seed=0):
    '''A directed ring in which agent 0 is also read by 2.'''
    return DiGraph([(j, (j + 1) % n) for j in range(n)] + [(0, 2)])
"""


@pytest.fixture
def graph(tmp_path: Path) -> str:
    path = tmp_path / "lopsided.py"
    path.write_text(DIRECTED)
    return f"{path}:lopsided"


def pushes(graph: str, round: int = 0) -> np.ndarray:
    """Column-stochastic: column j has 1 / (1 + readers of j) at j and at its readers."""
    topology = load_topology(graph, 4)
    p = np.zeros((4, 4))
    for j in range(4):
        readers = topology.readers(j, round)
        p[[j, *readers], j] = 1 / (1 + len(readers))
    np.testing.assert_allclose(p.sum(axis=0), 1)
    return p


def oracle(graph: str, begin: np.ndarray, num_steps: int, momentum: float = 0.0) -> tuple[list[np.ndarray], np.ndarray]:
    w, v = np.ones(4), np.zeros_like(begin)

    def step(k: int, z: np.ndarray) -> np.ndarray:
        nonlocal w, v
        p = pushes(graph, k)
        v = momentum * v + gradients(z)
        x = p @ (w[:, None] * z - LR * v)
        w = p @ w
        return x / w[:, None]

    return expected(begin, num_steps, step), w


def test_numerators_and_weights_are_pushed_alike(tmp_path: Path, graph: str) -> None:
    found = trajectory(tmp_path / "run", "algorithm=sgp", "train.momentum=0", f"topology.graph={graph}")
    path, w = oracle(graph, found[0], 4)
    assert_same(found, path)
    assert np.ptp(w) > 0.1, "on this graph weights differ"
    held = [load_file(tmp_path / "run" / "checkpoints" / str(a) / "4.safetensors") for a in range(4)]
    np.testing.assert_allclose([float(tensors["algorithm.push_weight"]) for tensors in held], w, atol=1e-14)


def test_momentum_descends_on_the_numerator(tmp_path: Path, graph: str) -> None:
    found = trajectory(tmp_path / "run", "algorithm=sgp", "train.momentum=0.7", f"topology.graph={graph}")
    assert_same(found, oracle(graph, found[0], 4, momentum=0.7)[0])


def test_the_peer_changes_from_exchange_to_exchange(tmp_path: Path) -> None:
    settings = ["algorithm=sgp", "train.momentum=0", "topology.graph=one_peer_exponential", "rounds=3"]
    found = trajectory(tmp_path, *settings)
    assert_same(found, oracle("one_peer_exponential", found[0], 3)[0])


def test_on_a_complete_graph_from_one_start_it_is_centralised_sgd(tmp_path: Path) -> None:
    """Every agent descends, then all average: one point for all, and the mean gradient there."""
    settings = ["algorithm=sgp", "train.momentum=0", "topology.graph=complete", "init=same", "rounds=3"]
    found = trajectory(tmp_path, *settings)
    central = [start(0, "same")]
    for _ in range(3):
        central.append(central[-1] - LR * np.mean([gradient(agent, central[-1]) for agent in range(4)], axis=0))
    assert_same(found, [np.tile(point, (4, 1)) for point in central])


def test_what_is_reported_is_the_row_of_the_models_that_really_were_mixed(tmp_path: Path, graph: str) -> None:
    trajectory(tmp_path / "run", "algorithm=sgp", "train.momentum=0", f"topology.graph={graph}")
    for (_, _), report in reports(tmp_path / "run").items():
        assert math.isclose(sum(report.weights.values()), 1)
    assert set(reports(tmp_path / "run")[2, 1].weights) == {0, 1, 2}


@given(st.dictionaries(st.integers(1, 9), st.tuples(st.floats(0.05, 1), st.floats(1e-3, 1e3)), max_size=5))
def test_a_missing_sender_adds_nothing_to_either_sum(others: dict[int, tuple[float, float]]) -> None:
    """The de-biased model is numerator by weight, over whoever is there."""
    there = {0: (0.5, 1.0), **others}
    row, weight = pushed_row(0, {j: p for j, (p, _) in there.items()}, {j: w for j, (_, w) in there.items()})
    z = {j: float(j) for j in there}
    numerator = sum(p * w * z[j] for j, (p, w) in there.items())
    denominator = sum(p * w for p, w in there.values())
    assert math.isclose(weight, denominator, rel_tol=1e-12)
    assert math.isclose(sum(row[j] * z[j] for j in row), numerator / denominator, rel_tol=1e-12, abs_tol=1e-12)
