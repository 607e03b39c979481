"""An agent's life: enter the run, go through the rounds, leave."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dimat.agent.algorithms.exchange import let_all_read
from dimat.agent.newest import let_others_read, own_start
from dimat.agent.round import run_round
from dimat.agent.start import choose_basis
from dimat.agent.state import Agent
from dimat.agent.statistics import KIND as STATISTICS
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.errors import Interrupted, PeerUnavailable, SchemaError
from dimat.messages import Directive, Join, Schema, View
from dimat.telemetry.metrics import append_metrics, drop_rounds_after
from dimat.transport.base import HISTORY, Control, Wait

log = logging.getLogger(__name__)


def introduction(agent: Agent, address: str) -> Join:
    """What the agent says of itself when it joins."""
    labels = getattr(agent.task, "labels", None)
    return Join(
        agent=agent.id,
        session=agent.session,
        address=address,
        fingerprint=agent.schema.fingerprint,
        model_bytes=agent.schema.num_bytes,
        checkpoints=agent.rounds_held(),
        num_samples=int(getattr(agent.task, "num_samples", 0)),
        histogram=dict(labels()) if callable(labels) else {},
    )


def check_neighbours(agent: Agent, timeout_s: float) -> None:
    """Compare schemas with every neighbour that answers, before the first round.

    Raises:
        SchemaError: one differs; the message names the first tensor, both shapes, both agents.
    """
    topology = agent.topology
    for peer in sorted({peer for round in topology.window() for peer in topology.neighbours(agent.id, round)}):
        try:
            theirs = agent.transport.describe(peer, timeout_s).schema
        except PeerUnavailable as error:
            # It died since it joined, or is only coming back: what it sends later has to fit, too.
            log.warning("agent %d: the model of agent %d could not be compared: %s", agent.id, peer, error)
            continue
        refuse_difference(agent.id, agent.schema, peer, theirs)


def refuse_difference(agent: int, mine: Schema, peer: int, theirs: Schema) -> None:
    """Raise a `SchemaError` if the two schemas are not the same."""
    if difference := mine.difference(theirs):
        raise SchemaError(
            f"agent {agent} (here) and its neighbour agent {peer} (there) do not train the same model: {difference}",
            hint="give both the same config, and data whose inputs and classes have the same shapes",
        )


def run_rounds(agent: Agent, view: View, control: Control) -> Steps[Directive]:
    """All rounds from the agreed start to the agreed end; returns the coordinator's last word."""
    rounds = agent.config.rounds
    agent.basis = choose_basis(agent.config, {member.agent: member.histogram for member in view.members})
    metrics = agent.folder / "metrics" / f"{agent.id}.jsonl"
    start = view.start_round
    if agent.config.exchange.mode == "async":
        start = own_start(agent, start, metrics, control)
    agent.largest_shard = max((member.num_samples for member in view.members), default=0)
    agent.resume(start)
    drop_rounds_after(metrics, start)
    directive = Directive(stop_after=view.stop_after, reason=view.reason)
    last = start
    end = rounds if view.stop_after is None else view.stop_after
    number = start
    while number < end:
        number = next_round(agent, number, end)
        # What an earlier life published is not held any more.
        if agent.config.exchange.mode == "sync" and number - HISTORY > start:
            yield from _readers_have(agent, number - HISTORY)
        report, clock = (yield from run_round(agent, number)), PhaseClock(agent.status)
        if agent.status.superseded:  # the files are another process's now
            raise Interrupted(f"agent {agent.id}: another process has taken its seat, in round {number}")
        # The checkpoint first: what the coordinator knows of can be continued from.
        last_one = number == rounds or (directive.stop_after is not None and number >= directive.stop_after)
        saves = last_one or number % agent.checkpoint_every == 0
        with _without_disk(agent, number, "checkpoint"), clock("checkpoint"):
            if saves:
                agent.save(number)
        report = replace(report, seconds={**report.seconds, **clock.seconds})
        with _without_disk(agent, number, "metrics"):
            append_metrics(metrics, report, agent.status.wall())
        directive, last = control.report(report), number
        agent.hear(directive)
        if directive.stop_after is not None and number >= directive.stop_after:
            with _without_disk(agent, number, "checkpoint"):
                if not saves:  # only now is it known that this was the last round
                    agent.save(number)
            break
    if agent.config.exchange.mode == "async":
        yield from let_others_read(agent, last, published=last > start)
        return directive
    yield from let_all_read(agent)
    for number in (last - 1, last):
        # On the way readers are rounds behind and nobody notices; here they have all the time there is.
        yield from _readers_have(agent, number, at_the_end=True)
    return directive


def next_round(agent: Agent, number: int, end: int) -> int:
    """The round after `number`; for one that is out of the graph and behind the one that the others are in.

    Alone it would never be faster than they are. What it missed is left out, as for one that was started again.
    """
    late = agent.id in agent.away(number + 1) and agent.others_at > number + 1
    if late and agent.config.exchange.mode == "sync":
        log.warning("agent %d leaves out rounds %d to %d", agent.id, number + 1, min(agent.others_at, end - 1))
        return min(agent.others_at + 1, end)
    return number + 1


@contextmanager
def _without_disk(agent: Agent, number: int, what: str) -> Iterator[None]:
    """A disk that refuses a write costs what was to be written, not the agent: older checkpoints are still there."""
    try:
        yield
    except OSError as error:
        log.error("agent %d: the %s of round %d could not be written: %s", agent.id, what, number, error)


def _readers_have(agent: Agent, number: int, *, at_the_end: bool = False) -> Steps[None]:
    """Wait until everyone who reads round `number` has it: two rounds are kept, the third goes.

    Where reading is mutual the acknowledgements of `gather` have seen to that already; statistics, which come after
    the merge, are not acknowledged on the way: nobody is two rounds ahead of a neighbour.
    """
    if number < 1 or not agent.merges(number):
        return
    if agent.mutual(number) and not (at_the_end and agent.shares_statistics):
        return
    if agent.mutual(number):
        readers = agent.shared_with.get(number, ())  # the others dropped the edge, at both ends
    else:
        readers = tuple(agent.topology_in(number).readers(agent.id, number - 1))
    if readers:
        patience_s = agent.limits.ceiling_s if at_the_end else agent.patience_s("read", readers)
        # Statistics are read after the snapshot of the same round.
        kind = STATISTICS if agent.shares_statistics else "snapshot"
        yield Wait("acknowledged", readers, kind, number, patience_s)
