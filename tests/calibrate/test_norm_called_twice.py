"""A norm that a forward pass calls twice averages over both."""

import torch
from torch import Tensor, nn

from dimat.calibrate import recalibrate


class Twice(nn.Module):
    """One norm, two inputs of means 0 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm(x + 10)


def test_the_mean_is_over_all_calls() -> None:
    model = Twice().eval()
    batches = [torch.randn(16, 1, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    recalibrate(model, batches)
    expected = torch.cat([*batches, *(batch + 10 for batch in batches)]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, expected, rtol=1e-5, atol=1e-5)
    assert model.norm.momentum == 0.1
    assert not model.norm._forward_pre_hooks
