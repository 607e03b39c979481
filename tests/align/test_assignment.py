"""The linear assignment: optimal, the same total by every backend, and plain refusals."""

import itertools

import lap
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from dimat.align import Group, assign, linear_assignment, solve
from dimat.align.assign import BACKENDS
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


@pytest.mark.parametrize("structure", ["heads", "blocks"])
@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_on_blocks(structure: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    group = Group("g", 5 * (4 + 3), (), structure=structure, parts=(4, 3))
    similarities = {
        part: torch.randn(group.num_units(part), group.num_units(part), generator=generator, dtype=torch.float64)
        for part in (-1, 0, 1)
    }
    totals = []
    for backend in BACKENDS:
        monkeypatch.setattr(
            solve, "linear_assignment", lambda matrix, backend=backend: linear_assignment(matrix, backend)
        )
        perm = solve.best_permutation(group, similarities)
        assert group.torn(perm) is None
        totals.append(solve.total_similarity(group, similarities, perm))
    assert totals == pytest.approx([totals[0]] * len(BACKENDS), rel=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("agreeing", "lapx"), ("unrelated", "scipy")])
def test_the_faster_backend_is_chosen(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: lapx where nearly every column is the best of some row, scipy where many rows want the same."""
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((64, 64)) + 4 * np.eye(64) * (kind == "agreeing")
    assert 0.75 < len(set(matrix.argmax(1))) / 64 < 1 if kind == "agreeing" else len(set(matrix.argmax(1))) < 48
    called = []
    monkeypatch.setattr(
        lap, "lapjv", lambda *args, run=lap.lapjv, **kwargs: called.append("lapx") or run(*args, **kwargs)
    )
    monkeypatch.setattr(
        assign,
        "linear_sum_assignment",
        lambda *args, run=linear_sum_assignment, **kwargs: called.append("scipy") or run(*args, **kwargs),
    )
    linear_assignment(matrix)
    assert called == [expected]
