"""The command `dimat`. Each command's work lives in a module of its own, imported when the command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dimat.cli import authors, certs, checks, continual, models, processes, runs, topology
from dimat.errors import DimatError

# Plain help: rendering it with rich would cost more than the whole command may take (0.3 s).
app = typer.Typer(
    name="dimat",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (runs, processes, models, authors):
    app.add_typer(commands.app)  # without a name: its commands are those of `dimat` itself
app.add_typer(topology.app, name="topology")
app.add_typer(checks.app, name="check")
app.add_typer(continual.app, name="continual")
app.add_typer(certs.app, name="certs")


def _print_version(asked: bool) -> None:
    if asked:
        from dimat import __version__

        typer.echo(f"dimat {__version__}")
        raise typer.Exit


@app.callback()
def dimat(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Models that were trained apart become one, without moving anybody's data and without a centre.

    Begin with: dimat run
    """
    del version  # its callback has answered


def main() -> None:
    """Run the command line; errors go to stderr, and the exit code tells their kind."""
    try:
        app()
    except DimatError as error:
        typer.echo(f"Error: {error}", err=True)
        if error.hint:
            typer.echo(f"\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
