"""docs/time.md is true: its config is read, its commands run, its Python runs, its keys are those of the config."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from dimat.cli.app import main
from dimat.config import ExchangeConfig, load_config

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "time.md").read_text(encoding="utf-8")
YAML, CONSOLE, PYTHON = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("yaml", "console", "python"))


def test_its_config_names_every_key_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(YAML[0])
    keys = set(yaml.safe_load(YAML[0])["exchange"])
    assert keys == set(ExchangeConfig.model_fields) - {"encoding"}
    config = load_config(Path("run.yaml"))
    assert config.exchange.model_copy(update={"min_timeout_s": None}) == ExchangeConfig(), "the others are the defaults"
    commands = [command for block in CONSOLE for command in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, command
    assert sorted(path.name for path in Path("runs").iterdir()) == ["time", "time-async", "time-overlap"]


def test_its_python_runs() -> None:
    for block in PYTHON:
        exec(block, {})


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
