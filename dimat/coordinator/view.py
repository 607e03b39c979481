"""The run as onlookers see it."""

from __future__ import annotations

from dimat.coordinator.changes import NUM_TOLD
from dimat.coordinator.membership import Seat
from dimat.coordinator.run import Run
from dimat.messages import Member, View


def view_of(now: float, number: int, run: Run) -> View:
    """The view of `run` at time `now` under its number."""
    return View(
        number=number,
        state=run.state,
        start_round=run.group.start_round,
        stop_after=_stop_after(run),
        reason=run.reason,
        members=tuple(_member(now, seat) for seat in run.group.seats),
        newest=run.summaries[-1] if run.summaries else None,
        changes=run.changes[-NUM_TOLD:],
    )


def news(run: Run) -> tuple[object, object]:
    """What a view shows, without the passing of time: what onlookers must hear at once, and what agents do just now."""
    important = (
        run.state,
        run.group.start_round,
        _stop_after(run),
        run.reason,
        tuple((seat.state, seat.round, seat.join.address if seat.join else "") for seat in run.group.seats),
        run.summaries[-1].round if run.summaries else 0,
        run.changes[-1].number if run.changes else 0,
    )
    return important, tuple((seat.phase, seat.waiting) for seat in run.group.seats)


def _stop_after(run: Run) -> int | None:
    """While agents gather to continue a run, the stop that it had before is not theirs."""
    if run.stop is None or (run.stop_restored and run.group.forming):
        return None
    return run.stop.stop_after


def _member(now: float, seat: Seat) -> Member:
    join = seat.join
    return Member(
        agent=seat.agent,
        address=join.address if join else "",
        state=seat.state,
        round=seat.round,
        phase=seat.phase,
        waiting=seat.error or seat.waiting,
        silent_s=max(0.0, now - seat.heard_s) if join else 0.0,
        metrics=seat.metrics,
        num_samples=join.num_samples if join else 0,
        histogram=join.histogram if join else {},
    )
