"""Decentralised SGD against plain numpy, step by step; and against centralised SGD where the two are one."""

from pathlib import Path

import numpy as np
import pytest
from least_squares import (
    LR,
    assert_same,
    config_of,
    expected,
    gradient,
    gradients,
    matrix,
    reports,
    start,
    trajectory,
)

from dimat.agent.build import build_algorithm
from dimat.errors import ConfigError


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_it_mixes_and_descends_from_where_it_stood(tmp_path: Path, graph: str) -> None:
    found = trajectory(tmp_path, "algorithm=dsgd", f"topology.graph={graph}")
    w = matrix(graph)
    assert_same(found, expected(found[0], 4, lambda k, x: w @ x - LR * gradients(x)))


def test_momentum_is_each_agents_own(tmp_path: Path) -> None:
    found = trajectory(tmp_path, "algorithm=cdmsgd", "train.momentum=0.8")
    w, v = matrix("ring"), np.zeros_like(found[0])

    def step(k: int, x: np.ndarray) -> np.ndarray:
        nonlocal v
        v = 0.8 * v - LR * gradients(x)
        return w @ x + v

    assert_same(found, expected(found[0], 4, step))


def test_on_a_complete_graph_from_one_start_it_is_centralised_sgd(tmp_path: Path) -> None:
    """Agents differ by their last gradients alone, so their mean moves by the mean of gradients taken within a step of
    it: exactly the centralised step the first time, and from then on what centralised SGD on those gradients does."""
    found = trajectory(tmp_path, "algorithm=dsgd", "topology.graph=complete", "init=same", "rounds=3")
    central = start(0, "same")
    for step in range(3):
        taken = [gradient(agent, found[step][agent]) for agent in range(4)]
        if step == 0:
            np.testing.assert_array_equal(found[0], np.tile(central, (4, 1)))
        central = central - LR * np.mean(taken, axis=0)
        np.testing.assert_allclose(found[step + 1].mean(axis=0), central, rtol=0, atol=1e-12)


def test_a_graph_that_changes_does_so_from_exchange_to_exchange(tmp_path: Path) -> None:
    found = trajectory(tmp_path, "algorithm=dsgd", "topology.graph=one_peer_exponential", "rounds=3")
    assert_same(found, expected(found[0], 3, lambda k, x: matrix("one_peer_exponential", k) @ x - LR * gradients(x)))


def test_several_steps_a_round_are_several_exchanges(tmp_path: Path) -> None:
    found = trajectory(tmp_path, "algorithm=dsgd", "algorithm.steps=3", "rounds=2")
    w, steps = matrix("ring"), [found[0]]
    for _ in range(6):
        steps.append(w @ steps[-1] - LR * gradients(steps[-1]))
    np.testing.assert_allclose(found[1], steps[3], atol=1e-12)
    np.testing.assert_allclose(found[2], steps[6], atol=1e-12)
    told = reports(tmp_path)[0, 1]
    assert told.bytes_received == {1: 3 * 32, 3: 3 * 32}, (
        "four numbers of eight bytes, three times, from each neighbour"
    )
    np.testing.assert_allclose([told.weights[peer] for peer in (0, 1, 3)], w[0, [0, 1, 3]])
    assert {"train", "publish", "wait", "gather", "fold", "evaluate", "sketch", "checkpoint"} <= set(told.seconds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=dsgd", "train.optimizer=adam"], "descends by sgd"),
        (["algorithm=dsgd", "train.momentum=0.9"], "has none momentum"),
        (["algorithm=cdmsgd", "train.momentum=0"], "has some momentum"),
    ],
)
def test_it_refuses_another_optimiser_than_its_own(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config_of(*settings))
