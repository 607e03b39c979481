"""A small private authority for a lab: one key pair in a folder, and a certificate for each identity of a run.

    authority.pem  authority.key        who is believed; the key stays with whoever issues
    agent-3.pem    agent-3.key          copied, with authority.pem, to where agent 3 lives

Keys are written with mode 0600 and nothing is ever overwritten. An institution with an authority of its own needs none
of this: `dimat.transport.security` says what its certificates must hold.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimat.errors import UsageError
from dimat.files import check_name
from dimat.transport.security import DOMAIN, Identity, check_validity

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
LOCAL_HOSTS = ("localhost", "127.0.0.1")
_BACKDATED = timedelta(minutes=5)
"""Certificates are valid from a little earlier, so that machines whose clocks differ can use them at once."""
_HOST = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*")


def new_authority(folder: Path, *, name: str = "dimat lab", days: int = AUTHORITY_DAYS) -> Path:
    """Make an authority in `folder`, which is made when it is not there; returns the certificate's path.

    Raises:
        UsageError: there is one already, or the folder cannot be written.
    """
    from cryptography import x509

    check_name(folder, "certificates")
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise UsageError(f"--name {name!r} cannot name an authority, expected 1 to 64 printable characters")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be made: {error.strerror}") from None
    _refuse_existing(folder / "authority.pem", folder / "authority.key")
    key, subject = _new_key(), _subject(name)
    builder = (
        _builder(subject, subject, key, *_validity(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return _write_pair(folder, "authority", key, _signed(builder, key))


def issue(folder: Path, identity: Identity, *, hosts: Sequence[str] = (), days: int = CERTIFICATE_DAYS) -> Path:
    """Issue a certificate for `identity` by the authority in `folder`; returns its path.

    Args:
        folder: holds the authority's certificate and key; the new pair is written beside them.
        identity: what the certificate proves.
        hosts: names and addresses of its machine, for clients other than dimat's own.
        days: how long it is valid from now.

    Raises:
        UsageError: there is such a certificate already, no authority, a host that can be none, or too many days.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names = [_host_name(host) for host in hosts or LOCAL_HOSTS]
    authority, authority_key = _load_authority(folder)
    _refuse_existing(folder / f"{identity.name}.pem", folder / f"{identity.name}.key")
    start, end = _validity(days)
    if end > authority.not_valid_after_utc:
        left = (authority.not_valid_after_utc - datetime.now(UTC)).days
        raise UsageError(
            f"a certificate of {days} days would outlive its authority, which ends on "
            f"{authority.not_valid_after_utc:%Y-%m-%d}",
            hint=f"--days {left}, or a new authority",
        )
    # Only who serves may be taken for a server: an onlooker's certificate cannot answer in anybody's place.
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.role in ("agent", "coordinator"):
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    key = _new_key()
    builder = (
        _builder(_subject(str(identity)), authority.subject, key, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.host), *names]
            ),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    return _write_pair(folder, identity.name, key, _signed(builder, authority_key))


def issue_missing(folder: Path, identities: Iterable[Identity], *, hosts: Sequence[str] = ()) -> list[Identity]:
    """Issue what `folder` has no certificate for yet; returns for whom.

    Raises:
        UsageError: something is missing and the folder holds no authority that could issue it.
    """
    missing = [one for one in identities if not (folder / f"{one.name}.pem").is_file()]
    if missing and not (folder / "authority.key").is_file():
        names = ", ".join(str(one) for one in missing)
        raise UsageError(
            f"--certs {str(folder)!r} holds no certificates of {names}, and no authority.key to issue them with",
            hint=f"`dimat certs new {folder}` makes a private authority",
        )
    for identity in missing:
        issue(folder, identity, hosts=hosts)
    return missing


# --------------------------------------------------------------------------------------------------------------- pieces


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    check_name(folder, "certificates")
    try:
        certificate = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
        key = load_pem_private_key((folder / "authority.key").read_bytes(), None)
    except FileNotFoundError as error:
        raise UsageError(
            f"{str(folder)!r} has no {Path(error.filename).name}: there is no authority to issue with",
            hint=f"`dimat certs new {folder}` makes one",
        ) from None
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"the authority in {str(folder)!r} is not PEM as expected: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UsageError(f"{folder / 'authority.key'} is not the key of {folder / 'authority.pem'}")
    check_validity(certificate, folder / "authority.pem")
    return certificate, key


def _host_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it.

    Raises:
        UsageError: it is no host, a wildcard, or a name that stands for an identity.
    """
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise UsageError(f"--host {host!r} is neither a host's name nor an address", hint="for example --host node-7")
    if f".{host.lower()}".endswith(f".{DOMAIN}"):
        raise UsageError(
            f"--host {host!r}: names under {DOMAIN} stand for identities, and each certificate is for one alone"
        )
    return x509.DNSName(host)


def _validity(days: int) -> tuple[datetime, datetime]:
    if not 1 <= days <= 36500:
        raise UsageError(f"--days {days} is out of range, expected 1 to 36500")
    now = datetime.now(UTC)
    return now - _BACKDATED, now + timedelta(days=days)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(**granted: bool) -> x509.KeyUsage:
    from cryptography import x509

    every: dict[str, Any] = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**(every | granted))


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())  # what every TLS library takes


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} is there already, and is not overwritten", hint="remove it first, if it must go")


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> Path:
    """Key first: a certificate without its key would look issued."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    _create(folder / f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _create(folder / f"{name}.pem", certificate, 0o644)
    return folder / f"{name}.pem"


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        # The mode from the first moment on: there is no instant at which others could open a key.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        _refuse_existing(path)
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
