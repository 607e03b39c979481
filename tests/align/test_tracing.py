"""Groups found by tracing: right for every kind of model, and never wrong where an operator is not known."""

import copy

import pytest
import torch
import torch.nn.functional as F
from alignment_zoo import MODELS, ResNet, example, make
from torch import Tensor, nn

from dimat.align import PermutationSpec, operators, permutation_spec, register_operator
from dimat.errors import AlignmentError


def error_under(spec: PermutationSpec, model: nn.Module, x: Tensor, seed: int) -> float:
    """‖Δy‖₂ / ‖y‖₂, with nothing of `verify`: a permuted copy of the model answers."""
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), spec.random(seed)))
    with torch.no_grad():
        return float((other(x) - model(x)).norm() / model(x).norm())


@pytest.mark.parametrize("name", MODELS)
def test_random_permutations_leave_outputs_unchanged(name: str) -> None:
    model, x = make(name), example(name, 4, seed=1)
    spec = permutation_spec(model, example(name))
    least = MODELS[name][2]
    assert spec.coverage() >= least
    assert bool(spec.groups) == (least > 0)
    assert all(group.taps for group in spec.groups)
    for seed in range(3):
        assert error_under(spec, model, x, seed) <= 1e-5
        assert error_under(spec, model.double(), x.double(), seed) <= 1e-12
        model.float()


@pytest.mark.parametrize("name", MODELS)
def test_tracing_leaves_the_model_as_it_is(name: str) -> None:
    model = make(name)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    modes = [module.training for module in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    permutation_spec(model, example(name))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_groups_of_a_residual_net_are_one_stream_per_stage_and_one_inner_group_per_block() -> None:
    spec = permutation_spec(ResNet(), example("residual"))
    assert [group.name for group in spec.groups] == [
        "conv1.weight:0",
        "blocks.0.conv1.weight:0",
        "blocks.1.conv1.weight:0",
        "blocks.2.conv1.weight:0",
        "blocks.2.conv2.weight:0",
        "blocks.3.conv1.weight:0",
        "blocks.4.conv1.weight:0",
        "blocks.4.conv2.weight:0",
        "blocks.5.conv1.weight:0",
    ]
    stream = {(*axis, axis.block) for axis in spec.by_name["blocks.2.conv2.weight:0"].axes}
    assert ("blocks.2.shortcut.0.weight", 0, 1) in stream  # the projection ends in the new stream
    assert ("blocks.3.conv2.weight", 0, 1) in stream  # the identity shortcut ties both blocks
    assert ("blocks.2.norm2.running_var", 0, 1) in stream
    assert ("blocks.4.shortcut.0.weight", 1, 1) in stream
    taps = [tap.operator for tap in spec.by_name["blocks.2.conv2.weight:0"].taps]
    assert taps == ["relu", "relu"]  # before the activation that follows each addition


def test_a_flattened_channel_owns_a_block_of_columns() -> None:
    spec = permutation_spec(make("conv, flatten"), example("conv, flatten"))
    assert ("9.weight", 1, 4) in {(*axis, axis.block) for axis in spec.by_name["4.weight:0"].axes}


def test_a_tap_stands_before_the_activation_and_reads_what_enters_it() -> None:
    spec = permutation_spec(make("mlp"), example("mlp"))
    assert [(tap.operator, tap.place.dimension) for group in spec.groups for tap in group.taps] == [
        ("relu", 1),
        ("tanh", 1),
    ]


class Spelled(nn.Module):
    """One net, its operators written in another way."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.skip = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == 0:
            x = x.relu() + self.skip(x.relu())
            return self.head(x.mean(dim=(2, 3)))
        if self.way == 1:
            x = F.relu_(x)
            x = torch.add(x, self.skip(x))
            return F.linear(torch.flatten(F.avg_pool2d(x, x.shape[-2:]), 1), self.head.weight, self.head.bias)
        if self.way == 2:
            x = torch.relu(x)
            x += F.conv2d(x, self.skip.weight, self.skip.bias)
            return x.sum(-1).sum(-1).view(x.size(0), -1) @ self.head.weight.T + self.head.bias
        if self.way == 3:
            x = torch.clamp(x, min=0)
            x = sum([x, self.skip(x)])
            return self.head(x.permute(0, 2, 3, 1).reshape(len(x), -1, 6).mean(1))
        x = torch.where(x > 0, x, torch.zeros_like(x))
        x = x.add_(self.skip(x))
        return torch.addmm(self.head.bias, x.amax((2, 3)), self.head.weight.t())


@pytest.mark.parametrize("way", range(5))
def test_every_spelling_of_an_operator_is_the_same_operator(way: int) -> None:
    model, x = Spelled(way).eval(), torch.randn(2, 3, 6, 6)
    spec = permutation_spec(model, x)
    assert [(group.name, group.size) for group in spec.groups] == [("conv.weight:0", 6)]
    assert {axis.tensor for axis in spec.groups[0].axes} == {
        "conv.weight", "conv.bias", "skip.weight", "skip.bias", "head.weight",
    }  # fmt: skip
    assert error_under(spec, model, x, 0) <= 1e-5


class Between(nn.Module):
    """Linear, something, linear, relu, linear: what the something does decides about the first group."""

    def __init__(self, something: object, inner: int = 6) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(inner, 7), nn.Linear(7, 3)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.something(self.first(x)))))  # type: ignore[operator]


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.flip(-1)


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0
    return y


@pytest.mark.parametrize(
    "something",
    [
        lambda x: x.flip(-1),
        lambda x: x.roll(1, -1),
        lambda x: x.cumsum(-1),
        lambda x: x[:, torch.arange(6)],
        lambda x: torch.stack(list(x.unbind(1))[::-1], 1),
        lambda x: torch.add(x, x.flip(-1), out=torch.empty_like(x)),
        lambda x: F.local_response_norm(x[:, :, None], 3)[:, :, 0],
        lambda x: x[:, torch.tensor([1, 0, 2, 3, 4, 5])],
        written,
    ],
)
def test_what_is_not_known_freezes_and_says_so(something: object) -> None:
    model, x = Between(something).eval(), torch.randn(3, 5)
    spec = permutation_spec(model, x)
    assert [group.name for group in spec.groups] == ["second.weight:0"]
    assert error_under(spec, model, x, 0) <= 1e-5
    assert spec.frozen
    assert max(entry.num_parameters for entry in spec.frozen) >= 30


@pytest.mark.parametrize(
    ("something", "sizes"),
    [
        (lambda x: torch.cat([x[:, 3:], x[:, :3]], dim=1), [3, 3]),  # halves change places, units stay in theirs
        (lambda x: F.pad(x, (1, -1)), [5]),  # the last unit is lost, and the first of the next layer is always zero
        (lambda x: x.view(-1, 3, 2).transpose(1, 2).reshape(-1, 6), [6]),  # three blocks of two
        (lambda x: x[:, :2] * x[:, 2:4] + x[:, 4:], [2]),  # a gate ties three segments
        (lambda x: torch.cat([F.glu(x, -1), x[:, 3:]], dim=1), [3]),
        (lambda x: torch.stack(x.chunk(2, -1), 1).sum(1), [3]),
        (lambda x: x.narrow(1, 1, 4), [4]),
    ],
)
def test_parts_of_an_axis_move_each_for_itself(something: object, sizes: list[int]) -> None:
    model, x = Between(something, inner=something(torch.zeros(1, 6)).shape[1]).eval(), torch.randn(3, 5)  # type: ignore[operator]
    spec = permutation_spec(model, x)
    assert error_under(spec, model, x, 0) <= 1e-6
    first = [group for group in spec.groups if group.axes[0].tensor == "first.weight"]
    assert [group.size for group in first if group.taps] == sizes
    assert not spec.frozen


def test_units_that_meet_their_numbers_keep_their_order_by_nature() -> None:
    model, x = Between(lambda x: x + torch.arange(6.0)).eval(), torch.randn(3, 5)
    spec = permutation_spec(model, x)
    assert [group.name for group in spec.groups] == ["second.weight:0"]
    assert not spec.frozen
    assert error_under(spec, model, x, 0) <= 1e-5


def test_what_torch_does_not_show_freezes_everything_before_it() -> None:
    model, x = Between(unseen).eval(), torch.randn(3, 5)
    spec = permutation_spec(model, x)
    assert "first.weight" not in spec.members or all(axis.dimension for _, axis in spec.members["first.weight"])
    assert error_under(spec, model, x, 0) <= 1e-5
    assert spec.frozen[0].operator == "something unseen before linear"


def test_the_report_names_operator_module_and_parameters() -> None:
    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    spec = permutation_spec(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Flip(), nn.Linear(8, 2)), torch.randn(2, 4))
    assert not spec.groups
    # 0.weight and 0.bias before it, 3.weight behind it
    assert [tuple(entry) for entry in spec.frozen] == [("flip", "2", 4 * 8 + 8 + 8 * 2)]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error must name
            return self.linear(x)
        return x


def test_control_flow_on_data_is_refused_by_its_line() -> None:
    line = Branching.forward.__code__.co_firstlineno + 1
    with pytest.raises(AlignmentError, match=rf"test_tracing\.py:{line}") as caught:
        permutation_spec(Branching(), torch.randn(2, 4))
    assert "__bool__" in str(caught.value)
    assert "register_operator" in str(caught.value.hint)


def written_into(x: Tensor) -> None:
    y = torch.zeros(2)
    y[0] = x.sum()
    bool(y[0] > 0)


@pytest.mark.parametrize(
    "escape",
    [lambda x: x.sum().item(), lambda x: x.numpy(), lambda x: x.tolist(), lambda x: int(x[0, 0]), written_into],
)
def test_every_way_of_reading_data_is_refused(escape: object) -> None:
    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            escape(x)  # type: ignore[operator]
            return x

    with pytest.raises(AlignmentError, match="depends on the data"):
        permutation_spec(Reading(), torch.randn(2, 4))


def test_control_flow_on_shapes_is_followed() -> None:
    class Shapely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor, *, twice: bool = False) -> dict[str, Tensor]:
            for _ in range(x.size(1) - 3):
                x = self.linear(x) if x.dim() == 2 else x
            return {"y": self.head(x.tanh() if twice and len(x) > 1 else x)}

    spec = permutation_spec(Shapely(), torch.randn(2, 4), twice=True)
    assert [tap.operator for group in spec.groups for tap in group.taps] == ["tanh"]
    assert spec.verify(Shapely(), torch.randn(2, 4), twice=True) < 1e-5


def test_the_models_own_error_is_wrapped_once() -> None:
    with pytest.raises(AlignmentError, match=r"fails on the example input: RuntimeError: .*shapes") as caught:
        permutation_spec(make("mlp"), torch.randn(2, 7))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_answer_without_tensors_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "done"

    with pytest.raises(AlignmentError, match="no tensor is found in what the model returns, a str"):
        permutation_spec(Silent(), torch.randn(2))


def test_tied_weights_move_under_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.mix = nn.Linear(6, 6)
            self.out = nn.Linear(6, 11, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            return self.out(x + self.mix(torch.relu(x)))

    model, x = Tied().eval(), torch.randint(0, 11, (3, 4))
    spec = permutation_spec(model, x)
    assert {(*axis, axis.block) for axis in spec.groups[0].axes} == {
        ("embedding.weight", 1, 1), ("mix.weight", 0, 1), ("mix.weight", 1, 1), ("mix.bias", 0, 1),
        ("out.weight", 1, 1),
    }  # fmt: skip
    assert error_under(spec, model, x, 0) <= 1e-5
    assert spec.verify(model, x) <= 1e-5


def test_what_is_not_saved_or_not_used_does_not_move() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.idle = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 6)
            self.register_buffer("scale", torch.rand(6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)) * self.scale)

    spec = permutation_spec(Odd(), torch.randn(2, 4))
    assert not spec.groups  # the buffer that no state dict carries pins the units it scales
    assert [tuple(entry) for entry in spec.frozen] == [("absence from the pass", "", 6 * 6 + 6)]


def test_constants_that_a_module_holds_pin_only_what_they_meet() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)])
            self._scale = [torch.rand(5)]

        def forward(self, x: Tensor) -> Tensor:
            first, second, last = self.layers
            return last(torch.relu(second(torch.relu(first(x)))) * self._scale[0])

    spec = permutation_spec(Constant(), torch.randn(2, 4))
    assert [group.name for group in spec.groups] == ["layers.0.weight:0"]


class Opaque(nn.Module):
    """A gate that steers by its data; only its author knows that it treats all units alike."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain if x.sum().item() > 0 else x * self.gain * 2


def test_a_module_with_control_flow_can_be_taught() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Opaque(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with pytest.raises(AlignmentError, match="depends on the data"):
        permutation_spec(model, torch.randn(2, 4))

    @register_operator(Opaque)
    def opaque(context: operators.Context, module: Opaque, x: operators.Symbolic) -> object:
        context.tie(x.dims[-1], context.parameter(module.gain).dims[0])
        return x.dims

    try:
        x = torch.randn(2, 4)
        spec = permutation_spec(model, x)
        assert spec.coverage() > 0.9
        assert ("2.gain", 0) in {tuple(axis) for axis in spec.groups[0].axes}
        assert error_under(spec, model, x, 0) <= 1e-5
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    finally:
        del operators.OPERATORS[Opaque]


def test_a_function_can_be_taught() -> None:
    model, x = Between(lambda x: x.erfinv()).eval(), torch.rand(2, 5) * 0.1
    assert len(permutation_spec(model, x).groups) == 1

    @register_operator("erfinv", nonlinear=True)
    def erfinv(context: operators.Context, x: operators.Symbolic) -> object:
        return x.dims

    try:
        spec = permutation_spec(model, x)
        assert [group.taps[0].operator for group in spec.groups] == ["erfinv", "relu"]
    finally:
        del operators.OPERATORS["erfinv"]


def test_a_rule_that_ties_unequal_lengths_is_named() -> None:
    @register_operator("erfinv")
    def erfinv(context: operators.Context, x: operators.Symbolic) -> object:
        context.tie(x.dims[0], x.dims[1])
        return x.dims

    try:
        with pytest.raises(AlignmentError, match="rule for 'erfinv' ties dimensions of lengths"):
            permutation_spec(Between(lambda x: x.erfinv()), torch.rand(2, 5))
    finally:
        del operators.OPERATORS["erfinv"]
