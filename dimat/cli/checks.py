"""`dimat check`: what is wrong with a plug-in or a config, told before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimat.cli.options import Format, OutputFormat, Quiet, Set, Verbose, set_up_logging

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Tell the author of a plug-in what is wrong with it."
)


@app.command("task")
def check_task(
    reference: Annotated[str, typer.Argument(metavar="PATH", help="file.py:Class, package.module:Class or a name.")],
    settings: Set = [],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make a task, deal its data and train a step, and say what is wrong.

    \b
    Examples:
      dimat check task my_task.py:Task
      dimat check task arrays -s task.data=mnist.npz -s task.model=mlp
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_task_command

    raise typer.Exit(check_task_command(reference, settings, format.value))


@app.command("topology")
def check_topology(
    reference: Annotated[str, typer.Argument(metavar="PATH", help="A file, file.py:function or a name.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Build a topology in several sizes, rounds and seeds, and say what is wrong."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_topology_command

    raise typer.Exit(check_topology_command(reference, format.value))


@app.command("merge")
def check_merge(
    reference: Annotated[
        str, typer.Argument(metavar="PATH", help="file.py:function, package.module:function or a name.")
    ],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Fold small models in several orders, and say what is wrong."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_merge_command

    raise typer.Exit(check_merge_command(reference, format.value))


@app.command("config")
def check_config(
    config: Annotated[Path, typer.Argument(metavar="PATH", help="A run's config.")],
    settings: Set = [],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Try a config as a run would, without starting anything."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_config_command

    raise typer.Exit(check_config_command(config, settings, format.value))
