"""docs/robustness.md is true: its settings are read, its links lead on, its defaults are those of the methods."""

import re
import shlex
from pathlib import Path

import pytest

from dimat.agent.build import build_method
from dimat.agent.checks import MEMORY
from dimat.config import load_config
from dimat.merge import find_method, options_of

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "robustness.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_settings_that_there_are(command: str) -> None:
    words = shlex.split(command)
    settings = [words[i + 1] for i, word in enumerate(words) if word == "-s"]
    assert words[:2] == ["dimat", "run"] and settings
    config = load_config(None, settings)
    build_method(config)
    assert config.merge != load_config(None).merge


@pytest.mark.parametrize(
    ("method", "words", "option"),
    [
        ("clipping", r"`quantile: ([\d.]+)`", "quantile"),
        ("trimmed_mean", r"`trim` \(([\d.]+)\)", "trim"),
        ("krum", r"`num_liars: (\d+)`", "num_liars"),
    ],
)
def test_the_defaults_it_names_are_those_of_the_methods(method: str, words: str, option: str) -> None:
    told = re.search(words, TEXT)
    assert told is not None
    assert float(told[1]) == options_of(find_method(method))[option].default


def test_the_memory_it_names_is_that_of_the_checks() -> None:
    assert MEMORY == 5
    assert "the last five merges" in " ".join(TEXT.split())


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))) or ["robustness.md"])
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
