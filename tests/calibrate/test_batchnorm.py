"""Batch-norm statistics are those of the samples; everything else is put back exactly."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from dimat.calibrate import recalibrate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(20, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip


def samples(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def expected(model: nn.Sequential, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The oracle: sample-weighted means of batch means and unbiased batch variances, each layer fed by batch norms."""
    sums: list[tuple[Tensor, Tensor]] = [(torch.zeros(5), torch.zeros(5)), (torch.zeros(6), torch.zeros(6))]
    total = sum(len(batch) for batch in batches)
    for x in batches:
        share = len(x) / total
        y = model[0](x)
        rows = y.transpose(0, 1).flatten(1)
        sums[0] = (sums[0][0] + share * rows.mean(1), sums[0][1] + share * rows.var(1))
        bn = model[1]
        y = (y - rows.mean(1)[:, None, None]) / (rows.var(1, correction=0) + bn.eps).sqrt()[:, None, None]
        y = torch.relu(y * bn.weight[:, None, None] + bn.bias[:, None, None])
        z = model[5](y.flatten(1))  # dropout is off
        sums[1] = (sums[1][0] + share * z.mean(0), sums[1][1] + share * z.var(0))
    return sums


@pytest.mark.parametrize("sizes", [[40], [16, 16, 8], [30, 2]])
def test_statistics_are_the_weighted_means_over_the_batches(sizes: list[int]) -> None:
    model, batches = net(), list(samples(sum(sizes)).split(sizes))
    want = expected(model, batches)
    assert recalibrate(model, batches) == sum(sizes)
    for norm, (mean, var) in zip((model[1], model[6]), want, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


def test_everything_else_is_put_back_exactly() -> None:
    model = net()
    model.train()
    model(samples(8))
    model[1].eval()
    model[3].train()
    modes = [module.training for module in model.modules()]
    before = snapshot(model)
    recalibrate(model, [samples(20, seed=5)])
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[6].momentum) == (0.3, None)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "6.running_mean", "6.running_var"}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_no_more_samples_are_used_or_drawn_than_asked_for() -> None:
    drawn = []

    def source():  # type: ignore[no-untyped-def]
        for seed in range(10):
            drawn.append(seed)
            yield samples(8, seed)

    model = net()
    assert recalibrate(model, source(), max_samples=20) == 20
    assert drawn == [0, 1, 2]
    same = net()
    recalibrate(same, [samples(8, 0), samples(8, 1), samples(8, 2)[:4]])
    assert torch.equal(model[1].running_mean, same[1].running_mean)
    with pytest.raises(ValueError, match="max_samples is 0"):
        recalibrate(model, [], max_samples=0)


@pytest.mark.parametrize("sizes", [[9, 1], [1, 9], [1, 1, 8], [5, 1, 4], [1, 1]])
def test_a_single_sample_joins_its_neighbour(sizes: list[int]) -> None:
    model, x = net(), samples(sum(sizes))
    assert recalibrate(model, x.split(sizes)) == sum(sizes)  # a batch norm over one vector alone would raise
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    if sizes in ([9, 1], [1, 9], [1, 1]):
        whole = net()
        recalibrate(whole, [x])
        torch.testing.assert_close(model[6].running_var, whole[6].running_var)


@pytest.mark.parametrize("batches", [[], [samples(1)]])
def test_too_few_samples_change_nothing(batches: list[Tensor]) -> None:
    model = net()
    before = snapshot(model)
    assert recalibrate(model, batches) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_running_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4))
    assert recalibrate(model, iter(())) == 0


def test_statistics_before_that_were_broken_are_repaired() -> None:
    model = net()
    with torch.no_grad():
        model[1].running_mean.fill_(torch.nan)
        model[1].running_var.fill_(torch.inf)
    recalibrate(model, [samples(16)])
    assert torch.isfinite(model[1].running_mean).all()
    assert torch.isfinite(model[1].running_var).all()


def test_activations_that_are_not_finite_leave_the_statistics_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model, x = net(), samples(16)
    x[3, 0, 0, 0] = torch.nan
    before = snapshot(model)
    with caplog.at_level(logging.WARNING):
        assert recalibrate(model, [samples(8), x]) == 0
    assert "not finite" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_in_the_model_puts_everything_back() -> None:
    model = net().train()
    model(samples(4))
    before, modes = snapshot(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        recalibrate(model, [samples(8), torch.randn(8, 7, 4, 4)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[6].momentum) == (0.3, None)


def test_a_merged_model_computes_again_what_its_parents_did() -> None:
    """Two nets with one function and other scales inside: their average is right only after the statistics are."""
    one = net().eval()
    recalibrate(one, [samples(256)])
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[0].weight.mul_(3.0)
        two[0].bias.mul_(3.0)
    recalibrate(two, [samples(256)])
    merged = copy.deepcopy(one)
    states = one.state_dict(), two.state_dict()
    merged.load_state_dict({n: (t + states[1][n]) / 2 if t.is_floating_point() else t for n, t in states[0].items()})
    with torch.no_grad():
        wrong = (merged(samples(64, 9)) - one(samples(64, 9))).norm()
        recalibrate(merged, [samples(256)])
        right = (merged(samples(64, 9)) - one(samples(64, 9))).norm()
    assert right < 1e-3 < 0.05 < wrong


def test_batches_may_be_tuples_or_mappings() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x + y)

    x = torch.randn(9, 3)
    models = [Two(), Two(), Two()]
    assert recalibrate(models[0], [(x[:8], x[:8]), (x[8:], x[8:])]) == 9
    assert recalibrate(models[1], [{"x": x, "y": x}], max_samples=9) == 9
    torch.testing.assert_close(models[0].norm.running_mean, 2 * x.mean(0))
    torch.testing.assert_close(models[1].norm.running_var, (2 * x).var(0))
