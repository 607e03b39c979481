"""Models on their way into a ledger, kept in a folder of their own until they are absorbed.

    uploads/<digest>.partial                  what has come so far; outlives connections and the server
    uploads/00000012-<digest>.safetensors     whole, on the disk, and waiting: the number is the order of completion
    uploads/00000012-<digest>.json            its name, weight and sender
    uploads/lock                              held by the one server of this ledger

A model is never larger than the base's entries in float64, and all together never take more than `max_bytes`: room is
set aside when an upload begins. One sender at a time has the lease of a model; the newest of the same session takes
over. A whole model that the ledger could not absorb (a full disk, a defect) is tried again when it is offered again and
by the next server; until then it is the first to go when others need the room.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dimat.continual.incoming import IncomingModel
from dimat.continual.lease import UploadLease
from dimat.continual.state import sync_folder
from dimat.errors import DimatError, PeerUnavailable, UsageError
from dimat.files import write_atomically
from dimat.transport.continual import Held, Offer

PARTIAL = ".partial"
LOCK = "lock"
_WHOLE = re.compile(r"(\d{8})-([0-9a-f]{64})\.safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that has arrived, and was written down with what its journal entry shall say."""

    number: int
    digest: str
    path: Path
    name: str
    weight: float
    who: str


class Uploads:
    """The folder of a ledger's uploads; one process at a time opens it.

    Args:
        folder: made when it is not there.
        max_bytes: what all uploads together may take.
        expire_s: seconds without a new byte after which a partial upload is forgotten.
        clock: seconds since the epoch, as in the files' times.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, expire_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._expire_s = expire_s
        self._clock = clock
        self._mutex = threading.Lock()
        self._active: dict[str, UploadLease] = {}
        self._models: dict[str, IncomingModel] = {}  # of this process, with what is known of them
        self._aside: set[Path] = set()  # whole ones that could not be absorbed
        self._lock: BinaryIO | None = None

    def open(self) -> list[Whole]:
        """Take the folder; the models that an earlier server received whole and did not live to absorb, in order.

        Raises:
            UsageError: another process has it.
            DimatError: it cannot be written to.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / LOCK).open("wb")
        except OSError as error:
            raise DimatError(
                f"ledger {self.folder.parent} cannot be served: {error.strerror or error}: {self.folder}",
                hint="models on their way are kept in the ledger's folder, which must let itself be written to",
            ) from error
        try:
            fcntl.flock(self._lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(
                f"ledger {self.folder.parent} is served by another process already",
                hint="one server for each ledger: send models to that one, or end it",
            ) from None
        self.expire()
        return self._whole_ones()

    def close(self) -> None:
        """Let go of the folder; what is in it stays. A second call does nothing."""
        with self._mutex:
            for lease in self._active.values():
                lease.revoke()
            self._active.clear()
            self._models.clear()
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def begin(self, offer: Offer, who: str) -> UploadLease | Held:
        """The lease of a model's upload, or what to wait for while another session has it.

        Args:
            offer: the model.
            who: what the journal shall say of its sender.

        Raises:
            PeerUnavailable: there is no room now.
        """
        with self._mutex:
            if self._lock is None:
                raise PeerUnavailable("the ledger's server is leaving")
            holder = self._active.get(offer.digest)
            if holder is not None:
                if holder.offer.session != offer.session:
                    return Held(holder.freed)
                holder.revoke()
            model = self._models.get(offer.digest)
            if model is None or model.broken or model.tensors != offer.tensors:
                model = IncomingModel(self.folder / f"{offer.digest}{PARTIAL}", offer.tensors, offer.checksums)
            self._make_room(model)
            lease = UploadLease(offer, who, model, self._ended)
            self._active[offer.digest], self._models[offer.digest] = lease, model
            return lease

    def finish(self, lease: UploadLease) -> Whole:
        """Write a model down as whole, after `lease.sync()`."""
        offer = lease.offer
        with self._mutex:
            numbers = [int(found[1]) for one in self.folder.iterdir() if (found := _WHOLE.fullmatch(one.name))]
            number = max(numbers, default=0) + 1
            path = self.folder / f"{number:08}-{offer.digest}.safetensors"
            note = {"name": offer.name, "weight": offer.weight, "who": lease.who}
            write_atomically(path.with_suffix(".json"), json.dumps(note))
            lease.model.path.rename(path)
            self._models.pop(offer.digest, None)
            sync_folder(self.folder)  # before anybody is told: a power cut must not take the names away
        return Whole(number, offer.digest, path, offer.name, offer.weight, lease.who)

    def remove(self, whole: Whole) -> None:
        """Forget a model that was absorbed, or refused."""
        with self._mutex:
            self._remove(whole.path)

    def set_aside(self, whole: Whole) -> None:
        """Keep a model that could not be absorbed, for as long as nobody needs its room."""
        with self._mutex:
            self._aside.add(whole.path)

    def take_up(self, whole: Whole) -> bool:
        """Whether a model that was set aside is still there; from now on its room is its own again."""
        with self._mutex:
            self._aside.discard(whole.path)
            return whole.path.exists()

    def expire(self) -> None:
        """Forget partial uploads that nobody has gone on with for too long."""
        with self._mutex:
            for path in self._idle():
                silent_s = self._clock() - path.stat().st_mtime
                if silent_s > self._expire_s:
                    log.info("%s was not gone on with for %.0f s and is forgotten", path.name, silent_s)
                    self._forget(path)

    # ---------------------------------------------------------------------------------------------------------- room

    def _make_room(self, model: IncomingModel) -> None:
        """Forget what was set aside, then idle partial uploads, the oldest first, until one more model fits."""
        whole = sum(one.stat().st_size for one in self.folder.glob("*.safetensors") if one not in self._aside)
        coming = {lease.model.path: lease.model.num_file_bytes for lease in self._active.values()}
        coming[model.path] = model.num_file_bytes
        idle = {path: path.stat().st_size for path in [*self._set_aside(), *self._idle()] if path != model.path}
        for path in [*idle]:
            if whole + sum(coming.values()) + sum(idle.values()) <= self._max_bytes:
                return
            level = logging.INFO if path.suffix == PARTIAL else logging.WARNING
            log.log(level, "%s makes room for another upload", path.name)
            self._forget(path)
            del idle[path]
        if shutil.disk_usage(self.folder).free < model.num_file_bytes - model.position:
            raise PeerUnavailable(f"there is no room on the server's disk for {model.num_file_bytes:,} bytes")
        if whole + sum(coming.values()) > self._max_bytes:
            raise PeerUnavailable(
                f"busy: {len(coming) - 1} models are being received and {whole:,} bytes wait to be absorbed; together "
                f"with this one they would take more than the {self._max_bytes:,} bytes that are allowed"
            )

    def _idle(self) -> list[Path]:
        """Partial uploads that nobody has the lease of, the oldest first."""
        held = {lease.model.path for lease in self._active.values()}
        found = [path for path in self.folder.glob(f"*{PARTIAL}") if path not in held]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _set_aside(self) -> list[Path]:
        """Whole models that could not be absorbed, the oldest first."""
        return sorted(path for path in self._aside if path.exists())

    def _ended(self, lease: UploadLease, drop: bool) -> None:
        """A lease was given back; `drop` forgets what came."""
        with self._mutex:
            if self._active.get(lease.offer.digest) is lease:
                del self._active[lease.offer.digest]
                if drop:
                    self._forget(lease.model.path)

    def _forget(self, path: Path) -> None:
        self._remove(path)
        self._models.pop(path.name.removesuffix(PARTIAL), None)

    def _remove(self, path: Path) -> None:
        """Delete an upload and its note."""
        self._aside.discard(path)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)

    def _whole_ones(self) -> list[Whole]:
        found = []
        for path in sorted(self.folder.iterdir()):
            match = _WHOLE.fullmatch(path.name)
            if match and not path.with_suffix(".json").exists():
                path.rename(self.folder / f"{match[2]}{PARTIAL}")  # a power cut: whoever sends it again tells its name
            elif match:
                try:
                    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                    found.append(Whole(int(match[1]), match[2], path, note["name"], note["weight"], note["who"]))
                except (ValueError, LookupError, TypeError) as error:
                    log.warning("%s is damaged, and its model waits to be sent again: %s", path.stem, error)
                    path.with_suffix(".json").unlink()
                    path.rename(self.folder / f"{match[2]}{PARTIAL}")
            elif path.suffix == ".json" and not path.with_suffix(".safetensors").exists():
                path.unlink()  # killed between the note and the model's new name: it is still a partial one
        return found
