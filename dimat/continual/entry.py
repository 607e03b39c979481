"""What a ledger remembers of the models it absorbed, and of each of its versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dimat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that a ledger has absorbed.

    Attributes:
        name: what `remove` and `status` call it.
        digest: of the model as it was given; see `dimat.merge.digest`.
        order: its place in the order of absorption, from 1; not used again after a `remove`.
        weight: its weight.
        norm: ||model - base|| over all floating-point tensors (after alignment, where the ledger aligns).
        time: when it was absorbed, UTC, as 2026-01-31T12:00:00Z.
        who: who added it, as far as that was said.
        cosine: of model - base and merged - base right after it was absorbed; None when one of them is zero.
        version: the version of the ledger that it made.
        stats: digests of the statistics that came with it, by kind.
    """

    name: str
    digest: str
    order: int
    weight: float
    norm: float
    time: str
    who: str
    cosine: float | None
    version: int
    stats: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a ledger, from the empty one on.

    Attributes:
        version: its number; numbers are never used again, also not after an `undo`.
        action: `init`, `add` or `remove`.
        model: the name of the model that was added or removed.
        file: its state's file name under `states/`; None for the empty state.
        digest: SHA-256 of that file.
        num_models: models in it.
        norm: ||merged - base||.
        time: when it was made, UTC.
        who: who made it.
        kept: whether `undo` may come back to it.
    """

    version: int
    action: str
    model: str
    file: str | None
    digest: str | None
    num_models: int
    norm: float
    time: str
    who: str
    kept: bool = True


class AlreadyAbsorbed(UsageError):
    """The ledger has that model; `entry` is where."""

    def __init__(self, message: str, entry: Entry, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.entry = entry
