"""docs/security.md is true: certificates are issued, commands are understood, the config is one, its words are said."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
import yaml

from dimat.cli.app import app, main
from dimat.config import RunConfig, parse_config
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, agent, held_identities, load_credentials

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
YAML, CONSOLE, SAID = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("yaml", "console", "text"))
COMMANDS = [line for block in CONSOLE for line in block.splitlines()]


def test_the_certificates_are_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    issuing = [command for command in COMMANDS if command.startswith("dimat certs")]
    assert len(issuing) >= 6
    for command in issuing:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, command
    assert held_identities(Path("certs")) == [COORDINATOR, ADMIN, ONLOOKER, agent(0), agent(1)]
    for identity in held_identities(Path("certs")):
        load_credentials(Path("certs"), identity)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    words = shlex.split(command)
    words = words[words.index("dimat") + 1 :]
    context = typer.main.get_command(app).make_context("dimat", words, resilient_parsing=False)
    group = context.command
    while hasattr(group, "resolve_command"):
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        context = found.make_context(name, list(rest), parent=context)
        group = found


def test_the_config_is_one_and_tells_the_defaults() -> None:
    config = parse_config(yaml.safe_load(YAML[0]), source="docs/security.md")
    default = RunConfig().security
    assert config.security.certificates == "required"
    assert config.security.max_calls_per_s == default.max_calls_per_s
    assert config.security.max_calls == default.max_calls


def test_what_it_quotes_is_what_is_said() -> None:
    source = (ROOT / "dimat" / "transport" / "grpc" / "diagnose.py").read_text(encoding="utf-8")
    assert len(SAID[0].splitlines()) == 3
    for line in SAID[0].splitlines():
        clause = line.partition(": ")[2].replace("agent 2, not agent 0", "")
        assert clause.strip() in re.sub(r"\{[^}]*\}", "", source), clause


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / "docs" / target).exists()
