"""The radix select against a sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.merge import threshold
from dimat.merge.survey import run_survey
from dimat.merge.threshold import magnitudes_of_rank

any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3.4028234663852886e38])


def surveyed(pieces: list[tuple[torch.Tensor, torch.Tensor]], *ranks: int) -> list[float]:
    found = run_survey(magnitudes_of_rank("model", lambda n: ranks), lambda: pieces)["magnitudes"]
    assert found.dtype == torch.float32
    return found.tolist()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(any_float, few_floats), min_size=1, max_size=40),
    size=st.integers(1, 40),
    data=st.data(),
)
def test_every_rank_is_that_of_a_sort(values: list[float], size: int, data: st.DataObject) -> None:
    x = torch.tensor(values)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=3))
    pieces = [(piece, torch.zeros_like(piece)) for piece in data.draw(st.permutations(x.split(size)))]
    ordered = np.sort(np.abs(x.numpy()))[::-1]
    assert surveyed(pieces, *ranks) == [ordered[rank - 1] for rank in ranks]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(few_floats, min_size=1, max_size=40), size=st.integers(1, 40), data=st.data())
def test_places_are_those_of_a_stable_sort(values: list[float], size: int, data: st.DataObject) -> None:
    x = torch.tensor(values)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=3))
    pieces = [(piece, torch.zeros_like(piece)) for piece in x.split(size)]
    found = run_survey(magnitudes_of_rank("tensor", lambda n: ranks, places=True), lambda: pieces)
    order = np.argsort(-np.abs(x.numpy()), kind="stable")
    expected = [int(order[rank - 1]) for rank in ranks]
    places = found["places"].tolist()
    if places[-1] == threshold.BEHIND_ALL:  # right where no equal entry ranks later
        equal = np.abs(x.numpy()) == abs(values[expected[-1]])
        assert expected[-1] == np.flatnonzero(equal)[-1]
        places[-1] = expected[-1]
    assert places == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("piece_entries", [64, 1 << 20])
def test_it_ranks_the_difference_in_float32(
    dtype: torch.dtype, piece_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threshold, "PIECE_ENTRIES", piece_entries)
    generator = torch.Generator().manual_seed(0)
    x, base = (torch.randn(30, 7, generator=generator).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ordered = (x.to(wide) - base.to(wide)).float().abs().reshape(-1).sort(descending=True).values
    assert surveyed([(x, base)], 1, 42, 210) == ordered[[0, 41, 209]].tolist()
    assert surveyed([(x.T, base.T)], 1, 42, 210) == ordered[[0, 41, 209]].tolist()


def test_beyond_the_range_of_float32_is_infinite() -> None:
    x = torch.tensor([1e300, 1.0, -1e200], dtype=torch.float64)
    assert surveyed([(x, torch.zeros(3))], 2, 3) == [float("inf"), 1.0]


def test_without_entries_it_finds_zero() -> None:
    assert surveyed([(torch.zeros(0), torch.zeros(0))], 1, 2) == [0, 0]
    assert surveyed([], 1) == [0]


def test_its_state_does_not_grow() -> None:
    survey = magnitudes_of_rank("model", lambda n: (n // 2,))
    sizes = set()
    for n in (10, 100_000):
        x = torch.linspace(1, 2, n)
        state = survey.observe(survey.init(), x, torch.zeros(n))
        later, _ = survey.turn(state)
        later = survey.observe(later, x, torch.zeros(n))
        sizes.add(tuple(sum(t.numel() for t in s.values()) for s in (state, later)))
    assert len(sizes) == 1
