"""Task arithmetic against its formula."""

import numpy as np
import pytest
import torch

from dimat.errors import UsageError
from dimat.merge import fold, make_fold


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_its_formula(seed: int, normalize: bool) -> None:
    rng = np.random.default_rng(seed)
    base, *models = rng.normal(size=(5, 3, 4))
    weights = rng.uniform(-0.5, 2, size=4)
    expected = base + 0.4 * np.tensordot(weights, models - base, 1) / (weights.sum() if normalize else 1)
    merged = fold(
        "task_arithmetic",
        [{"w": torch.tensor(m)} for m in models],
        base={"w": torch.tensor(base)},
        weights=weights.tolist(),
        scale=0.4,
        normalize=normalize,
    )
    np.testing.assert_allclose(merged["w"].numpy(), expected, rtol=1e-12)


def test_a_negative_weight_forgets() -> None:
    merged = fold("task_arithmetic", [{"w": torch.tensor([3.0])}], base={"w": torch.tensor([1.0])}, weights=[-1])
    assert merged["w"].item() == -1


def test_small_changes_of_large_weights_are_not_rounded_away() -> None:
    base = torch.full((8,), 1000.0)
    models = [{"w": base + i * 2.0**-13} for i in range(8)]  # one unit in the last place each
    merged = fold("task_arithmetic", models, base={"w": base}, normalize=True, scale=2)["w"]
    assert torch.equal(merged, base + 7 * 2.0**-13)


def test_weights_that_sum_to_zero_are_named_as_the_reason() -> None:
    models = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    with pytest.raises(UsageError, match="NaN or Inf") as error:
        fold("task_arithmetic", models, base={"w": torch.ones(1)}, weights=[1, -1], normalize=True)
    assert "weights sum to zero" in str(error.value.hint)


def test_it_streams() -> None:
    made = make_fold("task_arithmetic")
    assert made.commutative
    assert made.elementwise
    assert made.needs_base
    assert not made.needs_scalars
