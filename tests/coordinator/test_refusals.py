"""What the coordinator says of refusals, and that the bias it names is the one that the matrix has."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.coordinator.refusals import MAX_REASON, one_sided, told
from dimat.messages import REFUSED, Report
from dimat.topology import load_topology

PAIRS = [(reader, peer) for reader in range(5) for peer in range(5) if reader != peer]


def report(agent: int, weights: dict[int, float], refused: dict[int, str]) -> Report:
    missing = {peer: REFUSED + why for peer, why in refused.items()}
    return Report(agent, "s", 4, {}, weights=weights, missing=missing)


@settings(max_examples=100, deadline=None)
@given(refusals=st.sets(st.sampled_from(PAIRS)))
def test_the_weight_that_is_read_one_way_is_what_the_columns_are_off_by(refusals: set[tuple[int, int]]) -> None:
    topology = load_topology("complete", 5)
    matrix = np.array([[topology.weights(i, 0)[j] for j in range(5)] for i in range(5)])
    reports = []
    for i in range(5):
        refused = {j: "far" for j in range(5) if (i, j) in refusals}
        for j in refused:
            matrix[i, i] += matrix[i, j]
            matrix[i, j] = 0.0
        reports.append(report(i, {j: matrix[i, j] for j in range(5) if matrix[i, j] > 0}, refused))
    edges = one_sided(reports[::-1])
    assert set(edges) == {(i, j) for i, j in refusals if (j, i) not in refusals}
    bias = np.zeros(5)
    for (reader, peer), weight in edges.items():
        bias[reader] += weight
        bias[peer] -= weight
    np.testing.assert_allclose(matrix.sum(axis=0) - 1.0, bias, atol=1e-12)


def test_one_sentence_names_who_by_whom_and_why() -> None:
    reports = [
        report(2, {2: 1.0}, {0: "far " * 400}),
        report(0, {0: 0.5, 1: 0.25, 2: 0.25}, {}),
        report(1, {1: 1.0}, {0: "it points elsewhere"}),
        Report(3, "s", 4, {}, weights={3: 1.0}, missing={0: "had not published round 4"}),
    ]
    text = told(4, reports)
    assert text == (
        "round 4: agent 0 was refused by agents 1, 2 (it points elsewhere); "
        "2 edges were read one way, by a weight of 0.5"
    )
    assert len(told(4, reports[:2])) < MAX_REASON + 150
    assert told(4, reports[3:]) == ""
