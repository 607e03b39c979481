"""The README is true: its Python runs, its commands exist with these options, its links and files are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from dimat.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("dimat ", "torchrun "))
]
INLINE = re.findall(r"`(dimat [^`]+)`", README)


def test_every_python_block_runs_after_the_ones_before() -> None:
    assert len(PYTHON) >= 5
    names: dict[str, object] = {}
    for block in PYTHON:
        exec(block, names)
    assert names["merged"].keys() == names["a"].state_dict().keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [*COMMANDS, *INLINE])
def test_every_command_is_understood(command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    words = words[words.index("dimat") + 1 :]
    context = typer.main.get_command(app).make_context("dimat", words, resilient_parsing=False)
    group = context.command
    while hasattr(group, "resolve_command"):
        name, command_found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert command_found is not None, name
        if rest == [] and hasattr(command_found, "resolve_command"):
            return
        context = command_found.make_context(name, list(rest), parent=context)
        group = command_found


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 4
    assert len(INLINE) >= 5


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", README))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_topology_and_the_merge_it_shows_keep_their_contracts(tmp_path: Path) -> None:
    from dimat.merge.check import check_merge
    from dimat.topology import check_topology

    for name, check in (("build", check_topology), ("largest", check_merge)):
        block = next(block for block in PYTHON if f"def {name}(" in block)
        path = tmp_path / f"{name}.py"
        path.write_text(block)
        problems = check(f"{path}:{name}")
        assert problems == []
