"""What is said between a ledger that is served and those who send it models; and what stands behind its service.

Frozen values, as in `dimat.messages`, and the protocol of the handler whose calls may block: the service calls it from
threads beside its loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from dimat.messages import PROTOCOL_VERSION, Schema, TensorSpec

CHECKSUM_BYTES = 32
"""Of a SHA-256: unlike the agents' checksums, these name what they belong to, also towards somebody who lies."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that somebody wants to see absorbed; the fields are those of the message in `continual.proto`."""

    digest: str
    tensors: tuple[TensorSpec, ...]
    checksums: tuple[bytes, ...]
    name: str
    weight: float = 1.0
    who: str = ""
    session: str = ""
    protocol: int = PROTOCOL_VERSION

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.num_bytes for spec in self.tensors)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of a ledger's journal."""

    name: str
    digest: str
    order: int
    weight: float
    norm: float
    time: str
    who: str
    cosine: float | None = None
    version: int = 0
    cosine_now: float | None = None


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """Where a submitted model stands: `waiting`, `receiving`, `queued`, `absorbed` or `present`."""

    state: str
    position: int = 0
    ahead: int = 0
    entry: LedgerEntry | None = None


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """What is in a ledger; `options` is a JSON object."""

    method: str
    options: str
    base_digest: str
    num_models: int
    state_bytes: int
    models: tuple[LedgerEntry, ...] = ()
    version: int = 0
    protocol: int = PROTOCOL_VERSION
    align: str = ""
    update_norm: float = 0.0
    num_undo: int = 0


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model that is about to be streamed out."""

    digest: str
    tensors: tuple[TensorSpec, ...]
    checksums: tuple[bytes, ...]
    version: int = 0
    num_models: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.num_bytes for spec in self.tensors)


def model_digest(tensors: Iterable[TensorSpec], checksums: Iterable[bytes]) -> str:
    """The digest of a model, from the SHA-256 of each tensor: the one of `dimat.merge.digest`, without its entries.

    >>> model_digest([TensorSpec("w", "float32", (2,))], [bytes(32)])[:16]
    '0b540e238f96f389'
    """
    whole = hashlib.sha256()
    for spec, checksum in sorted(zip(tensors, checksums, strict=True), key=lambda pair: pair[0].name):
        whole.update(f"{spec.name}\t{spec.dtype}\t{list(spec.shape)}\t{checksum.hex()}\n".encode())
    return whole.hexdigest()


# ------------------------------------------------------------------------------------------------- behind the service


class Lease(Protocol):
    """The right to send one model's bytes; one at a time for each model."""

    @property
    def position(self) -> int:
        """Bytes held so far."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole model."""

    def open(self) -> None:
        """Find out what is held already; before that, `position` says nothing.

        Raises:
            PeerUnavailable: there is no room now, or the lease was taken over.
        """

    def take(self, position: int, data: memoryview) -> None:
        """Store the bytes that belong at `position`.

        Raises:
            PayloadError: they are not the next ones, or not what was announced.
            UsageError: they hold NaN or Inf.
            PeerUnavailable: the lease was taken over.
        """

    def release(self) -> None:
        """Give the right back; what was received is kept. A second call does nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else has the lease of this model: ask again when `until` is done."""

    until: Future[None]


@dataclass(frozen=True, slots=True)
class Queued:
    """The model has arrived whole.

    Attributes:
        entry: will be its line in the journal, and whether it was there before.
        ahead: how many are absorbed before it.
        others: whether somebody else has sent it.
    """

    entry: Future[tuple[LedgerEntry, bool]]
    ahead: Callable[[], int]
    others: bool = False


class MergedReader(Protocol):
    """A merged model's bytes."""

    @property
    def merged(self) -> Merged:
        """What it is."""

    def read(self, position: int, num_bytes: int) -> bytes:
        """At most `num_bytes` of the sequence, from `position` on."""

    def close(self) -> None:
        """It is not needed any more; a second call does nothing."""


class ContinualHandler(Protocol):
    """What a ledger does behind its service. Methods may block, and are called from several threads."""

    @property
    def schema(self) -> Schema:
        """Of the base."""

    def begin(self, offer: Offer, peer: str) -> LedgerEntry | Queued | Held | Lease:
        """Look at an offer that was made from the address `peer`.

        Raises:
            SchemaError: it is not of the base's shape.
            UsageError: its name, weight or digest cannot be.
            PeerUnavailable: there is no room now, or the service is leaving.
        """

    def finish(self, lease: Lease) -> Queued:
        """Have what has arrived whole absorbed."""

    def status(self) -> LedgerStatus:
        """What is in the ledger."""

    def merged(self, digest: str) -> MergedReader:
        """The newest merged model; the one of `digest`, unless that is empty.

        Raises:
            RoundGone: the newest has another digest.
            UsageError: there is nothing to merge yet.
        """
