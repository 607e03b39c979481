"""The loop of a merge: tensor by tensor, slice by slice, with what a method asks for before and after."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from dimat.errors import UsageError
from dimat.merge import Fold, State, Survey, builtin_methods, fold, fold_models, make_fold
from dimat.merge.absorb import arrive
from dimat.merge.engine import finish, folded, prepare, scalars_of
from dimat.merge.feed import SLICE_ENTRIES
from dimat.merge.source import InMemory
from dimat.merge.totals import Totals
from dimat.statedict import StateDict

MEAN = make_fold("mean")


def sources(*models: Mapping[str, torch.Tensor]) -> list[InMemory]:
    return [InMemory(f"model {i}", model) for i, model in enumerate(models)]


def spy(method: Fold, calls: list[dict[str, Any]], **changes: Any) -> Fold:
    """`method`, writing down what absorb is called with."""

    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        calls.append({"x": x, "base": base, "w": w, "stats": stats, "survey": survey})
        return method.absorb(state, x, base, w, stats, survey)

    return dataclasses.replace(method, absorb=absorb, **changes)


def test_a_tensor_larger_than_a_slice_is_merged_in_slices_and_put_together() -> None:
    num_entries = SLICE_ENTRIES + 5
    models = [{"small": torch.ones(2), "large": torch.arange(float(num_entries)).reshape(1, -1) * i} for i in (1, 3)]
    calls: list[dict[str, Any]] = []
    merged = fold_models(spy(MEAN, calls), models)
    assert [call["x"].numel() for call in calls] == [2, 2, SLICE_ENTRIES, SLICE_ENTRIES, 5, 5]
    assert torch.equal(merged["large"], models[0]["large"] * 2)
    assert merged["large"].shape == (1, num_entries)
    calls.clear()
    fold_models(spy(MEAN, calls, elementwise=False), models)
    assert [call["x"].numel() for call in calls] == [2, 2, num_entries, num_entries]


def test_the_order_of_absorption_is_the_order_of_the_list() -> None:
    calls: list[dict[str, Any]] = []
    fold_models(spy(MEAN, calls), [{"a": torch.tensor(float(i)), "b": torch.tensor(10.0 + i)} for i in (2, 0, 1)])
    assert [call["x"].item() for call in calls] == [2, 0, 1, 12, 10, 11]


def test_the_base_goes_to_those_who_ask_for_it() -> None:
    model, base = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    for asks, expected in ((False, False), (True, True)):
        calls: list[dict[str, Any]] = []
        fold_models(spy(MEAN, calls, needs_base=asks), [model], base=base)
        assert (calls[0]["base"] is not None) == expected


def test_digest_and_offset_come_with_every_slice() -> None:
    calls: list[dict[str, Any]] = []
    method = spy(MEAN, calls, digests=True)
    arrivals = prepare(method, sources({"w": torch.arange(5.0)}, {"w": torch.ones(5)}))
    list(folded(method, arrivals, None, slice_entries=2))
    assert [int(call["survey"]["offset"]) for call in calls] == [0, 0, 2, 2, 4, 4]
    names = [bytes(call["survey"]["digest"].tolist()).hex() for call in calls]
    assert names[:2] == [arrival.digest for arrival in arrivals]
    assert names[0] != names[1]


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_survey_sees_all_entries_before_the_first_is_absorbed(scope: Any) -> None:
    def turn(state: State) -> tuple[State, State | None]:
        return ({**state, "asked": torch.ones(())}, None) if "asked" not in state else (state, state)

    survey = Survey(
        scope,
        lambda: {"sum": torch.zeros((), dtype=torch.float64)},
        lambda state, x, base: {**state, "sum": state["sum"] + (x - base).sum(dtype=torch.float64)},
        turn,
    )
    calls: list[dict[str, Any]] = []
    method = spy(MEAN, calls, survey=survey, needs_base=True)
    models = sources({"a": torch.ones(3), "n": torch.tensor(7), "b": torch.full((2,), 4.0)})
    base = InMemory("the base", {"a": torch.zeros(3), "n": torch.tensor(0), "b": torch.ones(2)})
    list(folded(method, prepare(method, models, base=base), base, slice_entries=2))
    found = [float(call["survey"]["sum"]) for call in calls]
    # Two passes each; counters are left out.
    assert found == ([18.0] * 3 if scope == "model" else [6.0, 6.0, 12.0])


def test_scalars_are_sums_over_the_whole_model() -> None:
    seen: list[Mapping[str, float]] = []

    def read(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        seen.append(scalars)
        return MEAN.finish(state, base, scalars)

    method = dataclasses.replace(
        MEAN, measure=lambda state: {"total": float(state["sum"].sum())}, norms=True, needs_base=True, finish=read
    )
    models = [
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)},
        {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(0.0)},
    ]
    base = {"a": torch.zeros(2), "b": torch.tensor(0.0)}
    fold_models(method, models, weights=[1, 3], base=base)
    # Sums 3 + 3 * 1 + 4; norms 5 and 1 at weights 1 and 3.
    assert seen == [{"total": 10.0, "num_models": 2.0, "mean_norm": 2.0}] * 2
    anchor = InMemory("the base", base)
    arrivals = prepare(method, sources(*models), [1, 3], anchor)
    parts = list(folded(method, arrivals, anchor, slice_entries=1))
    assert scalars_of(method, arrivals, parts) == seen[0]


def test_totals_add_up_and_come_off_again() -> None:
    one, two = Totals().with_model(-2, 3), Totals().with_model(1, 6)
    both = one.combine(two)
    assert both == Totals(2, 3.0, 12.0)
    assert both.without_model(1, 6) == one
    assert both.scalars({"s": 1.0}) == {"s": 1.0, "num_models": 2.0, "mean_norm": 4.0}
    assert Totals().scalars({})["mean_norm"] == 0


def test_weights_may_differ_from_tensor_to_tensor() -> None:
    weigh = {"a": 3.0, "b": 0.0}
    first, second = sources({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    arrivals = [arrive(MEAN, first, None, weight_of=weigh.__getitem__), arrive(MEAN, second, None)]
    assert [float(finish(MEAN, part, {})) for part in folded(MEAN, arrivals, None)] == [0.25, 1.0]


def test_a_tensor_has_the_fold_that_is_tailored_for_it() -> None:
    twice = dataclasses.replace(MEAN, finish=lambda state, base, scalars: 2 * MEAN.finish(state, base, scalars))
    method = dataclasses.replace(MEAN, tailor=lambda name, shape: twice if shape == (2,) else MEAN)
    merged = fold_models(method, [{"a": torch.ones(2), "b": torch.ones(3)}])
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([2, 2], [1, 1, 1])


def test_wide_integers_are_compared_as_they_are() -> None:
    for dtype, low, high in ((torch.int64, 2**62, 2**62 + 1), (torch.uint8, 3, 250), (torch.bool, False, True)):
        models = [{"n": torch.tensor([low, high], dtype=dtype)}, {"n": torch.tensor([high, low], dtype=dtype)}]
        assert fold("mean", models)["n"].tolist() == [high, high]


@pytest.mark.parametrize("which", ["model", "base"])
def test_integers_of_other_dtypes_are_converted_where_they_fit(which: str) -> None:
    def merged(dtype: torch.dtype, other: torch.Tensor) -> torch.Tensor:
        model, second = {"n": torch.zeros(1, dtype=dtype)}, {"n": other}
        answer = fold("mean", [model, second]) if which == "model" else fold("magmax", [model], second)
        return answer["n"]

    wide = 2**63 + 5
    for dtype, other in (
        (torch.int32, torch.tensor([9])),
        (torch.uint64, torch.tensor([9])),
        (torch.int64, torch.tensor([9], dtype=torch.uint64)),
        (torch.bool, torch.tensor([1])),
    ):
        assert merged(dtype, other).dtype == dtype
        assert merged(dtype, other).tolist() == other.tolist()
    for dtype, lost in (
        (torch.uint8, torch.tensor([300])),
        (torch.uint64, torch.tensor([-1])),
        (torch.int64, torch.tensor([wide], dtype=torch.uint64)),
        (torch.bool, torch.tensor([2])),
    ):
        with pytest.raises(UsageError, match=rf"'n' of .*{which}.* holds {lost.item()}, which {dtype}.*does not"):
            merged(dtype, lost)


def test_large_integers_are_folded_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [{"n": torch.arange(SLICE_ENTRIES + 5).flip(0) * sign} for sign in (1, -1)]
    read: list[int] = []
    once = InMemory.read
    monkeypatch.setattr(InMemory, "read", lambda *words: (read.append(len(answer := once(*words))), answer)[1])
    assert torch.equal(fold("mean", models)["n"], models[0]["n"])
    assert max(read) == SLICE_ENTRIES
    assert torch.equal(fold("opcm", models, models[1])["n"], models[1]["n"])


@pytest.mark.parametrize("method", sorted(builtin_methods()))
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_eight_bits_are_merged_as_what_they_are_worth(method: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(6, 5, generator=generator), "v": torch.randn(7, generator=generator)} for _ in range(6)]
    small = [{name: tensor.to(dtype) for name, tensor in state.items()} for state in states]
    wide = [{name: tensor.float() for name, tensor in state.items()} for state in small]
    kinds = make_fold(method).stats

    def merged(models: list[StateDict]) -> dict[str, torch.Tensor]:
        stats = [{kind: {n: x.float().abs().to(x.dtype) for n, x in one.items()} for kind in kinds} for one in models]
        return fold_models(make_fold(method), models[:3], None, models[3], stats[:3])

    if make_fold(method).digests:  # those of the other dtype would draw other masks
        assert {x.dtype for x in merged(small).values()} == {dtype}
        return
    for name, tensor in merged(wide).items():
        assert torch.equal(merged(small)[name].float(), tensor.to(dtype).float())


def test_what_is_merged_is_no_memory_of_the_base() -> None:
    base = {"w": torch.ones(2, 2, dtype=torch.float64)}
    for method in ("opcm", "ties", "magmax", "model_stock"):
        assert fold(method, [dict(base)], base)["w"].data_ptr() != base["w"].data_ptr()


def test_weights_that_cancel_but_for_rounding_are_named() -> None:
    models = [{"w": torch.ones(1)}, {"w": torch.ones(1) * 2}, {"w": torch.ones(1) * 5}]
    for method, options in (("mean", {}), ("task_arithmetic", {"normalize": True})):
        with pytest.raises(UsageError, match="'w' gave NaN or Inf"):
            fold(method, models, {"w": torch.zeros(1)}, weights=[0.1, 0.2, -0.3], **options)


def test_answers_that_are_no_numbers_are_errors() -> None:
    huge = {"w": torch.tensor([6e4], dtype=torch.float16)}
    with pytest.raises(UsageError, match=r"'w' reaches 1\.2e\+05, more than torch\.float16 holds") as error:
        fold("mean", [huge, huge], normalize=False)
    assert "--dtype float32" in str(error.value.hint)
    with pytest.raises(UsageError, match="'w' gave NaN or Inf") as error:
        fold("mean", [huge, huge], weights=[1, -1])
    assert "sum to zero" in str(error.value.hint)


def test_what_cannot_be_merged_is_said_before_a_weight_is_read() -> None:
    with pytest.raises(UsageError, match="complex64, expected real numbers"):
        fold("mean", [{"w": torch.ones(1, dtype=torch.complex64)}])
    with pytest.raises(UsageError, match="statistics for 1 of 2 models"):
        fold("mean", [{"w": torch.ones(1)}] * 2, stats=[{}])
    with pytest.raises(UsageError, match="2 weights for 1 models, expected one each"):
        fold("mean", [{"w": torch.ones(1)}], weights=[1, 2])
    with pytest.raises(UsageError, match="weight of model 1 is inf"):
        fold("mean", [{"w": torch.ones(1)}] * 2, weights=[1, float("inf")])


def test_gradients_are_not_followed() -> None:
    model = {"w": torch.ones(2, requires_grad=True)}
    assert not fold("mean", [model, model])["w"].requires_grad


def test_what_one_model_alone_has_tied_is_merged_apart() -> None:
    tied = torch.ones(2)
    a = {"emb": tied, "head": tied}
    b = {"emb": torch.full((2,), 3.0), "head": torch.full((2,), 100.0)}
    for models in ([a, b], [b, a]):
        merged = fold("mean", models)
        assert (merged["emb"].tolist(), merged["head"].tolist()) == ([2.0, 2.0], [50.5, 50.5])


def test_a_row_of_a_matrix_serves_as_weights() -> None:
    models = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
    assert fold("mean", models, weights=np.array([0.25, 0.75]))["w"].tolist() == [2.5]  # type: ignore[arg-type]


def test_float64_reaches_beyond_float32() -> None:
    assert fold("mean", [{"w": torch.tensor([1e39], dtype=torch.float64)}])["w"].tolist() == [1e39]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_norms_are_taken_of_floats_of_8_bits_too(dtype: torch.dtype) -> None:
    base, model = ({"w": torch.tensor([[1.0, 2.0], [x, 1.0]]).to(dtype)} for x in (1.0, 4.0))
    assert fold("opcm", [model], base)["w"].float().tolist() == model["w"].float().tolist()


def test_a_wrapped_step_is_taken_and_not_what_belongs_to_the_one_inside() -> None:
    """functools.wraps takes over attributes, and a fold with another `absorb` has no other step for its own states."""
    mean = make_fold("mean")

    @functools.wraps(mean.absorb)
    def clamped(state: Any, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return mean.absorb(state, x.clamp(-1, 1), *rest, **named)

    models = [{"w": torch.full((3,), 9.0)}] * 3
    assert fold_models(dataclasses.replace(mean, absorb=clamped), models)["w"].tolist() == [1, 1, 1]


def test_an_empty_state_may_share_memory_with_the_base() -> None:
    mean = make_fold("mean")
    from_base = dataclasses.replace(
        mean, init=lambda base: {"weight": torch.ones((), dtype=torch.float64), "sum": base}, needs_base=True
    )
    base = {"w": torch.ones(3)}
    merged = fold_models(from_base, [{"w": torch.full((3,), 4.0)}] * 2, base=base)
    assert merged["w"].tolist() == [3, 3, 3] and base["w"].tolist() == [1, 1, 1]
