"""docs/baselines.md is true: every command runs, at a tiny size; its schedules merge when it says."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from dimat.agent.algorithms import builtin_algorithms
from dimat.agent.build import build_algorithm
from dimat.cli.app import main
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.schedules import BUILTIN

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "baselines.md").read_text(encoding="utf-8")
METHODS, MERGES = TEXT.split("## When models merge")
COMMANDS = re.findall(r"`(dimat simulate[^`]*)`", METHODS)
SCHEDULES = re.findall(r"`(dimat simulate[^`]*)` \| ([\d ]+) \|", MERGES)
TINY = [
    "agents=3", "rounds=1", "train.epochs=1", "train.batch_size=128", "task.model.name=mlp", "task.model.hidden=[8]",
]  # fmt: skip


def settings_of(command: str) -> list[str]:
    words = shlex.split(command)
    return [words[i + 1] for i, word in enumerate(words) if word == "-s"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [word for setting in TINY for word in ("-s", setting)]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *tiny, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    with Store.open(tmp_path / "run", read_only=True) as store:
        told = store.reports()
    assert len(told) == 3 and any(report.bytes_received for report in told)  # of three, one has no pair


def test_the_commands_name_every_algorithm_and_schedule() -> None:
    named = {load_config(None, settings_of(command)).algorithm.name for command in COMMANDS}
    assert named == {"merge", *builtin_algorithms()}
    described = set(re.findall(r"^\| `(\w+)` \|", METHODS, re.MULTILINE))
    assert described == set(builtin_algorithms())
    merges = {load_config(None, settings_of(command)).merge.schedule.name for command, _ in SCHEDULES}
    assert merges == set(BUILTIN)


@pytest.mark.parametrize(("command", "rounds"), SCHEDULES)
def test_the_schedules_merge_when_it_says(command: str, rounds: str) -> None:
    config = load_config(None, settings_of(command))
    assert config.rounds == 20
    assert list(config.merge_schedule().merging) == [int(number) for number in rounds.split()]


def test_its_mapping_is_read() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    values = yaml.safe_load(text)["algorithm"]
    config = load_config(None, [f"algorithm={values}"])
    assert config.algorithm.options == {"ratio": 0.1, "gamma": 0.5}
    assert build_algorithm(config) is not None
