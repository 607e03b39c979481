"""The weighted mean against a one-line oracle, and what gossip averaging owes to it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dimat.errors import ConfigError, PluginError, SchemaError, UsageError
from dimat.merge import fold, make_fold

weight_lists = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(weights=weight_lists, seed=st.integers(0, 1000))
def test_it_is_the_weighted_mean(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = [rng.normal(size=(3, 4)) for _ in weights]
    merged = fold("mean", [{"w": torch.tensor(t)} for t in tensors], weights=weights)["w"].numpy()
    # relative to what was summed: where the terms cancel, the last bit of each is many times the last bit of the sum
    np.testing.assert_allclose(merged, np.average(tensors, axis=0, weights=weights), rtol=1e-12, atol=1e-14)


def test_one_model_comes_back_bit_for_bit() -> None:
    model = {"w": torch.randn(5, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(fold("mean", [model], weights=[1.0])["w"], model["w"])


def test_half_precision_is_summed_in_float32() -> None:
    models = [{"w": torch.full((1,), 1.0 + i / 128, dtype=torch.bfloat16)} for i in range(64)]
    merged = fold("mean", models)["w"]
    expected = torch.stack([m["w"].double() for m in models]).mean(0).to(torch.bfloat16)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, expected)


def test_counters_are_not_averaged() -> None:
    for counts in ((3, 8), (8, 3)):  # the largest, whoever comes first
        merged = fold("mean", [{"n": torch.tensor(count)} for count in counts])
        assert merged["n"].item() == 8


def test_inputs_are_left_alone() -> None:
    a, b = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    fold("mean", [a, b])
    assert a["w"].tolist() == [1, 1]
    assert b["w"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([{"w": torch.ones(2)}, {"w": torch.ones(3)}], r"'w' is \[2\] in model 0 and \[3\] in model 1"),
        ([{"w": torch.ones(2)}, {"v": torch.ones(2)}], "model 0 has tensor 'w' .* model 1 has not"),
        ([{}, {"v": torch.ones(2)}], "model 1 has tensor 'v' .* model 0 has not"),
    ],
)
def test_models_of_another_shape_are_refused(models: list[dict[str, torch.Tensor]], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        fold("mean", models)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="no models"):
        fold("mean", [])
    with pytest.raises(UsageError, match="2 weights for 1 models"):
        fold("mean", [{}], weights=[1, 2])
    with pytest.raises(PluginError, match="Did you mean 'mean'"):
        make_fold("maen")
    with pytest.raises(ConfigError, match="no option 'scale'"):
        make_fold("mean", {"scale": 2})
