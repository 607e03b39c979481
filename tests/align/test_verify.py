"""A spec that is wrong is refused, by the name of the group that is guilty; the model is not touched."""

import dataclasses

import pytest
import torch
from alignment_zoo import ResNet, conv_flatten, example, make
from torch import Tensor, nn

from dimat.align import Axis, Group, PermutationSpec, permutation_spec
from dimat.errors import AlignmentError


def without(spec: PermutationSpec, group: str, tensor: str) -> PermutationSpec:
    """`spec` with one tensor forgotten in one group."""
    groups = tuple(
        dataclasses.replace(g, axes=tuple(axis for axis in g.axes if axis.tensor != tensor)) if g.name == group else g
        for g in spec.groups
    )
    return dataclasses.replace(spec, groups=groups)


@pytest.mark.parametrize("tensor", ["4.weight", "5.weight", "5.bias", "5.running_mean", "5.running_var", "9.weight"])
def test_every_forgotten_tensor_is_caught_even_on_a_fresh_model(tensor: str) -> None:
    torch.manual_seed(0)
    model, x = conv_flatten(), example("conv, flatten")  # fresh: all norms are ones and zeros, equal in any order
    spec = permutation_spec(model, x)
    assert spec.verify(model, x) <= 1e-5
    with pytest.raises(AlignmentError, match=r"change what the model computes.*through '4\.weight:0';"):
        without(spec, "4.weight:0", tensor).verify(model, x)


def test_a_wrong_block_is_caught() -> None:
    model, x = make("conv, flatten"), example("conv, flatten")
    spec = permutation_spec(model, x)
    wrong = tuple(Axis(axis.tensor, axis.dimension, 1) for axis in spec.by_name["4.weight:0"].axes)
    groups = tuple(dataclasses.replace(g, axes=wrong) if g.name == "4.weight:0" else g for g in spec.groups)
    with pytest.raises(AlignmentError, match=r"'4\.weight:0'"):
        dataclasses.replace(spec, groups=groups).verify(model, x)


def test_a_group_over_the_outputs_is_caught_beside_right_ones() -> None:
    model, x = make("mlp"), example("mlp")
    spec = permutation_spec(model, x)
    outputs = Group("4.weight:0", 3, (Axis("4.weight", 0), Axis("4.bias", 0)))
    with pytest.raises(AlignmentError, match=r"through '4\.weight:0';"):
        dataclasses.replace(spec, groups=(*spec.groups, outputs)).verify(model, x, seed=1)


def test_verify_leaves_weights_and_modes_as_they_are_also_when_it_refuses() -> None:
    model, x = ResNet(), example("residual")
    model.blocks[0].train(False)
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = permutation_spec(model, x)
    spec.verify(model, x)
    with pytest.raises(AlignmentError):
        without(spec, "conv1.weight:0", "norm1.bias").verify(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_outputs_that_are_not_numbers_prove_nothing() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((-1 - self.first(x).square()).sqrt())

    model, x = Root(), torch.randn(2, 4)
    with pytest.raises(AlignmentError, match="relative error inf"):
        permutation_spec(model, x).verify(model, x)
