"""How a channel or a server is secured: by certificates on both sides, or plain text that never leaves this machine.

There is no third way and no falling back: a side with certificates speaks TLS 1.2 or newer alone, and one without
speaks plain text alone, so that the two never understand each other.
"""

from __future__ import annotations

import ipaddress

import grpc

from dimat.errors import UsageError
from dimat.transport.grpc import options
from dimat.transport.security import Credentials, Identity


def open_channel(
    address: str,
    expected: Identity,
    credentials: Credentials | None,
    *,
    insecure: bool = False,
    max_message_bytes: int = options.MAX_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """A channel to `expected` at `address`; must be called on the loop.

    The handshake asks for the host name of the identity, not for the address: who answers there with a certificate of
    the same authority but for somebody else is hung up on before a byte is said.

    Raises:
        UsageError: plain text would leave this machine without leave.
    """
    settings = options.client(max_message_bytes)
    if credentials is None:
        check_dial(address, insecure)
        return grpc.aio.insecure_channel(address, options=settings)
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate),
        options=(*settings, ("grpc.ssl_target_name_override", expected.host)),
    )


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """What a server shows; callers without a certificate of the same authority do not get past the handshake."""
    pair = (credentials.key, credentials.certificate)
    return grpc.ssl_server_credentials([pair], credentials.authority, require_client_auth=True)


def check_dial(address: str, insecure: bool) -> None:
    """Refuse to dial beyond this machine in plain text, unless asked for by name.

    Raises:
        UsageError: `address` (HOST:PORT) is not loopback and `insecure` is not set.
    """
    host = address.rpartition(":")[0] or address
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"refusing to dial {address} in plain text: whoever is on that network could read and change what is said",
            hint="take certificates with --certs DIR (`dimat certs new` makes them), or accept that with --insecure",
        )


def check_exposure(bind: str, insecure: bool, credentials: Credentials | None = None) -> None:
    """Refuse to serve plain text beyond this machine, unless asked for by name.

    Raises:
        UsageError: `bind` is not loopback, and neither certificates nor `insecure` are given; or both are.
    """
    check_one_way(credentials is not None, insecure)
    if credentials is None and not insecure and not is_loopback(bind):
        raise UsageError(
            f"refusing to serve models in plain text on {bind!r}: whoever is on that network could read them",
            hint="take certificates with --certs DIR (`dimat certs new` makes them), listen on 127.0.0.1, or accept "
            "that with --insecure",
        )


def check_one_way(has_certificates: bool, insecure: bool) -> None:
    """Refuse certificates and --insecure at once: it would not be said which of them counts.

    Raises:
        UsageError: both are given.
    """
    if has_certificates and insecure:
        raise UsageError("--certs and --insecure exclude each other", hint="with certificates nothing is plain text")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself, whatever a name server says.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("node-7"), is_loopback("localhost")
    (True, True, False, True)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
