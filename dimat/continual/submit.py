"""Send a model to a ledger that is served, and fetch the merged one from it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dimat.continual.incoming import IncomingModel
from dimat.continual.offer import name_of
from dimat.continual.outgoing import OutgoingModel
from dimat.errors import DimatError, PayloadError
from dimat.modelfile import check_out, open_model
from dimat.transport.continual import LedgerEntry, Merged, Offer, SubmitAnswer, model_digest
from dimat.transport.grpc.continual_client import ContinualClient
from dimat.transport.security import Credentials

Tell = Callable[[str, int, int], None]
"""What is going on, and how much of it is done: `reading`, `sending` and `receiving` of bytes, `waiting` of nothing."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a model: its line in the journal, and whether that stood there before."""

    entry: LedgerEntry
    present: bool


def submit(
    address: str,
    model: Path,
    *,
    name: str | None = None,
    weight: float = 1.0,
    who: str = "",
    timeout_s: float = 60.0,
    credentials: Credentials | None = None,
    insecure: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Submitted:
    """Send a model to the ledger that is served at `address`; when this returns it is in.

    The model is read twice: for its digest, by which the server knows whether it has it or some of it, and to send what
    is missing. A connection that breaks is made again, and a server that is away is waited for.

    Args:
        address: where the server listens, HOST:PORT.
        model: a file or a folder, with the base's tensors.
        name: what the journal shall call it; by default its file's or folder's name.
        weight: its weight.
        who: who sends it; the server notes this as a claim.
        timeout_s: seconds without a sign of life after which the server is given up.
        credentials: who sends it; with them the server must prove itself too.
        insecure: allow plain text beyond this machine.
        tell: told how far it is, possibly from another thread.

    Raises:
        UsageError: the file cannot be read, or the server refuses it and says why (SchemaError: the first tensor that
            differs, both shapes); nothing was changed.
        PeerUnavailable: the server is away.
        NotTrusted: one side has certificates and the other none, or they do not fit.
        DimatError: the file was changed meanwhile.
    """
    client = ContinualClient(address, timeout_s=timeout_s, credentials=credentials, insecure=insecure)
    outgoing = OutgoingModel.open(open_model(model))
    try:
        total = outgoing.num_bytes
        checksums = outgoing.checksums(lambda done: tell("reading", done, total))
        offer = Offer(
            digest=model_digest(outgoing.tensors, checksums),
            tensors=outgoing.tensors,
            checksums=checksums,
            name=name_of(model) if name is None else name,
            weight=weight,
            who=who,
            session=secrets.token_hex(8),
        )

        def heard(answer: SubmitAnswer) -> None:
            sending = answer.state == "receiving"
            tell("sending" if sending else "waiting", answer.position if sending else total, total)

        answer = client.submit(offer, outgoing.pieces, heard)
    finally:
        outgoing.close()
    assert answer.entry is not None
    return Submitted(answer.entry, answer.state == "present")


def fetch(
    address: str,
    out: Path,
    *,
    overwrite: bool = False,
    timeout_s: float = 60.0,
    credentials: Credentials | None = None,
    insecure: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Merged:
    """Write the merged model of the ledger that is served at `address` to the file `out`.

    The bytes are those of a local export where the base is a file; a folder's shards become one file.

    Raises:
        UsageError: nothing is merged yet, or `out` cannot be written to.
        PeerUnavailable: the server is away.
        DimatError: writing failed; nothing was left behind.
    """
    client = ContinualClient(address, timeout_s=timeout_s, credentials=credentials, insecure=insecure)
    check_out(out, is_folder=False, overwrite=overwrite)
    target = out.resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    incoming: list[IncomingModel] = []

    def begin(merged: Merged) -> None:
        while incoming:
            incoming.pop().suspend()
        beside.unlink(missing_ok=True)
        digests_fit = len(merged.checksums) == len(merged.tensors)
        if not digests_fit or model_digest(merged.tensors, merged.checksums) != merged.digest:
            raise PayloadError("the merged model's digest is not the one that follows from its tensors' digests")
        if len({spec.name for spec in merged.tensors}) != len(merged.tensors):
            raise PayloadError("the merged model has two tensors of one name")
        check_out(out, is_folder=False, num_bytes=merged.num_bytes, overwrite=overwrite)
        incoming.append(IncomingModel(beside, merged.tensors, merged.checksums, merged.metadata))
        incoming[0].open()

    def take(position: int, data: memoryview) -> None:
        incoming[0].take(position, data)
        tell("receiving", incoming[0].position, incoming[0].num_bytes)

    try:
        merged = client.export(begin, take)
        incoming[0].finish()
        beside.replace(target)
    except OSError as error:
        raise DimatError(f"model {out} cannot be written: {error.strerror or error}") from error
    finally:
        while incoming:
            incoming.pop().suspend()
        beside.unlink(missing_ok=True)
    return merged
