"""dimat's own recipes: what they may say, where their paths lead, and what a wrong one is told."""

import json
from pathlib import Path

import pytest

from dimat.errors import ConfigError
from dimat.recipes import Recipe, read_recipe

FULL = """
method: fisher
models:
  - a.safetensors
  - {model: sub/b.safetensors, weight: 0.5, stats: b_stats.safetensors}
base: ../base
options: {floor: 0.1}
dtype: bfloat16
align: {by: weights, model: nets.py:build, input: [1x6]}
"""


def read(folder: Path, text: str, name: str = "recipe.yaml") -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    recipe = read_recipe(folder / name)
    assert isinstance(recipe, Recipe)
    return recipe


def test_paths_are_relative_to_the_recipe_wherever_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "nets.py").write_text("")
    recipe = read(folder, FULL)
    first, second = recipe.models
    assert first.model == str(folder / "a.safetensors")
    assert (first.weight, first.stats) == (1.0, None)
    assert second.model == str(folder / "sub/b.safetensors")
    assert (second.weight, second.stats) == (0.5, str(folder / "b_stats.safetensors"))
    assert recipe.base == str(tmp_path / "base")
    assert (recipe.method, recipe.options, recipe.dtype) == ("fisher", {"floor": 0.1}, "bfloat16")
    assert recipe.align is not None
    assert (recipe.align.model, recipe.align.input) == (f"{folder / 'nets.py'}:build", ["1x6"])


def test_whole_paths_and_modules_stay(tmp_path: Path) -> None:
    recipe = read(tmp_path, "method: my.module:merge\nmodels: [/elsewhere/a.safetensors]")
    assert (recipe.method, recipe.models[0].model) == ("my.module:merge", "/elsewhere/a.safetensors")
    assert (recipe.base, recipe.align, recipe.options) == (None, None, {})


def test_a_card_gives_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(
        json.dumps({"dimat": "0.1.0", "recipe": {"method": "mean", "models": ["/a"]}, "inputs": []})
    )
    recipe = read_recipe(tmp_path / "card.json")
    assert isinstance(recipe, Recipe)
    assert recipe.method == "mean"


WRONG = {
    "unknown key": ("mehtod: mean\nmodels: [a]", ["unknown key 'mehtod'", "'method'", "method is missing"]),
    "unknown key of a model": ("method: mean\nmodels: [a, {model: b, wieght: 2}]", ["models[1].wieght", "'weight'"]),
    "unknown key of align": ("method: mean\nmodels: [a]\nalign: {modle: x}", ["align.modle", "Did you mean 'model'"]),
    "no models": ("method: mean\nmodels: []", ["models", "at least 1"]),
    "models missing": ("method: mean", ["models is missing"]),
    "a dtype": ("method: mean\nmodels: [a]\ndtype: bflaot16", ["dtype", "'bflaot16'", "Did you mean 'bfloat16'"]),
    "a weight": ("method: mean\nmodels: [{model: a, weight: much}]", ["models[0].weight", "'much'", "number"]),
    "an infinite weight": ("method: mean\nmodels: [{model: a, weight: .inf}]", ["models[0].weight", "finite"]),
    "a group that is none": ("method: mean\nmodels: [a]\nalign: weights", ["align", "'weights'", "by, model, input"]),
    "another way to align": ("method: mean\nmodels: [a]\nalign: {by: loss, model: x}", ["align.by", "'loss'"]),
    "no mapping": ("- a\n- b", ["holds a list", "keys and values"]),
    "nothing": ("", ["is empty"]),
    "a circle": ("method: mean\nmodels: &a [*a]", ["not YAML", "unfold"]),
    "no date": ("method: mean\nmodels: [a]\ndate: 2020-13-45", ["not YAML", "month"]),
    "a circle of models": ("merge_method: linear\nmodels: [{model: &a {model: *a}}]", ["not YAML", "unfold"]),
    "no YAML": ("method: [", ["is not YAML"]),
}


@pytest.mark.parametrize("text, told", WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_names_every_problem(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    for words in ["recipe.yaml", *told]:
        assert words in str(raised.value)


def test_a_recipe_that_is_not_there_names_the_closest(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"does not exist.*Did you mean .*merge\.yaml"):
        read_recipe(tmp_path / "merg.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_recipe(tmp_path)
