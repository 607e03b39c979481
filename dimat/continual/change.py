"""What changes a ledger: a model comes in, a model goes out, or the last change is taken back.

Each is: under the lock, write the new state beside, have it on the disk and rename it; then one transaction in the
journal makes it the current one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from dimat.continual.align import Alignment
from dimat.continual.clock import now
from dimat.continual.entry import AlreadyAbsorbed, Entry, Version
from dimat.continual.intact import known_digest
from dimat.continual.journal import Page
from dimat.continual.manifest import ALIGNMENT, Manifest
from dimat.continual.offer import Offer, check_name, name_of, offer_of, same_stats
from dimat.continual.state import reading
from dimat.continual.step import Update, absorb_model, remove_model, update_of
from dimat.continual.store import Store
from dimat.errors import UsageError
from dimat.merge.absorb import Arrival, arrive
from dimat.merge.api import Fold
from dimat.plugins import unknown

StatsPaths = Path | Mapping[str, Path] | None


def add(store: Store, model: Path, name: str | None, weight: float, who: str, again: bool, stats: StatsPaths) -> Entry:
    """See `Ledger.add`."""
    name = check_name(name_of(model) if name is None else name)
    offer = offer_of(store.fold, store.base, model, stats, weight)
    with store.writing(f"adds {name}") as page:
        _check_new(page, offer, name, again)
        arrival = _arrival(store, offer, weight)
        with store.next_state(page) as (old, new):
            taken = absorb_model(store.fold, store.base, old, arrival, new)
            update, digest = _update(store, new.path, arrival, taken.norm)
        entry = Entry(
            name=name,
            digest=offer.digest,
            order=page.last_order + 1,
            weight=arrival.weight + 0.0,  # SQLite knows no negative zero
            norm=taken.norm,
            time=now(),
            who=who,
            cosine=update.cosine,
            version=page.last_version + 1,
            stats=offer.stats_digests,
        )
        version = _version(page, "add", entry, new.path.name, digest, update.norm, who)
        store.journal.add(version, entry, update.sketch, taken.sketch, store.manifest.keep)
        store.clear()
    return entry


def remove(store: Store, name: str, model: Path, who: str, stats: StatsPaths) -> Entry:
    """See `Ledger.remove`."""
    if store.fold.remove is None:
        raise UsageError(
            f"merge method {store.manifest.method!r} cannot take a model out again: what each one added is not kept "
            "apart",
            hint="dimat continual undo goes back while the state before is kept; else build a ledger anew from the "
            "other models",
        )
    _named(store, store.journal.page(), name)
    offer = offer_of(store.fold, store.base, model, stats, 1.0)
    with store.writing(f"removes {name}") as page:
        entry = _named(store, page, name)
        if entry.digest != offer.digest:
            found = next((one.name for one in page.entries if one.digest == offer.digest), None)
            raise UsageError(
                f"{model} has the digest {offer.digest[:12]}, {name!r} in the journal has {entry.digest[:12]}: only "
                "the same model can be taken out",
                hint=f"that model is in the ledger as {found!r}" if found else None,
            )
        same_stats(entry, offer)
        if len(page.entries) == 1:  # back to the empty state itself, without rounding
            version = _version(page, "remove", entry, None, None, 0.0, who)
            store.journal.remove(version, entry, None, store.manifest.keep)
        else:
            arrival = _arrival(store, offer, entry.weight)
            with store.next_state(page) as (old, new):
                remove_model(store.fold, store.base, old, arrival, entry.norm, new)
                update, digest = _update(store, new.path)
            version = _version(page, "remove", entry, new.path.name, digest, update.norm, who)
            store.journal.remove(version, entry, update.sketch, store.manifest.keep)
        store.clear()
    return entry


def undo(store: Store) -> Entry:
    """See `Ledger.undo`."""
    with store.writing("goes back") as page:
        if not page.previous:
            raise UsageError(_nothing_to_undo(page, store.manifest), hint=_other_ways(page, store.fold))
        with store.state(page.previous[0]):  # what would be gone back to: only then may the newest one go
            entry = store.journal.undo(page.current)
        store.clear()
    return entry


def _arrival(store: Store, offer: Offer, weight: float) -> Arrival:
    """The model, in the base's order of units where the ledger aligns, looked over as the fold asks for."""
    if store.manifest.align is not None:
        alignment = Alignment.read(store.path / ALIGNMENT)
        offer = offer.moved(alignment.apply, alignment.match(store.base, offer.source))
    return arrive(store.fold, offer.source, store.base, float(weight), offer.stats, offer.digest)


def _update(store: Store, path: Path, arrival: Arrival | None = None, norm: float = 0.0) -> tuple[Update, str]:
    with reading(path, store.manifest, store.base) as held:
        source = None if arrival is None else arrival.source
        return update_of(store.fold, store.base, held, source, norm), known_digest(path)


def _check_new(page: Page, offer: Offer, name: str, again: bool) -> None:
    for entry in page.entries:
        if entry.digest == offer.digest and not again:
            raise AlreadyAbsorbed(
                f"{offer.source.label} is in the ledger already: as {entry.name!r}, number {entry.order}, added "
                f"{entry.time}{f' by {entry.who}' if entry.who else ''} (digest {entry.digest[:12]})",
                entry,
                hint="--again absorbs it once more; --if-new takes this for success",
            )
    for entry in page.entries:
        if entry.name == name:
            what = "the same" if entry.digest == offer.digest else "another"
            raise UsageError(
                f"the name {name!r} is taken in the ledger by {what} model, number {entry.order}, added {entry.time} "
                f"(digest {entry.digest[:12]})",
                hint="--name calls this one otherwise",
            )


def _named(store: Store, page: Page, name: str) -> Entry:
    known = {entry.name: entry for entry in page.entries}
    if not known:
        raise UsageError(f"ledger {store.path} has no model in it, so there is no {name!r} to take out")
    if name not in known:
        raise UsageError(f"ledger {store.path}: {unknown('model', name, known)}")
    return known[name]


def _version(
    page: Page, action: str, entry: Entry, file: str | None, digest: str | None, norm: float, who: str
) -> Version:
    count = len(page.entries) + (1 if action == "add" else -1)
    assert math.isfinite(norm), "the merge was finite, so its norm is"
    return Version(page.last_version + 1, action, entry.name, file, digest, count, norm, now(), who)


def _nothing_to_undo(page: Page, manifest: Manifest) -> str:
    if page.current.version == 0:
        return "the ledger is empty: there is nothing to undo"
    kept = "1 state" if manifest.keep == 1 else f"{manifest.keep} states"
    return (
        f"the state before version {page.current.version} is not kept any more: this ledger keeps {kept} before the "
        "newest it ever had"
    )


def _other_ways(page: Page, fold: Fold) -> str | None:
    if page.current.version == 0:
        return None
    if fold.remove is not None:
        return "dimat continual remove LEDGER NAME MODEL takes a model out; init --keep N keeps more states"
    return "build a ledger anew from the models that should be in; init --keep N keeps more states"
