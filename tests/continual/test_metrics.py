from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dimat.continual.metrics import average_accuracy, backward_transfer, negative_flips

NAN = math.nan
shares = st.floats(0, 1)
squares = st.integers(2, 7).flatmap(lambda n: arrays(np.float64, (n, n), elements=shares))


def test_accuracy_and_transfer_of_a_matrix_counted_by_hand() -> None:
    told = [[0.9, NAN, NAN], [0.8, 0.7, NAN], [0.6, 0.75, 0.5]]
    assert average_accuracy(told) == pytest.approx((0.6 + 0.75 + 0.5) / 3)
    assert backward_transfer(told) == pytest.approx(((0.6 - 0.9) + (0.75 - 0.7)) / 2)


@settings(max_examples=30, deadline=None)
@given(squares)
def test_transfer_equals_a_plain_loop_and_reads_nothing_above_the_diagonal(a: np.ndarray) -> None:
    last = len(a) - 1
    expected = sum(a[last][i] - a[i][i] for i in range(last)) / last
    assert backward_transfer(a) == pytest.approx(expected, abs=1e-12)
    hidden = np.where(np.triu(np.ones_like(a), 1) > 0, np.nan, a)
    assert backward_transfer(hidden) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(squares, shares)
def test_forgetting_everything_by_the_same_amount_is_that_amount(a: np.ndarray, loss: float) -> None:
    a[-1, :-1] = a.diagonal()[:-1] - loss
    assert backward_transfer(a) == pytest.approx(-loss)


def test_what_was_not_measured_gives_no_number() -> None:
    assert math.isnan(backward_transfer([[NAN, NAN], [0.5, 0.5]]))
    assert math.isnan(backward_transfer([[0.5]]))
    assert math.isnan(average_accuracy([[0.5, 0.5], [0.5, NAN]]))
    assert average_accuracy([[NAN, NAN], [0.5, 0.7]]) == pytest.approx(0.6)


def test_matrices_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), expected as many steps as tasks"):
        backward_transfer(np.zeros((2, 3)))
    for wrong in (np.zeros(3), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="expected a matrix of steps and tasks"):
            average_accuracy(wrong)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_flips_count_what_broke_and_nothing_else(pairs: list[tuple[bool, bool]]) -> None:
    before, after = zip(*pairs, strict=True)
    assert negative_flips(before, after) == pytest.approx(sum(b and not a for b, a in pairs) / len(pairs))
    assert negative_flips(before, before) == 0
    # Accuracy changes by what was gained less what was lost.
    change = np.mean(after) - np.mean(before)
    assert negative_flips(after, before) - negative_flips(before, after) == pytest.approx(change)


def test_flips_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"right before: \(2,\), now: \(3,\)"):
        negative_flips([True, False], [True, False, True])
    assert math.isnan(negative_flips([], []))
