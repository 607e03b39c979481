"""OPCM against the published algorithm in plain numpy, and the invariants that make it continual."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimat.errors import ConfigError, UsageError
from dimat.merge import fold, make_fold
from dimat.merge.absorb import absorb_tensor, arrive
from dimat.merge.source import InMemory
from dimat.merge.totals import Totals

SHAPES = {"tall": (12, 7), "wide": (7, 12), "square": (9, 9), "bias": (5,), "conv": (3, 4, 2), "scale": ()}
Model = dict[str, Tensor]


def make(num: int, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> tuple[Model, list[Model]]:
    rng = np.random.default_rng(seed)
    base = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    tasks = [{name: torch.tensor(0.1 * rng.normal(size=shape)) for name, shape in shapes.items()} for _ in range(num)]
    return base, [{name: base[name] + task[name] for name in shapes} for task in tasks]


def published(base: Model, models: Sequence[Model], alpha: float) -> dict[str, np.ndarray]:
    """Step by step with lambda, by full decompositions, rescaling the whole model each time."""
    start = {name: tensor.numpy() for name, tensor in base.items()}
    merged, lam, norms = {name: tensor.numpy() for name, tensor in models[0].items()}, 1.0, []
    for step, model in enumerate(models):
        tasks = {name: model[name].numpy() - start[name] for name in start}
        norms.append(np.sqrt(sum((task**2).sum() for task in tasks.values())))
        if step == 0:
            continue
        grown = {}
        for name, task in tasks.items():
            delta = merged[name] - start[name]
            if task.ndim == 2:
                u, sigma, vh = np.linalg.svd(delta, full_matrices=True)
                r = int((np.cumsum(sigma) / sigma.sum() > alpha).argmax())
                p = u.T @ task @ vh.T
                np.fill_diagonal(p, 0)
                p[:r, :r] = 0
                task = u @ p @ vh
            grown[name] = lam * delta + task
        lam = np.sqrt(sum((delta**2).sum() for delta in grown.values())) / np.mean(norms)
        merged = {name: start[name] + delta / lam for name, delta in grown.items()}
    return merged


def norm(model: Mapping[str, Tensor], base: Model) -> float:
    return float(sum(((model[name].double() - base[name].double()) ** 2).sum() for name in base)) ** 0.5


@pytest.mark.parametrize("num", [1, 2, 9])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_it_is_the_published_algorithm(num: int, alpha: float) -> None:
    base, models = make(num)
    merged = fold("opcm", models, base, alpha=alpha)
    for name, expected in published(base, models, alpha).items():
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=0, atol=1e-10)


def test_float32_models_come_out_the_same() -> None:
    base, models = make(9)
    base, *models = [{name: tensor.float() for name, tensor in model.items()} for model in [base, *models]]
    wide = [{name: tensor.double() for name, tensor in model.items()} for model in [base, *models]]
    merged = fold("opcm", models, base)
    for name, expected in published(wide[0], wide[1:], 0.5).items():
        assert merged[name].dtype == torch.float32
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=0, atol=1e-6)


def test_bfloat16_models_are_merged_in_float64_and_rounded_once() -> None:
    base, models = make(4)
    base, *models = [{name: tensor.bfloat16() for name, tensor in model.items()} for model in [base, *models]]
    wide = [{name: tensor.double() for name, tensor in model.items()} for model in [base, *models]]
    merged, expected = fold("opcm", models, base), fold("opcm", wide[1:], wide[0])
    assert all(torch.equal(merged[name], expected[name].bfloat16()) for name in base)


def test_alpha_one_is_as_in_the_published_code_like_zero() -> None:
    base, models = make(5)
    one, zero, half = (fold("opcm", models, base, alpha=alpha) for alpha in (1, 0, 0.5))
    assert all(torch.equal(one[name], zero[name]) for name in base)
    assert not torch.allclose(one["square"], half["square"], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 5),
    seed=st.integers(0, 1000),
    alpha=st.floats(0, 1),
    weights=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
)
def test_the_merged_update_is_as_long_as_the_mean_update(
    num: int, seed: int, alpha: float, weights: list[float]
) -> None:
    base, models = make(num, seed)
    merged = fold("opcm", models, base, weights[:num], alpha=alpha)
    mean = np.average([norm(model, base) for model in models], weights=weights[:num])
    assert norm(merged, base) == pytest.approx(mean, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(num=st.integers(2, 6), seed=st.integers(0, 1000), alpha=st.floats(0, 1), weight=st.floats(0.01, 100))
def test_what_a_model_adds_is_orthogonal_to_what_is_there(num: int, seed: int, alpha: float, weight: float) -> None:
    method = make_fold("opcm", {"alpha": alpha})
    base, models = make(num, seed)
    for name in ("tall", "wide", "square"):
        state = method.init(base[name])
        for model in models:
            grown = method.absorb(state, model[name], base[name], weight)
            if "sum" in state:
                added = grown["sum"] - state["sum"]
                assert abs(float((added * state["sum"]).sum())) < 1e-9 * weight**2
            state = grown


def test_equal_weights_cancel() -> None:
    base, models = make(4)
    merged, expected = fold("opcm", models, base, [7.0] * 4), fold("opcm", models, base)
    for name in base:
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-12)


def test_the_order_matters_and_joining_is_refused() -> None:
    base, models = make(3)
    one, other = fold("opcm", models, base), fold("opcm", models[::-1], base)
    assert not torch.allclose(one["square"], other["square"], atol=1e-3)
    method = make_fold("opcm")
    assert not method.commutative
    a, b = (method.absorb(method.init(None), model["wide"], base["wide"], 1.0) for model in models[:2])
    with pytest.raises(UsageError, match="order matters"):
        method.combine(a, b)
    assert torch.equal(method.combine(method.init(None), b)["sum"], b["sum"])


def test_a_low_rank_update_takes_nothing_arbitrary() -> None:
    rng = np.random.default_rng(0)
    base = {"w": torch.zeros(8, 10, dtype=torch.float64)}
    lora = torch.tensor(rng.normal(size=(8, 2)) @ rng.normal(size=(2, 10)))
    u, _, vh = torch.linalg.svd(lora)
    outside = u[:, 5:6] @ vh[7:8]  # neither rows nor columns of the first update reach it
    merged = fold("opcm", [{"w": lora}, {"w": outside}], base)["w"]
    whole = lora + outside
    expected = whole * (float(lora.norm()) + 1) / 2 / float(whole.norm())
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-10)


def test_a_layer_that_was_not_trained_takes_nothing_away() -> None:
    base, models = make(2)
    models[0]["square"] = base["square"].clone()
    merged = fold("opcm", models, base)
    update, task = merged["square"] - base["square"], models[1]["square"] - base["square"]
    cosine = float((update * task).sum() / (update.norm() * task.norm()))
    assert cosine == pytest.approx(1.0, abs=1e-12)


def test_models_equal_to_the_base_merge_to_it() -> None:
    base, _ = make(0)
    merged = fold("opcm", [base, base], base)
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_one_model_comes_back() -> None:
    base, (model,) = make(1)
    base, model = ({name: tensor.float() for name, tensor in one.items()} for one in (base, model))
    merged = fold("opcm", [model], base, [3.0])
    assert all(torch.equal(merged[name], model[name]) for name in base)


@pytest.mark.parametrize(
    ("options", "projected"),
    [
        ({}, {"tall", "wide", "square"}),
        ({"project": "*e"}, {"wide", "square"}),
        ({"plain": ["sq*", "tall"]}, {"wide"}),
        ({"project": ["wide", "tall"], "plain": "w*"}, {"tall"}),
        ({"convolutions": True}, {"tall", "wide", "square", "conv"}),
        ({"convolutions": True, "project": ["c*"]}, {"conv"}),
    ],
)
def test_patterns_choose_what_is_projected(options: dict[str, object], projected: set[str]) -> None:
    base, models = make(2)
    merged = fold("opcm", models, base, **options)
    first, second = ({name: model[name] - base[name] for name in base} for model in models)
    found = set()
    for name in base:
        if base[name].numel() > 1:
            update, plain = (merged[name] - base[name]).reshape(-1), (first[name] + second[name]).reshape(-1)
            if float((update @ plain) / (update.norm() * plain.norm())) < 1 - 1e-6:
                found.add(name)
    assert found == projected


def test_convolutions_are_matrices_of_their_outputs() -> None:
    base, models = make(3)
    flat = [{"conv": one["conv"].reshape(3, 8)} for one in [base, *models]]
    only = [{"conv": one["conv"]} for one in [base, *models]]
    merged = fold("opcm", only[1:], only[0], convolutions=True)["conv"]
    assert torch.equal(merged, fold("opcm", flat[1:], flat[0])["conv"].reshape(3, 4, 2))


def test_only_what_is_added_plainly_may_be_cut() -> None:
    method = make_fold("opcm", {"plain": ["embed*"]})
    assert not method.of("head", (3, 4)).elementwise
    assert method.of("embedding", (3, 4)).elementwise
    assert method.of("bias", (3,)).elementwise


def test_float64_states_do_not_drift_and_float32_ones_do() -> None:
    base, models = make(9, shapes={"square": (64, 64), "wide": (64, 200)})
    expected = published(base, models, 0.5)
    drift = {}
    for dtype in ("float64", "float32"):
        merged = fold("opcm", models, base, state_dtype=dtype)
        drift[dtype] = max(
            float(np.linalg.norm(merged[n].numpy() - expected[n]) / np.linalg.norm(expected[n] - base[n].numpy()))
            for n in base
        )
    assert drift["float64"] < 1e-9
    assert 1e-6 < drift["float32"] < 1e-2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_stream_ends_as_the_list_does_and_its_state_stays_small(dtype: str) -> None:
    base, models = make(20)
    method, anchor = make_fold("opcm", {"state_dtype": dtype}), InMemory("the base", base)
    states = {name: method.of(name, tuple(base[name].shape)).init(base[name]) for name in base}
    totals, sizes = Totals(), set()
    for model in models:
        arrival = arrive(method, InMemory("a model", model), anchor)
        states = {name: absorb_tensor(arrival, states[name], name, model[name], base[name], 0, {}) for name in base}
        totals = totals.with_model(1.0, norm(model, base))
        sizes.add(sum(tensor.nbytes for state in states.values() for tensor in state.values()))
    assert method.measure is not None
    scalars = totals.scalars({"squared_norm": sum(method.measure(s)["squared_norm"] for s in states.values())})
    streamed = {n: method.of(n, tuple(base[n].shape)).finish(states[n], base[n], scalars) for n in base}
    listed = fold("opcm", models, base, state_dtype=dtype)
    for name in base:
        torch.testing.assert_close(streamed[name], listed[name], rtol=0, atol=1e-12)
    assert sizes == {sum(tensor.numel() for tensor in base.values()) * (8 if dtype == "float64" else 4)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, "alpha is 1.5, expected a number at least 0 and at most 1"),
        ({"state_dtype": "float46"}, "Did you mean 'float64'"),
        ({"project": 3}, "project is 3, expected a pattern"),
        ({"convolutions": "yes"}, "expected true or false"),
        ({"alhpa": 0.5}, "Did you mean 'alpha'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_fold("opcm", options)


def test_the_base_is_needed() -> None:
    _, models = make(2)
    with pytest.raises(UsageError, match="common ancestor"):
        fold("opcm", models)
