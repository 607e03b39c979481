"""Who an agent, a coordinator or an onlooker is, and the files that prove it.

An identity is bound to a certificate twice. The URI name (`dimat:agent:3`) is what a server reads when somebody calls;
the host name (`agent-3.dimat.internal`) is what a client asks for when it dials, so that a certificate of the same
authority but for another identity fails in the handshake, wherever it answers from.

A folder of certificates holds `authority.pem` and, for each identity that lives on this machine, a pair such as
`agent-3.pem` and `agent-3.key`. `dimat.transport.authority` writes such folders; any other authority will do that puts
both names into what it issues.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dimat.errors import UsageError
from dimat.files import check_name

if TYPE_CHECKING:
    from cryptography import x509

Role = Literal["agent", "coordinator", "admin", "onlooker"]

DOMAIN = "dimat.internal"
"""Host names under it stand for identities; `.internal` is reserved for private use and never leads anywhere."""

_URI = re.compile(r"dimat:(?:agent:(0|[1-9][0-9]{0,8})|(coordinator|admin|onlooker))")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate proves: a role, and for agents the id.

    >>> Identity("agent", 3).uri, str(Identity("agent", 3)), Identity("coordinator").host
    ('dimat:agent:3', 'agent 3', 'coordinator.dimat.internal')
    """

    role: Role
    agent: int | None = None

    @property
    def uri(self) -> str:
        """The URI name in its certificate."""
        return f"dimat:{self.role}" if self.agent is None else f"dimat:{self.role}:{self.agent}"

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.role if self.agent is None else f"{self.role}-{self.agent}"

    @property
    def host(self) -> str:
        """The host name in its certificate."""
        return f"{self.name}.{DOMAIN}"

    @property
    def flag(self) -> str:
        """How `dimat certs issue` is asked for it."""
        return f"--{self.role}" if self.agent is None else f"--{self.role} {self.agent}"

    def __str__(self) -> str:
        return {"agent": f"agent {self.agent}", "coordinator": "the coordinator"}.get(self.role, f"an {self.role}")


COORDINATOR = Identity("coordinator")
ADMIN = Identity("admin")
ONLOOKER = Identity("onlooker")


def agent(number: int) -> Identity:
    """The identity of agent `number`."""
    return Identity("agent", number)


def identity_in(uris: Iterable[str]) -> Identity | None:
    """The identity among a certificate's URI names; None when there is none, or more than one.

    >>> identity_in(["spiffe://lab/x", "dimat:agent:3"])
    Identity(role='agent', agent=3)
    >>> identity_in(["dimat:agent:3", "dimat:agent:4"]) is None, identity_in(["dimat:agent:03"]) is None
    (True, True)
    """
    ours = [uri for uri in uris if uri.startswith("dimat:")]
    found = _URI.fullmatch(ours[0]) if len(ours) == 1 else None
    if found is None:
        return None
    if found[1] is not None:
        return agent(int(found[1]))
    return next(one for one in (COORDINATOR, ADMIN, ONLOOKER) if one.role == found[2])


@dataclass(frozen=True, slots=True)
class Credentials:
    """One identity, able to prove itself. The key appears in no text that is made of this."""

    identity: Identity
    authority: bytes = field(repr=False)
    """Certificates of the authority, PEM: whose certificates are believed."""
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    folder: Path
    expires_at: datetime


def load_credentials(folder: Path, identity: Identity) -> Credentials:
    """What `folder` holds for `identity`, looked through before anything starts.

    Raises:
        UsageError: a file is missing or unreadable, the key is open to others or another one's, the certificate is of
            another authority, for another identity, expired or not valid yet; what to do is said.
    """
    check_name(folder, "certificates")
    if not folder.is_dir():
        raise UsageError(
            f"--certs {str(folder)!r} is not a folder", hint=f"`dimat certs new {folder}` makes an authority there"
        )
    authority = _read(folder, "authority.pem", identity)
    certificate = _read(folder, f"{identity.name}.pem", identity)
    key = _read(folder, f"{identity.name}.key", identity)
    _refuse_open_key(folder / f"{identity.name}.key")
    parsed = _check_pair(folder, identity, authority, certificate, key)
    return Credentials(identity, authority, certificate, key, folder, parsed.not_valid_after_utc)


def held_identities(folder: Path) -> list[Identity]:
    """The identities of which `folder` holds certificate and key, coordinator first, agents by id."""
    names = {path.stem for path in folder.glob("*.pem")} & {path.stem for path in folder.glob("*.key")}
    roles = [i for i in (COORDINATOR, ADMIN, ONLOOKER) if i.name in names]
    numbers = (re.fullmatch(r"agent-(0|[1-9][0-9]{0,8})", name) for name in names)
    return roles + [agent(number) for number in sorted(int(found[1]) for found in numbers if found)]


def _read(folder: Path, name: str, identity: Identity) -> bytes:
    path = folder / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        held = ", ".join(str(one) for one in held_identities(folder)) or "nobody"
        raise UsageError(
            f"{str(folder)!r} has no {name}, which {identity} proves itself with; it holds certificates of: {held}",
            hint=f"`dimat certs issue {folder} {identity.flag}` where the authority's key is",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_open_key(path: Path) -> None:
    """A key that others can read proves nothing; reading by the group is how containers are given theirs."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o027:
        raise UsageError(
            f"the private key {path} is open to others (mode {mode:04o}), so it proves nothing",
            hint=f"chmod 600 {path}, and issue a new one if somebody else may have read it",
        )


def _check_pair(folder: Path, identity: Identity, authority: bytes, certificate: bytes, key: bytes) -> x509.Certificate:
    """The parsed certificate, once everything about it is right."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    path = folder / f"{identity.name}.pem"
    try:
        parsed = x509.load_pem_x509_certificates(certificate)[0]
        trusted = x509.load_pem_x509_certificates(authority)
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:  # the text of the error has nothing of the key in it
        raise UsageError(f"{path}, its key or authority.pem is not PEM as expected: {error}") from None
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != parsed.public_key().public_bytes(*spki):
        raise UsageError(f"{path.with_suffix('.key')} is not the key of {path}", hint="copy both of one pair")
    check_validity(parsed, path)
    for issuer in trusted:
        try:
            parsed.verify_directly_issued_by(issuer)
            break
        except (InvalidSignature, ValueError, TypeError):
            continue
    else:
        if len(x509.load_pem_x509_certificates(certificate)) == 1:  # a chain is for the handshake to judge
            raise UsageError(f"{path} was not issued by the authority in {folder / 'authority.pem'}")
    found, names = names_in(parsed)
    if found != identity or identity.host not in names:
        raise UsageError(
            f"{path} does not prove {identity}: it is for {found or 'nobody that dimat knows'} ({', '.join(names)})",
            hint=f"it must hold the names {identity.uri} (URI) and {identity.host} (DNS)",
        )
    return parsed


def check_validity(certificate: x509.Certificate, path: Path) -> None:
    """Raise UsageError when a certificate has expired, or is not valid yet by this machine's clock."""
    now = datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise UsageError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            hint="remove it and its key, and issue a new one with `dimat certs issue`",
        )
    if now < certificate.not_valid_before_utc:
        raise UsageError(
            f"{path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and here it is "
            f"{now:%Y-%m-%d %H:%M}",
            hint="set this machine's clock",
        )


def names_in(certificate: x509.Certificate) -> tuple[Identity | None, list[str]]:
    """The identity in a certificate, and all host names and addresses in it."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None, []
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return identity_in(uris), [*names.get_values_for_type(x509.DNSName), *addresses]
