"""What of mergekit's recipes is read, what is left out with a word, and what is refused by name."""

import logging
import shutil
from pathlib import Path

import pytest
from llama_folders import folder, tensors, three

from dimat.errors import UsageError
from dimat.recipes import read_recipe
from dimat.recipes.mapped import Mapped, plan_mergekit
from dimat.recipes.mergekit import METHODS, MergekitRecipe

A_AND_B = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
LINEAR = f"merge_method: linear\n{A_AND_B}"
TIES = f"merge_method: ties\nbase_model: base\n{A_AND_B}"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    three(tmp_path)


def plan(text: str, path: str = "recipe.yaml") -> Mapped:
    Path(path).write_text(text)
    recipe = read_recipe(Path(path))
    assert isinstance(recipe, MergekitRecipe)
    return plan_mergekit(recipe)


def test_models_are_found_from_here_and_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move("b", "elsewhere/b")
    found = plan(LINEAR, "elsewhere/recipe.yaml")
    assert [model.path for model in found.models] == [tmp_path / "a", tmp_path / "elsewhere/b"]
    shutil.copytree("a", "elsewhere/a")
    assert plan(LINEAR, "elsewhere/recipe.yaml").models[0].path == tmp_path / "a"  # here first, as mergekit looks
    monkeypatch.chdir("/")
    recipe = read_recipe(tmp_path / "elsewhere/recipe.yaml")
    assert isinstance(recipe, MergekitRecipe)
    assert plan_mergekit(recipe).models[0].path == tmp_path / "elsewhere/a"


def test_a_base_is_no_model_but_lends_its_config(tmp_path: Path) -> None:
    found = plan(TIES)
    assert found.base is not None
    assert [one.path.name for one in (*found.models, found.base, found.like)] == ["a", "b", "base", "base"]
    assert plan(LINEAR).like.path.name == "a"


def test_a_model_may_be_written_at_length(tmp_path: Path) -> None:
    found = plan(LINEAR.replace("model: a", "model: {model: {path: a}}"))
    assert found.models[0].path == tmp_path / "a"


def test_keys_that_mergekit_does_not_know_are_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    found = plan(LINEAR.replace("weight: 1}}]", "weight: 1}, note: b}]") + "name: mine\noutdtype: float16\n")
    assert [found.weight_of("lm_head.weight", i) for i in (0, 1)] == [1, 1]
    assert found.dtype is None
    for words in ("unknown key 'name'", "unknown key 'outdtype'. Did you mean 'out_dtype'", "'models[1].note'"):
        assert words in caplog.text


def test_parameters_without_effect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = plan(
            TIES.replace("{weight: 1}}]", "{weight: 1, lambda: 2}}]") + "parameters: {int8_mask: 1, gamma: 2}\n"
            "chat_template: auto\n"
        )
    told = " / ".join(found.remarks)
    assert "'lambda' of model" in told
    assert "'gamma' of parameters has no effect on ties" in told
    assert "'chat_template' has no effect" in told
    assert "int8_mask" not in told
    assert "int8_mask is left out" in caplog.text


SLICE = "  - sources: [{{model: a, layer_range: {}}}, {{model: b, layer_range: {}}}]\n"
REFUSED = {
    "another method": (LINEAR.replace("linear", "della"), ["unknown mergekit method 'della'", "ties", *METHODS]),
    "a typo in the method": (LINEAR.replace("linear", "lienar"), ["Did you mean 'linear'"]),
    "modules": ("merge_method: linear\nmodules: {text: {models: []}}", ["modules are not supported"]),
    "models and slices": (LINEAR + "slices:\n" + SLICE.format("[0, 4]", "[0, 4]"), ["exactly one of `models`"]),
    "neither": ("merge_method: linear", ["exactly one of `models` and `slices`"]),
    "two tokenizers": (LINEAR + "tokenizer_source: base\ntokenizer: {}", ["tokenizer_source and tokenizer"]),
    "a setting": (LINEAR + "parameters: {weight: {filter: x}}", ["parameter 'weight'", "filter"]),
    "a dtype": (LINEAR + "dtype: int64", ["dtype", "'int64'", "'float32'"]),
    "no weight": (LINEAR.replace("weight: 1}}]", "}}]"), ["lm_head", "'weight' is missing for model", "/b"]),
    "no t": ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]", ["'t' is missing"]),
    "t out of range": ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 2}", ["t is 2"]),
    "no number": (LINEAR.replace("weight: 1}}]", "weight: heavy}}]"), ["'weight'", "'heavy'", "a finite number"]),
    "a density": (TIES + "parameters: {density: -0.1}", ["density of model", "-0.1"]),
    "slerp of three": (f"merge_method: slerp\nbase_model: base\n{A_AND_B}parameters: {{t: 0}}", ["slerp", "2 beside"]),
    "model_stock of one": ("merge_method: model_stock\nbase_model: a\nmodels: [{model: b}]", ["2 or more", "are 1"]),
    "no base": (f"merge_method: ties\n{A_AND_B}", ["ties needs base_model"]),
    "a model twice": (LINEAR.replace("model: b", "model: ./a"), ["listed twice"]),
    "stacked layers": ("merge_method: linear\nslices:\n" + SLICE.format("[0, 3]", "[0, 3]")
                       + SLICE.format("[2, 4]", "[2, 4]") + "parameters: {weight: 1}", ["slices[1]", "stacks"]),
    "different layers": ("merge_method: linear\nslices:\n" + SLICE.format("[0, 4]", "[1, 5]"), ["0 to 4 and 1 to 5"]),
    "other models": ("merge_method: linear\nslices:\n" + SLICE.format("[0, 2]", "[0, 2]")
                     + SLICE.format("[2, 4]", "[2, 4]").replace("model: b", "model: c"), ["slices[1] merges other"]),
    "an adapter": (LINEAR.replace("model: a", "model: a+lora"), ["'a+lora'", "LoRA"]),
    "an adapter at length": (LINEAR.replace("model: a", "model: {model: a, lora: x}"), ["lora 'x' is not supported"]),
    "a hub name": (LINEAR.replace("model: a", "model: meta/Llama-9"), ["'meta/Llama-9'", "nothing is ever downloaded"]),
    "a typo in a model": (LINEAR.replace("model: b", "model: basee"), ["'basee'", "Did you mean 'base'"]),
    "rows of a tensor": ("merge_method: model_stock\nbase_model: a\nmodels: [{model: b}, {model: c}]\n"
                         "parameters: {filter_wise: perhaps}", ["'filter_wise'", "true or false"]),
}  # fmt: skip


@pytest.mark.parametrize("text, told", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_name(text: str, told: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        plan(text)
    for words in told:
        assert words in str(raised.value)


def test_a_hub_name_is_told_how_to_come_here() -> None:
    with pytest.raises(UsageError) as raised:
        plan(LINEAR.replace("model: a", "model: meta/Llama-9@v2"))
    assert raised.value.hint is not None
    assert "hf download meta/Llama-9 --revision v2" in raised.value.hint


# ---- vocabularies


@pytest.mark.parametrize("key", ["tokenizer_source: {}", "tokenizer: {{source: {}}}"])
@pytest.mark.parametrize("source", ["base", "union", "with_words"])
def test_one_vocabulary_may_be_asked_for_where_all_have_it(tmp_path: Path, key: str, source: str) -> None:
    for name in ("with_words", "other", "more"):
        folder(tmp_path / name, tensors(0), ["one", "two"] if name != "more" else ["two", "one"])
    text = "merge_method: linear\nbase_model: with_words\nmodels: [{model: other}]\nparameters: {weight: 1}\n"
    assert not plan(text + key.format(source)).remarks
    with pytest.raises(UsageError, match=r"would rearrange embeddings.*more and .*with_words differ, for one in 'one'"):
        plan((text + key.format(source)).replace("model: other", "model: more"))
    assert plan(text.replace("model: other", "model: more")).models  # nothing was asked for


def test_vocabularies_that_nothing_tells() -> None:
    text = LINEAR + "base_model: base\nparameters: {weight: 1}\n"
    assert "no tokenizer file" in plan(text + "tokenizer_source: base\n").remarks[0]
    with pytest.raises(UsageError, match="would join vocabularies"):
        plan(text + "tokenizer_source: union\n")


@pytest.mark.parametrize("more", ["tokens: {x: {source: a}}", "pad_to_multiple_of: 8"])
def test_other_embeddings_are_refused(more: str) -> None:
    with pytest.raises(UsageError, match="would change"):
        plan(LINEAR + f"tokenizer: {{source: base, {more}}}")
