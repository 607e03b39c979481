"""Who is in the run: seats, and the decisions who is lost, when rounds may begin and when everybody has left.

Everything here is a pure function of the time, a `Group` and the options; nothing is remembered elsewhere.

A seat goes `absent -> joined -> running -> done | failed`, and `running -> lost -> running` when it falls silent and is
heard again. A new process of an agent (another session) takes its seat over and starts as `joined`; from then on what
the old process says is ignored. Joined agents wait for a start:

- *Everyone starts* once all n have joined, after the newest round of which every one holds a checkpoint (round 0, the
  untrained start, is always held). This is the first start, a continued run, and the restart of all agents by torchrun.
- *Some come back alone* when, after they joined, an agent that is still in its rounds is heard: the run went on without
  them. They start after the newest round that all of those coming back hold, and catch up as their neighbours' history
  allows: rounds that are gone count as missing. (No weights are moved to them; their own checkpoint is what they have.)

Until one or the other is known the group is forming, with the reason in words. An agent that is lost or has failed is
waited for: its process may be started again at any moment, and beginning without it would change everybody's result.
Only agents that have said they are done are not waited for.

After a restart of the coordinator itself nobody's silence means anything yet: all seats are *presumed* as they were for
one lease, and count as heard only when they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dimat.coordinator.options import Options, names
from dimat.errors import UsageError
from dimat.messages import Heartbeat, Join, Report


@dataclass(frozen=True, slots=True)
class Seat:
    """One agent's place in the run."""

    agent: int
    state: str = "absent"
    """`absent`, `joined`, `running`, `lost`, `done`, `failed`."""
    join: Join | None = None
    """What its present process said of itself."""
    joined_s: float = 0.0
    heard_s: float = 0.0
    presumed: bool = False
    """Not heard since the coordinator started."""
    start_round: int = 0
    """Its present process went on after this round."""
    rejoined: bool = False
    """Its present process came back alone, while the run went on: the others have to learn where it is."""
    draining: bool = False
    """Asked to leave in order, while the others go on."""
    round: int = 0
    """The newest round it reported."""
    at: int = 0
    """The round it says it is in."""
    phase: str = ""
    waiting: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    def holds(self) -> frozenset[int]:
        """Rounds of which it has a checkpoint."""
        return frozenset((0, *self.join.checkpoints)) if self.join else frozenset((0,))


@dataclass(frozen=True, slots=True)
class Group:
    """All seats by id, and whether rounds go on."""

    seats: tuple[Seat, ...]
    forming: bool = True
    start_round: int = 0
    """After this round the agents that were started last went on."""

    @classmethod
    def empty(cls, num_agents: int) -> Group:
        """Nobody has joined."""
        return cls(tuple(Seat(agent) for agent in range(num_agents)))

    def with_seat(self, seat: Seat) -> Group:
        """The group with one seat exchanged."""
        return replace(self, seats=(*self.seats[: seat.agent], seat, *self.seats[seat.agent + 1 :]))

    def in_state(self, *states: str) -> list[Seat]:
        """The seats that are in one of `states`, by id."""
        return [seat for seat in self.seats if seat.state in states]


@dataclass(frozen=True, slots=True)
class Start:
    """These agents go on after `round`."""

    agents: tuple[int, ...]
    round: int
    everyone: bool
    """The whole run (re)starts there: what was known of later rounds is void."""


# ---------------------------------------------------------------------------------------------- what agents say


def take_seat(now: float, group: Group, join: Join) -> Group:
    """An agent's process enters. The same process entering again (its answer was lost) changes nothing.

    Raises:
        UsageError: no agent of that id is in this run.
    """
    if not 0 <= join.agent < len(group.seats):
        raise UsageError(
            f"agent {join.agent} is not in this run: it has {len(group.seats)} agents, 0 to {len(group.seats) - 1}",
            hint="give all agents the same config, and each its own --id (under torchrun: its rank)",
        )
    seat = group.seats[join.agent]
    if is_of(seat, join.session) and seat.state in ("joined", "running"):
        return group
    if is_of(seat, join.session) and seat.state == "lost":
        return group.with_seat(replace(seat, state="running", join=join, heard_s=now, presumed=False))
    return group.with_seat(
        Seat(
            join.agent,
            "joined",
            join,
            joined_s=now,
            heard_s=now,
            draining=seat.draining and seat.state != "done",  # who was asked to leave and died still shall
            round=seat.round,
            metrics=seat.metrics,
        )
    )


def is_of(seat: Seat, session: str) -> bool:
    """Whether `session` is the seat's present process; what a former process says is ignored."""
    return seat.join is not None and seat.join.session == session


def note_beat(now: float, group: Group, beat: Heartbeat) -> Group:
    """A sign of life, or a goodbye. A process that has said goodbye is not heard again."""
    seat = group.seats[beat.agent]
    if not is_of(seat, beat.session) or (seat.state in ("done", "failed") and not beat.done):
        return group
    state = {"lost": "running", "absent": "joined"}.get(seat.state, seat.state)
    if beat.done:
        state = "failed" if beat.error else "done"
    return group.with_seat(
        replace(
            seat,
            state=state,
            # Silent for longer than a lease: it may leave out the rounds that the others did meanwhile.
            rejoined=seat.rejoined or (seat.state == "lost" and state == "running"),
            heard_s=now,
            presumed=False,
            at=beat.round,
            phase=beat.phase,
            waiting=beat.waiting,
            error=beat.error,
        )
    )


def note_report(now: float, group: Group, report: Report) -> Group:
    """A report is a sign of life, too. One that was kept while the coordinator was away may come after the goodbye."""
    seat = group.seats[report.agent]
    if not is_of(seat, report.session):
        return group
    newest = report.round >= seat.round
    return group.with_seat(
        replace(
            seat,
            state="running" if seat.state == "lost" else seat.state,
            rejoined=seat.rejoined or seat.state == "lost",
            heard_s=now,
            presumed=False,
            round=max(seat.round, report.round),
            at=max(seat.at, report.round),
            metrics=dict(report.metrics) if newest else seat.metrics,
        )
    )


# ------------------------------------------------------------------------------------------------- decisions


def find_lost(now: float, group: Group, options: Options) -> tuple[tuple[int, ...], str]:
    """The running agents that have been silent for longer than the lease.

    Agents that have joined and wait for the start have no duty to speak.
    """
    silent = [s for s in group.in_state("running") if now - s.heard_s > options.lease_s]
    since = ", ".join(f"agent {s.agent} for {now - s.heard_s:.0f} s" for s in silent)
    return tuple(s.agent for s in silent), f"silent: {since}" if silent else ""


def decide_start(
    now: float, group: Group, options: Options, out: frozenset[int] = frozenset()
) -> tuple[Start | None, str]:
    """Whether the joined agents may begin, and after which round; else whom they wait for.

    Agents that are `out` of the graph (drained, lost for good) may hold old rounds alone, and must not throw the others
    back to the very start: then these begin without them, and they come back when the others are in their rounds.
    Several that come back do so one after the other, each after the newest round of its own.

    >>> decide_start(0.0, Group.empty(2), Options(2, 5, 1))
    (None, 'waiting for agents 0, 1 to join (0 of 2 are here)')
    """
    joined = group.in_state("joined")
    if not group.in_state("running"):  # newcomers come to a run that goes on
        joined = [seat for seat in joined if seat.agent not in options.newcomers]
    if not joined and not group.forming:
        return None, ""
    agents = tuple(seat.agent for seat in joined)
    newest_join_s = max((seat.joined_s for seat in joined), default=now)
    # Only what was said after the last of them joined proves that the run goes on without them.
    alive = [s for s in group.in_state("running") if not s.presumed and s.heard_s > newest_join_s]
    if joined and alive:
        who, first = names([seat.agent for seat in alive]), joined[0]
        reason = f"agent {first.agent} came back, {who} went on meanwhile"
        return Start((first.agent,), max(first.holds()), everyone=False), reason
    left = [s for s in group.in_state("done") if has_left(now, s, options)]
    seats = awaited(group, options)
    away = [s.agent for s in seats if s.state != "joined" and s not in left]
    running = [seat.agent for seat in group.in_state("running") if not seat.presumed]
    if joined and running:
        return None, f"{names(list(agents))} came back; waiting to hear whether {names(running)} went on meanwhile"
    if away or not joined:
        here = len(seats) - len(away)
        return None, f"waiting for {names(away)} to join ({here} of {len(seats)} are here)"
    everyone = len(joined) == len(seats)
    common = _common(joined)
    if common == 0:  # all rounds would be lost: better without those who were away when they were done
        common = _common([seat for seat in joined if seat.agent not in out] or joined)
    agents = tuple(seat.agent for seat in joined if common in seat.holds())
    who = f"all {len(joined)} agents" if everyone else names(list(agents))
    return Start(agents, common, everyone), f"{who} joined, the newest round they hold is {common}"


def _common(seats: list[Seat]) -> int:
    """The newest round of which each holds a checkpoint."""
    return max(frozenset[int].intersection(*(seat.holds() for seat in seats)))


def awaited(group: Group, options: Options) -> list[Seat]:
    """The seats of those who are in their rounds or must come: all but those of newcomers who have not begun."""
    return [s for s in group.seats if s.state not in ("absent", "joined") or s.agent not in options.newcomers]


def apply_start(now: float, group: Group, start: Start) -> Group:
    """The group with the joined agents in their rounds; their leases begin now."""
    for agent in start.agents:
        seat = group.seats[agent]
        round = start.round if start.everyone else max(seat.round, start.round)
        group = group.with_seat(
            replace(
                seat,
                state="running",
                heard_s=now,
                start_round=start.round,
                round=round,
                at=start.round,
                rejoined=not start.everyone,
            )
        )
    return replace(group, forming=False, start_round=start.round)


def may_report(now: float, seat: Seat, round: int, options: Options) -> bool:
    """Whether a report of `round` may still come from this agent.

    Not from one that is lost or has failed, nor from one that came back after that round. One that is done may have
    said goodbye before it handed in what it kept while the coordinator was away: that has a lease to arrive.
    """
    match seat.state:
        case "joined":
            return True
        case "running":
            # One that came back far behind may begin with a neighbour's model, rounds after its own start.
            return seat.start_round < round and not (seat.rejoined and round <= seat.round)
        case "done":
            return seat.round < round <= seat.at and now - seat.heard_s <= options.lease_s
        case _:
            return False


def has_left(now: float, seat: Seat, options: Options) -> bool:
    """Whether a done or failed agent is gone for good, and nothing of it is outstanding.

    One that left before the coordinator was restarted gets a lease to come back: perhaps the whole run was restarted.
    """
    if seat.state not in ("done", "failed"):
        return False
    return not (seat.presumed or may_report(now, seat, seat.at, options)) or now - seat.heard_s > options.lease_s


def is_over(now: float, group: Group, options: Options, last_round: int) -> bool:
    """Whether nobody is left to wait for: everyone is done, failed or lost, and the silent ones are not merely silent.

    They may be when nobody has failed or come to the last round: then it is the coordinator that hears nobody.
    """
    seats = awaited(group, options)
    gone = [seat for seat in seats if seat.state == "lost" or has_left(now, seat, options)]
    if len(gone) < len(seats):
        return False
    told = [seat for seat in gone if seat.state == "failed" or (seat.state == "done" and seat.at >= last_round)]
    return bool(told) or (bool(gone) and all(seat.state != "lost" for seat in gone))
