"""The spec as a value: what it does to tensors, and the algebra of permutations."""

import json

import pytest
import torch
from alignment_zoo import MODELS, example, make
from hypothesis import given
from hypothesis import strategies as st

from dimat.align import Axis, Group, PermutationSpec, TensorInfo, permutation_spec
from dimat.errors import AlignmentError, SchemaError

SPEC = PermutationSpec(
    (
        Group("a:0", 3, (Axis("a", 0), Axis("b", 1, 2))),
        Group("b:0", 4, (Axis("b", 0),)),
    ),
    (TensorInfo("a", (3,)), TensorInfo("b", (4, 6)), TensorInfo("c", (5,)), TensorInfo("seen", (3,), trained=False)),
)


def state() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(3.0), "b": torch.arange(24.0).view(4, 6), "c": torch.arange(5.0), "seen": torch.ones(3)}


def test_apply_puts_old_unit_perm_i_at_position_i() -> None:
    perms = {"a:0": torch.tensor([2, 0, 1]), "b:0": torch.tensor([3, 1, 0, 2])}
    moved = SPEC.apply(state(), perms)
    assert moved["a"].tolist() == [2, 0, 1]
    columns = [4, 5, 0, 1, 2, 3]  # each unit of "a:0" owns two consecutive columns of b
    assert moved["b"].tolist() == [[6.0 * row + column for column in columns] for row in [3, 1, 0, 2]]
    assert moved["c"].tolist() == state()["c"].tolist()


def test_groups_that_are_not_named_stay() -> None:
    moved = SPEC.apply(state(), {"b:0": torch.tensor([1, 0, 2, 3])})
    assert moved["a"].tolist() == [0, 1, 2]
    assert moved["b"][:, 0].tolist() == [6, 0, 12, 18]
    assert all(torch.equal(moved[name], state()[name]) for name in state()) is False
    assert all(torch.equal(SPEC.apply(state(), {})[name], state()[name]) for name in state())


def test_apply_leaves_the_given_state_alone() -> None:
    given_state = state()
    SPEC.apply(given_state, SPEC.random(0))
    assert all(torch.equal(given_state[name], tensor) for name, tensor in state().items())


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_compose_and_invert_are_those_of_apply(one: int, two: int) -> None:
    first, then = SPEC.random(one), SPEC.random(two)
    both = SPEC.apply(SPEC.apply(state(), first), then)
    at_once = SPEC.apply(state(), SPEC.compose(first, then))
    back = SPEC.apply(both, SPEC.invert(SPEC.compose(first, then)))
    for name, tensor in state().items():
        assert torch.equal(both[name], at_once[name])
        assert torch.equal(back[name], tensor)


def test_random_is_seeded_and_moved_counts_units() -> None:
    assert all(torch.equal(SPEC.random(3)[name], SPEC.random(3)[name]) for name in SPEC.by_name)
    assert any(not torch.equal(SPEC.random(3)[name], SPEC.random(4)[name]) for name in SPEC.by_name)
    assert SPEC.moved(SPEC.identity()) == 0
    assert SPEC.moved({"a:0": torch.tensor([1, 0, 2])}) == pytest.approx(2 / 7)


def test_coverage_counts_trained_parameters_only() -> None:
    assert SPEC.coverage() == pytest.approx((3 + 24) / (3 + 24 + 5))


def test_named_tensors_may_be_a_part_and_step_counts_pass() -> None:
    perms = SPEC.random(1)
    moved = SPEC.apply_to_named({"b": state()["b"], "a": torch.tensor(7.0)}, perms)
    assert torch.equal(moved["b"], SPEC.apply(state(), perms)["b"])
    assert moved["a"].item() == 7
    with pytest.raises(SchemaError, match=r"'b' has shape \(6, 4\), the parameter has \(4, 6\)"):
        SPEC.apply_to_named({"b": state()["b"].T}, perms)


def test_a_state_of_another_architecture_is_refused_by_its_first_tensor() -> None:
    with pytest.raises(SchemaError, match=r"'b' has shape \(4, 7\).*\(4, 6\)"):
        SPEC.apply(state() | {"b": torch.zeros(4, 7)}, {})
    with pytest.raises(SchemaError, match="lacks tensor 'c'"):
        SPEC.apply({name: tensor for name, tensor in state().items() if name != "c"}, {})
    with pytest.raises(SchemaError, match=r"unknown tensor 'sean'\. Did you mean 'seen'"):
        SPEC.apply(state() | {"sean": torch.zeros(3)}, {})


def test_what_is_no_permutation_is_refused() -> None:
    with pytest.raises(AlignmentError, match=r"unknown group 'a:1'\. Did you mean 'a:0'"):
        SPEC.apply(state(), {"a:1": torch.arange(3)})
    for wrong in ([0, 1], [0, 0, 1], [1, 2, 3]):
        with pytest.raises(AlignmentError, match="'a:0' takes a permutation of 3 units"):
            SPEC.apply(state(), {"a:0": torch.tensor(wrong)})


@pytest.mark.parametrize("name", MODELS)
def test_json_round_trip(name: str) -> None:
    spec = permutation_spec(make(name), example(name))
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint == spec.fingerprint


def test_fingerprint_tells_groups_apart_and_not_weights() -> None:
    one, two = (permutation_spec(make("residual", seed), example("residual")) for seed in (0, 1))
    assert one.fingerprint == two.fingerprint
    prints = {permutation_spec(make(name), example(name)).fingerprint for name in ("mlp", "vgg", "residual", "series")}
    assert len(prints) == 4
    assert SPEC.fingerprint == PermutationSpec(SPEC.groups).fingerprint
    assert len(SPEC.fingerprint) == 32


def test_a_spec_written_by_hand_needs_groups_alone() -> None:
    axes = [["0.weight", 0], ["0.bias", 0], ["2.weight", 1]]
    spec = PermutationSpec.from_json(json.dumps({"groups": [{"name": "hidden", "size": 8, "axes": axes}]}))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    assert spec.verify(model, torch.randn(3, 4)) < 1e-5
    assert spec.apply(model.state_dict(), spec.random(0))["0.bias"].tolist() != model[0].bias.tolist()
    with pytest.raises(SchemaError, match=r"'2\.weight', which the state dict lacks"):
        spec.apply({"0.weight": torch.zeros(8, 4), "0.bias": torch.zeros(8)}, {})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"groups": [{"name": "a"}]}', '{"groups": [{"name":"a","size":2,"axes":[1]}]}']
)
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(AlignmentError, match="not a permutation spec"):
        PermutationSpec.from_json(text)
    with pytest.raises(AlignmentError, match="unknown structure 'hats'"):
        PermutationSpec.from_json('{"groups": [{"name": "a", "size": 2, "axes": [], "structure": "hats"}]}')


def test_print_states_groups_coverage_and_what_froze() -> None:
    class Turned(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flip(1)

    layers = torch.nn.Linear(4, 6), Turned(), torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2)
    text = str(permutation_spec(torch.nn.Sequential(*layers), torch.zeros(2, 4)))
    assert text.splitlines()[0] == "1 groups, 10 units, 73.8% of 122 parameters can move"
    assert "2.weight:0" in text
    assert "frozen by flip in 1: 90 parameters" in text
