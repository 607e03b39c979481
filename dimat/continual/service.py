"""What a ledger does while it is served: admit models, absorb them one after another, hand out the merged one.

A model that has arrived whole is on the disk, with its name, before anybody is told; one worker absorbs what is there
in the order of completion. Killed at any instant, the next server finds partial models, whole ones, and what is in the
ledger, and goes on: a model that was absorbed and not yet cleared away is known by its digest.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from dimat.continual.entry import AlreadyAbsorbed, Entry
from dimat.continual.lease import UploadLease
from dimat.continual.ledger import Ledger
from dimat.continual.merging import MergedModels
from dimat.continual.offered import check_offer, claimed, most_bytes, schema_of
from dimat.continual.uploads import Uploads, Whole
from dimat.errors import DimatError, PeerUnavailable, UsageError
from dimat.merge.digest import digest_of
from dimat.merge.source import OnDisk
from dimat.messages import Schema
from dimat.modelfile import open_model
from dimat.transport.continual import Held, Lease, LedgerEntry, LedgerStatus, MergedReader, Offer, Queued

UPLOADS = "uploads"
MODELS_OF_ROOM = 8
HEADER_BYTES = 1 << 20
"""Room for what stands before a model's bytes in its file, beyond what the tensors' names take."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    """A whole model, the session that sent it, and what becomes of it; `old` when an earlier server received it."""

    whole: Whole
    session: str = ""
    old: bool = False
    ticket: int = 0
    entry: Future[tuple[LedgerEntry, bool]] = field(default_factory=Future)


class ContinualService:
    """Implements `dimat.transport.continual.ContinualHandler` for a ledger.

    Args:
        ledger: the ledger; others may write to it meanwhile.
        max_upload_bytes: what models on their way may take on the disk; by default eight of the largest possible.
        expire_h: hours without a new byte after which a partial upload is forgotten.
    """

    def __init__(self, ledger: Ledger, *, max_upload_bytes: int | None = None, expire_h: float = 24.0) -> None:
        self._ledger = ledger
        self._schema = schema_of(ledger.base)
        names = sum(2 * len(spec.name) + 10 * len(spec.shape) + 128 for spec in self._schema.tensors)
        one = most_bytes(self._schema) + names + HEADER_BYTES
        self._max_bytes = MODELS_OF_ROOM * one if max_upload_bytes is None else max_upload_bytes
        self._least_bytes = one
        self._uploads = Uploads(ledger.path / UPLOADS, max_bytes=self._max_bytes, expire_s=expire_h * 3600)
        self._merged = MergedModels(ledger, ledger.path / UPLOADS / "merged")
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}  # by digest: waiting, being absorbed, or failed for want of a disk
        self._num_enqueued = self._num_taken = 0
        self._leaving = False
        self._worker: threading.Thread | None = None

    @property
    def schema(self) -> Schema:
        """Of the base."""
        return self._schema

    def start(self) -> None:
        """Take the folder of uploads, and begin to absorb what an earlier server left.

        Raises:
            UsageError: the ledger cannot be served, or another process does.
        """
        if self._ledger.fold.stats:
            raise UsageError(
                f"merge method {self._ledger.manifest.method!r} needs {', '.join(self._ledger.fold.stats)} statistics "
                "with every model, which cannot be submitted",
                hint="dimat continual add LEDGER MODEL --stats FILE",
            )
        if self._max_bytes < self._least_bytes:
            raise UsageError(
                f"{self._max_bytes:,} bytes for uploads are too few: one model may take {self._least_bytes:,}",
            )
        for whole in self._uploads.open():
            self._enqueue(_Job(whole, old=True))
        self._merged.clear()
        self._worker = threading.Thread(target=self._work, name="dimat-absorb", daemon=True)
        self._worker.start()

    def leave(self) -> None:
        """Admit and begin nothing any more; a second call does nothing."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            job.entry.set_exception(PeerUnavailable("the server is leaving; it holds the model and absorbs it later"))

    def stop(self) -> None:
        """Leave, and finish the model that is being absorbed; those that wait stay on the disk."""
        self.leave()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.join()
            self._merged.clear()
            self._uploads.close()

    # ------------------------------------------------------------------------------------------------ what is asked

    def begin(self, offer: Offer, peer: str) -> LedgerEntry | Queued | Held | Lease:
        """See `ContinualHandler.begin`."""
        check_offer(offer, self._schema)
        self._uploads.expire()
        with self._changed:
            if self._leaving:
                raise PeerUnavailable("the server is leaving")
            job = self._jobs.get(offer.digest)
            if job is not None and job.entry.done():  # it failed for a reason that may have passed
                del self._jobs[offer.digest]
                job = _Job(job.whole, job.session) if self._uploads.take_up(job.whole) else None
                if job is not None:
                    self._enqueue(job)
            if job is not None:
                return self._queued(job, others=offer.session != job.session)
            entries = self._ledger.entries()
            for entry in entries:
                if entry.digest == offer.digest:
                    return as_sent(entry)
            self._check_name(offer.name, entries)
            return self._uploads.begin(offer, claimed(offer.who, peer))

    def finish(self, lease: Lease) -> Queued:
        """See `ContinualHandler.finish`."""
        assert isinstance(lease, UploadLease)
        lease.sync()
        with self._changed:
            job = _Job(self._uploads.finish(lease), lease.offer.session)
            self._enqueue(job)
            return self._queued(job)

    def status(self) -> LedgerStatus:
        """See `ContinualHandler.status`."""
        status = self._ledger.status()
        return LedgerStatus(
            method=status.method,
            options=json.dumps(dict(status.options), sort_keys=True),
            base_digest=status.base_digest,
            num_models=status.num_models,
            state_bytes=status.state_bytes,
            models=tuple(as_sent(model.entry, model.cosine_now) for model in status.models),
            version=status.version,
            align=status.align or "",
            update_norm=status.update_norm,
            num_undo=status.num_undo,
        )

    def merged(self, digest: str) -> MergedReader:
        """See `ContinualHandler.merged`."""
        return self._merged.newest(digest)

    def _check_name(self, name: str, entries: Iterable[Entry]) -> None:
        coming = {job.whole.name for job in self._jobs.values() if not job.entry.done()}
        taken = {entry.name for entry in entries} | coming
        if name in taken:
            raise UsageError(
                f"the name {name!r} is taken in the ledger by another model", hint="--name calls this one otherwise"
            )

    # --------------------------------------------------------------------------------------------------- the worker

    def _enqueue(self, job: _Job) -> None:
        with self._changed:
            self._jobs[job.whole.digest] = job
            self._waiting.append(job)
            self._num_enqueued += 1
            job.ticket = self._num_enqueued
            self._changed.notify_all()

    def _queued(self, job: _Job, others: bool = False) -> Queued:
        # Asked on the loop: two numbers, without the mutex that is held while the journal is read.
        return Queued(job.entry, lambda: max(0, job.ticket - self._num_taken), others)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._leaving)
                if self._leaving:
                    return
                job = self._waiting.popleft()
                self._num_taken = job.ticket
            self._absorb(job)

    def _absorb(self, job: _Job) -> None:
        """Absorb one model, and tell those who wait; it stays on the disk only when it may be tried again."""
        whole, failure = job.whole, None
        result: tuple[LedgerEntry, bool] | None = None
        try:
            if job.old and digest_of(OnDisk(open_model(whole.path))) != whole.digest:
                raise UsageError("its bytes were damaged on the server's disk: send it again")
            entry = self._ledger.add(whole.path, name=whole.name, weight=whole.weight, who=whole.who)
            result = as_sent(entry), False
            log.info("absorbed %s, number %d, %s", entry.name, entry.order, entry.who)
        except AlreadyAbsorbed as error:
            result = as_sent(error.entry), True
        except UsageError as error:
            failure = _renamed(error, whole)
            log.warning("refused %s, %s: %s", whole.name, whole.who, failure)
        except Exception as error:  # a disk that is full, or a defect: the model is kept
            text = str(error) if isinstance(error, DimatError) else f"{type(error).__name__}: {error}"
            told = None if isinstance(error, DimatError) else error  # a defect is told with where it is
            log.error("%s could not be absorbed, and is kept: %s", whole.name, text, exc_info=told)
            self._uploads.set_aside(whole)
            job.entry.set_exception(DimatError(f"{whole.name} could not be absorbed: {text}"))
            return
        try:
            self._uploads.remove(whole)
        except OSError as error:  # the next server finds it, and knows its digest
            log.warning("%s cannot be cleared away: %s", whole.path, error.strerror or error)
        with self._changed:
            del self._jobs[whole.digest]
        if result is not None:
            job.entry.set_result(result)
        else:
            job.entry.set_exception(failure)


def as_sent(entry: Entry, cosine_now: float | None = None) -> LedgerEntry:
    """A journal's entry as it travels."""
    return LedgerEntry(
        name=entry.name,
        digest=entry.digest,
        order=entry.order,
        weight=entry.weight,
        norm=entry.norm,
        time=entry.time,
        who=entry.who,
        cosine=entry.cosine,
        version=entry.version,
        cosine_now=cosine_now,
    )


def _renamed(error: UsageError, whole: Whole) -> UsageError:
    """The error as its sender understands it: they do not know the server's files."""
    return type(error)(str(error).replace(str(whole.path), whole.name), hint=error.hint)
