"""A run in plain lines: what is worth saying of a view, of a round, of who holds which classes.

Pure but for `Teller`, which remembers what it has said.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence

from dimat.messages import Member, RoundSummary, View
from dimat.report import words

PATIENCE_S = 5.0
"""A wait shorter than this is no news: in every round the fast wait a little for the slow."""
_MOST_AGENTS, _WIDEST = 20, 110


class Teller:
    """Turns views into lines, each said once: a round that all have reported, and whatever changed.

    It holds what it has said; what to say is decided from that, the view and the time alone.
    """

    def __init__(self, rounds: int, *, verbose: int = 0) -> None:
        self.rounds, self.verbose = rounds, verbose
        self._round = 0
        self._since = 0.0
        self._state = ""
        self._agents: dict[int, str] = {}
        self._reported: dict[int, int] = {}
        self._waits: dict[int, tuple[str, float]] = {}
        self._told: dict[int, str] = {}

    def now(self, time_s: float) -> None:
        """The first round began at `time_s`."""
        self._since = time_s

    def tell(self, view: View, time_s: float) -> Iterator[str]:
        """The lines that `view` is worth."""
        for member in sorted(view.members, key=lambda member: member.agent):
            yield from self._tell_member(member, time_s)
        newest = view.newest
        if newest is not None and newest.round > self._round:
            took, self._since, self._round = time_s - self._since, time_s, newest.round
            yield f"round {newest.round}/{self.rounds} · {numbers_of(newest)} · {words.duration(took)}"
        state = state_line(view)
        if state and without_seconds(state) != self._state:
            self._state = without_seconds(state)
            yield state

    def _tell_member(self, member: Member, time_s: float) -> Iterator[str]:
        who, before = f"agent {member.agent}", self._agents.get(member.agent, "absent")
        self._agents[member.agent] = member.state
        if member.state != before:
            if member.state == "lost":
                yield f"{who} is lost, last heard {member.silent_s:.0f} s ago"
            elif member.state == "failed":
                yield f"{who} has failed{': ' + member.waiting if member.waiting else ''}"
            elif before in ("lost", "failed") and member.state in ("joined", "running"):
                yield f"{who} is back"
        if self.verbose and member.round > self._reported.get(member.agent, 0):
            self._reported[member.agent] = member.round
            loss, accuracy_before, accuracy = (
                words.accuracy(member.metrics.get(key, math.nan)) for key in ("loss", "accuracy_before", "accuracy")
            )
            yield f"  {who} · round {member.round} · loss {loss} · accuracy {accuracy_before} → {accuracy}"
        yield from self._tell_wait(member, time_s)

    def _tell_wait(self, member: Member, time_s: float) -> Iterator[str]:
        reason = without_seconds(member.waiting) if member.state == "running" else ""
        if not reason:
            self._waits.pop(member.agent, None)
            self._told.pop(member.agent, None)
            return
        known, since = self._waits.get(member.agent, ("", time_s))
        if reason != known:
            since = time_s
            self._waits[member.agent] = (reason, since)
        if self._told.get(member.agent) != reason and (self.verbose or time_s - since >= PATIENCE_S):
            self._told[member.agent] = reason
            yield f"agent {member.agent}: {member.waiting}"


def state_line(view: View) -> str:
    """Where the run stands in words; nothing when its rounds tell, or when it is over and its result will."""
    if view.state == "running":
        return f"going on after round {view.start_round}" if view.start_round else ""
    if view.state == "stopping" and view.stop_after is not None:
        if view.newest is not None and view.newest.round >= view.stop_after:
            return ""
        named = f"stopping after round {view.stop_after}"
        return view.reason if named in view.reason else f"{named}{': ' + view.reason if view.reason else ''}"
    return view.reason if view.state == "forming" else ""


def numbers_of(newest: RoundSummary) -> str:
    """One round's summary in a line.

    >>> numbers_of(RoundSummary(7, 0.93, 0.9, 0.88, 1.2))
    'mean accuracy 0.93 (min 0.90, before merge 0.88) · consensus distance 1.2'
    """
    inside = [f"min {_two_places(newest.min_accuracy)}"]
    if math.isfinite(newest.mean_accuracy_before_merge):
        inside.append(f"before merge {_two_places(newest.mean_accuracy_before_merge)}")
    line = f"mean accuracy {_two_places(newest.mean_accuracy)} ({', '.join(inside)})"
    if math.isfinite(newest.consensus_distance):
        line += f" · consensus distance {words.plain(newest.consensus_distance)}"
    if newest.num_missing:
        line += f" · {words.count(newest.num_missing, 'edge')} unused"
    if newest.num_refused:
        line += f" · {words.count(newest.num_refused, 'refusal')}"
    if newest.num_held_back:
        line += f" · {words.count(newest.num_held_back, 'merge')} held back"
    return line


def histogram_lines(members: Sequence[Member]) -> list[str]:
    """Samples by agent and class as a table, or in a few sentences where a table would not fit a screen."""
    told = sorted((member for member in members if member.histogram), key=lambda member: member.agent)
    if not told:
        return []
    labels = sorted(
        {label for member in told for label in member.histogram}, key=lambda x: (not x.isdecimal(), len(x), x)
    )
    rows = [[str(member.histogram.get(label, 0) or "·") for label in labels] for member in told]
    totals = [sum(member.histogram.values()) for member in told]
    table = [[*labels, "all"], *([*row, str(total)] for row, total in zip(rows, totals, strict=True))]
    widths = [max(len(row[place]) for row in table) + 2 for place in range(len(labels) + 1)]
    names = ["samples by class", *(f"agent {member.agent}" for member in told)]
    if len(told) <= _MOST_AGENTS and len(names[0]) + sum(widths) <= _WIDEST:
        return [
            name.ljust(len(names[0])) + "".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for name, row in zip(names, table, strict=True)
        ]
    seen = [sum(number > 0 for number in member.histogram.values()) for member in told]
    skewed = max(told, key=lambda member: max(member.histogram.values()) / max(1, sum(member.histogram.values())))
    label = max(skewed.histogram, key=lambda label: skewed.histogram[label])
    part = skewed.histogram[label] / max(1, sum(skewed.histogram.values()))
    return [
        f"{words.count(len(told), 'agent')} hold {sum(totals)} samples: {min(totals)} to {max(totals)} each, "
        f"median {statistics.median(totals):.0f}; {min(seen)} to {max(seen)} of {len(labels)} classes each",
        f"the most uneven is agent {skewed.agent}: {words.share(part)} of its samples are of class {label}",
    ]


def without_seconds(text: str) -> str:
    """The text with its seconds left out, so that a reason which only grows older counts as the same.

    >>> without_seconds("waiting 12 s for agent 3, last heard 14.5 s ago")
    'waiting … s for agent 3, last heard … s ago'
    """
    return re.sub(r"\d+(\.\d+)? s\b", "… s", text)


def clean(text: str) -> str:
    r"""The text with every control character replaced: nobody steers a terminal from afar.

    >>> clean("a\x1b[2Jb")
    'a�[2Jb'
    """
    return "".join(character if character.isprintable() else "�" for character in text)


def _two_places(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
