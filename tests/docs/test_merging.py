"""docs/merging.md is true: its Python runs, its recipes are read, its commands do what they say, its links lead on."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dimat.cli.app import main
from dimat.merge import fold
from dimat.recipes.mergekit import METHODS
from dimat.recipes.specs import SPECS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "merging.md").read_text(encoding="utf-8")
PYTHON, YAML, CONSOLE = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("python", "yaml", "console"))
COMMANDS = [line for block in CONSOLE for line in block.splitlines()]


def test_everything_on_the_page_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    for recipe in YAML:
        Path(recipe.splitlines()[0].removeprefix("# ")).write_text(recipe)
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 0, f"{command}\n{err}"
        if "--format json" in command:
            told = re.search(r"`\{(method, [^}]*)\}`", TEXT)
            assert told is not None
            assert list(json.loads(out)) == told[1].split(", ")
    assert Path("ties.safetensors").read_bytes() == Path("again.safetensors").read_bytes()
    models = [load_file(f"{name}.safetensors") for name in ("math", "code", "base")]
    expected = fold("ties", models[:2], models[2], [1, 0.5], density=0.5, scale=0.9)
    for name, x in load_file("from_recipe/model.safetensors").items():
        torch.testing.assert_close(x, expected[name])
    for block in PYTHON[1:]:
        exec(block, names)


def test_the_table_has_every_method_of_mergekit_that_is_read() -> None:
    rows = re.findall(r"^\| (`.*?`) \| `(\w+)`", TEXT, re.MULTILINE)
    told = {name: ours for names, ours in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == {name: SPECS[name].ours for name in METHODS}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
