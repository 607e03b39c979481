"""Cross-gradient aggregation against plain numpy, its projection against a solver that knows nothing of duals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from least_squares import LR, assert_same, config_of, expected, gradient, matrix, reports, trajectory
from scipy.optimize import minimize

from dimat.agent.algorithms.projection import multipliers
from dimat.agent.build import build_algorithm
from dimat.errors import ConfigError
from dimat.topology import load_topology


def plainly(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The point of the cone nearest to `own`: every set of constraints is tried as the active one."""
    best, distance = np.zeros_like(own), np.linalg.norm(own)  # the origin is in every cone
    for chosen in range(2 ** len(others)):
        rows = others[[i for i in range(len(others)) if chosen >> i & 1]]
        z = own - np.linalg.pinv(rows) @ (rows @ own) if len(rows) else own
        slack = 1e-9 * (1 + np.abs(others).max()) * (1 + np.linalg.norm(own))
        if (others @ z >= -slack).all() and np.linalg.norm(z - own) < distance:
            best, distance = z, np.linalg.norm(z - own)
    return best


@pytest.mark.parametrize("graph", ["ring", "star", "complete"])
def test_it_descends_along_the_projection(tmp_path: Path, graph: str) -> None:
    found = trajectory(tmp_path, "algorithm=cga", "train.momentum=0.5", f"topology.graph={graph}", "rounds=3")
    topology, w, v = load_topology(graph, 4), matrix(graph), np.zeros_like(found[0])
    active = 0

    def step(k: int, x: np.ndarray) -> np.ndarray:
        nonlocal v, active
        z = []
        for i in range(4):
            crossed = np.stack([gradient(j, x[i]) for j in topology.neighbours(i)])
            z.append(plainly(gradient(i, x[i]), crossed))
            active += not np.allclose(z[-1], gradient(i, x[i]))
        v = 0.5 * v - LR * np.stack(z)
        return w @ x + v

    assert_same(found, expected(found[0], 3, step), tolerance=1e-9)
    assert active, "somewhere a neighbour objects"


def test_models_and_gradients_travel_both(tmp_path: Path) -> None:
    trajectory(tmp_path, "algorithm=cga")
    assert reports(tmp_path)[1, 2].bytes_received == {0: 64, 2: 64}


vectors = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(5)), elements=st.floats(-3, 3, width=16))


@given(vectors, arrays(np.float64, 5, elements=st.floats(-3, 3, width=16)))
def test_the_projection_is_the_nearest_point_of_the_cone(others: np.ndarray, own: np.ndarray) -> None:
    """By the conditions of optimality, which name the nearest point of a convex cone."""
    u = multipliers(others @ others.T, others @ own)
    z = own + others.T @ u
    scale = 1 + np.linalg.norm(own) * np.linalg.norm(others)
    assert (u >= 0).all()
    assert (others @ z >= -1e-6 * scale).all(), "no other is against it"
    assert np.abs(u * (others @ z)).max() <= 1e-6 * scale * (1 + u.max()), "who is not in the way does not push"


@given(
    arrays(np.float64, (3, 4), elements=st.floats(-2, 2, width=16)), arrays(np.float64, 4, elements=st.floats(-2, 2))
)
def test_with_a_margin_it_is_the_least_of_the_dual(others: np.ndarray, own: np.ndarray) -> None:
    gram, with_own = others @ others.T, others @ own
    assume(np.linalg.eigvalsh(gram)[0] > 1e-2)

    def dual(u: np.ndarray) -> float:
        return float(0.5 * u @ gram @ u + u @ with_own)

    u = multipliers(gram, with_own, margin=0.5)
    least = minimize(dual, np.full(3, 0.5), jac=lambda u: gram @ u + with_own, bounds=[(0.5, None)] * 3)
    assert (u >= 0.5).all()
    assert dual(u) <= least.fun + 1e-6 * (1 + abs(least.fun))


def test_nobody_objects_to_what_nobody_sent() -> None:
    assert multipliers(np.zeros((0, 0)), np.zeros(0)).tolist() == []
    assert multipliers(np.zeros((2, 2)), np.zeros(2)).tolist() == [0, 0]


def test_it_refuses_directed_graphs() -> None:
    with pytest.raises(ConfigError, match="needs an undirected graph"):
        build_algorithm(config_of("algorithm=cga", "topology.graph=exponential"))
