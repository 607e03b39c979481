"""What `--certs DIR` and `--insecure` mean to a command; plain text beyond this machine is said in red."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dimat.errors import ConfigError, UsageError
from dimat.transport.security import (
    COORDINATOR,
    ONLOOKER,
    Credentials,
    Identity,
    agent,
    held_identities,
    load_credentials,
)

if TYPE_CHECKING:
    from dimat.config import RunConfig

SOON = timedelta(days=7)

log = logging.getLogger(__name__)


def credentials_for(certs: Path | None, identity: Identity, config: RunConfig | None = None) -> Credentials | None:
    """What proves `identity`; None without --certs, which the config may forbid.

    Raises:
        UsageError: see `load_credentials`; or there are no certificates and `security.certificates` is `required`.
    """
    if config is not None:
        refuse_without_certificates(config, certs)
    if certs is None:
        return None
    credentials = load_credentials(certs, identity)
    if credentials.expires_at - datetime.now(UTC) < SOON:
        log.warning(
            "the certificate of %s expires on %s UTC; connections that are made after that are refused",
            identity,
            f"{credentials.expires_at:%Y-%m-%d %H:%M}",
        )
    return credentials


def client_credentials(certs: Path | None, name: str | None) -> Credentials | None:
    """What a client that may be anybody proves itself with: the identity called `name`, else the only one there is.

    Raises:
        UsageError: --certs holds none, or several and none is named.
    """
    if certs is None:
        if name is not None:
            raise UsageError(f"--as {name} needs --certs DIR, where the certificate is")
        return None
    held = [identity for identity in held_identities(certs) if identity != COORDINATOR]
    chosen = [identity for identity in held if name in (None, identity.name)]
    if len(chosen) != 1:
        names = ", ".join(identity.name for identity in held) or "none"
        asked = f"has no {name}" if name is not None else "does not say by itself who you are"
        raise UsageError(
            f"--certs {str(certs)!r} {asked}; it holds certificates for clients: {names}",
            hint="name one with --as, or issue one with `dimat certs issue`",
        )
    return credentials_for(certs, chosen[0])


@dataclass(frozen=True, slots=True)
class Line:
    """How a client of a served ledger speaks to it."""

    credentials: Credentials | None = None
    insecure: bool = False

    def settings(self) -> dict[str, Any]:
        """The same, as arguments."""
        return {"credentials": self.credentials, "insecure": self.insecure}


PLAIN = Line()


def open_line(address: str, certs: Path | None, name: str | None, insecure: bool) -> Line:
    """How to speak to the server at `address`, from what was typed; plain text beyond this machine is told in red.

    Raises:
        UsageError: certificates and --insecure at once, or certificates that do not say who calls.
    """
    from dimat.transport.grpc.channels import check_dial, check_one_way

    check_one_way(certs is not None, insecure)
    line = Line(client_credentials(certs, name), insecure)
    if line.credentials is None:
        check_dial(address, insecure)
        warn_of_plain_text(address.rpartition(":")[0], None)
    return line


def refuse_certificates(path: Path, certs: Path | None, name: str | None) -> None:
    """Raise UsageError where certificates were given for a ledger that is a folder."""
    if certs is not None or name is not None:
        raise UsageError(f"--certs and --as are for a ledger that is served at HOST:PORT, and {path} is not an address")


def refuse_without_certificates(config: RunConfig, certs: Path | None) -> None:
    """Raise ConfigError when the run's config asks for certificates and there are none."""
    if certs is None and config.security.certificates == "required":
        raise ConfigError(
            "security.certificates is 'required', and no certificates are given",
            hint="--certs DIR; `dimat certs new DIR` makes a private authority",
        )


def issue_for_run(certs: Path, config: RunConfig) -> None:
    """Issue what a run on this machine needs and `certs` has not, and look through all of it.

    Raises:
        UsageError: something is missing and there is no authority; something is expired, or does not fit.
    """
    from dimat.transport.authority import issue_missing

    needed = [COORDINATOR, ONLOOKER, *(agent(number) for number in range(config.agents))]
    issued = issue_missing(certs, needed)
    if issued:
        log.info("issued certificates of %s in %s", ", ".join(str(identity) for identity in issued), certs)
    for identity in needed:
        credentials_for(certs, identity)


def warn_of_plain_text(host: str, credentials: Credentials | None) -> None:
    """Say in red that what goes over `host` can be read and changed; nothing where it stays on this machine."""
    from dimat.transport.grpc.channels import is_loopback

    if credentials is not None or is_loopback(host):
        return
    typer.secho(
        f"INSECURE: plain text on {host}. Whoever is on that network can read the models, change them, and take part "
        "in anybody's name.",
        fg="red",
        bold=True,
        err=True,
        color=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
    )
