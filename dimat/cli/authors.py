"""The commands for who writes a config or a plug-in: what there is to choose from, and where to begin."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from dimat.cli.options import Format, OutputFormat, Quiet, Verbose, set_up_logging

app = typer.Typer()


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="One method, with its options.")] = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """List the merge methods, the algorithms of a run and the schedules of its merges, or describe one.

    \b
    Examples:
      dimat methods
      dimat methods mean
      dimat methods choco
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.methods import methods_command

    methods_command(name, format.value)


@app.command("config")
def config_command(verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Print the default config, every key explained.

    \b
    Example:
      dimat config > run.yaml
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.config import commented_config

    typer.echo(commented_config(), nl=False)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Becomes NAME.py and NAME.yaml in this folder.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write a task module and a config that run as they are.

    \b
    Example:
      dimat new my_task && dimat run my_task.yaml
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.new import new_task, next_commands

    module, written = new_task(name)
    if format is Format.json:
        typer.echo(f'{{"task": "{module}", "config": "{written}"}}')
        return
    typer.echo(f"wrote {module} and {written}; next:")
    for command in next_commands(module, written):
        typer.echo(f"  {command}")
