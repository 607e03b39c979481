"""Loss along the line between two models."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dimat.align import Barrier, barrier, permutation_spec, plot_barriers
from dimat.calibrate import recalibrate, repair
from dimat.errors import SchemaError, UsageError


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def samples(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


class One(nn.Module):
    """A model of one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.tensor(int(100 * value)))

    def forward(self) -> Tensor:
        return self.w


def double_well(net: nn.Module, batch: Tensor) -> Tensor:
    """(w² − 1)² + w / 2: minima of different depth near −1 and 1."""
    return (net() ** 2 - 1) ** 2 + net() / 2 + batch.mean() * 0


def test_on_a_double_well_it_is_the_formula() -> None:
    curve = barrier(One(-1.0), One(1.0), double_well, [torch.zeros(2)], num_points=5)
    w = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert curve.alphas == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert curve.losses == pytest.approx([(x**2 - 1) ** 2 + x / 2 for x in w])
    # The line from L(A) = -1/2 to L(B) = 1/2 is w / 2: what is left is the hill.
    assert curve.excess == pytest.approx([(x**2 - 1) ** 2 for x in w])
    assert (curve.height, curve.peak, curve.middle) == (pytest.approx(1.0), 0.5, 2)


def test_where_the_line_sags_there_is_no_barrier() -> None:
    curve = barrier(One(-1.0), One(1.0), lambda net, batch: net() ** 2, [torch.zeros(2)])
    assert curve.height == 0.0
    assert min(curve.excess) == pytest.approx(-1.0)


def test_batches_count_by_their_samples_and_a_metric_comes_along() -> None:
    batches = [torch.full((3,), 1.0), torch.full((1,), 5.0)]
    curve = barrier(One(0.0), One(2.0), lambda net, x: (net() * x.mean(), -x.mean()), iter(batches), num_points=3)
    assert curve.losses == (0.0, 2.0, 4.0)
    assert curve.metrics == (-2.0, -2.0, -2.0)


def test_a_permuted_copy_lies_behind_a_barrier_that_aligning_takes_away() -> None:
    model, x = mlp(0), samples(64)
    spec = permutation_spec(model.eval(), x[:2])
    hidden = spec.random(seed=3)
    moved = spec.apply(model.state_dict(), hidden)
    target = model(x).detach()

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return (net(batch) - target).square().mean()

    assert barrier(model, moved, loss, [x]).height > 0.1 * target.square().mean()
    assert barrier(model, spec.apply(moved, spec.invert(hidden)), loss, [x]).height < 1e-10


def test_no_model_is_touched_and_dropout_is_off() -> None:
    a, b = mlp(0).train(), mlp(1).train()
    a[2].eval()
    ends = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    modes: list[bool] = []

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        modes.extend(module.training for module in net.modules())
        return net(x).square().mean()

    one, two = (barrier(a, b, loss, [samples(16)], calibrate=lambda net, _: net.train()) for _ in range(2))
    assert one == two
    assert not any(modes)
    for model, end in zip((a, b), ends, strict=True):
        assert all(torch.equal(end[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in a.modules()] == [True, True, True, False, True, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in a.parameters())


def test_counters_do_not_interpolate() -> None:
    seen: dict[float, int] = {}
    barrier(
        One(1.0), One(2.0), double_well, [torch.zeros(2)],
        num_points=5, calibrate=lambda net, alpha: seen.update({alpha: int(net.seen)}),
    )  # fmt: skip
    assert seen == {0.25: 100, 0.5: 100, 0.75: 200}, "those of the nearer end; the ends are not calibrated"


def nets_that_cancel() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Two nets with one function in other orders, which averages into something flat."""
    model, x = mlp(0).eval(), samples(256)
    spec = permutation_spec(model, x[:2])
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), spec.random(seed=3)))
    return model, other, x, model(x).detach()


def test_repair_gives_the_interpolated_nets_their_deviations_back() -> None:
    a, b, x, target = nets_that_cancel()
    deviations: dict[bool, list[Tensor]] = {False: [], True: []}

    def spread(net: nn.Module, batch: Tensor) -> Tensor:
        deviations[repaired].append(net[3](torch.relu(net[0](batch))).std(0).mean())
        return (net(batch) - target).square().mean()

    def put_right(net: nn.Module, alpha: float) -> None:
        assert repair(net, [a, b], [x], weights=[1 - alpha, alpha]) == 256

    for repaired in (False, True):
        barrier(a, b, spread, [x], num_points=3, calibrate=put_right if repaired else None)
    flat, right = deviations[False], deviations[True]
    assert flat[1] < 0.8 * flat[0]
    assert float(right[1]) == pytest.approx(float(right[0] + right[2]) / 2, rel=1e-3)


def test_batch_norms_may_be_reset_on_the_way() -> None:
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)).eval()
    x = samples(256) + 3
    recalibrate(a, [x])
    b = copy.deepcopy(a)
    with torch.no_grad():
        b[0].weight.mul_(5.0)
        b[0].bias.mul_(5.0)
    recalibrate(b, [x])
    target = a(x).detach()
    assert torch.allclose(b(x), target, atol=1e-3), "one function, so that a right midpoint has it too"

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return (net(batch) - target).square().mean()

    assert barrier(a, b, loss, [x]).height > 1e-3
    assert barrier(a, b, loss, [x], calibrate=lambda net, _: recalibrate(net, [x])).height < 1e-5


def test_state_dicts_run_in_the_model_given() -> None:
    a, b, x = mlp(0), mlp(1), samples(16)

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    states = barrier(a.state_dict(), b.state_dict(), loss, [x], model=mlp(2))
    assert states == barrier(a, b, loss, [x])
    with pytest.raises(ValueError, match="model="):
        barrier(a.state_dict(), b, loss, [x])


def test_what_does_not_fit_is_refused() -> None:
    a, loss = mlp(0), double_well
    narrow = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(SchemaError, match=r"'3\.weight': one has shape \(32, 32\), the other has shape \(8, 32\)"):
        barrier(a, narrow, loss, [samples(4)])
    with pytest.raises(SchemaError, match="'seen': one lacks it"):
        barrier(nn.ParameterDict({"w": torch.ones(())}), One(1.0), loss, [samples(4)])
    with pytest.raises(ValueError, match="no batches"):
        barrier(a, a, loss, [])
    with pytest.raises(ValueError, match="num_points is 2"):
        barrier(a, a, loss, [samples(4)], num_points=2)


def test_a_loss_that_is_no_number_is_an_infinite_barrier() -> None:
    curve = Barrier((0.0, 0.5, 1.0), (1.0, math.nan, 1.0))
    assert (curve.height, curve.peak) == (math.inf, 0.5)


def test_the_picture(tmp_path: Path) -> None:
    hill, flat = Barrier((0.0, 0.5, 1.0), (1.0, 2.5, 2.0), (0.9, 0.1, 0.8)), Barrier((0.0, 0.5, 1.0), (1.0, 1.5, 2.0))
    hill.plot(tmp_path / "new" / "hill.png")
    plot_barriers({"A to B": hill}, tmp_path / "same.png")
    plot_barriers({f"curve {n} $": flat for n in range(20)} | {"naive": hill}, tmp_path / "many.png", title="Many")
    one, same, many = ((tmp_path / name).read_bytes() for name in (Path("new") / "hill.png", "same.png", "many.png"))
    assert one == same != many
    assert one.startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="no curves"):
        plot_barriers({}, tmp_path / "none.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        hill.plot(tmp_path / "file" / "hill.png")


def test_a_picture_needs_no_window_and_importing_needs_no_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from dimat.align import Barrier; import dimat.align.barrier_picture\n"
        "assert 'matplotlib' not in sys.modules\n"
        "Barrier((0., .5, 1.), (1., 2., 1.)).plot(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True, env={**os.environ, "DISPLAY": ""})
    assert (tmp_path / "x.png").stat().st_size > 1000
