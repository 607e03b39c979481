"""What bad input to `dimat merge` gets: a sentence that names it and the cure, exit code 2, nothing written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dimat.cli.app import main
from dimat.modelfile import write

Dimat = Callable[..., tuple[int, str, str]]


def state(**changes: Tensor | None) -> dict[str, Tensor]:
    content: dict[str, Tensor | None] = {"a.weight": torch.ones(4, 3), "b.bias": torch.ones(5), "n": torch.tensor(1)}
    return {name: x for name, x in (content | changes).items() if x is not None}


FILES = {
    "a": state(),
    "b": state(),
    "base": state(),
    "wide": state(**{"a.weight": torch.ones(4, 4)}),
    "less": state(**{"b.bias": None}),
    "more": state(**{"c.bias": torch.ones(2)}),
    "whole": state(**{"b.bias": torch.ones(5, dtype=torch.int64)}),
    "nan": state(**{"b.bias": torch.tensor([1.0, float("nan"), 1, 1, 1])}),
    "inf": state(**{"b.bias": torch.tensor([1.0, float("inf"), 1, 1, 1])}),
    "big": state(**{"b.bias": torch.full((5,), 1e30)}),
    "negative": state(**{"b.bias": torch.full((5,), -1.0)}),
    "complex": {"z": torch.ones(2, dtype=torch.complex64)},
}
NETS = """
from torch import nn


def small():
    return nn.Linear(3, 4)


def other():
    return nn.Linear(3, 7)
"""


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dimat:
    """Type a command in a folder of models, good and bad ones; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, content in FILES.items():
        save_file(content, f"{name}.safetensors")
    for name in ("linear", "linear_b"):
        save_file({"weight": torch.ones(4, 3), "bias": torch.ones(4)}, f"{name}.safetensors")
    Path("cut.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-8])
    Path("empty.safetensors").write_bytes(b"")
    Path("pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    Path("notes.txt").write_text("")
    Path("no_model").mkdir()
    for name in ("folder", "folder_b"):
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
        save_file(state(), f"{name}/model.safetensors")
    Path("nets.py").write_text(NETS)
    Path("ours.yaml").write_text("method: mean\nmodels: [a.safetensors, b.safetensors]\n")
    Path("wrong.yaml").write_text("method: mean\nmodels: [a.safetensors]\nwieghts: [1]\n")
    Path("some_stats.yaml").write_text(
        "method: fisher\nmodels: [{model: a.safetensors, stats: b.safetensors}, b.safetensors]\n"
    )
    Path("nul.yaml").write_text('method: mean\nmodels: ["a\\0b"]\n')
    Path("home.yaml").write_text("method: mean\nmodels: [~nobody-here/b]\n")
    Path("loop.safetensors").symlink_to("loop.safetensors")
    Path("theirs.yaml").write_text("merge_method: linear\nmodels: [{model: folder, parameters: {weight: 1}}]\n")
    Path("linear_memory.py").write_text(
        "from dataclasses import replace\nfrom dimat.merge import make_fold\n"
        "def hoard():\n    return replace(make_fold('mean'), memory='linear')\n"
    )

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_it


A_B = ["a.safetensors", "b.safetensors"]
OUT = ["--out", "out.safetensors"]
ALIGN = ["--align", "weights", "--model", "nets.py:small"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": (OUT, ["METHOD is missing", "dimat merge METHOD MODEL... --out OUT", "--recipe FILE"]),
    "no model": (["mean", *OUT], ["MODEL is missing"]),
    "no method": ([*A_B, *OUT], ["unknown merge method 'a.safetensors'", "METHOD comes first"]),
    "no method, one model": (["a.safetensors", *OUT], ["METHOD is missing", "METHOD comes first"]),
    "a method": (["meen", *A_B, *OUT], ["unknown merge method 'meen'", "Did you mean 'mean'", "ties"]),
    "a method of one's own": (["my.py:merge", *A_B, *OUT], ["'my.py' does not exist"]),
    "a method that holds all models": (["linear_memory.py:hoard", *A_B, *OUT], ["holds all models in memory"]),
    "an option": (["mean", *A_B, "-s", "normalise=false", *OUT], ["no option 'normalise'", "Did you mean 'normalize'"]),
    "an option's value": (["ties", *A_B, "--base", "base.safetensors", "-s", "density=2", *OUT], ["density is 2", "1"]),
    "an option's choice": (["ties", *A_B, "--base", "base.safetensors", "-s", "trim=tensr", *OUT],
                           ["trim is 'tensr'", "'tensor'", "global"]),
    "an option that is no date": (["mean", *A_B, "-s", "normalize=2020-13-45", *OUT], ["'2020-13-45' is not a YAML"]),
    "an option of many brackets": (["mean", *A_B, "-s", f"normalize={'[' * 5000}", *OUT], ["[[...[[", "not a YAML"]),
    "a name that is too long": (["mean", f"{'a' * 400}.safetensors", *OUT], ["model aaa", "File name too long"]),
    "a method's name that is too long": (["a" * 4000, *A_B, *OUT], ["unknown merge method"]),
    "an out that is too long": (["mean", *A_B, "--out", f"{'a' * 400}.safetensors"], ["out aaa", "File name too long"]),
    "an out whose card is too long": (["mean", *A_B, "--out", f"{'a' * 238}.safetensors"], ["has 250 bytes"]),
    "a model in a circle of links": (["mean", "loop.safetensors", *OUT], ["loop.safetensors", "symbolic links"]),
    "an out in a circle of links": (["mean", *A_B, "--out", "loop.safetensors"], ["out loop", "symbolic links"]),
    "a recipe's path with a NUL": (["--recipe", "nul.yaml", *OUT], ["null byte"]),
    "a recipe's base of an unknown home": (["--recipe", "home.yaml", *OUT], ["~nobody-here/b", "does not exist"]),
    "an option's form": (["mean", *A_B, "-s", "normalize", *OUT], ["-s 'normalize'", "key=value"]),
    "no YAML": (["mean", *A_B, "-s", "normalize=[", *OUT], ["'['", "YAML"]),
    "too few weights": (["mean", *A_B, "--weights", "1", *OUT], ["1 weights for 2 models", "--weights 1,1"]),
    "weights that are none": (["mean", *A_B, "--weights", "1,much", *OUT], ["--weights '1,much'", "1,1,0.5"]),
    "weights without end": (["mean", *A_B, "--weights", "1,inf", *OUT], ["--weights '1,inf'", "finite"]),
    "weights that cancel": (["mean", *A_B, "--weights", "1,-1", *OUT], ["NaN or Inf", "do the weights sum to zero"]),
    "no base": (["ties", *A_B, *OUT], ["'ties' needs the models' common ancestor", "--base BASE"]),
    "a base of another shape": (["ties", *A_B, "--base", "wide.safetensors", *OUT],
                                ["'a.weight' is [4, 3] in a.safetensors and [4, 4] in wide.safetensors"]),
    "another shape": (["mean", "a.safetensors", "wide.safetensors", *OUT],
                      ["'a.weight' is [4, 3] in a.safetensors and [4, 4] in wide.safetensors"]),
    "a tensor missing": (["mean", "a.safetensors", "less.safetensors", *OUT],
                         ["a.safetensors has tensor 'b.bias' [5], less.safetensors has not"]),
    "a tensor too many": (["mean", "a.safetensors", "more.safetensors", *OUT],
                          ["more.safetensors has tensor 'c.bias' [2], a.safetensors has not"]),
    "integers and floats": (["mean", "a.safetensors", "whole.safetensors", *OUT], ["'b.bias'", "float32", "int64"]),
    "complex numbers": (["mean", "complex.safetensors", *OUT], ["'z'", "complex64", "real numbers"]),
    "a typo in a model": (["mean", "a.safetensor", *OUT], ["a.safetensor does not exist", "'a.safetensors'"]),
    "a pickle": (["mean", "pickle.pt", *OUT], ["pickle.pt is a pickle", "save_file"]),
    "a file cut short": (["mean", "a.safetensors", "cut.safetensors", *OUT], ["cut.safetensors is damaged"]),
    "an empty file": (["mean", "empty.safetensors", *OUT], ["empty.safetensors is damaged"]),
    "another file": (["mean", "notes.txt", *OUT], ["notes.txt is no .safetensors file"]),
    "a folder without weights": (["mean", "no_model", *OUT], ["model folder no_model has neither"]),
    "NaN": (["mean", "a.safetensors", "nan.safetensors", *OUT], ["'b.bias' of nan.safetensors holds NaN"]),
    "Inf": (["mean", "inf.safetensors", *OUT], ["'b.bias' of inf.safetensors holds Inf"]),
    "NaN in the base": (["ties", *A_B, "--base", "nan.safetensors", *OUT], ["'b.bias' of nan.safetensors holds NaN"]),
    "too large for the dtype": (["mean", "big.safetensors", "--dtype", "float16", *OUT],
                                ["'b.bias' reaches 1e+30, more than torch.float16 holds", "--dtype float32"]),
    "a dtype": (["mean", *A_B, "--dtype", "bfloat61", *OUT], ["unknown dtype 'bfloat61'", "'bfloat16'"]),
    "a size": (["mean", *A_B, "--memory", "lots", *OUT], ["--memory 'lots'", "1GiB"]),
    "too little memory": (["mean", *A_B, "--memory", "20MiB", *OUT], ["the limit is 20MiB", "least limit", "--memory"]),
    "out is an input": (["mean", *A_B, "--out", "./a.safetensors", "--force"], ["is the model a.safetensors itself"]),
    "out is the base": (["ties", *A_B, "--base", "base.safetensors", "--out", "base.safetensors", "--force"],
                        ["is the model base.safetensors itself"]),
    "out is a folder": (["mean", *A_B, "--out", "no_model"], ["no_model is a folder", "no_model/"]),
    "out is a file": (["mean", "folder", "folder_b", "--out", "o.safetensors"], ["is named as a file"]),
    "out is another folder": (["mean", "folder", "--out", "../", "--force"], ["lies in out"]),
    "out in a model": (["mean", "folder", "folder_b", "--out", "folder/o"], ["lies in the model folder folder"]),
    "no parent": (["mean", *A_B, "--out", "foldr/o.safetensors"], ["foldr of out foldr/o.safetensors does not exist",
                                                                  "folder"]),
    "out without ending": (["mean", *A_B, "--out", "merged"], ["is not named *.safetensors"]),
    "a recipe and a method": (["mean", *A_B, "--recipe", "ours.yaml", *OUT], ["METHOD 'mean' was given too"]),
    "a recipe that is not there": (["--recipe", "our.yaml", *OUT], ["our.yaml does not exist", "'ours.yaml'"]),
    "a wrong recipe": (["--recipe", "wrong.yaml", *OUT], ["unknown key 'wieghts'", "method, models"]),
    "weights for a recipe": (["--recipe", "ours.yaml", "--weights", "1,2,3", *OUT], ["3 weights for 2 models"]),
    "half of the statistics": (["--recipe", "some_stats.yaml", *OUT], ["b.safetensors comes without stats"]),
    "weights for mergekit": (["--recipe", "theirs.yaml", "--weights", "1", *OUT], ["--weights", "as it stands"]),
    "an option for mergekit": (["--recipe", "theirs.yaml", "-s", "t=1", "--out", "o"], ["-s was given", "-s seed=N"]),
    "a seed for mergekit": (["--recipe", "theirs.yaml", "-s", "seed=-1", "--out", "o"], ["seed=-1", "at least 0"]),
    "no statistics": (["fisher", *A_B, *OUT], ["fisher statistics of each of the 2 models, 0 were given", "--stats"]),
    "statistics of one": (["fisher", *A_B, "--stats", "a.safetensors", *OUT], ["2 models, 1 were given"]),
    "statistics of others": (["fisher", "a.safetensors", "--stats", "less.safetensors", *OUT],
                             ["'b.bias'", "less.safetensors has not"]),
    "negative statistics": (["fisher", "a.safetensors", "--stats", "negative.safetensors", *OUT], ["at least 0"]),
    "statistics for mean": (["mean", "a.safetensors", "--stats", "b.safetensors", *OUT], ["takes no statistics"]),
    "another way to align": (["mean", *A_B, "--align", "wieghts", *OUT], ["'wieghts'", "Did you mean 'weights'"]),
    "aligning by activations": (["mean", *A_B, "--align", "activations", *OUT], ["dimat align --by activations"]),
    "no module to align": (["mean", *A_B, "--align", "weights", *OUT], ["no --model was given", "file.py:function"]),
    "a module without aligning": (["mean", *A_B, "--model", "nets.py:small", *OUT], ["add --align weights"]),
    "an input without aligning": (["mean", *A_B, "--input", "1x3", *OUT], ["add --align weights"]),
    "a factory": (["mean", *A_B, "--align", "weights", "--model", "nets.py:smal", *OUT], ["'smal'", "'small'"]),
    "a module of other tensors": (["mean", *A_B, *ALIGN, "--input", "1x3", *OUT], ["tensor", "nets.py:small"]),
    "one model to align": (["mean", "linear.safetensors", *ALIGN, "--input", "1x3", *OUT], ["one model alone"]),
    "no example": (["mean", "linear.safetensors", "linear_b.safetensors", *ALIGN, *OUT],
                   ["an example input is needed", "nets.py:small", "--input SHAPE"]),
}  # fmt: skip


def everything() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


@pytest.mark.parametrize("words, told", CASES.values(), ids=CASES)
def test_it_is_named_and_nothing_is_written(dimat: Dimat, words: list[str], told: list[str]) -> None:
    before = everything()
    code, out, err = dimat("merge", *words)
    assert (code, out) == (2, ""), err
    for sentence in told:
        assert sentence in err
    after = {path: content for path, content in everything().items() if "__pycache__" not in path}
    assert after == before


@pytest.mark.parametrize("words, told", [CASES[name] for name in ("another shape", "no base", "too little memory")])
def test_a_dry_run_finds_the_same(dimat: Dimat, words: list[str], told: list[str]) -> None:
    code, _, err = dimat("merge", *words, "--dry-run")
    assert code == 2
    assert all(sentence in err for sentence in told)


def test_a_card_in_the_way_is_not_overwritten(dimat: Dimat) -> None:
    Path("out.safetensors.merge.json").write_text("mine")
    code, _, err = dimat("merge", "mean", *A_B, *OUT)
    assert code == 2
    assert "out.safetensors.merge.json exists already" in err
    assert Path("out.safetensors.merge.json").read_text() == "mine"


def test_a_folder_of_other_things_is_never_replaced(dimat: Dimat) -> None:
    Path("no_model/thesis.tex").write_text("mine")
    code, _, err = dimat("merge", "mean", "folder", "folder_b", "--out", "no_model", "--force")
    assert code == 2
    assert "folder of other things" in err
    assert Path("no_model/thesis.tex").read_text() == "mine"


def test_a_full_disk_is_told_before_anything_is_read(dimat: Dimat, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage._replace(free=10))
    code, _, err = dimat("merge", "mean", *A_B, *OUT)
    assert code == 2
    assert "its disk has 10 left" in err


def test_aligning_needs_room_for_two_models(dimat: Dimat) -> None:
    torch.manual_seed(0)
    for name in ("x", "y"):
        save_file({"weight": torch.randn(400, 300), "bias": torch.randn(400)}, f"{name}.safetensors")
    Path("nets.py").write_text("from torch import nn\ndef small():\n    return nn.Linear(300, 400)\n")
    words = ["merge", "mean", "x.safetensors", "y.safetensors", *ALIGN, "--input", "1x300", *OUT]
    code, _, err = dimat(*words, "--memory", "1MB")
    assert code == 2
    assert "--memory" in err
    assert not list(Path().glob(".*"))


def test_an_option_typo_in_a_recipe_is_named(dimat: Dimat) -> None:
    recipe = {"method": "ties", "models": A_B, "base": "base.safetensors", "options": {"densty": 0.2}}
    Path("r.json").write_text(json.dumps(recipe))
    code, _, err = dimat("merge", "--recipe", "r.json", *OUT)
    assert code == 2
    assert "no option 'densty'. Did you mean 'density'" in err
