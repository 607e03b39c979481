"""Consensus distance and contraction against plain numpy, and the summary of a round made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.coordinator.consensus import (
    consensus_distance,
    contraction_bound,
    predicted_contraction,
    read_sketches,
    realised_matrix,
)
from dimat.coordinator.summaries import bytes_per_edge, seconds_per_phase, summarise, units_moved
from dimat.messages import Report
from dimat.snapshot.sketch import sketch


def ring(n: int) -> np.ndarray:
    """Metropolis weights of a ring: a third for each neighbour and for oneself."""
    return (np.eye(n) + np.roll(np.eye(n), 1, axis=0) + np.roll(np.eye(n), -1, axis=0)) / 3


def report(agent: int, row: np.ndarray, before: np.ndarray, after: np.ndarray, **metrics: float) -> Report:
    as_bytes = [sketch([torch.from_numpy(x)], seed=0) for x in (before, after)]
    weights = {j: float(w) for j, w in enumerate(row) if w}
    return Report(agent, "s", 1, metrics, weights=weights, sketch_before=as_bytes[0], sketch_after=as_bytes[1])


def merged(matrix: np.ndarray, models: np.ndarray) -> list[Report]:
    after = matrix @ models
    return [report(i, matrix[i], models[i], after[i]) for i in range(len(models))]


def distance(models: np.ndarray) -> float:
    centre = sum(models) / len(models)
    return math.sqrt(sum(float(np.dot(x - centre, x - centre)) for x in models) / len(models))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_the_distance_is_the_formula(n: int, k: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((n, k))
    assert consensus_distance(rows) == pytest.approx(distance(rows))


def test_sketches_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different sizes cannot be compared: \[1, 2\]"):
        read_sketches([bytes(4), bytes(8)])


@pytest.mark.parametrize("n", [5, 16])
def test_on_a_ring_the_prediction_is_what_happens_and_below_the_bound(n: int) -> None:
    models = np.random.default_rng(0).standard_normal((n, 5000))
    summary = summarise(1, merged(ring(n), models))
    truth = distance(ring(n) @ models) / distance(models)
    assert summary.observed_contraction == pytest.approx(truth, rel=0.05)
    assert summary.predicted_contraction == pytest.approx(summary.observed_contraction, rel=1e-5)
    # The second eigenvalue of a ring's matrix in closed form.
    assert contraction_bound(ring(n)) == pytest.approx((1 + 2 * math.cos(2 * math.pi / n)) / 3)
    assert summary.predicted_contraction <= contraction_bound(ring(n))
    assert summary.consensus_distance == pytest.approx(distance(ring(n) @ models), rel=0.05)
    assert summary.consensus_distance_before == pytest.approx(distance(models), rel=0.05)


def test_disagreement_along_the_slowest_direction_shrinks_by_the_bound() -> None:
    n = 8
    slowest = np.cos(2 * math.pi * np.arange(n) / n)[:, None] * np.random.default_rng(0).standard_normal(5000)
    assert predicted_contraction(merged(ring(n), slowest)) == pytest.approx(contraction_bound(ring(n)), rel=1e-5)


def test_the_matrix_that_was_used_counts_not_the_one_that_was_planned() -> None:
    """Agents 0 and 1 did not hear each other: both gave the other's weight to themselves."""
    used = ring(4)
    used[[0, 1], [0, 1]] += used[[0, 1], [1, 0]]
    used[[0, 1], [1, 0]] = 0
    models = np.random.default_rng(1).standard_normal((4, 5000))
    reports = merged(used, models)
    assert predicted_contraction(reports) == pytest.approx(summarise(1, reports).observed_contraction, rel=1e-5)
    planned = [
        replace(r, weights={j: float(w) for j, w in enumerate(row) if w})
        for r, row in zip(reports, ring(4), strict=True)
    ]
    assert abs(predicted_contraction(planned) / predicted_contraction(reports) - 1) > 0.02


@settings(max_examples=30)
@given(st.integers(2, 6), st.sets(st.integers(0, 5), min_size=1), st.integers(0, 99))
def test_rows_still_sum_to_one_without_those_who_did_not_report(n: int, present: set[int], seed: int) -> None:
    full = np.random.default_rng(seed).dirichlet(np.ones(n), size=n)
    here = sorted(agent for agent in present if agent < n)
    matrix = realised_matrix({i: dict(enumerate(full[i])) for i in here})
    assert matrix.shape == (len(here), len(here))
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    off = ~np.eye(len(here), dtype=bool)
    np.testing.assert_array_equal(matrix[off], full[np.ix_(here, here)][off])


def test_what_cannot_be_known_is_nan() -> None:
    row = np.array([1.0, 0.0])
    equal = [report(0, row, np.ones(50), np.ones(50)), report(1, row[::-1], np.ones(50), np.ones(50))]
    assert summarise(1, equal).consensus_distance == 0
    assert math.isnan(summarise(1, equal).observed_contraction)  # there was nothing to shrink
    apart = merged(ring(4), np.random.default_rng(0).standard_normal((4, 50)))
    assert math.isnan(summarise(1, apart, linear=False).predicted_contraction)
    assert not math.isnan(summarise(1, apart, linear=False).observed_contraction)
    unmerged = [Report(0, "s", 1, {}), Report(1, "s", 1, {})]
    assert math.isnan(summarise(1, unmerged).consensus_distance)
    mixed = [apart[0], replace(apart[1], sketch_before=bytes(8), sketch_after=bytes(8))]
    assert math.isnan(summarise(1, mixed).consensus_distance)
    assert math.isnan(summarise(1, mixed).predicted_contraction)


def test_a_summary_counts_agents_edges_and_means() -> None:
    reports = [
        Report(0, "s", 7, {"accuracy": 0.9, "accuracy_before": 0.7, "loss": 1.0}, missing={1: "late"}),
        Report(1, "s", 7, {"accuracy": 0.6, "accuracy_before": 0.5, "loss": 2.0}, missing={0: "late", 2: "gone"}),
        Report(2, "s", 7, {"accuracy": 0.9, "accuracy_before": 0.3, "loss": 6.0}),
    ]
    summary = summarise(7, reversed(reports))
    assert (summary.round, summary.num_agents, summary.num_missing) == (7, 3, 2)
    assert summary.mean_accuracy == pytest.approx(0.8)
    assert summary.min_accuracy == 0.6
    assert summary.mean_accuracy_before_merge == pytest.approx(0.5)
    assert summary.mean_loss == pytest.approx(3.0)
    assert repr(summarise(7, reports)) == repr(summary)  # whatever the order of arrival; NaN included


def test_tables_of_the_report() -> None:
    reports = [
        Report(1, "s", 1, {}, seconds={"train": 4.0, "wait": 2.0}, bytes_received={0: 10}, moved={"conv": 0.5}),
        Report(0, "s", 1, {}, seconds={"train": 2.0}, bytes_received={1: 7, 2: 7}),
        Report(0, "s", 2, {}, seconds={"train": 3.0}, bytes_received={1: 5}, moved={"conv": 0.25, "fc": 1.0}),
    ]
    assert bytes_per_edge(reports) == {(0, 1): 10, (1, 0): 12, (2, 0): 7}
    assert seconds_per_phase(reports) == {1: {"train": 3.0, "wait": 1.0}, 2: {"train": 3.0}}
    assert units_moved(reports) == {1: {"conv": 0.5}, 2: {"conv": 0.25, "fc": 1.0}}


def test_the_gap_is_that_of_the_matrix_that_was_used() -> None:
    """An edge of a ring of four is missing; second singular value of W - J by hand."""
    third = 1 / 3
    rows = {
        0: {0: 2 * third, 3: third},
        1: {1: 2 * third, 2: third},
        2: {1: third, 2: third, 3: third},
        3: {0: third, 2: third, 3: third},
    }
    reports = [Report(agent, "s", 1, {}, weights=row) for agent, row in rows.items()]
    matrix = np.array([[rows[i].get(j, 0.0) for j in range(4)] for i in range(4)])
    oracle = 1 - np.linalg.svd(matrix - 0.25, compute_uv=False)[0]
    assert summarise(1, reports).spectral_gap == pytest.approx(oracle)
    assert math.isnan(summarise(1, [Report(agent, "s", 1, {}) for agent in range(4)]).spectral_gap)
