"""An agent's line to the coordinator over gRPC. A coordinator that is away stops nobody.

Reports keep their order: while one waits to be handed in, later ones queue behind it, and a thread tries again until
each is acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import replace

from dimat.errors import DimatError, NoCoordinator, PeerUnavailable, TransportError, UsageError
from dimat.messages import Directive, Heartbeat, Join, Report, View
from dimat.transport.grpc.coordinator_client import CoordinatorClient
from dimat.transport.memory import still_forming
from dimat.transport.security import Credentials

REPORT_S = 2.0
"""How long the first try to hand in a report may take."""
HEARTBEAT_S = 0.9
JOIN_S = 5.0
"""How long one try to join may take; then it is looked into whether certificates are the reason."""
RETRY_S = 0.5
"""Pause between two tries to reach a coordinator that is away."""

log = logging.getLogger(__name__)


class GrpcControl:
    """Join, heartbeat and report; implements `dimat.transport.base.Control`. Dials when first used.

    Args:
        address: where the coordinator listens, HOST:PORT.
        retry_s: pause between two tries while it is away.
        credentials: who this agent is; with them the coordinator must prove itself too.
        insecure: allow plain text beyond this machine.
    """

    def __init__(
        self,
        address: str,
        *,
        retry_s: float = RETRY_S,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self.address = address
        self._retry_s = retry_s
        self._line = CoordinatorClient(address, credentials=credentials, insecure=insecure)
        self._lock = threading.RLock()
        self._kept: deque[Report] = deque()
        self._directive = Directive()
        self._last_beat: Heartbeat | None = None
        self._wake = threading.Condition(self._lock)
        self._sender: threading.Thread | None = None
        self._closing_at: float | None = None
        self._patience_s = 0.0

    def join(self, join: Join, timeout_s: float) -> View:
        """Enter the run; returns the view once all agents have joined.

        Raises:
            NoCoordinator: nobody answered within `timeout_s` seconds, or certificates keep the two apart.
            PeerUnavailable: not all agents came in that time; says who is missing.
            UsageError: the coordinator refuses this agent and says why.
        """
        deadline = time.monotonic() + timeout_s
        view: View | None = None
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                view = self._line.call("Join", join, View, min(remaining_s, JOIN_S))
                views = self._line.views(view.number, deadline)
                while view.state == "forming" and (changed := next(views, None)) is not None:
                    view = changed
                    if view.state != "forming":  # where this agent begins is for it alone to know: asked once more
                        view = self._line.call("Join", join, View, max(1.0, deadline - time.monotonic()))
                if view.state != "forming":
                    return view
            except TransportError as error:
                log.debug("joining again: %s", error)
                if view is None and (untrusted := self._line.untrusted()) is not None:
                    raise NoCoordinator(str(untrusted)) from None
                # It may come back before the deadline, without what it knew: then joining again is right.
                time.sleep(max(0.0, min(self._retry_s, deadline - time.monotonic())))
        if view is not None:
            raise PeerUnavailable(still_forming(view, timeout_s))
        raise NoCoordinator(
            f"no coordinator at {self.address} after {timeout_s:.0f} s",
            hint="is it running, and is this its address? `dimat coordinator CONFIG` starts one",
        )

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """Say that one is alive; an absent coordinator is no error, and the last directive stands."""
        self._last_beat = beat
        with contextlib.suppress(DimatError):
            self._hear(self._line.call("Heartbeat", beat, Directive, HEARTBEAT_S))
        return self._directive

    def report(self, report: Report) -> Directive:
        """Hand in one round's numbers; kept and sent again later, in order, when the coordinator is away."""
        with self._lock:
            # A sender that is about to end looks at the queue once more, so the report is its.
            waiting = bool(self._kept) or self._sender is not None
            self._kept.append(report)
        if not waiting:
            self._hand_in(REPORT_S)
        with self._lock:
            if self._kept and self._sender is None:
                self._sender = threading.Thread(target=self._send_kept, name="dimat-reports", daemon=True)
                self._sender.start()
        return self._directive

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is still kept, until nothing is taken any more for `timeout_s` seconds, and hang up.

        Whoever was cut off for long has many reports, each of them a round trip. A second call does nothing.
        """
        with self._lock:
            if self._closing_at is None:
                self._patience_s = timeout_s
                self._closing_at = time.monotonic() + timeout_s
            self._wake.notify_all()
            sender = self._sender
        if sender is not None:
            sender.join()
        with self._lock:
            if self._kept:
                rounds = ", ".join(str(report.round) for report in self._kept)
                log.warning("%s did not come back: reports of rounds %s were not handed in", self._line.whom, rounds)
                self._kept.clear()
        self._line.close()

    # ----------------------------------------------------------------------------------------------------- reports

    def _hand_in(self, timeout_s: float) -> bool:
        """Try to send the oldest kept report; True when it is off the queue."""
        with self._lock:
            report = self._kept[0]
        try:
            self._hear(self._line.call("Report", report, Directive, timeout_s))
        except UsageError as error:
            log.warning("the report of round %d was refused and is dropped: %s", report.round, error)
        except DimatError as error:
            log.debug("the report of round %d is kept: %s", report.round, error)
            return False
        with self._lock:
            self._kept.popleft()
            if self._closing_at is not None:
                self._closing_at = time.monotonic() + self._patience_s
        return True

    def _hear(self, directive: Directive) -> None:
        """Take a directive over; what was named already stands, whatever an answer that was overtaken says."""
        with self._lock:
            known = self._directive
            if directive.superseded:  # what it says else is meant for nobody
                self._directive = replace(known, superseded=True)
                return
            if directive.stop_after is None and known.stop_after is not None:
                directive = replace(directive, stop_after=known.stop_after, reason=known.reason)
            if known.changes and (not directive.changes or directive.changes[-1].number < known.changes[-1].number):
                directive = replace(directive, changes=known.changes, addresses=known.addresses)
            self._directive = directive

    def _send_kept(self) -> None:
        while True:
            # A coordinator that comes back must know how far this agent is before it judges an old round.
            if self._last_beat is not None:
                self.heartbeat(self._last_beat)
            with self._lock:
                if not self._kept:
                    self._sender = None
                    return
                closing_at = self._closing_at
            remaining_s = closing_at - time.monotonic() if closing_at is not None else REPORT_S
            if remaining_s <= 0:
                return
            if not self._hand_in(min(REPORT_S, remaining_s)):
                with self._lock:
                    pause_s = self._retry_s if self._closing_at is None else min(0.05, self._retry_s)
                    self._wake.wait(pause_s)
