"""Recurrent nets: the units of a layer are one group over all gates, whatever way the module is built and called."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_recurrent import NETS, Packed, Reader, Tagger, example, make

from dimat.align import activation_matching, permutation_spec, weight_matching

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", NETS)
def test_all_that_may_move_is_found_and_leaves_the_outputs_unchanged(name: str) -> None:
    model, x, net = make(name), example(), NETS[name]
    spec = permutation_spec(model, x)
    assert tuple(group.size for group in spec.groups) == net.sizes
    assert all(group.structure == "plain" for group in spec.groups)
    assert spec.coverage() == pytest.approx(net.coverage, abs=1e-4)
    assert not spec.frozen
    for seed in range(2):
        assert spec.verify(model.float(), x, tolerance=1e-5, seed=seed) <= 1e-5
        assert spec.verify(model.double(), x.double(), tolerance=1e-12, seed=seed) <= 1e-12


@pytest.mark.parametrize("name", NETS)
def test_a_permuted_copy_computes_the_same_and_is_recovered_by_weights(name: str) -> None:
    model, x = make(name).double(), example().double()
    spec = permutation_spec(model, x)
    hidden = spec.random(3)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))

    def outputs(net: nn.Module) -> Tensor:
        with torch.no_grad():
            answer = net(x)
        return torch.cat([part.flatten() for part in answer]) if isinstance(answer, tuple) else answer

    assert (outputs(other) - outputs(model)).norm() <= 1e-12 * outputs(model).norm()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    found = weight_matching(spec, model.state_dict(), other.state_dict())
    assert spec.moved(spec.compose(hidden, found)) <= 0.01


def test_the_axes_of_a_layer_are_every_gate_and_the_columns_that_read_the_state() -> None:
    spec = permutation_spec(make("lstm"), example())
    (group,) = [group for group in spec.groups if group.size == 8]
    places = {(axis.tensor, axis.dimension) for axis in group.axes}
    assert places == {
        ("core.weight_ih_l0", 0), ("core.weight_hh_l0", 0), ("core.weight_hh_l0", 1), ("core.bias_ih_l0", 0),
        ("core.bias_hh_l0", 0), ("head.weight", 1),
    }  # fmt: skip
    moved = spec.apply(
        {name: torch.arange(info.numel()).view(info.shape) for name, info in make("lstm").state_dict().items()},
        {group.name: torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])},
    )
    # Four gates of eight units: the first two of each have changed places.
    assert moved["core.bias_ih_l0"].view(4, 8)[:, :3].tolist() == [[1, 0, 2], [9, 8, 10], [17, 16, 18], [25, 24, 26]]


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm cells", "gru cells", "lstm, last state of both"])
def test_a_permuted_copy_is_recovered_by_activations_where_states_can_be_read(name: str) -> None:
    model = make(name)
    spec = permutation_spec(model, example())
    other = copy.deepcopy(model)
    hidden = spec.random(3)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    found = activation_matching(spec, model, other, example(32, seed=1).split(16))
    assert spec.moved(spec.compose(hidden, found)) == 0


def test_taps_at_a_module_are_read_without_being_counted_as_calls() -> None:
    """What enters a packed module is read in a hook, in sight of whoever counts."""
    model = make("gru, packed")
    spec = permutation_spec(model, example())
    assert {tap.operator for group in spec.groups for tap in group.taps} == {"GRU", "linear"}
    assert spec.moved(activation_matching(spec, model, copy.deepcopy(model), [example(5), example(4)])) == 0


def test_a_state_that_is_given_from_outside_keeps_its_order_and_only_it() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = nn.GRU(5, 8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor, first: Tensor) -> Tensor:
            start = torch.stack([first, torch.zeros_like(first)])
            return self.head(self.core(x, start)[0])

    torch.manual_seed(0)
    model, x, first = Given(), example(), torch.randn(3, 8)
    spec = permutation_spec(model, x, first)
    assert [group.name for group in spec.groups] == ["core.weight_ih_l1:0"]
    assert not spec.frozen
    assert spec.verify(model, x, first) <= 1e-5


@pytest.mark.parametrize("reader", ["mean", "flat", "sum of both"])
def test_states_of_several_layers_that_meet_are_tied_only_where_they_must(reader: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = nn.LSTM(5, 8, 2, batch_first=True), nn.Linear(16 if reader == "flat" else 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            _, (h, _) = self.core(x)
            if reader == "mean":
                return self.head(h.mean(0))
            return self.head(h.transpose(0, 1).flatten(1) if reader == "flat" else h[0] + h[1])

    torch.manual_seed(0)
    model, x = Both(), example()
    spec = permutation_spec(model, x)
    assert [group.size for group in spec.groups] == ([8, 8] if reader == "flat" else [8])
    assert spec.coverage() > 0.99
    assert spec.verify(model.double(), x.double(), tolerance=1e-12) <= 1e-12


def test_unbatched_sequences_and_learned_states_of_several_layers() -> None:
    torch.manual_seed(0)
    model, x = Tagger(nn.LSTM(6, 8, 2)), example(1)[0]
    model.forward = lambda x: model.head(model.core(torch.tanh(model.embed(x)))[0])
    spec = permutation_spec(model, x)
    assert [group.size for group in spec.groups] == [6, 8, 8]
    assert spec.verify(model, x) <= 1e-5
    learned = Reader(nn.GRU(5, 8, 2, batch_first=True), "learned")
    spec = permutation_spec(learned, example())
    assert [group.size for group in spec.groups] == [8]  # one parameter holds the start of both layers
    assert spec.verify(learned, example()) <= 1e-5


class Same(nn.GRU):
    """A class of its own that computes what its base does."""


class Doubled(nn.GRU):
    def forward(self, *args: Any) -> Any:
        out, state = super().forward(*args)
        return out.flip(-1), state


class Once(nn.GRUCell):
    """Its forward is the base's, whatever else it has."""

    def reset(self) -> None: ...


def test_a_subclass_has_the_rule_of_its_base_unless_it_computes_something_else() -> None:
    torch.manual_seed(0)
    same, other = (Tagger(kind(6, 8)) for kind in (Same, Doubled))
    assert [group.size for group in permutation_spec(same, example()).groups] == [6, 8]
    spec = permutation_spec(other, example())
    assert 8 not in [group.size for group in spec.groups]
    assert spec.frozen
    assert spec.verify(other, example()) <= 1e-5
    cell = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), Once(6, 8), nn.Linear(8, 3))
    spec = permutation_spec(cell, torch.randn(2, 5))
    assert [group.size for group in spec.groups] == [6, 8]
    assert spec.verify(cell, torch.randn(2, 5)) <= 1e-5


def test_a_parametrized_module_freezes_and_says_so() -> None:
    torch.manual_seed(0)
    model = Tagger(nn.GRU(6, 8))
    nn.utils.parametrizations.weight_norm(model.core, "weight_hh_l0")
    spec = permutation_spec(model, example())
    assert 8 not in [group.size for group in spec.groups]
    assert spec.frozen


def test_packed_sequences_of_a_bidirectional_net() -> None:
    torch.manual_seed(0)
    model = Packed(nn.LSTM(6, 8, bidirectional=True, batch_first=True), in_order=False)
    model.head = nn.Linear(16, 3)
    spec = permutation_spec(model, example())
    assert sorted(group.size for group in spec.groups) == [6, 8, 8]
    assert spec.verify(model.double(), example().double(), tolerance=1e-12) <= 1e-12
