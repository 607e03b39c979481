"""Every merge method keeps the contract of a fold; a new one is a row in `merge_cases`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from merge_cases import (
    CASES,
    COMMUTATIVE,
    ELEMENTWISE,
    REMOVABLE,
    SEQUENTIAL,
    Case,
    arguments,
    digests,
    models_for,
    trial_of,
)

from dimat.errors import SchemaError, UsageError
from dimat.merge import absorb, fold
from dimat.merge.check import check_merge
from dimat.merge.digest import slices_of
from dimat.merge.engine import folded
from dimat.merge.registry import builtin_methods
from dimat.merge.trial import Held, Models, Trial, try_out
from dimat.modelfile import open_model
from dimat.modelfile.append import AppendedFile

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_commutative = pytest.mark.parametrize("case", COMMUTATIVE, ids=str)
every_sequential = pytest.mark.parametrize("case", SEQUENTIAL, ids=str)
every_removable = pytest.mark.parametrize("case", REMOVABLE, ids=str)
every_elementwise = pytest.mark.parametrize("case", ELEMENTWISE, ids=str)

Tensors = Mapping[str, torch.Tensor]


def merged(case: Case, given: Models) -> dict[str, torch.Tensor]:
    return fold(case.method, given.models, **arguments(case, given))


def assert_close(got: Tensors, expected: Tensors, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


def flat(held: Held) -> dict[str, torch.Tensor]:
    return {f"{key}:{name}": value for name, state in held.states.items() for key, value in state.items()}


def copied(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_every_method_is_in_the_table() -> None:
    assert sorted({case.method for case in CASES}) == sorted(builtin_methods())


@every_case
def test_the_checker_finds_nothing(case: Case) -> None:
    assert check_merge(case.method, case.options) == []


# Streamed = batch


@every_case
@pytest.mark.parametrize("entries", [1, 3, 7, 1000])
def test_slices_give_what_the_list_gives(case: Case, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = merged(case, models_for(case))
    monkeypatch.setattr(absorb, "slices_of", partial(slices_of, slice_entries=entries))  # surveys look in slices too
    assert_close(trial_of(case).sliced(entries), expected, case.tolerance)


@every_elementwise
def test_slices_are_taken(case: Case) -> None:
    trial = trial_of(case)
    parts = [part for part in folded(case.fold, trial.arrivals, trial.base, slice_entries=7) if part.name == "wide"]
    assert [(part.start, part.stop) for part in parts] == [(0, 7), (7, 14), (14, 21)]


@every_case
def test_model_by_model_gives_what_the_list_gives(case: Case) -> None:
    trial = trial_of(case)
    assert_close(trial.finish(trial.absorbed()), merged(case, models_for(case)), case.tolerance)


@every_case
def test_the_state_does_not_grow(case: Case) -> None:
    """Or by each model alike, where the method says so."""
    trial = trial_of(case, 8)
    sizes = [sum(value.nbytes for value in flat(trial.absorbed(range(num))).values()) for num in (2, 4, 8)]
    if case.fold.memory == "linear":
        assert [size // sizes[0] for size in sizes] == [1, 2, 4] and not any(size % sizes[0] for size in sizes)
    else:
        assert len(set(sizes)) == 1


@every_case
def test_a_state_written_and_read_in_the_middle_changes_no_bit(case: Case, tmp_path: Path) -> None:
    trial = trial_of(case)
    half = trial.absorbed([0, 1])
    with AppendedFile(tmp_path / "half.safetensors", 8192) as file:
        for name, value in flat(half).items():
            file.append(name, value)
        file.close({})
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in half.states}
    for name, value in open_model(tmp_path / "half.safetensors").read_all().items():
        key, _, tensor = name.partition(":")
        states[tensor][key] = value
    resumed = trial.absorb(trial.absorb(replace(half, states=states), 2), 3)
    assert_same(flat(resumed), flat(trial.absorbed()))
    assert_same(trial.finish(resumed), trial.finish(trial.absorbed()))


@every_case
def test_the_same_models_give_the_same_bytes(case: Case) -> None:
    given = models_for(case)
    assert_same(merged(case, given), merged(case, given))


# Order and bracketing


@cache
def of_five(case: Case) -> tuple[Trial, dict[str, torch.Tensor]]:
    """A trial of five models, and what their list gives; neither is changed by its use."""
    return trial_of(case, 5), merged(case, models_for(case, 5))


@cache
def leaves(case: Case) -> tuple[Held, ...]:
    trial, _ = of_five(case)
    return tuple(trial.absorbed([i]) for i in range(5))


@every_commutative
@settings(max_examples=12, deadline=None)
@examples(data=st.data())
def test_any_order_and_any_bracketing(case: Case, data: st.DataObject) -> None:
    trial, expected = of_five(case)
    order = data.draw(st.permutations(range(5)))
    assert_close(trial.finish(trial.absorbed(order)), expected, case.tolerance)
    parts = [leaves(case)[i] for i in order]
    parts.insert(data.draw(st.integers(0, 5)), trial.nothing())
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [trial.join(parts[i], parts[i + 1])]
    assert_close(trial.finish(parts[0]), expected, case.tolerance)


@every_sequential
def test_order_matters_where_a_method_says_so(case: Case) -> None:
    trial = trial_of(case, 3)
    one, other = trial.finish(trial.absorbed()), trial.finish(trial.absorbed([2, 1, 0]))
    assert max(float((one[name] - other[name]).abs().max()) for name in ("matrix", "wide")) > 1e-2
    with pytest.raises(UsageError, match="order"):
        trial.join(trial.absorbed([0]), trial.absorbed([1]))


@every_removable
def test_remove_takes_a_model_out_again(case: Case) -> None:
    trial = trial_of(case)
    undone = trial.remove(trial.remove(trial.absorbed(), 2), 0)
    kept = trial.absorbed([1, 3])
    # Counters stay at their largest: who brought it is not kept.
    expected = {**trial.finish(kept), **trial.absorbed().integers}
    assert_close(trial.finish(undone), expected, 10 * case.tolerance)
    assert undone.totals.num_models == 2


# Dtypes


def in_dtype(given: Models, *dtypes: torch.dtype) -> Models:
    """The same numbers; the i-th model in the i-th dtype, the base in the last."""

    def cast(state: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}

    models = tuple(cast(model, dtypes[i % len(dtypes)]) for i, model in enumerate(given.models))
    stats = tuple({kind: cast(state, dtypes[-1]) for kind, state in kinds.items()} for kinds in given.stats)
    return replace(given, base=cast(given.base, dtypes[-1]), models=models, stats=stats)


@cache
def exact(case: Case) -> dict[str, torch.Tensor]:
    """What four bfloat16 models give when they are float64; read only."""
    given = models_for(case, 4, torch.bfloat16)
    return try_out(case.fold, in_dtype(given, torch.float64), digests(4)).whole()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_result_has_the_dtype_of_the_first_model(case: Case, dtype: torch.dtype) -> None:
    given = models_for(case, 4, torch.bfloat16)  # numbers that every dtype but float16 has; float16 to 1e-3
    result = merged(case, in_dtype(given, dtype, torch.float32))
    assert {result[name].dtype for name in result if given.base[name].is_floating_point()} == {dtype}
    same = try_out(case.fold, in_dtype(given, dtype, torch.float32), digests(4)).whole()
    eps = max(2 * torch.finfo(dtype).eps, case.tolerance)
    assert_close({n: x.double() for n, x in same.items()}, {n: x.double() for n, x in exact(case).items()}, eps)


def assert_within_half_a_step(got: Tensors, exact: Tensors) -> None:
    """Rounded once to bfloat16 (8 bits), and not at every model."""
    for name, tensor in got.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), exact[name].double(), rtol=2**-8, atol=2**-12)


@every_case
def test_bfloat16_models_are_added_up_in_float32_at_least(case: Case) -> None:
    given = models_for(case, 60, torch.bfloat16)
    got = try_out(case.fold, given, digests(60)).whole()
    exact = try_out(case.fold, in_dtype(given, torch.float64), digests(60)).whole()
    assert_within_half_a_step(got, exact)


def test_adding_up_in_bfloat16_would_be_seen() -> None:
    given = models_for(Case("mean"), 60, torch.bfloat16)
    exact = try_out(Case("mean").fold, in_dtype(given, torch.float64), digests(60)).whole()
    running = torch.zeros((), dtype=torch.bfloat16)
    for model, weight in zip(given.models, given.weights, strict=True):
        running = running + model["wide"] * weight
    with pytest.raises(AssertionError):
        assert_within_half_a_step({"wide": running / sum(given.weights)}, exact)


# Models that are odd


@every_case
def test_models_that_did_not_move_give_their_base(case: Case) -> None:
    given = models_for(case)
    result = merged(case, replace(given, models=(given.base,) * 4))
    assert all(torch.isfinite(tensor).all() for tensor in result.values() if tensor.is_floating_point())
    if case.keeps_equal:
        assert_close(result, given.base, 1e-6)


@every_case
def test_one_model(case: Case) -> None:
    given = models_for(case, 1)
    result = merged(case, given)
    assert {name: x.shape for name, x in result.items()} == {name: x.shape for name, x in given.base.items()}
    if case.keeps_one:
        integers = given.base if case.fold.needs_base else given.models[0]
        expected = {n: x if x.is_floating_point() else integers[n] for n, x in given.models[0].items()}
        assert_close(result, expected, 1e-6)


@every_case
def test_integers_and_masks_are_the_bases_or_the_largest(case: Case) -> None:
    given = models_for(case)
    result = merged(case, given)
    for name in ("counter", "mask"):
        expected = torch.stack([model[name] for model in given.models]).amax(0)
        assert torch.equal(result[name], given.base[name] if case.fold.needs_base else expected)
        assert not torch.equal(given.base[name], expected)  # else nothing would be shown
    with_base = fold(case.method, given.models, **{**arguments(case, given), "base": given.base})
    assert torch.equal(with_base["counter"], given.base["counter"])


@every_case
def test_tied_tensors_stay_tied(case: Case) -> None:
    given = models_for(case)

    def tied(state: Tensors) -> dict[str, torch.Tensor]:
        return {"head": state["matrix"], **state, "tail": state["matrix"]}

    stats = tuple({kind: tied(state) for kind, state in kinds.items()} for kinds in given.stats)
    models = tuple(map(tied, given.models))
    result = merged(case, replace(given, base=tied(given.base), models=models, stats=stats))
    assert result["head"].data_ptr() == result["matrix"].data_ptr() == result["tail"].data_ptr()
    assert result["vector"].data_ptr() != result["matrix"].data_ptr()
    assert list(result) == ["head", *given.base, "tail"]


@every_case
def test_tensors_that_are_not_contiguous(case: Case) -> None:
    given = models_for(case)

    def strided(state: Tensors) -> dict[str, torch.Tensor]:
        turned = {n: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim > 1 else x for n, x in state.items()}
        spread = torch.stack([state["vector"]] * 2, dim=1)
        return {**turned, "vector": spread[:, 0]}

    stats = tuple({kind: strided(state) for kind, state in kinds.items()} for kinds in given.stats)
    other = replace(given, base=strided(given.base), models=tuple(map(strided, given.models)), stats=stats)
    assert not other.models[0]["matrix"].is_contiguous()
    assert not other.models[0]["vector"].is_contiguous()
    assert_close(merged(case, other), merged(case, given), case.tolerance)
    assert_close(try_out(case.fold, other).sliced(3), merged(case, given), case.tolerance)


@every_case
def test_nothing_that_is_given_is_changed(case: Case) -> None:
    given = models_for(case)
    inputs = {f"{i}/{name}": x for i, model in enumerate((given.base, *given.models)) for name, x in model.items()}
    for i, kinds in enumerate(given.stats):
        inputs |= {f"{i}/{kind}/{name}": x for kind, state in kinds.items() for name, x in state.items()}
    trial = trial_of(case)
    a, b = trial.absorbed([0, 1]), trial.absorbed([2])
    given_before, a_before, b_before = copied(inputs), copied(flat(a)), copied(flat(b))
    merged(case, given)
    trial.absorb(a, 3)
    trial.finish(a)
    if case.fold.commutative:
        trial.join(a, b)
    if case.fold.remove is not None:
        trial.remove(a, 1)
    assert_same(inputs, given_before)
    assert_same(flat(a), a_before)
    assert_same(flat(b), b_before)


# Models that do not fit


def refused(case: Case, given: Models, name: str, tensor: torch.Tensor | None, place: int = 2) -> str:
    """The message for models of which one has another tensor, or lacks it."""
    broken: dict[str, Any] = {**given.models[place], name: tensor}
    models = list(given.models)
    models[place] = {key: value for key, value in broken.items() if value is not None}
    with pytest.raises(UsageError) as error:
        merged(case, replace(given, models=tuple(models)))
    if tensor is None or tensor.shape != given.base[name].shape:
        assert isinstance(error.value, SchemaError)
    return str(error.value)


@every_case
def test_tensors_that_differ_are_named_with_both_models(case: Case) -> None:
    given = models_for(case)
    for message in (refused(case, given, "kernel", None), refused(case, given, "kernel", torch.ones(2, 3))):
        assert "'kernel'" in message
        assert "[2, 3, 2, 2]" in message
        assert "model 0" in message
        assert "model 2" in message
    assert "[2, 3] in model 2" in refused(case, given, "kernel", torch.ones(2, 3))
    assert "torch.int64" in refused(case, given, "vector", torch.arange(5))


@every_case
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")])
def test_numbers_that_are_not_finite_are_refused(case: Case, value: float, word: str) -> None:
    given = models_for(case)
    bad = given.models[1]["wide"].clone()
    bad[2, 3] = value
    assert f"'wide' of model 1 holds {word}" in refused(case, given, "wide", bad, place=1)
    for kind in case.fold.stats:
        stats = list(given.stats)
        stats[3] = {kind: {**stats[3][kind], "wide": bad}}
        with pytest.raises(UsageError, match=f"'wide' of {kind} of model 3 holds {word}"):
            merged(case, replace(given, stats=tuple(stats)))
    if case.fold.needs_base:
        with pytest.raises(UsageError, match=f"'wide' of the base holds {word}"):
            merged(case, replace(given, base={**given.base, "wide": bad}))


@every_case
def test_what_a_method_needs_is_asked_for(case: Case) -> None:
    given = models_for(case)
    complete = arguments(case, given)
    if case.fold.needs_base:
        with pytest.raises(UsageError, match="ancestor"):
            fold(case.method, given.models, **{**complete, "base": None})
    for kind in case.fold.stats:
        with pytest.raises(UsageError, match=f"without {kind} statistics"):
            fold(case.method, given.models, **{**complete, "stats": None})
    with pytest.raises(UsageError, match="weight of model 1 is nan"):
        fold(case.method, given.models, **{**complete, "weights": [1.0, float("nan"), 1.0, 1.0]})
