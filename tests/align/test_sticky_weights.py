"""Weight matching that prefers the order there is: by a bonus for each unit, or by a margin for each group."""

import math

import pytest
import torch
from torch import Tensor, nn

from dimat.align import match_weights, permutation_spec, weight_matching
from dimat.errors import UsageError

MODEL = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
SPEC = permutation_spec(MODEL, torch.zeros(2, 6))


def pair(noise: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model, and a copy in which each entry is moved by `noise` times as much as it is large."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: tensor.shape for name, tensor in MODEL.state_dict().items()}
    one, off = ({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(2))
    return one, {name: tensor + noise * off[name] for name, tensor in one.items()}


def test_noise_moves_units_unless_they_stick() -> None:
    one, other = pair(noise=6.0)
    free = match_weights(SPEC, one, other)
    assert free.moved > 0.2
    moved = [match_weights(SPEC, one, other, stickiness=bonus).moved for bonus in (0.0, 0.3, 5.0)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] == 0
    assert match_weights(SPEC, one, other, margin=0.9).moved == 0


def test_what_is_plain_to_see_moves_all_the_same() -> None:
    one, other = pair(noise=0.1)
    hidden = SPEC.random(seed=1)
    for options in ({"stickiness": 0.2}, {"margin": 0.2}, {"stickiness": 0.1, "margin": 0.1}):
        found = weight_matching(SPEC, one, SPEC.apply(other, hidden), **options)
        assert SPEC.moved(SPEC.compose(hidden, found)) == 0


def test_the_margin_is_a_share_of_what_a_group_reaches() -> None:
    """Oracle for one group: inner products of its tensors before and after the best permutation."""
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    spec = permutation_spec(model, torch.zeros(2, 6))
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
        for _ in range(2)
    )
    best = match_weights(spec, one, other)
    before, after = best.objective_before, best.objective_after
    share = (after - before) / abs(after)
    for margin, moves in ((share * 0.99, True), (share * 1.01, False)):
        assert (match_weights(spec, one, other, margin=margin).moved > 0) == moves


@pytest.mark.parametrize("wrong", [{"stickiness": -1.0}, {"margin": math.nan}])
def test_a_bonus_below_zero_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a finite number that is not negative"):
        weight_matching(SPEC, *pair(0.1), **wrong)
