"""After REPAIR every channel of a merged net has the mean and deviation that its endpoints' channels had."""

import copy
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dimat.calibrate import channel_statistics, interpolate, recalibrate, repair, restore_statistics
from dimat.errors import SchemaError


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def deep() -> nn.Module:
    hidden = [layer for _ in range(10) for layer in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *hidden, nn.Linear(16, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 8, 2), nn.ReLU(inplace=True), nn.Unflatten(2, (1, 2)),
        nn.Conv2d(8, 8, (1, 2), groups=2), nn.GELU(), nn.ConvTranspose2d(8, 12, 2, groups=4), nn.ReLU(), nn.Dropout(),
        nn.Unflatten(3, (1, 2)), nn.Conv3d(12, 5, 1), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """A stream that blocks add to, with sequences of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 12)
        self.up = nn.ModuleList(nn.Linear(12, 20) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(20, 12) for _ in range(3))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(len(x), 2, 3))
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return torch.log_softmax(self.head(self.norm(x).mean(1)), dim=1)


class Twice(nn.Module):
    """One layer that is called twice, the second time on what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(2):
            x = torch.relu(self.again(x))
        return self.head(x)


class Mixed(nn.Module):
    """Batch norm behind some layers, none behind others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.two, self.three, self.late = nn.Linear(12, 12), nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.four, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = torch.relu(self.two(x))
        x = torch.relu(self.late(self.three(x)))
        return self.head(torch.relu(self.four(x)))


def samples(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def trio(make: Callable[[], nn.Module], shares: tuple[float, float] = (0.5, 0.5)) -> list[nn.Module]:
    """Two unrelated nets with batch norms that fit, and their weighted mean."""
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = make().eval()
        recalibrate(net, [samples(256, 7)])
        nets.append(net)
    merged = copy.deepcopy(nets[0])
    a, b = (net.state_dict() for net in nets)
    merged.load_state_dict({n: shares[0] * a[n] + shares[1] * b[n] if a[n].is_floating_point() else a[n] for n in a})
    return [merged, *nets]


def outputs(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """All that the layer computes, as (channels, n): the oracle's own hook."""
    seen: list[Tensor] = []
    layer = net.get_submodule(name)
    dimension = {nn.Linear: -1, nn.Conv1d: -2, nn.Conv2d: -3, nn.ConvTranspose2d: -3, nn.Conv3d: -4}[type(layer)]
    hook = layer.register_forward_hook(
        lambda layer, inputs, output: seen.append(output.double().movedim(dimension, 0).flatten(1))
    )
    with torch.no_grad():
        net.eval()(x)
    hook.remove()
    return torch.cat(seen, 1)


NETS = {
    "mlp": (mlp, {"0", "2"}),
    "deep": (deep, {str(2 * n) for n in range(11)}),
    "convolutions": (convolutions, {"1", "4", "6", "10"}),
    "residual": (Residual, {"stem", *(f"{way}.{n}" for way in ("up", "down") for n in range(3))}),
    "twice": (Twice, {"stem", "again"}),
    "mixed": (Mixed, {"two", "four"}),
}


@pytest.mark.parametrize("most", [1 << 26, 3000, 1], ids=["whole", "pieces", "pairs"])
@pytest.mark.parametrize("name", NETS)
def test_every_hidden_channel_has_the_endpoints_mean_and_deviation(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of the probe may be held at once."""
    monkeypatch.setattr("dimat.calibrate.restore.MAX_NUMBERS", most)
    make, hidden = NETS[name]
    merged, a, b = trio(make, shares=(0.3, 0.7))
    x = samples(192)
    assert set(channel_statistics(merged, [x])) == hidden
    before = {layer: outputs(merged, layer, x).std(1, correction=0) for layer in hidden}
    assert repair(merged, [a, b], x.split(50), weights=[0.3, 0.7]) == 192
    for layer in hidden:
        here, there = outputs(merged, layer, x), [outputs(net, layer, x) for net in (a, b)]
        mean = 0.3 * there[0].mean(1) + 0.7 * there[1].mean(1)
        std = 0.3 * there[0].std(1, correction=0) + 0.7 * there[1].std(1, correction=0)
        torch.testing.assert_close(here.std(1, correction=0), std, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(here.mean(1), mean, rtol=1e-4, atol=1e-4)
        assert (before[layer] / std - 1).abs().max() > 0.05, "there was something to repair"


def test_on_two_layers_the_weights_are_those_of_the_formula() -> None:
    merged, a, b = trio(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    x = samples(100)
    y, ya, yb = (outputs(net, "0", x) for net in (merged, a, b))
    scale = (ya.std(1) + yb.std(1)) / 2 / y.std(1)
    shift = (ya.mean(1) + yb.mean(1)) / 2 - scale * y.mean(1)
    weight, bias, head = scale[:, None] * merged[0].weight, scale * merged[0].bias + shift, merged[2].weight.clone()
    repair(merged, [a, b], x.split(25))
    torch.testing.assert_close(merged[0].weight.double(), weight.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[0].bias.double(), bias.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(merged[2].weight, head), "the answer is nobody's input"


@pytest.mark.parametrize("name", NETS)
def test_repairing_a_net_by_itself_changes_no_weight(name: str) -> None:
    merged, *_ = trio(NETS[name][0])
    recalibrate(merged, [samples(64)])
    before = {key: tensor.clone() for key, tensor in merged.state_dict().items()}
    assert repair(merged, [copy.deepcopy(merged)], [samples(64)]) == 64
    assert all(torch.equal(before[key], tensor) for key, tensor in merged.state_dict().items() if "running" not in key)


def test_everything_else_is_put_back_exactly() -> None:
    merged, a, b = trio(Mixed)
    merged.train()
    merged.late.eval()
    merged.two.weight.requires_grad_(False)
    merged.norm.momentum = 0.3
    merged.head.register_forward_hook(lambda *_: None)
    modes = [module.training for module in merged.modules()]
    tracked = merged.norm.num_batches_tracked.clone()
    parameters = [(id(p), p.requires_grad) for p in merged.parameters()]
    ends = [{key: tensor.clone() for key, tensor in net.state_dict().items()} for net in (a, b)]
    random = torch.get_rng_state()
    repair(merged, [a, b], [samples(64)])
    assert [module.training for module in merged.modules()] == modes
    assert [(id(p), p.requires_grad) for p in merged.parameters()] == parameters
    assert all(p.grad is None for p in merged.parameters())
    assert merged.norm.momentum == 0.3
    assert torch.equal(merged.norm.num_batches_tracked, tracked)
    assert torch.equal(torch.get_rng_state(), random)
    for net, end in zip((a, b), ends, strict=True):
        assert all(torch.equal(end[key], tensor) for key, tensor in net.state_dict().items())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for n in (merged, a, b) for m in n.modules())
    assert hooks == 1


def test_batch_norms_are_recalibrated_on_what_reaches_them_afterwards() -> None:
    merged, a, b = trio(Mixed)
    repair(merged, [a, b], samples(128).split(32))
    again = copy.deepcopy(merged)
    recalibrate(again, [samples(128)])
    for one, two in ((merged.norm, again.norm), (merged.late, again.late)):
        torch.testing.assert_close(one.running_mean, two.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.running_var, two.running_var, rtol=1e-5, atol=1e-6)


def test_where_batch_norms_follow_all_layers_it_is_recalibration() -> None:
    def norms() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    merged, a, b = trio(norms)
    reset = copy.deepcopy(merged)
    assert repair(merged, [a, b], samples(64).split(16)) == recalibrate(reset, samples(64).split(16)) == 64
    assert all(torch.equal(reset.state_dict()[key], tensor) for key, tensor in merged.state_dict().items())


def test_without_a_bias_there_is_only_the_scale() -> None:
    merged, a, b = trio(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)))
    x, weight = samples(100), merged[0].weight.detach().clone()
    repair(merged, [a, b], [x])
    torch.testing.assert_close(
        outputs(merged, "0", x).std(1), (outputs(a, "0", x).std(1) + outputs(b, "0", x).std(1)) / 2, rtol=1e-4, atol=0
    )
    ratio = merged[0].weight / weight
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)
    assert merged[0].bias is None


@pytest.mark.parametrize("which", ["merged", "endpoints"])
def test_constant_channels_stay_as_they_are(which: str) -> None:
    merged, a, b = trio(mlp)
    with torch.no_grad():
        for net in [merged] if which == "merged" else [a, b]:
            net[0].weight[3] = 0.0
    weight, bias = merged[0].weight.detach().clone(), merged[0].bias.detach().clone()
    repair(merged, [a, b], [samples(64)])
    assert torch.equal(merged[0].weight[3], weight[3])
    assert merged[0].bias[3] == bias[3]
    assert not torch.equal(merged[0].weight[2], weight[2])
    assert all(torch.isfinite(p).all() for p in merged.parameters())


def test_weights_that_are_not_a_layers_own_stay_as_they_are() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight
            self.four = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.one, self.two, self.three, self.four):
                x = torch.relu(layer(x))
            return self.head(x)

    merged, a, b = trio(Tied)
    assert set(channel_statistics(merged, [samples(64)])) == {"three"}
    before = {key: tensor.clone() for key, tensor in merged.state_dict().items()}
    repair(merged, [a, b], [samples(64)])
    changed = {key for key, tensor in merged.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"three.weight", "three.bias"}


def test_a_norm_behind_an_activation_written_in_place_is_not_right_behind_the_layer() -> None:
    def net(inplace: bool) -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 1), nn.ReLU(inplace), nn.BatchNorm1d(8),
            nn.Flatten(), nn.Linear(8, 8), nn.Unflatten(1, (8, 1)), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip

    for inplace in (True, False):
        assert set(channel_statistics(net(inplace), [samples(8)[:, :, None]])) == {"2"}


def test_a_layer_whose_last_call_makes_the_answer_is_left_alone() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.step = nn.Linear(6, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.step(torch.relu(self.step(torch.relu(self.stem(x)))))

    assert set(channel_statistics(Recurrent(), [samples(8)])) == {"stem"}


def test_endpoints_may_come_one_after_the_other_in_one_module() -> None:
    merged, a, b = trio(mlp)
    same, spare = copy.deepcopy(merged), copy.deepcopy(a)

    def refilled() -> Iterator[nn.Module]:
        for net in (a, b):
            spare.load_state_dict(net.state_dict())
            yield spare

    assert repair(merged, [a, b], [samples(64)]) == repair(same, refilled(), [samples(64)])
    assert all(torch.equal(same.state_dict()[key], tensor) for key, tensor in merged.state_dict().items())


def test_statistics_can_travel() -> None:
    merged, a, b = trio(Mixed)
    same = copy.deepcopy(merged)
    repair(merged, [a, b], [samples(64)], weights=[1, 3])
    told = [channel_statistics(net, [samples(64)]) for net in (a, b)]
    restore_statistics(same, interpolate(told, [1, 3]), [samples(64)])
    assert all(torch.equal(same.state_dict()[key], tensor) for key, tensor in merged.state_dict().items())


def test_no_more_samples_are_used_than_asked_for() -> None:
    merged, a, b = trio(mlp)
    same = copy.deepcopy(merged)
    assert repair(merged, [a, b], samples(100).split(30), max_samples=45) == 45
    assert repair(same, [a, b], [samples(100)[:30], samples(100)[30:45]]) == 45
    assert torch.equal(merged[0].weight, same[0].weight)
    for batches in ([], [samples(1)]):
        assert repair(merged, [a, b], batches) == 0
    assert torch.equal(merged[0].weight, same[0].weight)
    with pytest.raises(ValueError, match="max_samples is 0"):
        repair(merged, [a, b], [samples(4)], max_samples=0)


@pytest.mark.parametrize("where", ["merged", "endpoint", "probe"])
def test_what_is_not_finite_leaves_the_net_and_says_so(where: str, caplog: pytest.LogCaptureFixture) -> None:
    merged, a, b = trio(Mixed)
    x = samples(64)
    with torch.no_grad():
        if where == "probe":
            x[40, 0] = torch.nan
        else:
            (merged if where == "merged" else b).two.weight[0, 0] = torch.inf
    before = {key: tensor.clone() for key, tensor in merged.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        assert repair(merged, [a, b], x.split(16)) == 0
    assert "not finite" in caplog.text
    for key, tensor in merged.state_dict().items():
        assert torch.equal(before[key], tensor), key


def test_an_error_in_the_model_puts_everything_back() -> None:
    merged, a, b = trio(Mixed)
    before = {key: tensor.clone() for key, tensor in merged.state_dict().items()}
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("out of memory")

    merged.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        repair(merged, [a, b], samples(64).split(16))
    assert all(torch.equal(before[key], tensor) for key, tensor in merged.state_dict().items())
    assert not any(m._forward_hooks for m in merged.modules())


def test_a_loop_that_does_not_settle_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What a layer reads is what it made: there may be no scale that fits."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(12):
                x = torch.sin(2 * self.step(x))
            return self.head(x)

    merged, a, b = trio(Loop)
    told = [outputs(net, "step", samples(64)).std(1, correction=0) for net in (a, b)]

    def off() -> float:
        found = outputs(merged, "step", samples(64)).std(1, correction=0)
        return float((found / sum(told) * 2 - 1).abs().max())

    before = off()
    with caplog.at_level(logging.WARNING):
        assert repair(merged, [a, b], [samples(64)]) == 64
    assert "not settled after 6 passes" in caplog.text
    assert 0.01 < off() < before


def test_endpoints_and_weights_that_do_not_fit_are_refused() -> None:
    merged, a, b = trio(mlp)
    narrow = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(SchemaError, match="layer '2' has 16 channels to restore in one net and 9 channels"):
        repair(merged, [a, narrow], [samples(8)])
    with pytest.raises(SchemaError, match="layer '2' has nothing to restore in one net and 16 channels"):
        repair(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), [a, b], [samples(8)])
    with pytest.raises(ValueError, match="2 endpoints and 1 weights"):
        repair(merged, [a, b], [samples(8)], weights=[1.0])
    with pytest.raises(ValueError, match="are no shares"):
        repair(merged, [a, b], [samples(8)], weights=[-1.0, 2.0])
    with pytest.raises(ValueError, match="0 endpoints"):
        repair(merged, [], [samples(8)])


def test_samples_may_come_without_a_batch_dimension_inside() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 100), nn.Linear(100, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.two(torch.relu(self.one(row))) for row in x])

    net, x = Vector(), samples(20)
    found = channel_statistics(net, [x])["one"]
    torch.testing.assert_close(found.std, net.one(x).double().std(0, correction=0).detach(), rtol=1e-5, atol=1e-6)


def test_the_first_pass_is_enough_when_the_probe_is_one_piece() -> None:
    merged, a, b = trio(deep)
    passes = []
    merged.register_forward_hook(lambda *_: passes.append(1))
    repair(merged, [a, b], samples(192).split(50))
    assert len(passes) == 4, "two samples to see who reads whom, before, corrected on the spot, after"


def test_a_large_mean_does_not_cancel() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(1e6)
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    found = channel_statistics(net, x.split(10))["0"]
    torch.testing.assert_close(found.std, x.std(0, correction=0), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.mean, torch.tensor([1e6], dtype=torch.float64), rtol=1e-12, atol=0)
