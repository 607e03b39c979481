"""When a run ends, decided from its rounds' summaries.

All agents must stop after the same round, or those that go on would find no neighbours. A decision therefore names a
round that nobody has passed. In synchronous rounds an agent d hops from the slowest can have reported at most d - 1
rounds more than it has: to finish round r + k it needs a neighbour's model of round r + k, who needed a neighbour's of
round r + k - 1, and so on back to the slowest. A rule that fires on round r thus names r + diameter: always the same
round for the same numbers, whichever agent was fast that day. When deadlines let agents run further ahead, the newest
reported round + 1 is the earliest that nobody has passed, because every report is answered before its sender goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dimat.coordinator.options import Options
from dimat.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TARGET_MISSED
from dimat.messages import Report, RoundSummary

LOSSES = ("loss", "loss_before", "loss_after")


@dataclass(frozen=True, slots=True)
class Stop:
    """The decision to end the run after round `stop_after`."""

    kind: str
    """`rounds`, `target`, `plateau`, `diverged`, `interrupted`."""
    decided_in: int
    """The round whose summary decided it; for the user's wish the newest round then known."""
    stop_after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    kind: str
    """A `Stop`'s kind, or `failed`: no agent came to the end."""
    reason: str
    round: int
    """The newest round summarised."""
    target_reached: bool | None = None
    """None when no target was given."""

    @property
    def exit_code(self) -> int:
        """0 done · 1 failed or diverged · 3 ended without reaching its target · 130 interrupted.

        >>> Outcome("rounds", "all 20 rounds are done", 20, target_reached=False).exit_code
        3
        """
        if self.kind in ("failed", "diverged"):
            return EXIT_FAILED
        if self.kind == "interrupted":
            return EXIT_INTERRUPTED
        return EXIT_TARGET_MISSED if self.target_reached is False else EXIT_DONE


def decide(
    summaries: Sequence[RoundSummary], reports: Iterable[Report], newest: int, options: Options
) -> tuple[Stop | None, str]:
    """Whether the newest summarised round ends the run.

    Args:
        summaries: all rounds summarised so far, ascending; the last one is judged.
        reports: the reports behind the last one, to name the agent that diverged.
        newest: the newest round that anybody has reported or is in.
        options: target, patience and so on.

    Returns:
        The decision, or None, and the reason in words.
    """
    if not summaries:
        return None, "no round is complete yet"
    last = summaries[-1]
    rules = (
        ("diverged", divergence(summaries, reports, options)),
        ("target", _target(last, options)),
        ("rounds", f"all {options.rounds} rounds are done" if last.round >= options.rounds else ""),
        ("plateau", _plateau(summaries, options)),
    )
    for kind, reason in rules:
        if reason:
            return Stop(kind, last.round, stop_round(last.round, newest, options), reason), reason
    return None, f"round {last.round} of {options.rounds}: mean accuracy {last.mean_accuracy:.3f}"


def stop_round(decided_in: int, newest: int, options: Options) -> int:
    """The round after which all agents stop when a rule fires on round `decided_in`.

    >>> stop_round(12, newest=13, options=Options(num_agents=5, rounds=20, diameter=2))
    14
    """
    return min(options.rounds, max(decided_in + options.diameter, newest + 1))


def interrupt(newest_reported: int, newest_begun: int, reason: str, options: Options) -> Stop:
    """The user's wish to stop: after the round that the fastest agent is in now."""
    stop_after = min(options.rounds, max(newest_reported + 1, newest_begun))
    # In the last round there is nothing left to interrupt.
    kind = "rounds" if stop_after == options.rounds else "interrupted"
    return Stop(kind, newest_reported, stop_after, f"{reason}: stopping after round {stop_after} of {options.rounds}")


def outcome(
    stop: Stop | None, summaries: Sequence[RoundSummary], last_round: int, errors: str, options: Options
) -> Outcome:
    """How the run ended, once everybody has left.

    Args:
        stop: the decision, if there was one.
        summaries: all rounds summarised.
        last_round: the newest round that an agent who said it is done has reported; -1 when nobody did.
        errors: what the agents that failed said.
        options: the target, the number of rounds.
    """
    reached = None
    if options.target_accuracy is not None:
        reached = any(summary.mean_accuracy >= options.target_accuracy for summary in summaries)
    newest = summaries[-1].round if summaries else 0
    if stop is not None and (last_round >= 0 or stop.kind in ("interrupted", "diverged")):
        return Outcome(stop.kind, stop.reason, newest, reached)
    if last_round >= options.rounds:
        return Outcome("rounds", f"all {options.rounds} rounds are done", newest, reached)
    reason = f"no agent came to the end: {errors}" if last_round < 0 else f"the agents left after round {last_round}"
    return Outcome("failed", reason, newest, reached)


def upgrade(stop: Stop, newer: Stop | None) -> Stop:
    """A decision stands, and with it the round it named; but rounds on the way there may still diverge."""
    if newer is not None and newer.kind == "diverged" and stop.kind != "diverged":
        return replace(newer, stop_after=stop.stop_after)
    return stop


def divergence(summaries: Sequence[RoundSummary], reports: Iterable[Report], options: Options) -> str:
    """Which agent's loss is no number, or has blown up; empty when none has."""
    losses = [summary.mean_loss for summary in summaries if math.isfinite(summary.mean_loss)]
    best, first = (min(losses), losses[0]) if losses else (math.inf, math.inf)
    limit = max(options.blow_up_factor * best, options.blow_up_floor, first)
    for report in sorted(reports, key=lambda report: report.agent):
        for name in LOSSES:
            value = report.metrics.get(name, 0.0)
            if not math.isfinite(value):
                return f"agent {report.agent} diverged: its {name} is {value} in round {report.round}"
        loss = report.metrics.get("loss", 0.0)
        if loss > limit:
            return (
                f"agent {report.agent} diverged: its loss is {loss:.4g} in round {report.round}, "
                f"{loss / best:.0f} times the best mean so far ({best:.4g})"
            )
    return ""


def _target(last: RoundSummary, options: Options) -> str:
    target = options.target_accuracy
    if target is None or not last.mean_accuracy >= target:
        return ""
    return f"mean accuracy {last.mean_accuracy:.3f} reached the target {target:g} in round {last.round}"


def _plateau(summaries: Sequence[RoundSummary], options: Options) -> str:
    """NaN is never better; a task that reports no accuracy has no plateau."""
    accuracies = [
        (summary.mean_accuracy, summary.round) for summary in summaries if not math.isnan(summary.mean_accuracy)
    ]
    if options.patience is None or not accuracies:
        return ""
    best, best_round = max(accuracies, key=lambda pair: (pair[0], -pair[1]))
    if summaries[-1].round - best_round < options.patience:
        return ""
    return (
        f"mean accuracy has not been better than {best:.3f} (round {best_round}) "
        f"for {summaries[-1].round - best_round} rounds"
    )
