"""A run as one frozen value, and how it goes on: pure functions from what arrives to the next value and what to note.

`Run` is the coordinator's whole memory. Each function takes the time, the run and what was said, and returns the run
after it together with `Note`s (events for people). `advance` then draws every conclusion that is due: who is lost, who
may start, which rounds are complete, whether to stop, whether all is over. Putting both on disk is `core`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dimat.coordinator import membership
from dimat.coordinator.changes import after_restart, away_now, next_change
from dimat.coordinator.convergence import Outcome, Stop, decide, interrupt, outcome, upgrade
from dimat.coordinator.membership import Group, Start
from dimat.coordinator.options import Options, names
from dimat.coordinator.refusals import told
from dimat.coordinator.summaries import summarise
from dimat.errors import UsageError
from dimat.messages import Change, Heartbeat, Join, Report, RoundSummary


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line in the events: a kind for programs, a sentence for people."""

    kind: str
    text: str
    round: int | None = None
    agent: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything the coordinator knows and has concluded."""

    group: Group
    reason: str = ""
    """Why the run is in its state, in words."""
    summaries: tuple[RoundSummary, ...] = ()
    pending: Mapping[int, Mapping[int, Report]] = field(default_factory=dict)
    """Reports of rounds that are not summarised yet, by round and agent."""
    next_round: int = 1
    """The next round to summarise."""
    newest: int = 0
    """The newest round that anybody has reported."""
    stop: Stop | None = None
    stop_restored: bool = False
    """The decision was read from disk: it may belong to a run that is being continued."""
    outcome: Outcome | None = None
    changes: tuple[Change, ...] = ()
    """Who is in the graph from which round on, ascending by number."""

    @property
    def state(self) -> str:
        """`forming`, `running`, `stopping` or `done`."""
        if self.outcome is not None:
            return "done"
        if self.group.forming:
            return "forming"
        return "running" if self.stop is None else "stopping"

    @property
    def interrupted(self) -> bool:
        """Whether the user asked this very process of the coordinator to stop."""
        return self.stop is not None and self.stop.kind == "interrupted" and not self.stop_restored


Step = tuple[Run, tuple[Note, ...]]


def on_join(now: float, run: Run, join: Join, options: Options) -> Step:
    """An agent's process enters.

    Raises:
        UsageError: it does not belong here.
    """
    before = run.group.seats[join.agent] if 0 <= join.agent < len(run.group.seats) else None
    run = replace(run, group=membership.take_seat(now, run.group, join))
    notes: tuple[Note, ...] = ()
    if before is not None and not membership.is_of(before, join.session):
        again = " again" if before.join else ""
        held = max(run.group.seats[join.agent].holds())
        text = f"agent {join.agent} joined{again} from {join.address}, holding round {held}"
        notes = (Note("joined", text, agent=join.agent),)
    return _then(notes, advance(now, run, options))


def on_beat(now: float, run: Run, beat: Heartbeat, options: Options) -> Step:
    """A sign of life, a goodbye, or the user's wish to stop that reached an agent."""
    before = run.group.seats[beat.agent]
    run = replace(run, group=membership.note_beat(now, run.group, beat))
    after = run.group.seats[beat.agent]
    notes: list[Note] = []
    if before.state != after.state:
        if after.state == "running":
            notes.append(_back(beat.agent))
        elif after.state == "done":
            notes.append(Note("left", f"agent {beat.agent} is done after round {after.round}", after.round, beat.agent))
        elif after.state == "failed":
            notes.append(Note("failed", f"agent {beat.agent} failed: {beat.error}", after.round, beat.agent))
    stepped = run, tuple(notes)
    if beat.wants_stop and membership.is_of(after, beat.session):
        reason = f"agent {beat.agent} was asked to stop"
        if options.members_stop:
            stepped = _then(notes, on_stop(run, reason, options))
        elif after.state == "running" and not after.draining:
            run = replace(run, group=run.group.with_seat(replace(after, draining=True)))
            stepped = run, (*notes, Note("drain", f"{reason}: it leaves, the others go on", agent=beat.agent))
    return _then(stepped[1], advance(now, stepped[0], options))


def on_report(now: float, run: Run, report: Report, options: Options) -> Step:
    """One agent's numbers of one round; the same report twice is one."""
    before = run.group.seats[report.agent]
    run = replace(run, group=membership.note_report(now, run.group, report), newest=max(run.newest, report.round))
    notes = (_back(report.agent),) if before.state == "lost" else ()
    if report.round >= run.next_round:
        of_round = {**run.pending.get(report.round, {}), report.agent: report}
        run = replace(run, pending={**run.pending, report.round: of_round})
    return _then(notes, advance(now, run, options))


def on_drain(now: float, run: Run, agent: int, options: Options) -> Step:
    """One agent shall leave in order; asking twice changes nothing.

    Raises:
        UsageError: it is not in its rounds.
    """
    running = [seat.agent for seat in run.group.in_state("running")]
    if agent not in running:
        raise UsageError(
            f"agent {agent} is not in its rounds; {names(running) if running else 'no agent'} "
            f"{'are' if len(running) > 1 else 'is'}",
            hint="`dimat report RUN` and the view of a run show where each agent stands",
        )
    seat = run.group.seats[agent]
    if seat.draining:
        return run, ()
    run = replace(run, group=run.group.with_seat(replace(seat, draining=True)))
    return _then((Note("drain", f"agent {agent} was asked to leave", agent=agent),), advance(now, run, options))


def on_stop(run: Run, reason: str, options: Options) -> Step:
    """The user's wish: name the round after the newest reported one, unless a last round is named already.

    Before anybody has begun there is no round to end: the run is over.
    """
    if run.stop is not None and not (run.stop_restored and run.group.forming):
        return run, ()
    begun = run.group.in_state("running")
    if not begun:
        stop = Stop("interrupted", run.newest, 0, f"{reason} before all agents had joined")
    else:
        stop = interrupt(run.newest, max(seat.at for seat in begun), reason, options)
    return replace(run, stop=stop, stop_restored=False), (Note("stop", stop.reason, stop.stop_after),)


def forgive(now: float, run: Run, pause_s: float) -> Run:
    """The run as if `pause_s` seconds in which the coordinator itself heard nobody had not been, for the leases."""
    seats = tuple(replace(seat, heard_s=min(now, seat.heard_s + pause_s)) for seat in run.group.seats)
    return replace(run, group=replace(run.group, seats=seats))


def advance(now: float, run: Run, options: Options) -> Step:
    """Draw every conclusion that is due; called after everything that is said, and every so often when nothing is."""
    run, notes = _lose(now, run, options)
    run, more = _start(now, run, options)
    notes = (*notes, *more)
    while (stepped := _complete_round(now, run, options)) is not None:
        run, more = stepped
        notes = (*notes, *more)
    run, more = _change_graph(run, options)
    return _then((*notes, *more), _end(now, run, options))


def _lose(now: float, run: Run, options: Options) -> Step:
    lost, reason = membership.find_lost(now, run.group, options)
    for agent in lost:
        run = replace(run, group=run.group.with_seat(replace(run.group.seats[agent], state="lost")))
    return run, tuple(Note("lost", f"agent {agent} is lost ({reason})", agent=agent) for agent in lost)


def _start(now: float, run: Run, options: Options) -> Step:
    if run.interrupted and run.outcome is not None:
        return run, ()
    if (
        run.group.forming
        and not run.group.in_state("joined")
        and any(not seat.presumed for seat in run.group.in_state("running"))
    ):
        run = replace(run, group=replace(run.group, forming=False))  # whoever was coming back has gone again
    start, reason = membership.decide_start(now, run.group, options, away_now(run.changes, options.newcomers))
    if start is None:
        if not reason or reason == run.reason:
            return run, ()
        group = replace(run.group, forming=True)
        return replace(run, group=group, reason=reason), (Note("forming", reason),)
    run = replace(run, group=membership.apply_start(now, run.group, start), reason=reason)
    notes = [Note("started", f"{reason}: going on after round {start.round}", start.round)]
    if start.everyone:
        if run.newest > start.round:
            text = f"rounds {start.round + 1} to {run.newest} are done again; what was reported of them is dropped"
            notes.append(Note("dropped", text, start.round))
        run = _forget_after(run, start, options)
    return run, tuple(notes)


def _forget_after(run: Run, start: Start, options: Options) -> Run:
    """Drop what was known of rounds that will be done again, and a stop that rests on them.

    The wish of a user who is still there is fulfilled at the start, where everybody holds the same round. A wish that
    was read from disk ended the run before; this one continues it.
    """
    stop = run.stop
    absent = frozenset(seat.agent for seat in run.group.seats) - set(start.agents)
    if run.interrupted and stop is not None:
        stop = replace(stop, decided_in=start.round, stop_after=start.round)
    elif stop is not None and (stop.kind == "interrupted" or stop.decided_in > start.round):
        stop = None
    return replace(
        run,
        summaries=tuple(summary for summary in run.summaries if summary.round <= start.round),
        pending={round: reports for round, reports in run.pending.items() if round <= start.round},
        next_round=min(run.next_round, start.round + 1),
        newest=start.round,
        stop=stop,
        stop_restored=False,
        changes=after_restart(run.changes, start.round, absent, options.newcomers),
    )


def _change_graph(run: Run, options: Options) -> Step:
    last_round = options.rounds if run.stop is None else run.stop.stop_after
    change = next_change(run.group, run.changes, run.newest, last_round, options.newcomers, options.most_behind)
    if change is None:
        return run, ()
    note = Note("graph", f"from round {change.from_round} on: {change.reason}", change.from_round)
    return replace(run, changes=(*run.changes, change)), (note,)


def _complete_round(now: float, run: Run, options: Options) -> Step | None:
    """Summarise the next round and judge it, if every agent alive has reported it; None when one has not."""
    round, reports = run.next_round, run.pending.get(run.next_round, {})
    if any(membership.may_report(now, seat, round, options) for seat in run.group.seats if seat.agent not in reports):
        return None
    if any(seat.presumed for seat in run.group.in_state("running")):
        return None  # after a restart: how far the others are is not known before each was heard
    if not reports:
        # Nobody left can report it any more: go on to the next one that somebody has.
        return (replace(run, next_round=round + 1), ()) if any(later > round for later in run.pending) else None
    summary = summarise(round, reports.values(), linear=options.linear)
    text = (
        f"round {round}: mean accuracy {summary.mean_accuracy:.3f}, min {summary.min_accuracy:.3f}, "
        f"consensus distance {summary.consensus_distance:.4g}, {summary.num_agents} agents"
    )
    if summary.num_missing:
        text += f", {summary.num_missing} edges unused, spectral gap {summary.spectral_gap:.3f}"
    notes = [Note("round", text, round)]
    if refusals := told(round, tuple(reports.values())):
        notes.append(Note("refused", refusals, round))
    run = replace(
        run,
        summaries=(*run.summaries, summary),
        pending={later: of_round for later, of_round in run.pending.items() if later > round},
        next_round=round + 1,
    )
    begun = max((seat.at for seat in run.group.in_state("running")), default=0)
    stop, reason = decide(run.summaries, reports.values(), max(run.newest, begun - 1), options)
    if run.stop is not None:
        stop = upgrade(run.stop, stop)
    if stop is not None and stop != run.stop:
        notes.append(Note("stop", f"{stop.reason}: stopping after round {stop.stop_after}", stop.stop_after))
    return replace(run, stop=stop, reason=stop.reason if stop else reason), tuple(notes)


def _end(now: float, run: Run, options: Options) -> Step:
    """The run is over when nobody is left, or nobody began and the user wants no run."""
    last_round = options.rounds if run.stop is None else run.stop.stop_after
    left = membership.is_over(now, run.group, options, last_round) or (
        run.interrupted and not run.group.in_state("running")
    )
    if not left:
        return replace(run, outcome=None), ()
    done = [max(seat.round, seat.at) for seat in run.group.in_state("done")]
    errors = "; ".join(f"agent {seat.agent}: {seat.error or 'silent'}" for seat in run.group.in_state("failed", "lost"))
    stop = run.stop
    if stop is None and done and all(seat.draining for seat in run.group.in_state("done")) and max(done) < last_round:
        stop = Stop("interrupted", max(done), max(done), "all agents were asked to leave")
    ended = outcome(stop, run.summaries, max(done, default=-1), errors, options)
    notes = (Note("ended", ended.reason, ended.round),) if ended != run.outcome else ()
    return replace(run, outcome=ended, reason=ended.reason), notes


def _back(agent: int) -> Note:
    return Note("back", f"agent {agent} was heard again", agent=agent)


def _then(notes: tuple[Note, ...] | list[Note], step: Step) -> Step:
    """What was noted before, in front of what the next step notes."""
    return step[0], (*notes, *step[1])
