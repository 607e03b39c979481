"""The commands that are one process of a run on many machines, and the one that looks at the ways between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dimat.cli.options import (
    Certs,
    Config,
    Format,
    Insecure,
    Out,
    OutputFormat,
    Quiet,
    Seed,
    Set,
    Verbose,
    overrides,
    set_up_logging,
)

app = typer.Typer()


@app.command()
def agent(
    config: Config = None,
    id: Annotated[
        Optional[int], typer.Option("--id", help="Who this agent is; by default torchrun's RANK.", min=0)
    ] = None,
    coordinator: Annotated[
        Optional[str],
        typer.Option(metavar="HOST:PORT", help="Where the coordinator listens; under torchrun found by itself."),
    ] = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    bind: Annotated[
        str, typer.Option(metavar="HOST", help="Listen at this host; the port is any free one.")
    ] = "127.0.0.1",
    advertise: Annotated[Optional[str], typer.Option(metavar="HOST", help="The host that others dial.")] = None,
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Be one agent, under torchrun or by itself.

    \b
    Examples:
      torchrun --standalone --nproc-per-node 5 -m dimat agent run.yaml
      dimat agent run.yaml --id 3 --coordinator 10.0.0.1:7000 --bind 0.0.0.0 --advertise 10.0.0.4 --certs certs
    """
    set_up_logging(max(verbose, 1), quiet, certs)
    from dimat.cli.agent import agent_command

    code = agent_command(
        config, id, coordinator, overrides(settings, seed), out, bind, advertise, insecure, format.value, certs
    )
    raise typer.Exit(code)


@app.command()
def coordinator(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Listen at this host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen at this port; 0 is any free one.", min=0, max=65535)] = 0,
    advertise: Annotated[Optional[str], typer.Option(metavar="HOST", help="The host that agents dial.")] = None,
    parent: Annotated[
        Optional[int], typer.Option(metavar="PID", help="End when this parent process has ended.")
    ] = None,
    owner: Annotated[
        Optional[int], typer.Option(metavar="PID", help="Stop the run in order when this parent process has ended.")
    ] = None,
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Follow a run's membership and convergence; sees numbers, never weights.

    \b
    Example:
      dimat coordinator run.yaml --host 0.0.0.0 --port 7000 --advertise 10.0.0.1 --certs certs
    """
    set_up_logging(max(verbose, 1), quiet, certs)
    from dimat.cli.coordinator import coordinator_command

    code = coordinator_command(
        config, overrides(settings, seed), out, host, port, insecure, format.value, advertise, parent, certs, owner
    )
    raise typer.Exit(code)


@app.command()
def doctor(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    coordinator: Annotated[
        Optional[str], typer.Option(metavar="HOST:PORT", help="Ask it where the agents are that are up.")
    ] = None,
    peers: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Where agents are: {0: HOST:PORT, 1: HOST:PORT, ...}.")
    ] = None,
    bind: Annotated[str, typer.Option(metavar="HOST", help="Where agents of this machine shall listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="A port that must be free; 0 is any.", min=0, max=65535)] = 0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond this machine.")] = False,
    certs: Annotated[Optional[Path], typer.Option(metavar="DIR", help="Look at these certificates and keys.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for each edge.")] = 10.0,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Dial every edge, look at ports, clocks, disk and certificates; exit code 1 when something has to be done.

    Without --coordinator and --peers stand-ins for all agents are started in this process.

    \b
    Examples:
      dimat doctor run.yaml
      dimat doctor run.yaml --coordinator 10.0.0.1:29401 --certs certs
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.doctor import doctor_command

    raise typer.Exit(
        doctor_command(
            config,
            overrides(settings, seed),
            out,
            coordinator,
            peers,
            bind,
            port,
            insecure,
            certs,
            timeout_s,
            format.value,
        )
    )
