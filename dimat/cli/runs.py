"""The commands about a run as a whole: start one, simulate one, look at it, have an agent leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimat.cli.options import (
    Certs,
    Config,
    Format,
    Fresh,
    Insecure,
    Out,
    OutputFormat,
    Quiet,
    Seed,
    Set,
    Shape,
    Together,
    Verbose,
    overrides,
    set_up_logging,
)

app = typer.Typer()


@app.command()
def run(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    fresh: Fresh = False,
    launch: Annotated[Shape, typer.Option(help="One torchrun for all agents, or one for each.")] = Shape.together,
    certs: Certs = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run everything on this machine: a coordinator, and the agents by torchrun.

    The same command continues a run that stopped. Certificates that --certs lacks are issued by its authority.

    \b
    Examples:
      dimat run
      dimat run my.yaml -s agents=8 -s topology.graph=torus
      dimat run -s task.partition.scheme=iid --out runs/iid --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import run_command

    raise typer.Exit(
        run_command(config, overrides(settings, seed), out, fresh, launch.value, format.value, verbose, quiet, certs)
    )


@app.command()
def simulate(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    fresh: Fresh = False,
    vectorise: Together = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run the same rounds in one process, over memory instead of a network; ends with the same bits.

    \b
    Examples:
      dimat simulate -s agents=16 -s topology.graph=exponential
      dimat simulate -s agents=64 -s task.model=mlp --vectorise auto
      dimat simulate my.yaml --seed 3 --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import simulate_command

    if vectorise is not None:
        settings = [*settings, f"simulation.vectorise={vectorise.value}"]
    raise typer.Exit(simulate_command(config, overrides(settings, seed), out, fresh, format.value, verbose, quiet))


@app.command()
def drain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its coordinator's HOST:PORT.")],
    agent: Annotated[int, typer.Argument(help="Who shall leave.", min=0)],
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Have one agent leave a run in order: the others are told beforehand, and go on without it.

    Where a run has certificates this takes an admin's.

    \b
    Examples:
      dimat drain runs/hospitals-1f2e3d4c 3
      dimat drain 10.0.0.1:7000 3 --certs certs
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.drain import drain_command

    raise typer.Exit(drain_command(run, agent, format.value, certs, insecure))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write a run's report: one HTML file with everything in it, and the pictures as PNGs.

    \b
    Example:
      dimat report runs/demo
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import report_command

    raise typer.Exit(report_command(run, format.value))
