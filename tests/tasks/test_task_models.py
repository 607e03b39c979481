from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from dimat.errors import PluginError, TaskError
from dimat.tasks.models import BUILTIN, ModelSpec

IMAGE, WIDE_IMAGE, COLOUR, SERIES, TABLE = (1, 8, 8), (1, 28, 20), (3, 32, 32), (6, 40), (16,)

CASES = [
    ("mlp", IMAGE),
    ("mlp", SERIES),
    ("mlp", TABLE),
    ({"name": "mlp", "hidden": [], "batchnorm": True}, TABLE),
    ({"name": "mlp", "hidden": [9, 7], "batchnorm": True}, TABLE),
    ("cnn", IMAGE),
    ("cnn", WIDE_IMAGE),
    ("cnn", COLOUR),
    ("cnn", SERIES),
    ("cnn", (1, 1, 1)),
    ({"name": "cnn", "width": 0.25}, (2, 3)),
    ({"name": "resnet20", "width": 0.5}, IMAGE),
    ({"name": "resnet20", "width": 0.5}, COLOUR),
    ({"name": "vgg16_bn", "width": 0.125}, IMAGE),
    ({"name": "vgg16_bn", "width": 0.125}, COLOUR),
    ({"name": "vgg16_bn", "width": 0.125}, (3, 1, 5)),
]


@pytest.mark.parametrize(("given", "shape"), CASES)
def test_a_model_maps_any_batch_to_logits_and_can_be_traced(given, shape) -> None:
    spec = ModelSpec.parse(given)
    model = spec.build(shape, 7)
    x = torch.randn(4, *shape)
    logits = model(x)
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert model(x[:1]).shape == (1, 7)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_initialisation_comes_from_the_global_generator(name) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        options = {} if name == "mlp" else {"width": 0.125}
        return ModelSpec.parse({"name": name, **options}).build(IMAGE, 10).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_architectures_are_those_of_the_papers() -> None:
    def kernels(name: str, shape: tuple[int, ...], **options) -> list[tuple[int, ...]]:
        model = ModelSpec.parse({"name": name, **options}).build(shape, 10)
        return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    resnet = [shape for shape in kernels("resnet20", COLOUR) if shape[-1] != 1]
    assert [shape[0] for shape in resnet] == [16] * 7 + [32] * 6 + [64] * 6 + [10]
    assert [shape[0] for shape in kernels("resnet20", COLOUR, width=2)][:1] == [32]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [shape[0] for shape in kernels("vgg16_bn", COLOUR)] == [*widths, 10]
    assert [shape[0] for shape in kernels("cnn", IMAGE)] == [32, 64, 64, 10]


def test_strides_and_poolings_follow_the_image() -> None:
    def last_side(name: str, side: int) -> int:
        model, seen = ModelSpec.parse({"name": name, "width": 0.125}).build((1, side, side), 2), []
        average = next(m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
        average.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
        model(torch.randn(2, 1, side, side))
        return seen[0]

    assert [last_side("cnn", side) for side in (32, 8, 2, 1)] == [8, 2, 1, 1]
    assert [last_side("vgg16_bn", side) for side in (64, 32, 8, 1)] == [2, 1, 1, 1]
    assert [last_side("resnet20", side) for side in (32, 8)] == [8, 2]


def test_blocks_of_resnet20_add_their_shortcut() -> None:
    model = ModelSpec.parse("resnet20").build(COLOUR, 10).eval()
    block = model.stage1[1]
    x = torch.rand(2, 16, 5, 5)  # non-negative, so the identity passes the ReLU
    with torch.no_grad():
        block.norm2.weight.zero_()
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ("resnt20", IMAGE, "Did you mean 'resnet20'"),
        ({"width": 2}, IMAGE, "a name or a mapping"),
        (20, IMAGE, "a name or a mapping"),
        ({"name": "resnet20", "widht": 2}, COLOUR, "Did you mean 'width'"),
        ({"name": "cnn", "width": 0}, IMAGE, "width is a positive number"),
        ({"name": "cnn", "width": "2"}, IMAGE, "width is a positive number"),
        ({"name": "vgg16_bn", "width": float("nan")}, IMAGE, "width is a positive number"),
        ({"name": "mlp", "hidden": 128}, IMAGE, "hidden is a list"),
        ({"name": "mlp", "hidden": [0]}, IMAGE, "hidden is a list"),
        ("cnn", TABLE, "cnn reads images"),
        ("resnet20", SERIES, "resnet20 reads images"),
        ("vgg16_bn", TABLE, "vgg16_bn reads images"),
    ],
)
def test_a_wrong_model_says_what_is_expected(given, shape, message) -> None:
    with pytest.raises((TaskError, PluginError), match=message):
        ModelSpec.parse(given).build(shape, 10)


def test_a_model_of_the_users_own_takes_the_shapes_it_names(monkeypatch) -> None:
    module = ModuleType("own_models")
    module.plain = lambda: nn.Linear(2, 3)
    module.shaped = lambda num_classes, depth=1: nn.Linear(depth, num_classes)
    module.everything = lambda **given: nn.Linear(given["input_shape"][0], given["num_classes"])
    module.nothing = lambda: None
    module.broken = lambda: 1 / 0
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_models", module)

    def weight(given) -> tuple[int, ...]:
        return tuple(ModelSpec.parse(given).build((5,), 7).weight.shape)

    assert weight("own_models:plain") == (3, 2)
    assert weight({"name": "own_models:shaped", "depth": 4}) == (7, 4)
    assert weight("own_models:everything") == (7, 5)
    with pytest.raises(TaskError, match="made a NoneType"):
        weight("own_models:nothing")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        weight("own_models:broken")
    with pytest.raises(TaskError, match="is a int, expected a function"):
        weight("own_models:number")
    with pytest.raises(TaskError, match="Did you mean 'depth'"):
        weight({"name": "own_models:shaped", "dept": 4})
