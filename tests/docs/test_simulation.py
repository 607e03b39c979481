"""docs/simulation.md is true: its commands run with its config, its Python runs, its keys are those of the config."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from dimat.cli.app import main
from dimat.config import SimulationConfig
from dimat.report import load_record

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "simulation.md").read_text(encoding="utf-8")
YAML, CONSOLE, PYTHON = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("yaml", "console", "python"))


def test_its_commands_run_and_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timed.yaml").write_text(YAML[0])
    told = set(yaml.safe_load(YAML[0])["simulation"])
    assert told | {"vectorise", "checkpoint_every"} == set(SimulationConfig.model_fields)
    for command in CONSOLE[0].splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, command
    plain, as_one, timed = (load_record(Path("runs") / name) for name in ("simulated", "as-one", "timed"))
    assert as_one.config["simulation"]["vectorise"] == "auto"
    assert not [event for event in as_one.events if event.kind == "vectorise"], "it was done as one"
    for mine, other in zip(plain.summaries, as_one.summaries, strict=True):
        assert other.mean_accuracy == pytest.approx(mine.mean_accuracy, abs=0.01)
    straggler = [report.seconds["train"] for report in timed.reports if report.agent == 2]
    assert timed.seconds > sum(straggler) > 1.0


def test_its_python_runs() -> None:
    for block in PYTHON:
        exec(block, {})


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
