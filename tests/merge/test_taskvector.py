"""What every task-vector method owes to its users: no order, no slices, no side effects; models can leave again."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import ConfigError
from dimat.merge import fold, make_fold
from dimat.merge.absorb import absorb_tensor, remove_tensor, survey_tensor
from dimat.merge.api import Fold, State
from dimat.merge.engine import finish, folded, prepare, scalars_of
from dimat.merge.source import InMemory

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("task_arithmetic", {"scale": 0.3}),
    ("task_arithmetic", {"normalize": True}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.4, "trim": "tensor", "combine": "sum"}),
    ("ties", {"density": 1}),
    ("dare", {"density": 0.6}),
    ("dare", {"density": 0.37, "signs": "ties", "seed": 4}),
    ("dare", {"rescale": "l1"}),
    ("dare", {"rescale": "none", "normalize": True}),
    ("breadcrumbs", {"density": 0.4, "gamma": 0.1}),
    ("breadcrumbs", {"density": 0.4, "gamma": 0.1, "trim": "tensor", "signs": "ties", "normalize": True}),
    ("magmax", {}),
]
EACH = pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: str(value))
Models = list[dict[str, torch.Tensor]]
SHAPES = {"weight": (5, 8), "bias": (9,), "scalar": (), "empty": (0, 3)}


def some_models(seed: int, num: int, dtype: torch.dtype = torch.float32) -> tuple[Models, dict[str, torch.Tensor]]:
    """Models and their base; half of them on a grid, where magnitudes are equal and sums vanish."""
    rng = np.random.default_rng(seed)

    def model(spread: float) -> dict[str, torch.Tensor]:
        drawn = {name: rng.normal(size=shape) * spread for name, shape in SHAPES.items()}
        return {name: torch.tensor(x.round() if seed % 2 else x).to(dtype) for name, x in drawn.items()}

    return [model(2) for _ in range(num)], model(1)


def in_slices(method: Fold, models: Models, base: dict[str, torch.Tensor], weights: Sequence[float]) -> Models:
    """The merge, seven entries at a time, each slice flat."""
    anchor = InMemory("base", base)
    arrivals = prepare(method, [InMemory(str(i), model) for i, model in enumerate(models)], weights, anchor)
    parts = list(folded(method, arrivals, anchor, slice_entries=7))
    scalars = scalars_of(method, arrivals, parts)
    merged: dict[str, list[torch.Tensor]] = {}
    for part in parts:
        merged.setdefault(part.name, []).append(finish(method, part, scalars).reshape(-1))
    return [{name: torch.cat(pieces).reshape(SHAPES[name]) for name, pieces in merged.items()}]


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in SHAPES:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)


@EACH
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 200), data=st.data())
def test_neither_order_nor_slices_matter(method: str, options: dict[str, Any], seed: int, data: st.DataObject) -> None:
    models, base = some_models(seed, 4)
    weights = [1.0, 0.5, 2.0, 0.25]  # sums of these are exact
    whole = fold(method, models, base=base, weights=weights, **options)
    order = data.draw(st.permutations(range(4)))
    models, weights = [models[i] for i in order], [weights[i] for i in order]
    assert_close(fold(method, models, base=base, weights=weights, **options), whole)
    assert_close(in_slices(make_fold(method, options), models, base, weights)[0], whole)


def steps(
    method: Fold, models: Models, base: dict[str, torch.Tensor], weights: Sequence[float]
) -> tuple[Callable[[State, int], State], Callable[[State, int], State]]:
    """Absorb and remove model i, of the tensor `weight`."""
    anchor = InMemory("base", base)
    arrivals = prepare(method, [InMemory(str(i), model) for i, model in enumerate(models)], weights, anchor)

    def absorb(state: State, i: int) -> State:
        x = models[i]["weight"]
        found = survey_tensor(arrivals[i], anchor, "weight", x)
        return absorb_tensor(arrivals[i], state, "weight", x, base["weight"], 0, found)

    def remove(state: State, i: int) -> State:
        x = models[i]["weight"]
        found = survey_tensor(arrivals[i], anchor, "weight", x)
        return remove_tensor(arrivals[i], state, "weight", x, base["weight"], found)

    return absorb, remove


def read(method: Fold, state: State, base: dict[str, torch.Tensor]) -> torch.Tensor:
    scalars = method.measure(state) if method.measure else {}
    return method.of("weight", SHAPES["weight"]).finish(state, base["weight"], scalars)


@EACH
def test_absorbing_changes_neither_state_nor_model(method: str, options: dict[str, Any]) -> None:
    models, base = some_models(2, 3)
    made = make_fold(method, options)
    absorb, _ = steps(made, models, base, [1.0, 1.0, -1.0])
    copies = [{name: x.clone() for name, x in model.items()} for model in (*models, base)]
    state = made.init(base["weight"])
    for i in range(3):
        before = {key: value.clone() for key, value in state.items()}
        after = absorb(state, i)
        assert all(torch.equal(state[key], before[key]) for key in before)
        state = after
    held = {key: value.clone() for key, value in state.items()}
    read(made, state, base)
    made.combine(state, state)
    assert all(torch.equal(state[key], held[key]) for key in held)
    for model, copy in zip((*models, base), copies, strict=True):
        assert all(torch.equal(model[name], copy[name]) for name in model)


@EACH
@pytest.mark.parametrize("seed", [0, 1])
def test_states_join_in_any_bracketing(method: str, options: dict[str, Any], seed: int) -> None:
    models, base = some_models(seed, 4)
    made = make_fold(method, options)
    absorb, _ = steps(made, models, base, [1.0, 0.5, 2.0, 0.25])
    empty = made.init(base["weight"])
    line = absorb(absorb(absorb(absorb(empty, 0), 1), 2), 3)
    tree = made.combine(
        made.combine(absorb(empty, 3), absorb(absorb(empty, 1), 0)), made.combine(empty, absorb(empty, 2))
    )
    torch.testing.assert_close(read(made, tree, base), read(made, line, base), rtol=1e-6, atol=1e-6)


@EACH
@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_can_be_taken_out_again(method: str, options: dict[str, Any], seed: int) -> None:
    models, base = some_models(seed, 3)
    made = make_fold(method, options)
    if method == "magmax":
        assert made.remove is None  # the runner-up is not kept
        return
    absorb, remove = steps(made, models, base, [0.3, 0.7, -0.1])
    without = absorb(absorb(made.init(base["weight"]), 0), 2)
    again = remove(absorb(absorb(absorb(made.init(base["weight"]), 0), 1), 2), 1)
    assert not torch.allclose(read(made, absorb(without, 1), base), read(made, without, base), atol=1e-3)
    for key, value in without.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=1e-6)
    if seed == 0:  # on the grid a sum may be zero before, and rounding's after: another side is elected
        torch.testing.assert_close(read(made, again, base), read(made, without, base), rtol=1e-5, atol=1e-5)


@EACH
def test_without_change_the_base_comes_back(method: str, options: dict[str, Any]) -> None:
    _, base = some_models(4, 0)
    merged = fold(method, [base, {name: x.clone() for name, x in base.items()}], base=base, **options)
    assert all(torch.equal(merged[name], base[name]) for name in base)
    made = make_fold(method, options)
    assert torch.equal(read(made, made.init(base["weight"]), base), base["weight"])


@EACH
def test_bfloat16_is_merged_in_float32_and_float64_in_itself(method: str, options: dict[str, Any]) -> None:
    halves, base = some_models(6, 3, torch.bfloat16)
    if method == "dare":
        options = {**options, "density": 1}  # masks follow the digest, and that the dtype
    merged = fold(method, halves, base=base, **options)
    single = fold(
        method,
        [{n: x.float() for n, x in m.items()} for m in halves],
        {n: x.float() for n, x in base.items()},
        **options,
    )
    double = fold(
        method,
        [{n: x.double() for n, x in m.items()} for m in halves],
        {n: x.double() for n, x in base.items()},
        **options,
    )
    for name in base:
        assert merged[name].dtype == torch.bfloat16
        assert torch.equal(merged[name], single[name].to(torch.bfloat16))
        assert double[name].dtype == torch.float64
        torch.testing.assert_close(single[name].double(), double[name], rtol=1e-5, atol=1e-6)


@EACH
def test_float64_keeps_its_digits(method: str, options: dict[str, Any]) -> None:
    if method in ("ties", "breadcrumbs"):
        options = {**options, "density": 1}
    base = {"w": torch.full((4,), 1.0, dtype=torch.float64)}
    model = {"w": base["w"] + 2.0**-40}
    merged = fold(method, [model], base=base, **options)["w"] - base["w"]
    assert bool(((merged == 0) | (merged.abs() > 2.0**-43)).all())
    assert merged.abs().max() <= 2.0**-38
    assert method == "dare" or bool((merged > 0).all())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("task_arithmetic", {"scale": "big"}, "scale is 'big', expected a number"),
        ("task_arithmetic", {"normalize": 1}, "normalize is 1, expected true or false"),
        ("ties", {"density": 0}, "density is 0, expected a number above 0 and at most 1"),
        ("ties", {"trim": "globl"}, "Did you mean 'global'. Allowed: global, tensor"),
        ("ties", {"combine": "max"}, "Allowed: mean, sum"),
        ("dare", {"density": 1.5}, "density is 1.5, expected a number above 0 and at most 1"),
        ("dare", {"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ("dare", {"signs": "tie"}, "Allowed: none, ties"),
        ("dare", {"rescale": "l2"}, "Allowed: expected, l1, none"),
        ("breadcrumbs", {"gamma": -0.1}, r"gamma is -0.1, expected a number at least 0 and at most 1"),
        ("breadcrumbs", {"trim": "rows"}, "Did you mean 'row'. Allowed: row, tensor"),
        ("magmax", {"scale": float("nan")}, "scale is nan, expected a number"),
    ],
)
def test_a_wrong_option_names_what_is_allowed(method: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_fold(method, options)
