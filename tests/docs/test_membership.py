"""What docs/membership.md shows: its config is one, its commands are taken."""

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from dimat.cli.app import app
from dimat.config import MembershipConfig, parse_config

TEXT = (Path(__file__).parents[2] / "docs" / "membership.md").read_text(encoding="utf-8")


def test_the_config_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert parse_config(yaml.safe_load(block), source="docs").num_seats == 8


def test_the_commands_exist_and_the_keys_are_those_of_the_config() -> None:
    for command in re.findall(r"```console\ndimat (\w+)", TEXT):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    named = set(re.findall(r"membership\.(\w+)", TEXT))
    assert named <= set(MembershipConfig.model_fields)
    assert {"lease_s", "repair", "max_staleness", "restarts"} <= named
