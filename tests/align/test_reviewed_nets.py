"""Nets that a hostile review found: what is not shown by one pass, what shares memory, and what is written in place."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dimat.align import PermutationSpec, permutation_spec
from dimat.align.axes import AxisTable
from dimat.errors import AlignmentError


class Net(nn.Module):
    """A forward pass and the parts that it uses."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part)) if isinstance(part, tuple) else part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def between(something: Callable[[Any, Tensor], Tensor], width: int = 8, **parts: Any) -> Net:
    """A layer `a` of eight units, something, a layer `b` that reads `width` of them."""
    return Net(
        lambda s, x: s.b(something(s, torch.relu(s.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(width, 3), **parts
    ).double()


def sample(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def movable(spec: PermutationSpec) -> set[tuple[str, int]]:
    return {(axis.tensor, axis.dimension) for group in spec.groups for axis in group.axes}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- what one pass does not show


@pytest.mark.parametrize(
    "table",
    [
        lambda s, n: s.table[:n],
        lambda s, n: (s.table + s.other)[:n],
        lambda s, n: s.table.narrow(0, 0, n),
        lambda s, n: s.table.split([n, 16 - n])[0],
    ],
)
@pytest.mark.parametrize("length", [1, 5])
def test_positions_behind_the_example_keep_their_order(table: Callable[..., Tensor], length: int) -> None:
    model = between(lambda s, x: x + table(s, x.shape[1]), table=(16, 8), other=(16, 8))
    spec = permutation_spec(model, sample(2, length, 6))
    spec.verify(model, sample(2, 11, 6), tolerance=1e-10)
    assert ("table", 0) not in movable(spec)
    assert ("table", 1) in movable(spec)
    assert any(frozen.operator == "absence from the pass" for frozen in spec.frozen)


def test_the_inside_of_a_product_of_two_parameters_moves() -> None:
    model = between(lambda s, x: x @ (s.up @ s.down), up=(8, 5), down=(5, 8))
    spec = permutation_spec(model, sample(2, 6))
    assert {("up", 1), ("down", 0)} <= movable(spec)
    assert spec.verify(model, sample(2, 6), tolerance=1e-10) < 1e-10


class Stateful(nn.Module):
    """Each call reads what the last one left in a buffer."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("state", torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.state = torch.tanh(self.a(x) + self.h(self.state))
        answer: Tensor = self.b(self.state)
        return answer


def test_a_buffer_that_a_call_replaces_is_read_by_the_next() -> None:
    model, x = Stateful().double(), sample(2, 6)
    before = model.state
    spec = permutation_spec(model, x)
    assert model.state is before
    assert len(spec.groups) == 1
    assert {("state", 1), ("h.weight", 0), ("h.weight", 1)} <= movable(spec)
    assert spec.verify(model, x, tolerance=1e-10) < 1e-10
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), spec.random(1)))
    for _ in range(3):
        assert torch.allclose(model(x), other(x))


def experts(s: Any, x: Tensor) -> Tensor:
    chosen = s.gate(x).argmax(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(s.experts):
        rows = torch.where(chosen == number)[0]
        if rows.numel():
            out = out.index_add(0, rows, expert(x[rows]))
    answer: Tensor = s.b(out)
    return answer


def mixture(num_experts: int) -> Net:
    inner = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(num_experts))
    return Net(experts, gate=nn.Linear(6, num_experts), experts=nn.ModuleList(inner), b=nn.Linear(6, 3)).double()


def test_an_expert_without_tokens_is_refused_and_with_tokens_it_moves() -> None:
    with pytest.raises(AlignmentError, match=r"experts\.\d+\.0\.weight") as refused:
        permutation_spec(mixture(32), sample(8, 6))
    assert "reaches every part" in str(refused.value.hint)
    model, x = mixture(3), sample(200, 6)
    spec = permutation_spec(model, x)
    assert {(f"experts.{i}.0.weight", 0) for i in range(3)} <= movable(spec)
    assert {(f"experts.{i}.2.weight", 0) for i in range(3)} <= movable(spec)
    spec.verify(model, x, tolerance=1e-10)


def test_a_mask_that_no_data_decides_on_is_no_branch() -> None:
    model = between(lambda s, x: x[torch.arange(len(x)) < 2], unused=(3, 4))
    spec = permutation_spec(model, sample(4, 6))
    assert [group.size for group in spec.groups] == [8]
    assert [frozen.num_parameters for frozen in spec.frozen] == [12]


OUTSIDE = torch.linspace(1, 2, 8, dtype=torch.float64)


class Holder:
    """A plain object with a tensor."""

    def __init__(self) -> None:
        self.table = torch.linspace(2, 3, 8, dtype=torch.float64)


@pytest.mark.parametrize("constant", [lambda s: OUTSIDE, lambda s: s.holder.table], ids=["global", "in an object"])
def test_constants_from_before_the_pass_pin_only_what_they_meet(constant: Callable[[Any], Tensor]) -> None:
    model: Any = between(lambda s, x: s.d(torch.relu(s.c(x)) * constant(s)), c=nn.Linear(8, 8), d=nn.Linear(8, 8))
    model.holder = Holder()
    spec = permutation_spec(model, sample(2, 6))
    assert ("a.weight", 0) in movable(spec)
    assert ("c.weight", 0) not in movable(spec)
    spec.verify(model, sample(2, 6), tolerance=1e-10)


def test_a_tensor_that_something_unseen_wrote_to_is_no_constant() -> None:
    kept = torch.zeros(2, 8, dtype=torch.float64)

    def unseen(s: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            kept.copy_(x.flip(-1))
        return kept

    model = between(unseen)
    assert not permutation_spec(model, sample(2, 6)).groups


# ---- memory


def test_parameters_in_one_memory_move_together_or_not_at_all() -> None:
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)}
    model = Net(lambda s, x: s.c(torch.relu(s.b(torch.relu(s.a(x))))), **layers)
    layers["c"].weight.data = layers["b"].weight.data
    spec = permutation_spec(model, torch.randn(2, 6))
    for name in ("b.weight", "c.weight"):
        for group in spec.groups:
            rows = {axis.dimension for axis in group.axes if axis.tensor == name}
            other = {axis.dimension for axis in group.axes if axis.tensor in {"b.weight", "c.weight"} - {name}}
            assert rows == other
    short: Any = nn.Linear(8, 2)
    short.weight.data = layers["b"].weight.data[:2]
    model.c = short
    spec = permutation_spec(model, torch.randn(2, 6))
    assert not {"b.weight", "c.weight"} & {tensor for tensor, _ in movable(spec)}
    assert any("memory" in frozen.operator for frozen in spec.frozen)


def test_a_view_that_was_kept_pins_its_parameter() -> None:
    model: Any = between(lambda s, x: x * s.kept)
    model.kept = model.a.weight.detach()[:, 0]
    assert not permutation_spec(model, sample(2, 6)).groups


def into(out: Callable[[Tensor, Tensor], object]) -> Callable[[Any, Tensor], Tensor]:
    def run(s: Any, x: Tensor) -> Tensor:
        whole = torch.zeros_like(x)
        view = whole[:]
        out(x, whole)
        return view

    return run


@pytest.mark.parametrize(
    "out",
    [
        lambda x, whole: torch.softmax(x, -1, out=whole),
        lambda x, whole: torch.add(x, 1, out=whole),
        lambda x, whole: whole.copy_(x),
        lambda x, whole: whole[:, :3].copy_(x[:, 2:5]),
        lambda x, whole: torch.matmul(x, x.mT @ x, out=whole),
    ],
)
def test_what_is_written_into_a_tensor_is_seen_in_its_views(out: Callable[[Tensor, Tensor], object]) -> None:
    model, x = between(into(out)), sample(2, 6)
    spec = permutation_spec(model, x)
    assert ("a.weight", 0) in movable(spec)
    spec.verify(model, x, tolerance=1e-10)


def shifted(s: Any, x: Tensor) -> Tensor:
    """Some channels look one step ahead, some one step back."""
    out = torch.zeros_like(x)
    out[:, :-1, :2] = x[:, 1:, :2]
    out[:, 1:, 2:4] = x[:, :-1, 2:4]
    out[:, :, 4:] = x[:, :, 4:]
    return out


def crossed(s: Any, x: Tensor) -> Tensor:
    out = x.clone()
    out[..., :4] = x[..., 4:]
    return out


@pytest.mark.parametrize(("write", "sizes"), [(shifted, [2, 2, 4]), (crossed, [4])])
def test_what_is_assigned_to_a_part_has_the_units_of_that_part(
    write: Callable[[Any, Tensor], Tensor], sizes: list[int]
) -> None:
    model, x = between(write), sample(2, 5, 6)
    spec = permutation_spec(model, x)
    assert sorted(group.size for group in spec.groups) == sizes
    assert all(group.taps for group in spec.groups)
    spec.verify(model, x, tolerance=1e-10)


# ---- what comes back


@dataclasses.dataclass(slots=True)
class Answer:
    logits: Tensor
    hidden: Tensor


def test_every_field_of_an_answer_is_read_in_order() -> None:
    def run(s: Any, x: Tensor) -> Answer:
        hidden = s.a(x)
        return Answer(s.b(hidden), hidden)

    assert not permutation_spec(Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), torch.randn(2, 6)).groups


def test_an_answer_that_nobody_can_look_into_is_refused() -> None:
    model = Net(lambda s, x: (s.a(x), lambda: s.a(x)), a=nn.Linear(6, 8))
    with pytest.raises(AlignmentError, match="function"):
        permutation_spec(model, torch.randn(2, 6))


def test_lazy_modules_are_asked_to_run_first() -> None:
    with pytest.raises(AlignmentError, match=r"0\.weight"):
        permutation_spec(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), torch.randn(2, 6))


# ---- operators that are not what their name says


def test_operators_of_other_libraries_are_not_known_by_their_name() -> None:
    library = torch.library.Library("dimat_review", "DEF")  # type: ignore[no-untyped-call]
    library.define("matmul(Tensor a, Tensor b) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("matmul", lambda a, b: a @ b.T, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    model = between(lambda s, x: torch.ops.dimat_review.matmul(x, s.w), w=(8, 8))
    spec = permutation_spec(model, sample(2, 6))
    assert not spec.groups
    assert spec.frozen[0].operator == "dimat_review::matmul"


def test_a_module_with_another_forward_is_followed_inside() -> None:
    cell = nn.LSTM(6, 8, batch_first=True)
    cell.forward = types.MethodType(lambda s, x: (x @ s.weight_ih_l0.T, None), cell)  # type: ignore[method-assign]
    model, x = Net(lambda s, x: s.b(s.a(x)[0]), a=cell, b=nn.Linear(32, 3)), torch.randn(2, 5, 6)
    spec = permutation_spec(model, x)
    assert [group.size for group in spec.groups] == [32]
    spec.verify(model, x)


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


ODD_CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "positions": lambda s, x: x + torch.where(s.w > -100)[0],
    "another dtype": lambda s, x: x.view(torch.complex128).real.repeat_interleave(2, -1),
    "pieces out of order": lambda s, x: F.pad(x.tensor_split((4, 2), -1)[2], (0, 2)),
    "a length from the data": lambda s, x: F.pad(x[..., : (x.sum() > -100).long() * 3], (0, 5)),
    "the place of the largest": lambda s, x: x + x.max(-1, keepdim=True)[1],
    "the places of the sorted": lambda s, x: x + x.sort(-1)[1],
}


@pytest.mark.parametrize("name", ODD_CALLS)
def test_odd_calls_freeze(name: str) -> None:
    spec = permutation_spec(between(ODD_CALLS[name], w=(8,)), sample(2, 6))
    assert ("a.weight", 0) not in movable(spec)
    assert spec.frozen


SRC, DST = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])


def spectral(s: Any, x: Tensor) -> Tensor:
    mixed: Tensor = torch.einsum("bti,io->bto", torch.fft.rfft(x, dim=1), s.w.to(torch.complex128))
    answer: Tensor = torch.fft.irfft(mixed, n=5, dim=1)
    return answer


WELL_KNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a tuple with names": lambda s, x: torch.stack(torch.cat(Pair(x, x.tanh()), 0).chunk(2)).sum(0),
    "the largest of channels": lambda s, x: x * torch.sigmoid(x.max(-1, keepdim=True)[0]),
    "sorted by value": lambda s, x: x * x.sort(-1)[0][..., :1],
    "edges to nodes": lambda s, x: torch.zeros_like(x).index_add(1, DST, x[:, SRC]),
    "edges to nodes, spread": lambda s, x: torch.zeros_like(x).scatter_add(
        1, DST[None, :, None].expand(2, -1, 8), x[:, SRC]
    ),
    "frequencies": spectral,
    "dimensions moved": lambda s, x: x.movedim(1, -1).movedim((2, 1), (1, 2)),
    "sums over two dimensions": lambda s, x: torch.tensordot(x, s.w, dims=1),
    "distances to centres": lambda s, x: torch.exp(-torch.cdist(x, s.w[None])),
    "cosines": lambda s, x: x * F.cosine_similarity(x, s.w[0], dim=-1)[..., None],
    "broadcast": lambda s, x: torch.broadcast_tensors(x, s.w[0])[0] + x,  # type: ignore[no-untyped-call]
    "side by side": lambda s, x: torch.hstack([x, x]),
    "log sigmoid": lambda s, x: F.logsigmoid(x),
    "an arc tangent": lambda s, x: torch.atan2(x, s.w[0]),
}


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_well_known_operators_let_units_move(name: str) -> None:
    model, x = between(WELL_KNOWN[name], w=(8, 8)), sample(2, 5, 6)
    spec = permutation_spec(model, x)
    assert ("a.weight", 0) in movable(spec)
    assert spec.verify(model, x, tolerance=1e-10) < 1e-10
    assert not [frozen for frozen in spec.frozen if frozen.num_parameters > 64 + 8]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": lambda y, z: F.cross_entropy(y.mT, torch.zeros(2, 5, dtype=torch.long)),
    "class probabilities": lambda y, z: F.cross_entropy(y.flatten(0, 1), z.flatten(0, 1).softmax(-1)),
    "squares": lambda y, z: F.mse_loss(y, z),
    "cosine": lambda y, z: F.cosine_similarity(y, z, dim=-1).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_as_the_answer(name: str) -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        return LOSSES[name](s.b(torch.relu(s.a(x))), s.c(x))

    model = Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4), c=nn.Linear(6, 4)).double()
    x = sample(2, 5, 6)
    spec = permutation_spec(model, x)
    assert ("a.weight", 0) in movable(spec)
    assert not [frozen for frozen in spec.frozen if frozen.operator != "absence from the pass"]
    assert (("b.weight", 0) in movable(spec)) == (name in ("squares", "cosine"))
    spec.verify(model, x, tolerance=1e-10)


def test_bags_of_embeddings() -> None:
    model = nn.Sequential(nn.EmbeddingBag(11, 8), nn.Linear(8, 3)).double()
    x = torch.randint(0, 11, (2, 7))
    spec = permutation_spec(model, x)
    assert movable(spec) == {("0.weight", 1), ("1.weight", 1)}
    spec.verify(model, x, tolerance=1e-10)


def test_noise_in_the_pass_is_drawn_alike_when_groups_are_proven() -> None:
    model = between(lambda s, x: s.d(x) + torch.randn(2, 8, dtype=torch.float64), d=nn.Linear(8, 8))
    spec = permutation_spec(model, sample(2, 6))
    assert ("a.weight", 0) in movable(spec)
    assert spec.verify(model, sample(2, 6), tolerance=1e-10) < 1e-10


def test_weights_computed_by_parametrizations() -> None:
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 3))
    ).double()
    spec = permutation_spec(model, sample(2, 6))
    assert [group.size for group in spec.groups] == [8]
    spec.verify(model, sample(2, 6), tolerance=1e-10)


def test_many_joins_are_not_many_levels() -> None:
    """More than Python has room for on its stack, were each held inside of the next."""
    table = AxisTable()
    dim = table.free(2)
    for _ in range(1200):
        dim = table.join([dim, table.free(2)])
    assert len(list(table.leaves(dim))) == 1201
