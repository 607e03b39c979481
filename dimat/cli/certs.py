"""`dimat certs`: a private authority for a lab, and the certificates of those who take part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from dimat.cli.options import Format, OutputFormat, Quiet, Verbose, set_up_logging
from dimat.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Certificates: who may take part in a run, and as whom.",
)

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the authority and its certificates.")]


@app.command("new")
def new(
    folder: Dir,
    name: Annotated[str, typer.Option(help="What the authority is called.")] = "dimat lab",
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long it is valid.")] = 3650,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make a private authority in DIR: authority.pem, which everybody gets, and authority.key, which nobody does.

    \b
    Example:
      dimat certs new certs
    """
    set_up_logging(verbose, quiet)
    from dimat.transport.authority import new_authority

    path = new_authority(folder, name=name, days=days)
    if format is Format.json:
        typer.echo(json.dumps({"authority": str(path)}))
    elif not quiet:
        typer.echo(f"made the authority {path}; whoever holds {path.with_suffix('.key')} decides who takes part")


@app.command("issue")
def issue(
    folder: Dir,
    agent: Annotated[
        Optional[int],
        typer.Option("--agent", metavar="ID", min=0, max=999_999_999, help="For agent ID."),
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="For the coordinator, or a served ledger.")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin", help="For whoever may end or change a run.")] = False,
    onlooker: Annotated[bool, typer.Option("--onlooker", help="For whoever may only watch.")] = False,
    host: Annotated[
        list[str],
        typer.Option("--host", metavar="HOST", help="A name or address of its machine; may be given several times."),
    ] = [],
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long it is valid.")] = 365,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Issue one certificate by the authority in DIR. Its key is written with mode 0600; nothing is overwritten.

    \b
    Examples:
      dimat certs issue certs --agent 3 --host node-3.example.org
      dimat certs issue certs --coordinator --host 10.0.0.1
      dimat certs issue certs --onlooker --days 30
    """
    set_up_logging(verbose, quiet)
    from dimat.transport import security
    from dimat.transport.authority import issue as issue_certificate

    asked = [
        *([security.agent(agent)] if agent is not None else []),
        *(
            identity
            for wanted, identity in (
                (coordinator, security.COORDINATOR),
                (admin, security.ADMIN),
                (onlooker, security.ONLOOKER),
            )
            if wanted
        ),
    ]
    if len(asked) != 1:
        given = ", ".join(str(identity) for identity in asked) or "nobody"
        raise UsageError(
            f"a certificate is for one identity, and was asked for {given}",
            hint="one of --agent ID, --coordinator, --admin, --onlooker",
        )
    path = issue_certificate(folder, asked[0], hosts=host, days=days)
    if format is Format.json:
        told = {"identity": asked[0].uri, "certificate": str(path), "key": str(path.with_suffix(".key"))}
        typer.echo(json.dumps(told))
    elif not quiet:
        names = f"authority.pem, {path.name} and {path.with_suffix('.key').name}"
        typer.echo(f"issued {path} for {asked[0]}: copy {names} to its machine")
