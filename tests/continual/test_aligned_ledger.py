"""A ledger that aligns does not care in what order the units of its arrivals are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dimat.align import permutation_spec
from dimat.continual import Ledger
from dimat.errors import DimatError, PluginError, SchemaError, UsageError
from dimat.modelfile import open_model

FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""
EXAMPLE = torch.zeros(2, 6)


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:build"


def family(count: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """A base, models near it, and the same models with their units in another order."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    spec = permutation_spec(net, EXAMPLE)
    models = [{name: one + 0.03 * torch.randn_like(one) for name, one in base.items()} for _ in range(count)]
    mixed = [spec.apply(model, spec.random(seed=i + 1)) for i, model in enumerate(models)]
    return base, models, mixed


@pytest.mark.parametrize("method", ["mean", "opcm", "ties"])
def test_permuted_copies_give_the_ledger_of_the_models_themselves(
    method: str, factory: str, make: Any, tmp_path: Path
) -> None:
    base, models, mixed = family(3)
    start = make("base", base)
    plain = Ledger.create(tmp_path / "plain", start, method)
    aligned = Ledger.create(tmp_path / "aligned", start, method, align="weights", model=factory, example=EXAMPLE)
    (tmp_path / "net.py").unlink()  # what is needed of it is in the ledger
    for i in range(3):
        a = plain.add(make(f"m{i}", models[i]))
        b = Ledger.open(aligned.path).add(make(f"p{i}", mixed[i]))
        assert a.digest != b.digest and (a.norm, a.cosine) == (b.norm, b.cosine)
    merged = aligned.merged()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in plain.merged().items())
    assert aligned.verify() == [] and aligned.status().align == "weights"
    (aligned.path / "alignment.json").write_text("{}")
    assert len(aligned.verify()) == 1
    with pytest.raises(DimatError, match=r"alignment.json is damaged"):
        aligned.add(make("p3", mixed[0]), again=True)


def test_statistics_move_with_their_model_and_removal_finds_it(factory: str, make: Any, tmp_path: Path) -> None:
    base, models, mixed = family(2)
    spec = permutation_spec(
        nn.Sequential(*(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))), EXAMPLE
    )
    start = make("base", base)
    plain = Ledger.create(tmp_path / "plain", start, "fisher")
    aligned = Ledger.create(tmp_path / "aligned", start, "fisher", align="weights", model=factory, example=EXAMPLE)
    for i in range(2):
        stats = {name: torch.rand_like(one) + 0.1 for name, one in base.items()}
        plain.add(make(f"m{i}", models[i]), stats=make(f"s{i}", stats))
        aligned.add(make(f"p{i}", mixed[i]), stats=make(f"t{i}", spec.apply(stats, spec.random(seed=i + 1))))
    for ledger in (plain, aligned):
        merged = ledger.merged()
        assert all(torch.equal(tensor, merged[name]) for name, tensor in plain.merged().items())
    aligned.remove("p0", tmp_path / "p0.safetensors", stats=tmp_path / "t0.safetensors")
    plain.remove("m0", tmp_path / "m0.safetensors", stats=tmp_path / "s0.safetensors")
    merged = aligned.merged()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in plain.merged().items())


def test_what_alignment_needs_is_checked_at_init(factory: str, make: Any, tmp_path: Path) -> None:
    base, models, _ = family(1)
    start, other = make("base", base), make("other", {"w": torch.ones(2)})
    for options, error, words in [
        ({"align": "weights"}, UsageError, "needs the function that makes its module"),
        ({"align": "weights", "model": factory}, UsageError, "needs an example input"),
        ({"model": factory}, UsageError, "align says how"),
        ({"align": "weigths", "model": factory, "example": EXAMPLE}, UsageError, "Did you mean 'weights'"),
        ({"align": "weights", "model": "net.py", "example": EXAMPLE}, PluginError, "not of the form"),
        ({"align": "weights", "model": factory, "example": torch.zeros(2, 5)}, UsageError, "fails on the example"),
    ]:
        with pytest.raises(error, match=words):
            Ledger.create(tmp_path / "ledger", start, "mean", **options)
    with pytest.raises(SchemaError, match=r"has no tensor '0.weight'"):
        Ledger.create(tmp_path / "ledger", other, "mean", align="weights", model=factory, example=EXAMPLE)
    assert not (tmp_path / "ledger").exists()
    ledger = Ledger.create(tmp_path / "ledger", start, "mean", align="weights", model=factory, example=EXAMPLE)
    broken = models[0] | {"2.bias": torch.full((8,), torch.nan)}
    with pytest.raises(UsageError, match=r"'2.bias' of .*broken.safetensors holds NaN"):
        ledger.add(make("broken", broken))
    assert open_model(ledger.path / "base.safetensors").shapes == open_model(start).shapes
