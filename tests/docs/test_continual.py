"""What docs/continual.md shows runs: its commands and its Python, one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dimat.cli.app import app
from dimat.modelfile import write_model

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "continual.md").read_text(encoding="utf-8")
NET = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))\n"


def test_everything_runs_after_what_is_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for seed, name in enumerate(("base", "alpha", "beta", "shuffled")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"0.weight": (8, 16), "0.bias": (8,), "2.weight": (4, 8), "2.bias": (4,)}
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        write_model(tmp_path / f"{name}.safetensors", tensors)
    blocks = re.findall(r"```(console|python)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 6
    printed = []
    for kind, block in blocks:
        if kind == "python":
            exec(block, {})
            continue
        for command in block.splitlines():
            words = shlex.split(command)
            assert words[0] == "dimat"
            result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            printed.append(result.stdout)
    assert any("~" in text and "2 models" in text for text in printed)  # the status, with its estimates
    assert any("beta is in already" in text for text in printed)
    assert any("beta is out again" in text for text in printed)
    assert (tmp_path / "merged.safetensors.merge.json").exists() and (tmp_path / "again.safetensors").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
