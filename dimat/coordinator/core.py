"""The coordinator behind its service: takes what agents say, concludes, writes down, answers, in this order.

All thinking is done by the pure functions of `run`; here is the lock around it, the store under it and the view made
of it. A call ends after what it brought is on disk, so a coordinator that is killed and started again on the same
folder has lost nothing that it acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from dimat.config import RunConfig
from dimat.coordinator.changes import NUM_TOLD, last_round_of
from dimat.coordinator.convergence import Outcome, Stop
from dimat.coordinator.membership import Group, Seat, is_of
from dimat.coordinator.options import Options
from dimat.coordinator.run import Note, Run, Step, advance, forgive, on_beat, on_drain, on_join, on_report, on_stop
from dimat.coordinator.store import Event, Store, StoredMember
from dimat.coordinator.view import news, view_of
from dimat.errors import UsageError
from dimat.messages import Change, Directive, Drain, Heartbeat, Join, Report, View

NUMBERS_RESERVED = 1000
"""View numbers claimed on disk at a time: a restarted coordinator goes on above all that the last one can have used."""

MAX_SKETCH_BYTES = 1 << 16
"""Four times what agents send: reports wait in memory until their round is complete."""

NUM_TICKS_MISSED = 8
"""After as many ticks without a step the coordinator's process stood still: it was stopped, or its machine slept."""

CHATTER_S = 0.5
"""What agents are doing right now changes with every heartbeat; onlookers hear of it at most this often."""


class Coordinator:
    """Implements `dimat.transport.base.ControlHandler`; calls may come from several threads.

    Args:
        config: the run's config.
        diameter: of the topology, in hops (for changing topologies: the rounds that news takes to reach everybody).
        store: an open store; what an earlier coordinator wrote there is taken up.
        lease_s: seconds of silence after which an agent counts as lost; None for the config's `membership.lease_s`.
        tick_s: how often `tick` is called. Where nothing was done for much longer, this process itself stood still and
            could hear nobody: that time counts for no lease. None where the caller ticks when it likes.
        members_stop: whether an agent's wish to stop is everybody's; see `Options`.
        clock: seconds that only grow, for leases. A clock that stands still means that nobody is ever late.
        wall_clock: seconds since the epoch, for events.
    """

    def __init__(
        self,
        config: RunConfig,
        diameter: int,
        store: Store,
        *,
        lease_s: float | None = None,
        tick_s: float | None = None,
        members_stop: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.options = replace(Options.of(config, diameter, lease_s=lease_s), members_stop=members_stop)
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._stood_still_s = float("inf") if tick_s is None else NUM_TICKS_MISSED * tick_s
        self._stepped_s = clock()
        self._changed = threading.Condition(threading.RLock())
        self._run = restore(clock(), store, self.options)
        self._number = self._reserved = int(store.meta("view_numbers") or 0)
        self._shown: Any = None
        self._shown_s = float("-inf")

    # ----------------------------------------------------------------------------------------- what agents call

    def join(self, join: Join) -> View:
        """Admit an agent; the view may still be `forming`.

        Raises:
            UsageError: no agent of that id is in this run.
        """
        with self._changed:
            self._step(partial(on_join, join=join, options=self.options))
            view = self.view()
            seat = self._run.group.seats[join.agent]
            # Whoever comes back alone goes on after a round of its own.
            return replace(view, start_round=seat.start_round) if seat.state == "running" else view

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """Note that an agent is alive. What a process says whose seat another one has taken is ignored."""
        with self._changed:
            if not self._is_seated(beat.agent, beat.session):
                reason = f"agent {beat.agent} has not joined as this process"
                return Directive(reason=reason, superseded=self._is_superseded(beat.agent))
            self._step(partial(on_beat, beat=beat, options=self.options))
            return self._directive(beat.agent)

    def report(self, report: Report) -> Directive:
        """Write a report to disk, then answer.

        Raises:
            UsageError: the report is of a round or an agent that this run does not have.
        """
        with self._changed:
            size, rounds = self.options.num_agents, self.options.rounds
            if not (0 <= report.agent < size and 1 <= report.round <= rounds):
                raise UsageError(
                    f"agent {report.agent} reported round {report.round}; this run has agents 0 to {size - 1} "
                    f"and rounds 1 to {rounds}"
                )
            sketches = (report.sketch_before, report.sketch_after)
            if any(len(sketch) % 4 or len(sketch) > MAX_SKETCH_BYTES for sketch in sketches):
                most = MAX_SKETCH_BYTES // 4
                raise UsageError(
                    f"agent {report.agent} sent a sketch that is not a row of at most {most} float32 numbers"
                )
            if not self._is_seated(report.agent, report.session):
                reason = f"agent {report.agent} has not joined as this process; its report was not kept"
                return Directive(reason=reason, superseded=self._is_superseded(report.agent))
            self._step(partial(on_report, report=report, options=self.options), report)
            return self._directive(report.agent)

    def drain(self, drain: Drain) -> Directive:
        """Have one agent leave in order; the answer names its last round.

        Raises:
            UsageError: no such agent is in its rounds.
        """
        with self._changed:
            self._step(partial(on_drain, agent=drain.agent, options=self.options))
            return self._directive(drain.agent)

    def changed(self, after: int, timeout_s: float) -> View:
        """The view, as soon as its number is above `after` or `timeout_s` seconds have passed."""
        with self._changed:
            self._show()
            self._changed.wait_for(lambda: self._number > after, timeout_s)
            return self.view()

    # ------------------------------------------------------------------------------------- what its process calls

    def tick(self) -> None:
        """Notice what nobody says: agents that fell silent. Call it every second or so."""
        with self._changed:
            self._step(partial(advance, options=self.options))

    def request_stop(self, reason: str) -> None:
        """The user's wish: all agents stop after the round that the fastest of them is in."""
        with self._changed:
            self._step(lambda now, run: _then_advance(now, on_stop(run, reason, self.options), self.options))

    def note(self, kind: str, text: str) -> None:
        """Write an event that concerns the coordinator itself."""
        with self._changed:
            self._step(lambda now, run: (run, (Note(kind, text),)))

    def remember(self, key: str, value: Any) -> None:
        """Keep a value in the store, such as the address."""
        with self._changed, self._store.transaction():
            self._store.put_meta(key, value)

    def view(self) -> View:
        """The picture as it is now."""
        with self._changed:
            self._show()
            return view_of(self._clock(), self._number, self._run)

    @property
    def newest_round(self) -> int:
        """The newest round that anybody has reported."""
        return self._run.newest

    @property
    def finished(self) -> bool:
        """Whether nobody is left to wait for."""
        return self._run.outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended; None while it has not."""
        return self._run.outcome

    # ---------------------------------------------------------------------------------------------------- inside

    def _is_seated(self, agent: int, session: str) -> bool:
        return 0 <= agent < self.options.num_agents and is_of(self._run.group.seats[agent], session)

    def _is_superseded(self, agent: int) -> bool:
        """Whether another process has taken the agent's seat, as far as is known: none is known of an empty one."""
        return 0 <= agent < self.options.num_agents and self._run.group.seats[agent].state in ("joined", "running")

    def _directive(self, agent: int) -> Directive:
        """What an agent is told. One that waits to begin is not told of a stop that belongs to the time before."""
        run = self._run
        changes = run.changes[-NUM_TOLD:]
        last = last_round_of(run.group.seats[agent], run.changes)
        # Not those who may still come back, because they were done before this coordinator was started.
        since = self._clock() - self.options.lease_s
        done = tuple(seat.agent for seat in run.group.in_state("done") if not seat.presumed or seat.heard_s < since)
        if last is not None and (run.stop is None or last < run.stop.stop_after):
            return Directive(last, f"agent {agent} was asked to leave", changes, newest_round=run.newest, done=done)
        addresses = {seat.agent: seat.join.address for seat in run.group.seats if seat.rejoined and seat.join}
        if run.stop is None or (run.stop_restored and run.group.seats[agent].state == "joined"):
            return Directive(None, run.reason, changes, addresses, newest_round=run.newest, done=done)
        return Directive(run.stop.stop_after, run.stop.reason, changes, addresses, newest_round=run.newest, done=done)

    def _step(self, step: Callable[[float, Run], Step], report: Report | None = None) -> None:
        """Conclude, then write, then remember: when the disk refuses, nothing has happened."""
        before, now = self._run, self._clock()
        pause_s, self._stepped_s = now - self._stepped_s, now
        after, notes = step(now, forgive(now, before, pause_s) if pause_s > self._stood_still_s else before)
        _write(self._store, self._wall_clock(), before, after, notes, report)
        self._run = after
        self._show()

    def _show(self) -> None:
        """Give the view a new number if there is news; wake those who wait for it."""
        important, chatter = news(self._run)
        now = self._clock()
        shown = self._shown
        due = shown is None or shown[0] != important or (shown[1] != chatter and now - self._shown_s >= CHATTER_S)
        if not due:
            return
        if self._number >= self._reserved:
            self._reserved += NUMBERS_RESERVED
            self.remember("view_numbers", self._reserved)
        self._number += 1
        self._shown, self._shown_s = (important, chatter), now
        self._changed.notify_all()


def _then_advance(now: float, step: Step, options: Options) -> Step:
    run, notes = advance(now, step[0], options)
    return run, (*step[1], *notes)


def restore(now: float, store: Store, options: Options) -> Run:
    """The run as the store knows it. Whoever was running is presumed to be, for one lease from now.

    Agents that had joined and waited for a start join again; so do all agents of a run that had ended.
    """
    summaries = tuple(store.summaries())
    known = store.meta("run") or {}
    ended = store.outcome() is not None
    group = replace(
        Group.empty(options.num_agents), forming=known.get("forming", True) or ended, start_round=known.get("start", 0)
    )
    newest = {report.agent: report for report in store.reports(sketches=False)}
    members = store.stored_members()
    going_on = not ended and any(member.state == "running" for member in members.values())
    for agent, member in members.items():
        state = "absent" if ended or member.state == "joined" else member.state
        if member.state == "joined" and going_on:  # it was coming back: it may still, and is missed meanwhile
            group = group.with_seat(Seat(agent, "lost", heard_s=now))
            continue
        last = newest.get(agent)
        group = group.with_seat(
            Seat(
                agent,
                state,
                member.join,
                heard_s=now,
                presumed=True,
                start_round=member.start_round,
                rejoined=agent in known.get("rejoined", ()),
                draining=agent in known.get("draining", ()),
                round=last.round if last else member.start_round,
                at=last.round if last else member.start_round,
                metrics=last.metrics if last else {},
                error=member.error,
            )
        )
    next_round = summaries[-1].round + 1 if summaries else 1
    pending: dict[int, dict[int, Report]] = {}
    for report in store.reports(after=next_round - 1):
        pending.setdefault(report.round, {})[report.agent] = report
    stop = Stop(**known["stop"]) if known.get("stop") else None
    return Run(
        group=group,
        reason=known.get("reason", ""),
        summaries=summaries,
        pending=pending,
        next_round=next_round,
        newest=max((report.round for report in newest.values()), default=0),
        stop=stop,
        stop_restored=stop is not None,
        changes=tuple(
            Change(**{**told, "away": tuple(told["away"]), "leaving": tuple(told.get("leaving", ()))})
            for told in known.get("changes", ())
        ),
    )


def _write(
    store: Store, time_s: float, before: Run, after: Run, notes: tuple[Note, ...], report: Report | None
) -> None:
    """Bring the store from one run to the next in one transaction; none when nothing worth keeping changed."""
    seats = [
        new
        for old, new in zip(before.group.seats, after.group.seats, strict=True)
        if new is not old and new.join is not None and _kept(old) != _kept(new)
    ]
    if not (report or notes or seats or _facts(before) != _facts(after) or before.outcome != after.outcome):
        return
    with store.transaction():
        if report is not None:
            store.add_report(report)
        if after.newest < before.newest:
            store.drop_rounds_after(after.newest)
        summarised = {summary.round for summary in before.summaries if summary.round <= after.newest}
        for summary in after.summaries:
            if summary.round not in summarised:
                store.add_summary(summary)
        for seat in seats:
            assert seat.join is not None
            store.put_member(seat.agent, StoredMember(seat.join, seat.state, seat.start_round, seat.error))
        store.put_meta("run", _facts(after))
        if after.outcome is not None or before.outcome is not None or not after.group.forming:
            store.put_meta("outcome", asdict(after.outcome) if after.outcome else None)
        for note in notes:
            store.add_event(Event(time_s, note.kind, note.text, note.round, note.agent))


def _kept(seat: Seat) -> Any:
    return seat.state, seat.join, seat.start_round, seat.error


def _facts(run: Run) -> dict[str, Any]:
    return {
        "forming": run.group.forming,
        "start": run.group.start_round,
        "reason": run.reason,
        "stop": asdict(run.stop) if run.stop else None,
        "changes": [asdict(change) for change in run.changes],
        "draining": [seat.agent for seat in run.group.seats if seat.draining],
        "rejoined": [seat.agent for seat in run.group.seats if seat.rejoined],
    }
