"""MagMax against a loop over entries."""

import numpy as np
import pytest
import torch

from dimat.merge import fold


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_change_wins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    taus = rng.normal(size=(4, 60)) * 2
    taus = taus.round() if seed % 2 else taus.astype(np.float32).astype(float)  # on the grid many are equal
    weights = [1.0] * 4 if seed < 2 else [1.0, -2.0, 0.5, 0.25]
    expected = [max(zip(np.abs(weights * column), column, strict=True))[1] for column in taus.T]
    models = [{"w": torch.tensor(tau, dtype=torch.float32)} for tau in taus]
    merged = fold("magmax", models, base={"w": torch.zeros(60)}, weights=weights, scale=0.5)
    np.testing.assert_allclose(merged["w"].numpy(), 0.5 * np.array(expected), rtol=1e-6)


def test_equal_magnitudes_resolve_to_the_larger_value() -> None:
    models = [{"w": torch.tensor([-2.0, 2.0])}, {"w": torch.tensor([2.0, -2.0])}]
    assert fold("magmax", models, base={"w": torch.zeros(2)}, scale=1)["w"].tolist() == [2, 2]


def test_weights_choose_but_do_not_scale() -> None:
    models = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([-1.0])}]
    base = {"w": torch.zeros(1)}
    assert fold("magmax", models, base=base, weights=[1, 3], scale=1)["w"].item() == -1


def test_a_weight_of_zero_is_no_vote() -> None:
    models = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 0.0])}]
    base = {"w": torch.zeros(2)}
    assert fold("magmax", models, base=base, weights=[0, 1])["w"].tolist() == [0, 0]
    assert fold("magmax", models, base=base, weights=[0, 0])["w"].tolist() == [0, 0]
