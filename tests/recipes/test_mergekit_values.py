"""mergekit's recipes give mergekit's values: its semantics once more in a few plain lines, tensor by tensor.

The lines follow mergekit 0.1.5, with which each of these recipes was compared when they were written.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from llama_folders import NUM_LAYERS, folder, load, three
from torch import Tensor

from dimat.merge.digest import digest_of
from dimat.merge.randomness import keep_mask
from dimat.merge.source import InMemory
from dimat.merge.stream import merge_files
from dimat.recipes import read_recipe
from dimat.recipes.mapped import plan_mergekit
from dimat.recipes.mergekit import MergekitRecipe

Array = npt.NDArray[np.float64]
Models = dict[str, dict[str, Tensor]]
Of = Callable[[str, float], float]
"""(tensor name, depth) -> the value of a parameter."""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.chdir(tmp_path)
    return three(tmp_path)


def merged(text: str) -> dict[str, Tensor]:
    Path("recipe.yaml").write_text(text)
    recipe = read_recipe(Path("recipe.yaml"))
    assert isinstance(recipe, MergekitRecipe)
    plan = plan_mergekit(recipe)
    merge_files(
        plan.fold, plan.models, Path("out"), base=plan.base, folds=plan.folds, weight_of=plan.weight_of,
        dtype=plan.dtype, like=plan.like, overwrite=True,
    )  # fmt: skip
    return load("out")


def depth_of(name: str) -> float:
    parts = name.split(".")
    return int(parts[2]) / (NUM_LAYERS - 1) if parts[1] == "layers" else 0.0


def check(found: Mapping[str, Tensor], models: Models, expected: Callable[[str, dict[str, Array]], Array]) -> None:
    """Every tensor is what `expected` makes of (its name, the same tensor of every model)."""
    assert found.keys() == models["base"].keys()
    for name, tensor in found.items():
        arrays = {model: content[name].double().numpy() for model, content in models.items()}
        np.testing.assert_allclose(tensor.double().numpy(), expected(name, arrays), rtol=1e-5, atol=1e-5, err_msg=name)


# ---- the plain methods


def linear(name: str, m: dict[str, Array], weights: Mapping[str, float], normalize: bool = True) -> Array:
    total = sum(weights.values()) if normalize else 1
    return np.asarray(sum(w * m[model] for model, w in weights.items()) / total)


def slerp(v: Array, x: Array, t: float) -> Array:
    cosine = float((v * x).sum() / np.linalg.norm(v) / np.linalg.norm(x))
    if abs(cosine) > 0.9995:
        return (1 - t) * v + t * x
    angle = np.arccos(cosine)
    return np.asarray((np.sin((1 - t) * angle) * v + np.sin(t * angle) * x) / np.sin(angle))


def magnitude(delta: Array, density: float) -> Array:
    order = np.argsort(-np.abs(delta).reshape(-1), kind="stable")
    mask = np.zeros(delta.size)
    if density > 0:
        mask[order[: delta.size if density >= 1 else max(1, int(density * delta.size))]] = 1
    return delta * mask.reshape(delta.shape)


def outliers(delta: Array, density: float, gamma: float) -> Array:
    if density >= 1:
        return delta
    n, keep = delta.size, int(density * delta.size)
    start = max(0, n - keep - int(gamma * n))
    mask = np.zeros(n)
    mask[np.argsort(np.abs(delta).reshape(-1), kind="stable")[start : start + keep]] = 1
    return delta * mask.reshape(delta.shape)


def l1(before: Array, after: Array) -> Array:
    size = np.abs(after).sum()
    return after * (np.abs(before).sum() / size) if size else after


def tasks(
    base: Array, deltas: Sequence[Array], weights: Sequence[float], *, elect: bool, normalize: bool, scale: float
) -> Array:
    w = np.array(weights).reshape(-1, *[1] * base.ndim)
    pulls = w * np.stack(deltas)
    if elect:
        agree = np.where(pulls.sum(0) >= 0, pulls > 0, pulls < 0)
        divisor = (w * agree).sum(0)
        divisor = np.where(divisor == 0, 1, divisor)
        update = (pulls * agree).sum(0)
    else:
        divisor = np.array(sum(weights) if abs(sum(weights)) >= 1e-8 else 1)
        update = pulls.sum(0)
    return np.asarray(base + scale * (update / divisor if normalize else update))


# ---- linear and slerp


def of_two(method: str, a: str, b: str, shared: str = "", base: bool = True, more: str = "") -> str:
    return (
        f"merge_method: {method}\n{'base_model: base' if base else ''}\n"
        f"models:\n  - {{model: a, parameters: {{{a}}}}}\n  - {{model: b, parameters: {{{b}}}}}\n"
        f"parameters: {{{shared}}}\n{more}"
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(models: Models, normalize: bool) -> None:
    text = of_two("linear", "weight: 0.3", "weight: 0.9", "" if normalize else "normalize: false", base=False)
    check(merged(text), models, lambda name, m: linear(name, m, {"a": 0.3, "b": 0.9}, normalize))


def test_linear_with_gradients_and_filters(models: Models) -> None:
    text = of_two(
        "linear",
        "weight: [0, 0.5, 2]",
        "weight: [{filter: mlp, value: [1, 0.25]}, {filter: embed, value: 1e-1}, {value: 0.7}]",
        base=False,
    )

    def expected(name: str, m: dict[str, Array]) -> Array:
        depth = depth_of(name)
        b = 1 - 0.75 * depth if "mlp" in name else 0.1 if "embed" in name else 0.7
        return linear(name, m, {"a": float(np.interp(depth, [0, 0.5, 1], [0, 0.5, 2])), "b": b})

    check(merged(text), models, expected)


def test_linear_counts_a_base_as_one_more_model(models: Models) -> None:
    text = "merge_method: linear\nbase_model: base\nmodels: [{model: a}]\nparameters: {weight: 0.7}"
    check(merged(text), models, lambda name, m: (m["a"] + m["base"]) / 2)
    text = "merge_method: linear\nbase_model: base\nmodels: [{model: base, parameters: {weight: 3}}, {model: a}]\n"
    check(merged(text + "parameters: {weight: 1}"), models, lambda name, m: (m["a"] + 3 * m["base"]) / 4)


@pytest.mark.parametrize("listed", ["{model: a}, {model: b}", "{model: b}, {model: a}", "{model: b}"])
def test_slerp_runs_from_the_base_whatever_the_order(models: Models, listed: str) -> None:
    text = f"merge_method: slerp\nbase_model: a\nmodels: [{listed}]\nparameters: {{t: 0.3}}"
    check(merged(text), models, lambda name, m: slerp(m["a"], m["b"], 0.3))


def test_slerp_of_one_slice_with_curves(models: Models) -> None:
    text = (
        "merge_method: slerp\nbase_model: a\nslices:\n  - sources: [{model: b, layer_range: [0, 4]}, {model: a, "
        "layer_range: [0, 4]}]\nparameters: {t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {value: 0.5}]}"
    )
    curve = np.linspace(0, 1, 5), [0, 0.5, 0.3, 0.7, 1]

    def expected(name: str, m: dict[str, Array]) -> Array:
        return slerp(m["a"], m["b"], float(np.interp(depth_of(name), *curve)) if "self_attn" in name else 0.5)

    check(merged(text), models, expected)


# ---- task vectors


@pytest.mark.parametrize(
    "b, shared, scale",
    [
        ("-0.9", "lambda: 0.7", 0.7),
        ("0.9", "normalize: true, lambda: 1.5", 1.5),
        ("-0.3", "normalize: true", 1.0),  # weights that cancel divide nothing
    ],
)
def test_task_arithmetic(models: Models, b: str, shared: str, scale: float) -> None:
    text = of_two("task_arithmetic", "weight: 0.3", f"weight: {b}", shared)

    def expected(name: str, m: dict[str, Array]) -> Array:
        deltas = [m["a"] - m["base"], m["b"] - m["base"]]
        weights = [0.3, float(b)]
        return tasks(m["base"], deltas, weights, elect=False, normalize="true" in shared, scale=scale)

    check(merged(text), models, expected)


def test_what_a_listed_base_says_of_itself_does_not_count(models: Models) -> None:
    text = (
        "merge_method: task_arithmetic\nbase_model: base\n"
        "models: [{model: base, parameters: {weight: 9}}, {model: a}]\nparameters: {weight: 0.5}"
    )
    check(merged(text), models, lambda name, m: m["base"] + 0.5 * (m["a"] - m["base"]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [False, True])
def test_ties_trims_each_tensor(models: Models, normalize: bool, rescale: bool) -> None:
    shared = f"lambda: 0.8, normalize: {normalize}, rescale: {rescale}, int8_mask: true"
    text = of_two("ties", "weight: 0.3, density: 0.4", "weight: 0.9, density: [0.2, 0.8]", shared)

    def expected(name: str, m: dict[str, Array]) -> Array:
        deltas = [m["a"] - m["base"], m["b"] - m["base"]]
        trimmed = [magnitude(deltas[0], 0.4), magnitude(deltas[1], 0.2 + 0.6 * depth_of(name))]
        if rescale:
            trimmed = [l1(before, after) for before, after in zip(deltas, trimmed, strict=True)]
        return tasks(m["base"], trimmed, [0.3, 0.9], elect=True, normalize=normalize, scale=0.8)

    check(merged(text), models, expected)


def test_ties_by_default_trims_nothing_and_takes_the_mean(models: Models) -> None:
    def expected(name: str, m: dict[str, Array]) -> Array:
        deltas = [m["a"] - m["base"], m["b"] - m["base"]]
        return tasks(m["base"], deltas, [1, 1], elect=True, normalize=True, scale=1)

    check(merged(of_two("ties", "weight: 1", "weight: 1")), models, expected)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(
    "density, gamma, normalize", [(0.4, 0.05, False), (0.95, 0.2, True), (0.03, 0.5, True), (0.0, 0.01, True)]
)
def test_breadcrumbs(models: Models, method: str, density: float, gamma: float, normalize: bool) -> None:
    # At .03 nothing of the small tensors is left, at 0 nothing of any; the weight counts all the same.
    shared = f"normalize: {normalize}"
    text = of_two(method, f"weight: 0.3, density: {density}, gamma: {gamma}", "weight: 0.9, density: 0.8", shared)

    def expected(name: str, m: dict[str, Array]) -> Array:
        kept = [outliers(m["a"] - m["base"], density, gamma), outliers(m["b"] - m["base"], 0.8, 0.01)]
        return tasks(m["base"], kept, [0.3, 0.9], elect="ties" in method, normalize=normalize, scale=1)

    check(merged(text), models, expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [None, False])
def test_dare_keeps_the_l1_norm_unless_told(models: Models, method: str, rescale: bool | None) -> None:
    shared = "seed: 3" if rescale is None else "rescale: false"
    text = of_two(method, "weight: 0.3, density: 0.4", "weight: 0.9, density: [0.5, 1]", "", more="seed: 3\n")
    text = text if rescale is None else text.replace("parameters: {}", f"parameters: {{{shared}}}")
    digests = {one: bytes.fromhex(digest_of(InMemory(one, models[one]))) for one in "ab"}

    def expected(name: str, m: dict[str, Array]) -> Array:
        kept = []
        for one, density in (("a", 0.4), ("b", 0.5 + 0.5 * depth_of(name))):
            delta = m[one] - m["base"]
            if density < 1:  # which entries go is dimat's own choice: its stream, not mergekit's
                mask = keep_mask(density, 3, digests[one], name, 0, delta.size).reshape(delta.shape)
                delta = delta * mask if rescale is False else l1(delta, delta * mask)
            kept.append(delta)
        return tasks(m["base"], kept, [0.3, 0.9], elect="ties" in method, normalize=False, scale=1)

    check(merged(text), models, expected)


def test_two_slices_have_parameters_and_curves_of_their_own(models: Models) -> None:
    text = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: a, layer_range: [0, 1], parameters: {weight: [0.1, 0.9]}}
      - {model: base, layer_range: [0, 1]}
      - {model: b, layer_range: [0, 1], parameters: {weight: 2}}
    parameters: {lambda: [0.2, 0.4]}
  - sources:
      - {model: a, layer_range: [1, 4], parameters: {weight: [0.1, 0.9]}}
      - {model: b, layer_range: [1, 4]}
      - {model: base, layer_range: [1, 4]}
    parameters: {weight: -0.5, lambda: [0.5, 3]}
"""

    def expected(name: str, m: dict[str, Array]) -> Array:
        a, b, scale = 0.1, -0.5, 0.5  # behind the layers: the last slice, depth 0
        if ".layers." in name:
            layer = int(name.split(".")[2])
            depth = (layer - 1) / 2
            a, b, scale = (0.9, 2, 0.4) if layer == 0 else (0.1 + 0.8 * depth, -0.5, 0.5 + 2.5 * depth)
        elif "embed" in name:
            a, b, scale = 0.1, 2, 0.2
        deltas = [m["a"] - m["base"], m["b"] - m["base"]]
        return tasks(m["base"], deltas, [a, b], elect=False, normalize=False, scale=scale)

    check(merged(text), models, expected)


@pytest.mark.parametrize("rows", [False, True])
def test_model_stock(models: Models, rows: bool) -> None:
    text = (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: base}, {model: a}, {model: b}, {model: c}]\n"
        f"parameters: {{filter_wise: {rows}}}"
    )

    def expected(name: str, m: dict[str, Array]) -> Array:
        base = m["base"].reshape(-1, m["base"].shape[-1]) if rows else m["base"].reshape(1, -1)
        taus = [m[one].reshape(base.shape) - base for one in "abc"]
        units = [tau / np.linalg.norm(tau, axis=1, keepdims=True) for tau in taus]
        cosine = sum((units[i] * units[j]).sum(1, keepdims=True) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
        t = 3 * cosine / (1 + 2 * cosine)
        return np.asarray(base + t * sum(taus) / 3).reshape(m["base"].shape)

    check(merged(text), models, expected)


# ---- dtypes


def test_dtype_is_what_is_written(models: Models) -> None:
    text = of_two("linear", "weight: 1", "weight: 1", base=False)
    assert {x.dtype for x in merged(text).values()} == {torch.float32}
    assert {x.dtype for x in merged(text + "dtype: bfloat16\n").values()} == {torch.bfloat16}
    assert {x.dtype for x in merged(text + "dtype: bfloat16\nout_dtype: torch.float16\n").values()} == {torch.float16}


def test_models_of_two_dtypes_give_the_one_that_holds_both(models: Models, tmp_path: Path) -> None:
    folder(tmp_path / "half", {name: x.half() for name, x in models["a"].items()})
    text = of_two("linear", "weight: 1", "weight: 1", base=False).replace("model: a", "model: half")
    found = merged(text)
    assert {x.dtype for x in found.values()} == {torch.float32}
    name = "lm_head.weight"
    torch.testing.assert_close(found[name], (models["a"][name].half().float() + models["b"][name]) / 2)
