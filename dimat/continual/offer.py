"""A model as it comes to a ledger: opened, checked against the base, named by its digest; all before the lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dimat.continual.entry import Entry
from dimat.errors import UsageError
from dimat.merge.absorb import Stats
from dimat.merge.api import Fold
from dimat.merge.digest import digest_of
from dimat.merge.engine import check_models
from dimat.merge.source import OnDisk, Source
from dimat.modelfile import open_model
from dimat.modelfile.model import SUFFIX

_Moves = TypeVar("_Moves")
_MAX_NAME = 200
MAX_WEIGHT = (2 - 2**-23) * 2.0**127
"""The largest number of float32."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that fits the ledger's base.

    Attributes:
        source: the model.
        digest: of the model as it was given.
        stats: its statistics by kind.
        stats_digests: of these, as they were given.
    """

    source: Source
    digest: str
    stats: Stats = field(default_factory=dict)
    stats_digests: Mapping[str, str] = field(default_factory=dict)

    def moved(self, move: Callable[[Source, _Moves], Source], how: _Moves) -> Offer:
        """With model and statistics in another order of units; digests stay."""
        stats = {kind: move(source, how) for kind, source in self.stats.items()}
        return replace(self, source=move(self.source, how), stats=stats)


def offer_of(fold: Fold, base: OnDisk, model: Path, stats: Path | Mapping[str, Path] | None, weight: float) -> Offer:
    """The model in `model`, with its statistics.

    Raises:
        UsageError: it cannot be read, its weight cannot be, or statistics are missing or not asked for.
        SchemaError: the first tensor that the base has otherwise.
    """
    check_weight(weight, str(model))
    source = OnDisk(open_model(model))
    evidence = {kind: OnDisk(open_model(path)) for kind, path in _stats_paths(fold, model, stats).items()}
    check_models(fold, [base, source], [1.0, weight], base, [{}, evidence])
    digests = {kind: digest_of(one) for kind, one in sorted(evidence.items())}
    return Offer(source, digest_of(source), evidence, digests)


def _stats_paths(fold: Fold, model: Path, stats: Path | Mapping[str, Path] | None) -> dict[str, Path]:
    needed = ", ".join(fold.stats)
    if not isinstance(stats, Mapping):
        if stats is not None and len(fold.stats) != 1:
            what = f"{len(fold.stats)} kinds ({needed})" if fold.stats else "none"
            raise UsageError(
                f"{model} comes with statistics in {stats}, the ledger's merge method takes {what}",
                hint="--stats KIND=FILE, once for each" if fold.stats else "leave --stats out",
            )
        stats = {} if stats is None else {fold.stats[0]: Path(stats)}
    for kind in stats:
        if kind not in fold.stats:
            raise UsageError(
                f"{model} comes with {kind} statistics, the ledger's merge method takes {needed or 'none'}"
            )
    for kind in fold.stats:
        if kind not in stats:
            raise UsageError(
                f"{model} comes without {kind} statistics, which the ledger's merge method needs",
                hint=f"--stats {kind}=FILE, with the names and shapes of the model",
            )
    return {kind: Path(path) for kind, path in stats.items()}


def same_stats(entry: Entry, offer: Offer) -> None:
    """Raise UsageError unless the statistics are those that came with the model when it was added."""
    for kind, digest in offer.stats_digests.items():
        if entry.stats.get(kind) != digest:
            raise UsageError(
                f"the {kind} statistics have the digest {digest[:12]}, those that {entry.name!r} was added with have "
                f"{entry.stats.get(kind, 'none')[:12]}: only the same can be taken out"
            )


def name_of(model: Path) -> str:
    """What a model is called unless somebody says otherwise: its file's or folder's name."""
    named = model.name not in ("", "..")  # else resolved; a link is not: its own name is the one that was given
    return (model if named else model.resolve()).name.removesuffix(SUFFIX)


def check_weight(weight: float, whose: str) -> None:
    """Raise UsageError unless `weight` is a number that tensors can be multiplied by, in float32."""
    if not abs(weight) <= MAX_WEIGHT:  # NaN is not, either
        raise UsageError(
            f"the weight of {whose} is {weight:g}, expected a finite number, from {-MAX_WEIGHT:.2g} to {MAX_WEIGHT:.2g}"
        )


def check_name(name: str) -> str:
    """`name` when it may name a model.

    Raises:
        UsageError: it is empty, too long, or not printable.

    >>> check_name("  ")
    Traceback (most recent call last):
    dimat.errors.UsageError: the name '  ' cannot name a model: expected 1 to 200 printable characters
    """
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(
            f"the name {name!r} cannot name a model: expected 1 to {_MAX_NAME} printable characters",
            hint="--name calls it otherwise",
        )
    return name
