"""CHOCO-SGD against plain numpy, its compression against sorting, its copies against what goes wrong on the way."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from least_squares import LR, assert_same, config_of, expected, gradients, matrix, reports, trajectory

from dimat.agent.algorithms.topk import add, compress, empty, num_kept
from dimat.agent.build import build_algorithm
from dimat.errors import ConfigError, PayloadError


def largest(d: np.ndarray, ratio: float) -> np.ndarray:
    """Top-k of the weight and of the bias apart, as they are two tensors."""
    kept = np.zeros_like(d)
    for part in (slice(0, 3), slice(3, 4)):
        k = max(1, math.ceil(ratio * len(d[part])))
        chosen = np.argsort(-np.abs(d[part]), kind="stable")[:k] + part.start
        kept[chosen] = d[chosen]
    return kept


@pytest.mark.parametrize(("graph", "ratio", "gamma"), [("ring", 0.3, 0.4), ("star", 0.6, 1.0), ("complete", 1.0, 0.9)])
def test_it_steps_towards_the_copies(tmp_path: Path, graph: str, ratio: float, gamma: float) -> None:
    settings = [f"algorithm.ratio={ratio}", f"algorithm.gamma={gamma}", "train.momentum=0", f"topology.graph={graph}"]
    found = trajectory(tmp_path, "algorithm=choco", *settings, "rounds=3")
    w, copies = matrix(graph), np.zeros_like(found[0])

    def step(k: int, x: np.ndarray) -> np.ndarray:
        nonlocal copies
        x = x - LR * gradients(x)
        copies = copies + np.stack([largest(d, ratio) for d in x - copies])
        return x + gamma * (w @ copies - copies)

    assert_same(found, expected(found[0], 3, step))
    # One place and one value of the weight's three at 0.3, two of them at 0.6; one of each of the bias.
    per_edge = {0.3: (1 + 1) * 12, 0.6: (2 + 1) * 12, 1.0: (3 + 1) * 12}[ratio]
    told = reports(tmp_path)
    assert {number for report in told.values() for number in report.bytes_received.values()} == {per_edge}
    assert not any(report.missing for report in told.values())


@given(
    st.lists(st.lists(st.floats(-5, 5, width=32), min_size=0, max_size=30, unique_by=abs), min_size=1, max_size=3),
    st.floats(0.01, 1),
)
def test_the_largest_travel_and_the_rest_stays(rows: list[list[float]], ratio: float) -> None:
    tensors = {str(i): torch.tensor(row, dtype=torch.float32) for i, row in enumerate(rows)}
    sent = compress(tensors, ratio)
    shapes = {name: (t.dtype, t.shape) for name, t in sent.items()}
    assert shapes == {name: (t.dtype, t.shape) for name, t in empty(tensors, ratio).items()}, "the schema is fixed"
    copy = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    add(copy, sent)
    for name, tensor in tensors.items():
        rest = tensor - copy[name]
        kept = copy[name] != 0
        assert int(kept.sum()) <= num_kept(len(tensor), ratio)
        assert not bool(rest[kept].any())
        if kept.any() and (~kept).any():
            assert float(copy[name][kept].abs().min()) >= float(rest[~kept].abs().max())


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [-1, 0], [1, 4]])
def test_places_that_a_liar_might_send_are_refused_before_anything_is_added(places: list[int]) -> None:
    onto = {"v": torch.zeros(2), "w": torch.zeros(4)}
    sent = {
        "v.values": torch.ones(1), "v.places": torch.tensor([0], dtype=torch.int32),
        "w.values": torch.ones(2), "w.places": torch.tensor(places, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(PayloadError, match="not ascending numbers from 0 to 3"):
        add(onto, sent)
    assert not any(bool(tensor.any()) for tensor in onto.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=choco", "topology.graph=exponential"], "needs an undirected graph"),
        (["algorithm=choco", "topology.graph=random_matching"], "change"),
        (["algorithm=choco", "algorithm.ratio=0"], "ratio is 0, expected a number above 0 and at most 1"),
        (["algorithm=choco", "algorithm.gama=0.2"], "Did you mean 'gamma'"),
    ],
)
def test_what_it_refuses(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config_of(*settings))
