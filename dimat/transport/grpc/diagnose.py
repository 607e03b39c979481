"""Why a connection does not come about, when certificates are the reason: gRPC says «Socket closed» to all of it.

One connection is made by hand, with the same certificates, and what happens to it is put in words: which side lacks
what. Nothing is decided here. The connection was refused before, and whatever this finds, it stays refused.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from dimat.transport.security import Credentials, Identity, identity_in

TIMEOUT_S = 2.0
AGAIN_S = 0.1
REFUSED = "this side's certificate is refused there: is it of the same authority, and do both clocks agree?"
_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})


def diagnose(address: str, expected: Identity, credentials: Credentials | None) -> str | None:
    """What is wrong between this side's certificates and those at `address`, as a clause; None if nothing is.

    None as well when nobody listens, or nobody answers within `TIMEOUT_S` seconds: then certificates are not at fault.
    """
    trouble = _look(address, expected, credentials)
    if trouble == REFUSED:
        # Servers hang up without a word, as one does that is just ending: that one will not be there again.
        time.sleep(AGAIN_S)
        trouble = _look(address, expected, credentials)
    return trouble


def _look(address: str, expected: Identity, credentials: Credentials | None) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection:
            if credentials is None:
                return _without_certificates(connection)
            return _with_certificates(connection, expected, credentials)
    except _StrangerError:
        return _who_is_it(address, expected, credentials)
    except (OSError, ValueError):
        return None


class _StrangerError(Exception):
    """The certificate is good, and somebody else's."""


def _without_certificates(connection: socket.socket) -> str | None:
    """Whether TLS is spoken there, which this side cannot."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said, whoever it is
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        # An alert is TLS too; anything else that is no record of TLS is plain text, as it is here.
        if not (error.reason or "").startswith(("TLSV1", "SSLV3", "TLSV13")):
            return None
    except OSError:
        return None
    return "certificates are asked for there, and this side has none: give it --certs DIR"


def _with_certificates(connection: socket.socket, expected: Identity, credentials: Credentials) -> str | None:
    context = ssl.create_default_context(cadata=credentials.authority.decode("ascii"))
    stem = credentials.folder / credentials.identity.name
    context.load_cert_chain(f"{stem}.pem", f"{stem}.key")
    context.set_alpn_protocols(["h2"])
    try:
        secured = context.wrap_socket(connection, server_hostname=expected.host)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            raise _StrangerError from None
        return f"the certificate shown there is not believed here ({error.verify_message})"
    except ssl.SSLError as error:
        if error.reason in _PLAIN:
            return "plain text is spoken there, and this side has certificates: give --certs DIR to that side too"
        return REFUSED if "ALERT" in (error.reason or "") else None
    with secured:
        try:
            # In TLS 1.3 a client is through before the server has judged its certificate: the first byte tells.
            return None if secured.recv(1) else REFUSED
        except TimeoutError:
            return None
        except OSError:  # an alert, or no word at all
            return REFUSED


def _who_is_it(address: str, expected: Identity, credentials: Credentials | None) -> str:
    """Name who answered in the place of `expected`."""
    assert credentials is not None
    context = ssl.create_default_context(cadata=credentials.authority.decode("ascii"))
    context.check_hostname = False
    stem = credentials.folder / credentials.identity.name
    context.load_cert_chain(f"{stem}.pem", f"{stem}.key")
    host, _, port = address.rpartition(":")
    found = None
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection,
            context.wrap_socket(connection) as secured,
        ):
            certificate: Any = secured.getpeercert() or {}
            found = identity_in(value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")
    except OSError:
        pass
    return f"the certificate shown there proves {found or 'nobody that dimat knows'}, not {expected}"
