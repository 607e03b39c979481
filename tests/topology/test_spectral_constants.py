"""Gaps that are known in closed form or from a table."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest

from dimat.topology import build, bytes_per_round, joint_matrix, mixing_matrix, rounds_per_tenfold, spectral_gap


def gap(name: str, n: int) -> float:
    return spectral_gap(mixing_matrix(build(name, n)))


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("path", (0.0507, 0.0128, 0.0032, 0.0008)),
        ("ring", (0.1953, 0.0507, 0.0128, 0.0032)),
        ("star", (0.1250, 0.0625, 0.0312, 0.0156)),
        ("grid", (0.1464, 0.1314, 0.0342, 0.0323)),
        ("torus", (0.5, 0.4, 0.1172, 0.1172)),
        ("hypercube", (0.5, 0.4, 0.3333, 0.2857)),
        ("exponential", (0.5, 0.4, 0.3333, 0.2857)),
        ("complete", (1, 1, 1, 1)),
    ],
)
def test_gaps_of_8_16_32_and_64_agents(name: str, gaps: tuple[float, ...]) -> None:
    assert [gap(name, n) for n in (8, 16, 32, 64)] == pytest.approx(gaps, abs=6e-5)


def test_gaps_of_five_agents() -> None:
    expected = {"ring": 0.4607, "path": 0.1273, "star": 0.2, "exponential": 0.75, "complete": 1}
    assert {name: gap(name, 5) for name in expected} == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("n", [3, 4, 7, 16, 33])
def test_ring_and_star_have_their_closed_forms(n: int) -> None:
    assert gap("ring", n) == pytest.approx(
        1 - max(abs(1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / n)) for k in range(1, n)), abs=1e-12
    )
    assert gap("star", n) == pytest.approx(1 / n, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 6, 10, 18, 34])
def test_the_static_exponential_graph_has_its_closed_form_for_even_n(n: int) -> None:
    assert gap("exponential", n) == pytest.approx(2 / (1 + math.ceil(math.log2(n))), abs=1e-12)


def test_rounds_per_tenfold_at_the_borders() -> None:
    assert rounds_per_tenfold(mixing_matrix(nx.cycle_graph(16))) == 45  # ln 10 / -ln(1 - 0.05075)
    assert rounds_per_tenfold(mixing_matrix(nx.complete_graph(6))) == 1
    assert rounds_per_tenfold(np.eye(3)) is None
    assert rounds_per_tenfold(np.array([[0.0, 1.0], [1.0, 0.0]])) is None  # two agents that swap for ever


def test_one_peer_exponential_averages_exactly_after_log2_n_rounds_only_for_powers_of_two() -> None:
    def joint(n: int, rounds: int) -> np.ndarray:
        return joint_matrix([mixing_matrix(build("one_peer_exponential", n, round=r)) for r in range(rounds)])

    assert np.allclose(joint(16, 4), 1 / 16, atol=1e-15)
    assert not np.allclose(joint(16, 3), 1 / 16, atol=1e-3)
    assert np.linalg.norm(joint(5, 3) - 1 / 5, 2) > 0.05


def test_the_product_of_rounds_applies_the_first_round_first() -> None:
    first, second = mixing_matrix(nx.DiGraph([(0, 1), (1, 0)])), np.array([[1.0, 0.0], [0.5, 0.5]])
    x = np.array([3.0, 7.0])
    assert (joint_matrix([second, first]) @ x).tolist() == (first @ (second @ x)).tolist()
    first = np.array([[0.25, 0.75], [0.0, 1.0]])
    assert (joint_matrix([second, first]) @ x).tolist() == (first @ (second @ x)).tolist()


def test_bytes_per_round_counts_reads() -> None:
    assert bytes_per_round(build("ring", 5), 1000) == 10_000  # every undirected edge is read from both ends
    assert bytes_per_round(build("exponential", 8), 1000) == 24_000
