"""The linear assignment: optimal, the same total by every backend, and plain refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dimat.align import linear_assignment
from dimat.errors import AlignmentError

MATRICES = st.integers(1, 5).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(-10, 10)))


@given(MATRICES)
@settings(max_examples=60, deadline=None)
def test_optimal_by_every_backend(matrix: np.ndarray) -> None:
    n = len(matrix)
    best = max(sum(matrix[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
    for backend in ("auto", "lapx", "scipy"):
        found = linear_assignment(matrix, backend)
        assert sorted(found.tolist()) == list(range(n))
        assert matrix[np.arange(n), found].sum() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_on_correlations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one = generator.standard_normal((80, 40))
    matrix = np.corrcoef(one, one[generator.permutation(80)] + 3 * generator.standard_normal((80, 40)))[:80, 80:]
    totals = [matrix[np.arange(80), linear_assignment(matrix, backend)].sum() for backend in ("lapx", "scipy")]
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)
    assert len(set(matrix.argmax(1))) < 80  # not the short cut


def test_bad_input_is_refused() -> None:
    with pytest.raises(AlignmentError, match=r"shape \(2, 3\)"):
        linear_assignment(np.zeros((2, 3)))
    with pytest.raises(AlignmentError, match="NaN or Inf"):
        linear_assignment([[np.nan]])
    with pytest.raises(AlignmentError, match=r"unknown assignment backend 'scipi'\. Did you mean 'scipy'"):
        linear_assignment([[1.0]], "scipi")
    assert linear_assignment(np.zeros((0, 0))).shape == (0,)
