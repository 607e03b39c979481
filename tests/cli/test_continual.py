"""`dimat continual init, add, status, export, undo, remove, verify` as users type them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dimat.cli import app as command_line
from dimat.continual import Ledger
from dimat.merge import fold
from dimat.merge.digest import digest_of
from dimat.merge.source import OnDisk
from dimat.modelfile import open_model, write_model

Run = Callable[..., tuple[int, str, str]]
COMMANDS = ("init", "add", "status", "export", "undo", "remove", "verify")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and three models."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b", "c"):
        model = {"w": torch.randn(5, 3, generator=generator), "n": torch.tensor(7)}
        write_model(tmp_path / f"{name}.safetensors", model)
    return tmp_path


@pytest.fixture
def dimat(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dimat continual ...` here: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", "continual", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, error = capsys.readouterr()
        return int(ended.value.code or 0), out, error

    return run


def answer(ran: tuple[int, str, str]) -> dict[str, Any]:
    code, out, error = ran
    assert code == 0, error
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def test_a_ledger_from_init_to_export(dimat: Run, home: Path) -> None:
    made = answer(
        dimat("init", "led", "--base", "base.safetensors", "--method", "opcm", "-s", "alpha=0.3", "--format", "json")
    )
    base_digest = digest_of(OnDisk(open_model(home / "base.safetensors")))
    told = {"ledger": "led", "method": "opcm", "base_digest": base_digest, "keep": 1, "align": None}
    assert told.items() <= made.items() and made["options"]["alpha"] == 0.3
    for order, name in enumerate(("a", "b", "c"), 1):
        added = answer(dimat("add", "led", f"{name}.safetensors", "--who", "ada", "--format", "json"))
        assert (added["name"], added["order"], added["num_models"], added["added"]) == (name, order, order, True)
        assert added["digest"] == digest_of(OnDisk(open_model(home / f"{name}.safetensors")))
    status = answer(dimat("status", "led", "--format", "json"))
    assert {"method": "opcm", "base_digest": base_digest, "num_models": 3}.items() <= status.items()
    assert status["options"] == made["options"]
    assert status["state_bytes"] == (home / "led" / "states" / "000003.safetensors").stat().st_size
    models = [open_model(home / f"{name}.safetensors").read_all() for name in "abc"]
    base = open_model(home / "base.safetensors").read_all()
    for order, (entry, model) in enumerate(zip(status["models"], models, strict=True), 1):
        assert entry["order"] == order and entry["who"] == "ada"
        assert entry["norm"] == pytest.approx(float((model["w"].double() - base["w"].double()).norm()))
    exported = answer(dimat("export", "led", "--out", "out.safetensors", "--format", "json"))
    out = open_model(home / "out.safetensors")
    assert exported == {
        "out": "out.safetensors", "digest": digest_of(OnDisk(out)), "version": 3, "method": "opcm", "num_models": 3
    }  # fmt: skip
    torch.testing.assert_close(out.read("w"), fold("opcm", models, base, alpha=0.3)["w"], atol=1e-6, rtol=0)
    code, text, _ = dimat("status", "led")
    assert code == 0 and "opcm, alpha=0.3" in text and "ada" in text and "version 3, 3 models" in text
    assert text.count("~") == 3  # two estimates, and what the mark means


def test_undo_remove_and_verify(dimat: Run, home: Path) -> None:
    answer(dimat("init", "led", "--base", "base.safetensors", "--method", "mean", "--keep", "2", "--format", "json"))
    for name in "abc":
        answer(dimat("add", "led", f"{name}.safetensors", "--format", "json"))
    undone = answer(dimat("undo", "led", "--format", "json"))
    assert (undone["name"], undone["undone"], undone["num_models"], undone["current_version"]) == ("c", "add", 2, 2)
    removed = answer(dimat("remove", "led", "a", "a.safetensors", "--format", "json"))
    assert (removed["name"], removed["num_models"], removed["current_version"]) == ("a", 1, 4)
    left = Ledger.open(home / "led").merged()["w"]
    torch.testing.assert_close(left, open_model(home / "b.safetensors").read("w"), atol=1e-6, rtol=0)
    assert "a is in again: version 2, with 2 models" in dimat("undo", "led")[1]
    assert answer(dimat("verify", "led", "--format", "json")) == {"ledger": "led", "problems": []}
    state = home / "led" / "states" / "000002.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 4
    state.write_bytes(content)
    code, out, _ = dimat("verify", "led")
    assert code == 1 and "000002.safetensors (version 2) was changed" in out
    code, out, _ = dimat("verify", "led", "--format", "json")
    assert code == 1 and len(json.loads(out)["problems"]) == 1


def test_the_same_model_is_refused_or_taken_for_success(dimat: Run, home: Path) -> None:
    dimat("init", "led", "--base", "base.safetensors", "--method", "mean")
    dimat("add", "led", "a.safetensors", "--who", "ada")
    code, out, error = dimat("add", "led", "a.safetensors", "--name", "another")
    assert (code, out) == (2, "") and "is in the ledger already: as 'a', number 1" in error and "--if-new" in error
    code, out, _ = dimat("add", "led", "a.safetensors", "--if-new")
    assert code == 0 and "a is in already: number 1" in out
    told = answer(dimat("add", "led", "a.safetensors", "--if-new", "--format", "json"))
    assert (told["added"], told["num_models"]) == (False, 1)
    assert (
        answer(dimat("add", "led", "a.safetensors", "--again", "--name", "twice", "--format", "json"))["num_models"]
        == 2
    )
    assert dimat("add", "led", "b.safetensors", "--again", "--if-new")[0] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["status", "ledd"], 2, "ledger ledd does not exist. Did you mean 'led'?"),
        (["add", "led", "aa.safetensors"], 2, "Did you mean 'a.safetensors'?"),
        (["add", "led", "a.safetensors", "--stats", "b.safetensors"], 2, "takes none"),
        (["add", "led", "a.safetensors", "--weight", "nan"], 2, "expected a finite number"),
        (["add", "led", "a.safetensors", "--evaluate", "tasks.yaml"], 2, "tasks.yaml"),
        (["export", "led", "--out", "out.safetensors"], 2, "has absorbed no model yet"),
        (["export", "led", "--out", "out.safetensors", "--dtype", "floot32"], 2, "Did you mean 'float32'?"),
        (["undo", "led"], 2, "the ledger is empty"),
        (["remove", "led", "a", "a.safetensors"], 2, "has no model in it"),
        (["init", "led", "--base", "base.safetensors", "--method", "mean"], 2, "is a ledger already, of mean"),
        (["init", "new", "--base", "base.safetensors", "--method", "tise"], 2, "Did you mean 'ties'?"),
        (["init", "new", "--base", "base.safetensors", "--method", "ties", "-s", "density"], 2, "form key=value"),
        (["init", "new", "--base", "base.safetensors", "--method", "ties", "-s", "keep=3"], 2, "has no option 'keep'"),
        (["init", "new", "--base", "base.safetensors", "--method", "ties", "-s", "density=7"], 2, "density is 7"),
        (["init", "new", "--base", "base.safetensors", "--method", "mean", "--model", "n.py:b"], 2, "--align weights"),
        (["init", "new", "--base", "no.safetensors", "--method", "mean"], 2, "does not exist"),
        (["verify", "base.safetensors"], 2, "is no ledger, but a file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_nothing_is_written(
    words: list[str], code: int, message: str, dimat: Run, home: Path
) -> None:
    dimat("init", "led", "--base", "base.safetensors", "--method", "mean")
    before = sorted(home.rglob("*"))
    found, out, error = dimat(*words)
    assert (found, out) == (code, "") and message in error, error
    assert sorted(home.rglob("*")) == before


def test_export_replaces_only_when_told(dimat: Run, home: Path) -> None:
    dimat("init", "led", "--base", "base.safetensors", "--method", "mean")
    dimat("add", "led", "a.safetensors")
    (home / "out.safetensors").write_text("mine")
    code, _, error = dimat("export", "led", "--out", "out.safetensors")
    assert code == 2 and "--force" in error and (home / "out.safetensors").read_text() == "mine"
    answer(dimat("export", "led", "--out", "out.safetensors", "--force", "--dtype", "float64", "--format", "json"))
    assert open_model(home / "out.safetensors").read("w").dtype == torch.float64
    for inside in ("base.safetensors", "states/000001.safetensors", "new.safetensors"):
        code, _, error = dimat("export", "led", "--out", f"led/{inside}", "--force")
        assert code == 2 and "inside of the ledger" in error
    assert Ledger.open(home / "led").verify() == []


def test_alignment_takes_its_example_from_the_command_line(dimat: Run, home: Path) -> None:
    (home / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"
    )
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (6, 4), "0.bias": (6,), "2.weight": (2, 6), "2.bias": (2,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    mixed = (
        base | {name: base[name][order] for name in ("0.weight", "0.bias")} | {"2.weight": base["2.weight"][:, order]}
    )
    write_model(home / "start.safetensors", base)
    write_model(home / "mixed.safetensors", mixed)
    words = ["init", "led", "--base", "start.safetensors", "--method", "task_arithmetic", "--align", "weights"]
    code, _, error = dimat(*words, "--model", "net.py:build")
    assert code == 2 and "--input" in error
    code, _, error = dimat(*words, "--model", "net.py:build", "--input", "1x5")
    assert code == 2 and not (home / "led").exists()
    made = answer(dimat(*words, "--model", "net.py:build", "--input", "1x4", "--format", "json"))
    assert made["align"] == "weights"
    added = answer(dimat("add", "led", "mixed.safetensors", "--format", "json"))
    assert added["norm"] == 0.0  # in the base's order it is the base
    assert added["digest"] == digest_of(OnDisk(open_model(home / "mixed.safetensors")))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    runner = CliRunner()
    shown = runner.invoke(command_line.app, ["continual", command, "--help"])
    assert shown.exit_code == 0 and "Example" in shown.output and f"dimat continual {command} " in shown.output
    assert "--format" in shown.output


def test_the_module_runs_as_a_command(home: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "dimat", "continual", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=home)

    assert run("init", "led", "--base", "base.safetensors", "--method", "mean").returncode == 0
    done = run("add", "led", "a.safetensors", "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "a" and done.stderr == ""
