"""Who may write the bytes of an upload: one connection at a time, until it gives the right back or loses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from dimat.continual.incoming import IncomingModel
from dimat.errors import DimatError, PayloadError, PeerUnavailable, UsageError
from dimat.transport.continual import Offer


class UploadLease:
    """The right to write one model's bytes; implements `dimat.transport.continual.Lease`.

    Args:
        offer: the model.
        who: what the journal shall say of its sender.
        model: where the bytes go.
        ended: told when the lease was given back, and whether what came shall be dropped.
    """

    def __init__(
        self, offer: Offer, who: str, model: IncomingModel, ended: Callable[[UploadLease, bool], None]
    ) -> None:
        self.offer = offer
        self.who = who
        self.model = model
        self.freed: Future[None] = Future()
        self._ended = ended
        self._mutex = threading.Lock()
        self._revoked = False
        self._closed = False
        self._drop = False

    @property
    def position(self) -> int:
        """Bytes held so far."""
        return self.model.position

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole model."""
        return self.model.num_bytes

    def open(self) -> None:
        """See `Lease.open`."""
        with self._held():
            self.model.open(stopped=lambda: self._revoked)

    def take(self, position: int, data: memoryview) -> None:
        """See `Lease.take`; what is not what was announced is dropped with everything before it."""
        with self._held():
            self.model.take(position, data)

    def sync(self) -> None:
        """Have a whole model on the disk."""
        with self._held():
            if not self.model.whole:
                raise PayloadError(f"the model ended after {self.position} of {self.num_bytes} bytes")
            self.model.finish()

    def revoke(self) -> None:
        """Take the lease away: what is being written is finished, and no more after it."""
        self._revoked = True  # before the mutex: whoever checks old bytes under it looks at this
        with self._mutex:
            if not self._closed:  # the model may be somebody else's by the second call
                self._closed = True
                self.model.suspend()

    def release(self) -> None:
        """See `Lease.release`."""
        self.revoke()
        self._ended(self, self._drop)
        if not self.freed.done():
            self.freed.set_result(None)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The model, while the lease is one; failures decide what becomes of the bytes."""
        with self._mutex:
            if self._revoked:
                raise PeerUnavailable("the upload was taken over by another connection, or the server is leaving")
            try:
                yield
            except (PayloadError, UsageError):
                self._drop = True
                raise
            except OSError as error:
                raise DimatError(f"the upload cannot be written: {error.strerror or error}") from error
