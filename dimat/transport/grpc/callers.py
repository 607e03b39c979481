"""Who calls, as far as it is proven, and what that entitles to: the rules of the services, one function each.

A rule is `rule(caller, request)`; it raises `NotAllowed`, or returns and the call goes on. With certificates what a
request claims must be what the caller's certificate proves. In plain text nothing is proven: claims are taken for
what they are, which is why plain text stays on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from dimat.errors import NotAllowed
from dimat.transport.grpc.channels import is_loopback
from dimat.transport.security import Identity, identity_in

Rule = Callable[["Caller", Any], None]
MayRead = Callable[[int], bool]
"""Whether an agent may read this one, by the graph as it is now."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `identity` is None in plain text, and for a certificate that holds none."""

    host: str
    secured: bool
    identity: Identity | None = None

    def __str__(self) -> str:
        if not self.secured:
            return f"somebody at {self.host} (plain text, nothing proven)"
        return f"{self.identity or 'a certificate without an identity'} at {self.host}"


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Who is on the other end of a call."""
    host = context.peer().partition(":")[2].rpartition(":")[0] or context.peer()
    proven = context.auth_context()
    if proven.get("transport_security_type") != [b"ssl"]:
        return Caller(host, secured=False)
    uris = [uri.decode("utf-8", "replace") for uri in proven.get("peer_uri", ())]
    return Caller(host, secured=True, identity=identity_in(uris))


def anybody(caller: Caller, request: Any) -> None:
    """Whoever the authority has given an identity."""
    del request
    if caller.secured and caller.identity is None:
        raise NotAllowed(
            "your certificate is of this authority, and holds no identity that dimat knows",
            hint="`dimat certs issue` writes such certificates",
        )


def require_admin(caller: Caller, request: Any = None) -> None:
    """For calls that end or change a run for others.

    In plain text it is whoever has an account on this machine; from elsewhere nobody can prove to be an admin.
    """
    anybody(caller, request)
    if caller.identity is not None and caller.identity.role != "admin":
        raise NotAllowed(f"this is for an admin, and you are {caller.identity}")
    if not caller.secured and not is_loopback(caller.host):
        raise NotAllowed("this is for an admin, which over plain text nobody beyond this machine can prove to be")


def itself(caller: Caller, claimed: int) -> None:
    """An agent speaks for itself alone."""
    anybody(caller, None)
    if caller.identity is not None and (caller.identity.role, caller.identity.agent) != ("agent", claimed):
        raise NotAllowed(f"you claim to be agent {claimed}, and your certificate proves that you are {caller.identity}")


def peer_rules(agent: int, may_read: MayRead) -> Mapping[str, Rule]:
    """The rules of `dimat.v1.Peer` as agent `agent` serves it."""

    def describe(caller: Caller, request: Any) -> None:
        # Others than agents may look, and say nothing in an agent's name.
        if caller.identity is not None and caller.identity.role != "agent" and not request.acknowledged:
            return
        itself(caller, request.reader)

    def fetch(caller: Caller, request: Any) -> None:
        itself(caller, request.reader)
        if not may_read(request.reader):
            raise NotAllowed(f"agent {request.reader} does not read agent {agent} by the topology")

    return {"/dimat.v1.Peer/Describe": describe, "/dimat.v1.Peer/Fetch": fetch}


def coordinator_rules() -> Mapping[str, Rule]:
    """The rules of `dimat.v1.Coordinator`; who is in the run is the coordinator's own to know."""

    def member(caller: Caller, request: Any) -> None:
        itself(caller, request.agent)

    service = "/dimat.v1.Coordinator/"
    return {
        **{f"{service}{name}": member for name in ("Join", "Heartbeat", "Report")},
        f"{service}Drain": require_admin,
        f"{service}Watch": anybody,
    }


def ledger_rules() -> Mapping[str, Rule]:
    """The rules of `dimat.v1.Continual`: whoever is known may read; agents and admins may add."""

    def contributor(caller: Caller, request: Any) -> None:
        anybody(caller, request)
        if caller.identity is not None and caller.identity.role not in ("agent", "admin"):
            raise NotAllowed(f"models are taken from agents and admins, and you are {caller.identity}")

    service = "/dimat.v1.Continual/"
    return {f"{service}Submit": contributor, f"{service}Status": anybody, f"{service}Export": anybody}
