"""What there is to know of a ledger without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimat.continual.entry import Entry
from dimat.continual.journal import Journal, Page
from dimat.continual.manifest import STATES, Manifest
from dimat.errors import DimatError


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model of a ledger.

    Attributes:
        entry: what the journal has of it.
        cosine_now: of its task vector and the merged update, as they are now: exact for the newest model, else
            estimated from sketches of 4096 numbers, to about 0.016; None when one of them is zero.
    """

    entry: Entry
    cosine_now: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """A ledger at one moment.

    Attributes:
        method: the merge method.
        options: all of its options.
        base_digest: of the base.
        align: how arrivals are aligned, or None.
        version: the current version.
        state_bytes: size of the state's file; 0 before the first model.
        update_norm: ||merged - base||.
        num_undo: how often `undo` can go back.
        models: those that are in, in order.
    """

    method: str
    options: Mapping[str, Any]
    base_digest: str
    align: str | None
    version: int
    state_bytes: int
    update_norm: float
    num_undo: int
    models: tuple[ModelStatus, ...]

    @property
    def num_models(self) -> int:
        """Models that are in."""
        return len(self.models)

    def as_json(self) -> dict[str, Any]:
        """{method, options, base_digest, num_models, state_bytes, models: [{name, digest, norm, order, ...}], ...}."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "base_digest": self.base_digest,
            "align": self.align,
            "version": self.version,
            "num_models": self.num_models,
            "state_bytes": self.state_bytes,
            "update_norm": self.update_norm,
            "num_undo": self.num_undo,
            "models": [asdict(one.entry) | {"cosine_now": one.cosine_now} for one in self.models],
        }


def status_of(folder: Path, manifest: Manifest, journal: Journal) -> Status:
    """The status of the ledger in `folder`."""
    page = journal.page()
    update, sketches = journal.sketches()
    file = folder / STATES / page.current.file if page.current.file else None
    size = file.stat().st_size if file is not None and file.exists() else 0
    models = tuple(
        ModelStatus(entry, _cosine_now(page, entry, update, sketches.get(entry.order))) for entry in page.entries
    )
    return Status(
        method=manifest.method,
        options=manifest.options,
        base_digest=manifest.base_digest,
        align=manifest.align,
        version=page.current.version,
        state_bytes=size,
        update_norm=page.current.norm,
        num_undo=len(page.previous),
        models=models,
    )


def _cosine_now(page: Page, entry: Entry, update: bytes | None, sketch: bytes | None) -> float | None:
    if entry.version == page.current.version:
        return entry.cosine
    if update is None or sketch is None or not entry.norm or not page.current.norm:
        return None
    # Sketches keep inner products without bias; the norms are known exactly.
    if len(update) != len(sketch) or len(update) % 4:
        raise DimatError(
            f"the journal's sketch of model {entry.name!r} is damaged: it takes {len(sketch)} bytes, that of the "
            f"merged update {len(update)}",
            hint="dimat continual verify names everything that is damaged",
        )
    a, b = (np.frombuffer(one, dtype="<f4").astype(np.float64) for one in (update, sketch))
    estimate = float(a @ b) / (entry.norm * page.current.norm)
    return max(-1.0, min(1.0, estimate)) if math.isfinite(estimate) else None
