"""The sketch against the true distance, in the cases that are hard for it, and its linearity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.snapshot import sketch as module
from dimat.snapshot.sketch import CHUNK, SKETCH_SIZE, sketch, sketch_distance, sketch_norm

NUM_AGENTS = 5
NUM_PARAMETERS = 20_000


def numbers(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4").astype(np.float64)


def distance(models: np.ndarray) -> float:
    """sqrt(mean_i ||x_i - mean x||^2) of the rows."""
    return float(np.sqrt(np.mean(np.sum((models - models.mean(0)) ** 2, axis=1))))


def spread(case: str, generator: np.random.Generator) -> np.ndarray:
    """Models that differ from each other in the given way, around a common model many times larger."""
    common = 10 * generator.standard_normal(NUM_PARAMETERS)
    noise = generator.standard_normal((NUM_AGENTS, NUM_PARAMETERS))
    match case:
        case "every way":
            return common + noise
        case "one direction":
            direction = generator.standard_normal(NUM_PARAMETERS)
            return common + 1e-3 * noise + generator.standard_normal((NUM_AGENTS, 1)) * direction
        case "one coordinate":
            noise[:, int(generator.integers(NUM_PARAMETERS))] *= 1e4
            return common + noise
        case "one agent":
            noise[1:] *= 1e-3
            return common + noise
    raise AssertionError(case)


@pytest.mark.parametrize("case", ["every way", "one direction", "one coordinate", "one agent"])
def test_the_estimated_consensus_distance_is_within_five_percent_in_all_of_100_trials(case: str) -> None:
    errors = []
    for trial in range(100):
        models = spread(case, np.random.default_rng(trial)).astype(np.float32)
        sketches = np.stack([numbers(sketch([torch.from_numpy(model)], seed=trial)) for model in models])
        errors.append(abs(distance(sketches) / distance(models.astype(np.float64)) - 1))
    assert max(errors) < 0.05


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 2**40))
def test_it_is_linear(a: float, b: float, seed: int) -> None:
    x, y = torch.randn(2, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = a * numbers(sketch([x], seed=seed)) + b * numbers(sketch([y], seed=seed))
    np.testing.assert_allclose(numbers(sketch([a * x + b * y], seed=seed)), expected, atol=1e-5)


def test_it_is_the_map_it_says_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches of unit vectors are the columns of S: one entry of plus or minus one each, spread evenly."""
    columns = np.stack([numbers(sketch([row], seed=3, size=16)) for row in torch.eye(1000)])
    assert ((columns != 0).sum(axis=1) == 1).all()
    assert set(np.unique(columns)) == {-1.0, 0.0, 1.0}
    assert abs(columns.sum()) < 4 * np.sqrt(1000)
    per_bucket = np.abs(columns).sum(axis=0)
    assert per_bucket.min() > 30
    assert per_bucket.max() < 100
    monkeypatch.setattr(module, "CHUNK", 64)
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(numbers(sketch([x], seed=3, size=16)), x.numpy() @ columns, rtol=1e-5, atol=1e-5)


def test_equal_models_sketch_alike_however_they_are_cut_and_ordered() -> None:
    x = torch.randn(CHUNK + 1234, generator=torch.Generator().manual_seed(0))
    whole = sketch([x], seed=7)
    assert len(whole) == 4 * SKETCH_SIZE
    assert sketch(x.split(1001), seed=7) == whole
    state = {"b": x[10:], "a": x[:10], "counter": torch.tensor(5)}
    assert sketch(state, seed=7) == whole
    assert sketch([x], seed=8) != whole


def test_the_stream_is_the_same_on_every_version_and_machine() -> None:
    """A golden value: agents that sketch by different streams would see distances that are not there."""
    values = numbers(sketch([torch.arange(1, 101, dtype=torch.float32)], seed=0, size=4))
    assert values.tolist() == GOLDEN


def test_half_precision_and_strides_are_taken_as_they_are() -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert sketch([x.T], seed=1) == sketch([x.T.contiguous().double()], seed=1)


def test_distances_of_two() -> None:
    x = torch.full((100,), 3.0)
    data = sketch([x], seed=0)
    assert sketch_distance(data, data) == 0
    assert sketch_norm(data) == pytest.approx(30, rel=0.1)
    with pytest.raises(ValueError, match="of 4096 and of 2 numbers"):
        sketch_distance(data, bytes(8))
    with pytest.raises(ValueError, match="power of two"):
        sketch([x], seed=0, size=1000)


GOLDEN = [376.0, -322.0, 258.0, -66.0]
