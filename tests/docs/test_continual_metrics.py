"""What docs/continual_metrics.md shows runs: its task, its list and its commands, one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dimat.cli.app import app
from dimat.modelfile import write_model

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "continual_metrics.md").read_text(encoding="utf-8")
(PYTHON,), (YAML,), (CONSOLE,) = (
    re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("python", "yaml", "console")
)


def test_every_command_runs_after_the_ones_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tasks.py").write_text(PYTHON)
    (tmp_path / "tasks.yaml").write_text(YAML)
    for seed, name in enumerate(("base", "upright-model", "turned-model")):
        torch.manual_seed(seed)
        write_model(tmp_path / f"{name}.safetensors", {"1.weight": torch.randn(2, 16), "1.bias": torch.randn(2)})
    printed = ""
    for command in CONSOLE.splitlines():
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        printed = result.stdout
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.count("│") > 2}
    assert re.search(r"[+-]0\.\d{3}", rows["BWT"]), printed
    assert "my_tasks.py:Upright" in rows and "turned" in rows
    assert (tmp_path / "accuracy.png").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
