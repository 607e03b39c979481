"""`dimat merge`: files and folders become one; the card, the same bytes again, alignment, what a stop leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dimat.align import permutation_spec
from dimat.cli.app import main
from dimat.merge import fold
from dimat.merge.digest import digest_of
from dimat.merge.source import InMemory

Dimat = Callable[..., tuple[int, str, str]]
State = dict[str, Tensor]


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Dimat]:
    """Type a command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield type_it
    sys.modules.pop("nets", None)


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide.weight": torch.randn(40, 30, generator=generator).to(dtype),
        "bias": torch.randn(30, generator=generator).to(dtype),
        "steps": torch.tensor(7),
    }


def save(path: str, content: State, metadata: dict[str, str] | None = None) -> State:
    """A file, or a folder when the name has no ending."""
    place = Path(path)
    if not place.suffix:
        place.mkdir()
        dtype = str(content["bias"].dtype).removeprefix("torch.")
        (place / "config.json").write_text(json.dumps({"torch_dtype": dtype, "text_config": {"dtype": dtype}, "n": 1}))
        (place / "tokenizer.json").write_text("{}")
        (place / "README.md").write_text(f"I am {path}")
        place = place / "model.safetensors"
    save_file(content, place, metadata or {"format": "pt"})
    return content


def load(path: str) -> State:
    return load_file(path if path.endswith(".safetensors") else f"{path}/model.safetensors")


def same(found: State, expected: State, tolerance: float = 1e-6) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and torch.allclose(found[name].double(), expected[name].double(), rtol=tolerance, atol=tolerance)
        for name in expected
    )


@pytest.fixture
def three(dimat: Dimat) -> dict[str, State]:
    return {name: save(f"{name}.safetensors", state(seed)) for seed, name in enumerate(("base", "a", "b"))}


# ---- what comes out


def test_files_are_merged_as_the_library_merges_them(dimat: Dimat, three: dict[str, State]) -> None:
    code, out, err = dimat(
        "merge", "ties", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "--weights", "2,0.5",
        "-s", "density=0.4", "-s", "scale=7e-1", "--out", "out.safetensors", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    expected = fold("ties", [three["a"], three["b"]], three["base"], [2, 0.5], density=0.4, scale=0.7)
    found = load("out.safetensors")
    assert same(found, expected)
    answer = json.loads(out)
    assert answer.keys() == {
        "method", "num_models", "num_tensors", "num_parameters", "seconds", "peak_rss_bytes", "out", "digest", "card",
    }  # fmt: skip
    assert (answer["method"], answer["num_models"], answer["num_tensors"]) == ("ties", 2, 3)
    assert answer["num_parameters"] == 40 * 30 + 30 + 1
    assert answer["digest"] == digest_of(InMemory("out", found))
    assert answer["peak_rss_bytes"] > 50_000_000
    assert answer["out"] == "out.safetensors"
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in Path().iterdir()) == [
        "a.safetensors", "b.safetensors", "base.safetensors", "out.safetensors", "out.safetensors.merge.json",
    ]  # fmt: skip


def test_the_text_tells_the_same_in_a_few_lines(dimat: Dimat, three: dict[str, State]) -> None:
    code, out, err = dimat("merge", "mean", "a.safetensors", "b.safetensors", "--out", "out.safetensors")
    assert (code, err) == (0, "")
    digest = digest_of(InMemory("out", load("out.safetensors")))
    for words in ("2 models by mean into out.safetensors", "3 tensors, 1,231 parameters", digest, "merge.json"):
        assert words in out


@pytest.mark.parametrize("dtype", [None, "float32", "float64", "bfloat16"])
def test_folders_keep_their_files_and_tell_their_dtype(dimat: Dimat, dtype: str | None) -> None:
    a, b = save("a", state(0, torch.float16)), save("b", state(1, torch.float16))
    code, _, err = dimat("merge", "mean", "a", "b", "--out", "out", *(["--dtype", dtype] if dtype else []))
    assert code == 0, err
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "README.md", "config.json", "dimat_merge.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert Path("out/README.md").read_text() == "I am a"
    told = dtype or "float16"
    assert json.loads(Path("out/config.json").read_text()) == {
        "torch_dtype": told, "text_config": {"dtype": told}, "n": 1,
    }  # fmt: skip
    kind = getattr(torch, told)
    mean = {name: (a[name].double() + b[name].double()) / 2 for name in ("wide.weight", "bias")}
    expected = {**{name: x.to(kind) for name, x in mean.items()}, "steps": torch.tensor(7)}
    assert same(load("out"), expected, 1e-3 if told == "float16" else 1e-2 if told == "bfloat16" else 1e-6)


def test_statistics_go_with_their_models(dimat: Dimat, three: dict[str, State]) -> None:
    stats = [{name: x.abs() for name, x in state(seed).items() if name != "steps"} for seed in (5, 6)]
    for name, content in zip("ab", stats, strict=True):
        save_file(content, f"f{name}.safetensors")
    words = ["merge", "fisher", "a.safetensors", "b.safetensors", "--out", "out.safetensors"]
    code, _, err = dimat(*words, "--stats", "fa.safetensors", "--stats", "fb.safetensors")
    assert code == 0, err
    a, b, fa, fb = three["a"]["bias"], three["b"]["bias"], stats[0]["bias"], stats[1]["bias"]
    torch.testing.assert_close(load("out.safetensors")["bias"], (a * fa + b * fb) / (fa + fb), rtol=1e-4, atol=1e-4)


def test_an_existing_output_is_replaced_only_by_force(dimat: Dimat, three: dict[str, State]) -> None:
    words = ["merge", "mean", "a.safetensors", "b.safetensors", "--out", "out.safetensors"]
    dimat(*words)
    before = Path("out.safetensors").read_bytes()
    code, _, err = dimat(*words, "--weights", "1,3")
    assert code == 2
    assert "exists already" in err
    assert "--force" in err
    assert Path("out.safetensors").read_bytes() == before
    assert dimat(*words, "--weights", "1,3", "--force")[0] == 0
    assert Path("out.safetensors").read_bytes() != before


def test_a_base_that_is_not_needed_is_told_and_not_read(dimat: Dimat, three: dict[str, State]) -> None:
    words = ["merge", "mean", "a.safetensors", "--base", "base.safetensors", "--out", "out.safetensors"]
    code, _, err = dimat(*words)
    assert code == 0
    assert "'mean' needs no base: base.safetensors is not read" in err
    assert json.loads(Path("out.safetensors.merge.json").read_text())["base"] is None


# ---- the card, and the same bytes again


def card() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("out.safetensors.merge.json").read_text())
    return content


def test_the_card_says_what_was_made_of_what(dimat: Dimat, three: dict[str, State]) -> None:
    dimat(
        "merge", "ties", "a.safetensors", "./b.safetensors", "--base", "base.safetensors", "--weights", "2,0.5",
        "--out", "out.safetensors",
    )  # fmt: skip
    found = card()
    assert found["recipe"]["options"].keys() >= {"density", "scale", "trim"}
    assert found["recipe"]["options"]["density"] == 0.2
    first, second = found["inputs"]
    assert (first["path"], first["weight"], second["weight"]) == ("a.safetensors", 2, 0.5)
    assert first["num_bytes"] == Path("a.safetensors").stat().st_size
    for entry, name in ((first, "a"), (second, "b"), (found["base"], "base")):
        assert entry["digest"] == digest_of(InMemory(name, three[name]))
    assert found["out"]["digest"] == digest_of(InMemory("out", load("out.safetensors")))
    assert found["versions"].keys() >= {"python", "torch"}
    assert found["dimat"]
    assert found["date"].startswith("20")


@pytest.mark.parametrize("whole", [True, False], ids=["card", "recipe"])
def test_the_recipe_of_a_card_gives_the_same_bytes_from_anywhere(
    dimat: Dimat, three: dict[str, State], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = dimat(
        "merge", "dare", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "--weights", "2,0.5",
        "-s", "seed=5", "-s", "signs=ties", "--dtype", "bfloat16", "--out", "out.safetensors",
    )  # fmt: skip
    assert code == 0, err
    before = Path("out.safetensors").read_bytes()
    Path("there").mkdir()
    Path("there/recipe.json").write_text(json.dumps(card() if whole else card()["recipe"]))
    here = Path.cwd()
    monkeypatch.chdir("there")
    code, _, err = dimat("merge", "--recipe", "recipe.json", "--out", "again.safetensors")
    assert code == 0, err
    assert Path("again.safetensors").read_bytes() == before
    again = json.loads(Path("again.safetensors.merge.json").read_text())
    assert again["recipe"] == json.loads((here / "out.safetensors.merge.json").read_text())["recipe"]


def test_the_command_line_wins_over_a_recipe(dimat: Dimat, three: dict[str, State]) -> None:
    Path("r.yaml").write_text(
        "method: task_arithmetic\nmodels: [{model: a.safetensors, weight: 2}, b.safetensors]\nbase: a.safetensors\n"
        "options: {scale: 9e-1, normalize: true}\ndtype: float16\n"
    )
    code, _, err = dimat(
        "merge", "--recipe", "r.yaml", "--base", "base.safetensors", "--weights", "1,4", "-s", "scale=0.5", "--dtype",
        "float64", "--out", "out.safetensors",
    )  # fmt: skip
    assert code == 0, err
    wide = [{name: x.double() if x.is_floating_point() else x for name, x in one.items()} for one in three.values()]
    expected = fold("task_arithmetic", wide[1:], wide[0], [1, 4], scale=0.5, normalize=True)
    assert same(load("out.safetensors"), expected)
    code, _, err = dimat("merge", "--recipe", "r.yaml", "--base", "base.safetensors", "--out", "two.safetensors")
    expected = fold("task_arithmetic", wide[1:], wide[0], [2, 1], scale=0.9, normalize=True)
    assert {x.dtype for x in load("two.safetensors").values()} == {torch.float16, torch.int64}
    assert same(
        {name: x.double() if x.is_floating_point() else x for name, x in load("two.safetensors").items()},
        expected,
        1e-2,
    )


def test_a_mergekit_recipe_is_merged_and_its_card_gives_it_again(dimat: Dimat) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        save(name, state(seed))
    Path("r.yml").write_text(
        "merge_method: dare_ties\nbase_model: base\nmodels:\n  - {model: a, parameters: {weight: 1, density: 0.5}}\n"
        "  - {model: b, parameters: {weight: 1}}\ndtype: float32\n"
    )
    code, out, err = dimat("merge", "--recipe", "r.yml", "-s", "seed=4", "--out", "out", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["method"] == "dare_ties"
    assert Path("out/README.md").read_text() == "I am base"  # as mergekit, which takes config and tokenizer from there
    recipe = json.loads(Path("out/dimat_merge.json").read_text())["recipe"]
    assert (recipe["merge_method"], recipe["seed"]) == ("dare_ties", 4)
    for words in (["out/dimat_merge.json"], ["r.yml", "-s", "seed=5"]):
        assert dimat("merge", "--recipe", *words, "--out", f"again{len(words)}")[0] == 0
    assert same(load("again1"), load("out"), 0)
    assert not same(load("again3"), load("out"), 0)


# ---- a dry run, and a stop


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(dimat: Dimat, three: dict[str, State]) -> None:
    words = ["merge", "ties", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "--dry-run"]
    code, out, err = dimat(*words, "--dtype", "float16", "--memory", "64GiB", "--out", "out.safetensors")
    assert code == 0, err
    assert "density=0.2" in out
    code, out, _ = dimat(*words, "--out", "out.safetensors", "--format", "json")
    answer = json.loads(out)
    assert answer["num_bytes"] == 1230 * 4 + 8
    assert (answer["num_tensors"], answer["num_parameters"], answer["num_models"]) == (3, 1231, 2)
    assert answer["options"]["trim"] == "global"
    assert sorted(path.name for path in Path().iterdir()) == ["a.safetensors", "b.safetensors", "base.safetensors"]


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    save_file({f"layer.{i}.weight": torch.randn(1000, 1000) for i in range(20)}, tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "dimat", "merge", "dare", *["a.safetensors"] * 12, "--base", "a.safetensors"]
    process = subprocess.Popen(
        [*command, "-s", "rescale=l1", "--out", "o.safetensors"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(".*partial")):
        assert process.poll() is None, "the merge has ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "stopped; nothing was written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# ---- aligned first

NETS = """
from torch import nn


def mlp():
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3))


def sum_of_two():
    raise RuntimeError("not today")
"""


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize("with_base", [False, True])
def test_permuted_copies_are_aligned_before_they_are_merged(dimat: Dimat, with_base: bool) -> None:
    Path("nets.py").write_text(NETS)
    model = net(0)
    spec = permutation_spec(model, torch.randn(4, 6))
    original = {name: x.detach().clone() for name, x in model.state_dict().items()}
    copies = [spec.apply(original, spec.random(seed=seed)) for seed in (1, 2)]
    for name, content in zip(("a", "b", "c"), [original, *copies], strict=True):
        save_file({key: x.contiguous() for key, x in content.items()}, f"{name}.safetensors")
    models, base = ["a.safetensors", "b.safetensors", "c.safetensors"], []
    method = "mean"
    if with_base:
        models, base, method = models[1:], ["--base", models[0]], "task_arithmetic"
    how = ["--align", "weights", "--model", "nets.py:mlp", "--input", "4x6"]
    code, out, err = dimat("merge", method, *models, *base, *how, "--out", "out.safetensors")
    assert code == 0, err
    assert same(load("out.safetensors"), original)
    assert "of the units moved" in out
    assert not same(load("b.safetensors"), original)  # the inputs are as they were
    found = card()
    entries = found["inputs"]
    assert [entry["aligned"]["units"] for entry in entries] == [40] * len(models)
    moved = [entry["aligned"]["moved"] for entry in entries]
    assert moved[0] == 0 if not with_base else moved[0] > 20
    assert moved[-1] > 20
    assert entries[-1]["digest"] == digest_of(InMemory("c", load("c.safetensors")))
    assert entries[-1]["aligned"]["digest"] == digest_of(InMemory("a", original))
    assert not list(Path().glob(".*"))  # the aligned copies are gone

    before = Path("out.safetensors").read_bytes()
    Path("recipe.json").write_text(json.dumps(found["recipe"]))
    code, _, err = dimat("merge", "--recipe", "recipe.json", "--out", "again.safetensors")
    assert code == 0, err
    assert Path("again.safetensors").read_bytes() == before


def test_a_base_may_be_the_basis_of_a_method_without_base(dimat: Dimat) -> None:
    Path("nets.py").write_text(NETS)
    original = {name: x.detach().clone() for name, x in net(0).state_dict().items()}
    spec = permutation_spec(net(0), torch.randn(4, 6))
    save_file(original, "base.safetensors")
    for seed, name in ((1, "a"), (2, "b")):
        moved = spec.apply(original, spec.random(seed=seed))
        save_file({key: x.contiguous() for key, x in moved.items()}, f"{name}.safetensors")
    code, _, err = dimat(
        "merge", "mean", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "--align", "weights",
        "--model", "nets.py:mlp", "--input", "4x6", "--out", "out.safetensors",
    )  # fmt: skip
    assert code == 0, err
    assert "only the basis" in err
    assert same(load("out.safetensors"), original)
