"""A permuted copy is brought back, by activations and by weights; what an optimiser keeps comes along."""

import copy

import numpy as np
import pytest
import torch
from alignment_zoo import MODELS, ResNet, example, make
from torch import Tensor, nn

from dimat.align import (
    Axis,
    Group,
    PermutationSpec,
    activation_matching,
    match_activations,
    match_weights,
    permutation_spec,
    weight_matching,
)
from dimat.errors import AlignmentError, SchemaError, UsageError


def permuted_copy(spec: PermutationSpec, model: nn.Module, seed: int = 5) -> tuple[nn.Module, dict[str, Tensor]]:
    hidden = spec.random(seed)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    return other, hidden


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_recovered_by_activations_and_merging_returns_the_model(name: str) -> None:
    model = make(name)
    spec = permutation_spec(model, example(name))
    other, hidden = permuted_copy(spec, model)
    probe = example(name, 48, seed=2).split(20)
    found = match_activations(spec, model, other, probe)
    wrong = spec.moved(spec.compose(hidden, found.perms)) * sum(group.size for group in spec.groups)
    assert wrong <= found.constant
    assert found.constant == 0 or name == "vgg"
    aligned = spec.apply(other.state_dict(), found.perms)
    for key, tensor in model.state_dict().items():
        merged = (tensor + aligned[key]) / 2 if tensor.is_floating_point() else tensor
        assert (merged - tensor).abs().max() <= 1e-6 * (1 + tensor.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_recovered_by_weights(name: str) -> None:
    model = make(name)
    spec = permutation_spec(model, example(name))
    other, hidden = permuted_copy(spec, model)
    for seed in range(3):
        found = match_weights(spec, model.state_dict(), other.state_dict(), seed=seed)
        assert spec.moved(spec.compose(hidden, found.perms)) <= 0.01
        assert found.objective_after >= found.objective_before


def test_a_fresh_resnet_is_recovered_by_weights() -> None:
    torch.manual_seed(0)
    model = ResNet((16, 32, 64), 3)  # norms of ones and zeros vote for nothing
    spec = permutation_spec(model, example("residual"))
    other, hidden = permuted_copy(spec, model)
    found = weight_matching(spec, model.state_dict(), other.state_dict())
    assert spec.moved(spec.compose(hidden, found)) <= 0.01


def test_weight_matching_never_ends_below_the_identity_and_is_seeded() -> None:
    one, two = make("residual", 0), make("residual", 1)
    spec = permutation_spec(one, example("residual"))
    states = one.state_dict(), two.state_dict()
    found = [match_weights(spec, *states, seed=seed) for seed in (0, 0, 1)]
    trained = [info.name for info in spec.tensors if info.trained and info.name in spec.members]

    def inner(perms: dict[str, Tensor]) -> float:
        moved = spec.apply(states[1], perms)
        return sum(float((states[0][name].double() * moved[name].double()).sum()) for name in trained)

    for matching in found:
        assert matching.objective_before == pytest.approx(inner({}), rel=1e-5)
        assert matching.objective_after == pytest.approx(inner(matching.perms), rel=1e-5)
        assert inner(matching.perms) > inner({}) + 10
        # A local optimum: no other permutation of a single group does better than rounding.
        for group in spec.groups:
            swapped = matching.perms | {group.name: matching.perms[group.name].roll(1)}
            assert inner(swapped) <= inner(matching.perms) + 1e-3
    assert all(torch.equal(found[0].perms[name], found[1].perms[name]) for name in found[0].perms)


def test_weight_matching_looks_through_axes_twice_in_one_tensor() -> None:
    """A recurrent weight holds its group on both axes; the objective must still not fall."""
    torch.manual_seed(0)
    spec = PermutationSpec((Group("h", 12, (Axis("w", 0), Axis("w", 1), Axis("b", 0))),))
    one = {"w": torch.randn(12, 12), "b": torch.randn(12)}
    two = {"w": torch.randn(12, 12), "b": torch.randn(12)}
    for seed in range(3):
        found = match_weights(spec, one, two, seed=seed)
        assert found.objective_after >= found.objective_before
    copy_of_one = spec.apply(one, spec.random(1))
    assert spec.moved(spec.compose(spec.random(1), weight_matching(spec, one, copy_of_one))) == 0


def numpy_correlations(model: nn.Module, other: nn.Module, x: Tensor, layer: int) -> np.ndarray:
    """The oracle: numpy's correlation of the outputs of one layer, all samples and pixels side by side."""
    rows = [net[: layer + 1](x).transpose(0, 1).flatten(1).double().numpy() for net in (model, other)]
    return np.corrcoef(*rows)[: len(rows[0]), len(rows[0]) :]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@torch.no_grad()
def test_correlations_are_those_of_numpy_whatever_the_batches_and_the_mean(offset: float) -> None:
    one, two = make("conv, flatten", 0), make("conv, flatten", 1)
    for model in (one, two):
        model[1].bias.add_(offset)
    spec = permutation_spec(one, example("conv, flatten"))
    x = example("conv, flatten", 50, seed=4)
    expected = numpy_correlations(one, two, x, layer=1)
    for batches in ([x], list(x.split(7)), list(x.split([1, 3, 46]))):
        found = match_activations(spec, one, two, batches)
        group = found.groups[0]
        here = np.arange(group.size)
        assert group.before == pytest.approx(expected.diagonal().mean(), abs=2e-4 if offset else 2e-6)
        best = expected[here, found.perms[group.name].numpy()].mean()
        assert group.after == pytest.approx(best, abs=2e-4 if offset else 2e-6)
        assert group.moved == pytest.approx((found.perms[group.name].numpy() != here).mean())
    assert found.objective_after > found.objective_before


@torch.no_grad()
def test_units_that_are_constant_or_not_finite_are_counted_and_stay() -> None:
    one, two = make("mlp", 0), make("mlp", 0)
    dead = [0, 3, 8]
    for model in (one, two):
        model[0].weight[dead] = 0.0
    two[0].weight[5] = torch.nan  # nobody can say what this unit does
    two[0].bias[7] = torch.inf
    spec = permutation_spec(make("mlp"), example("mlp"))
    found = match_activations(spec, one, two, [example("mlp", 40, seed=1)])
    assert found.groups[0].constant == 5
    assert found.perms["0.weight:0"].tolist() == list(range(24))
    assert found.groups[1].constant == 16  # behind a NaN everything is one


def test_stickiness_keeps_units_where_the_evidence_is_weak() -> None:
    one, two = make("conv, flatten", 0), make("conv, flatten", 1)
    spec = permutation_spec(one, example("conv, flatten"))
    probe = [example("conv, flatten", 30, seed=1)]
    moved = [spec.moved(activation_matching(spec, one, two, probe, stickiness=bonus)) for bonus in (0.0, 0.3, 2.0)]
    assert moved[0] > moved[1] > moved[2] == 0


def test_models_are_left_as_they_are() -> None:
    one, two = make("residual", 0), make("residual", 1)
    spec = permutation_spec(one, example("residual"))
    one.train()
    two.blocks[1].train()
    modes = [[module.training for module in model.modules()] for model in (one, two)]
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in (one, two)]
    activation_matching(spec, one, two, [example("residual", 8)])
    assert [[module.training for module in model.modules()] for model in (one, two)] == modes
    for model, old in zip((one, two), before, strict=True):
        assert all(torch.equal(tensor, old[key]) for key, tensor in model.state_dict().items())


def test_batches_may_be_tensors_tuples_or_mappings() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.last(torch.tanh(self.left(left) + self.right(right)))

    torch.manual_seed(0)
    one, two, x, y = Two(), Two(), torch.randn(32, 4), torch.randn(32, 3)
    spec = permutation_spec(one, x, right=y)
    answers = [activation_matching(spec, one, two, [batch]) for batch in ((x, y), [x, y], {"left": x, "right": y})]
    assert spec.moved(answers[0]) > 0
    assert all(torch.equal(answers[0]["left.weight:0"], answer["left.weight:0"]) for answer in answers)


def test_bad_input_is_refused() -> None:
    model = make("mlp")
    spec = permutation_spec(model, example("mlp"))
    with pytest.raises(AlignmentError, match="the probe is empty"):
        activation_matching(spec, model, model, [])
    with pytest.raises(AlignmentError, match="the probe is empty"):
        activation_matching(spec, model, model, [torch.zeros(0, 10)])

    class Sigmoid(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[4](torch.tanh(self[2](torch.sigmoid(self[0](x)))))

    class Wider(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(nn.functional.pad(x, (0, 15)))

    class Shorter(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self[0](x))

    reasons = {Sigmoid: "relu, now there is operator sigmoid", Wider: r"shape \(2, 25\)", Shorter: "only 2 operators"}
    for kind, reason in reasons.items():
        with pytest.raises(AlignmentError, match=rf"does not take the path.*{reason}"):
            activation_matching(spec, kind(*make("mlp")), model, [example("mlp")])
    for bad in ({"stickiness": -0.1}, {"margin": -1.0}, {"margin": float("nan")}, {"stickiness": float("inf")}):
        with pytest.raises(UsageError, match=f"{next(iter(bad))} is .*not negative"):
            activation_matching(spec, model, model, [example("mlp")], **bad)
    state = model.state_dict()
    with pytest.raises(SchemaError, match=r"'0\.weight' has shape \(24, 11\)"):
        weight_matching(spec, state, state | {"0.weight": torch.zeros(24, 11)})
    with pytest.raises(AlignmentError, match=r"'2\.bias' holds NaN"):
        weight_matching(spec, state, state | {"2.bias": torch.full((16,), torch.nan)})


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_optimiser_state_permutes_along(kind: str) -> None:
    """Permute in the middle of training, or train on and permute at the end: the same model."""
    model, spec = make("conv, flatten").double(), permutation_spec(make("conv, flatten"), example("conv, flatten"))
    perms = spec.random(7)

    def optimiser(net: nn.Module) -> torch.optim.Optimizer:
        if kind == "momentum":
            return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        return torch.optim.Adam(net.parameters(), lr=0.01)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        net(example("conv, flatten", 8, seed).double()).square().mean().backward()
        optimizer.step()

    first = optimiser(model)
    step(model, first, 0)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), perms))
    second = optimiser(other)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for key in first.state[model[0].weight]:
        moved = spec.apply_to_named({names[p]: state[key] for p, state in first.state.items()}, perms)
        for name, parameter in other.named_parameters():
            second.state[parameter][key] = moved[name].clone()
    for seed in (1, 2):
        step(model, first, seed)
        step(other, second, seed)
    expected = spec.apply(model.state_dict(), perms)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12)
