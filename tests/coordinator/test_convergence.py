"""When a run ends, on summaries built by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.coordinator.convergence import Outcome, Stop, decide, interrupt, outcome, stop_round, upgrade
from dimat.coordinator.options import Options
from dimat.messages import Report, RoundSummary

NAN = math.nan


def rounds(*accuracies: float, losses: tuple[float, ...] = ()) -> list[RoundSummary]:
    loss_of = dict(enumerate(losses))
    return [
        RoundSummary(n + 1, value, value, value, 1.0, mean_loss=loss_of.get(n, 1.0))
        for n, value in enumerate(accuracies)
    ]


def options(**more: object) -> Options:
    return Options(**{"num_agents": 5, "rounds": 20, "diameter": 2, **more})  # type: ignore[arg-type]


def judge(summaries: list[RoundSummary], reports: tuple[Report, ...] = (), **more: object) -> tuple[Stop | None, str]:
    newest = summaries[-1].round if summaries else 0
    return decide(summaries, reports, newest, options(**more))


def report(agent: int, **metrics: float) -> Report:
    return Report(agent, "s", 2, metrics)


CASES = {
    "nothing yet": (rounds(), {}, None, "no round is complete yet"),
    "no rule": (rounds(0.5, 0.6), {}, None, "round 2 of 20: mean accuracy 0.600"),
    "below the target": (rounds(0.949), {"target_accuracy": 0.95}, None, "round 1 of 20: mean accuracy 0.949"),
    "at the target": (
        rounds(0.5, 0.95),
        {"target_accuracy": 0.95},
        ("target", 4),
        "mean accuracy 0.950 reached the target 0.95 in round 2",
    ),
    "no accuracy is no target": (rounds(NAN), {"target_accuracy": 0.1}, None, "round 1 of 20: mean accuracy nan"),
    "the last round": (rounds(*[0.5] * 20), {}, ("rounds", 20), "all 20 rounds are done"),
    "the target in the last round": (
        rounds(*[0.5] * 19, 0.9),
        {"target_accuracy": 0.8},
        ("target", 20),
        "mean accuracy 0.900 reached the target 0.8 in round 20",
    ),
    "patience runs out": (
        rounds(0.5, 0.7, 0.7, 0.6),
        {"patience": 2},
        ("plateau", 6),
        "mean accuracy has not been better than 0.700 (round 2) for 2 rounds",
    ),
    "patience is left": (rounds(0.5, 0.7, 0.7), {"patience": 2}, None, "round 3 of 20: mean accuracy 0.700"),
    "better starts it anew": (rounds(0.5, 0.4, 0.6, 0.5), {"patience": 2}, None, "round 4 of 20: mean accuracy 0.500"),
    "no accuracy, no plateau": (rounds(*[NAN] * 5), {"patience": 2}, None, "round 5 of 20: mean accuracy nan"),
    "a missing accuracy is not better": (
        rounds(0.5, NAN, NAN),
        {"patience": 2},
        ("plateau", 5),
        "mean accuracy has not been better than 0.500 (round 1) for 2 rounds",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(case: str) -> None:
    summaries, more, expected, reason = CASES[case]
    stop, said = judge(summaries, **more)
    assert said == reason
    assert (stop and (stop.kind, stop.stop_after)) == expected
    if stop is not None:
        assert (stop.reason, stop.decided_in) == (reason, summaries[-1].round)


@pytest.mark.parametrize(
    ("metrics", "losses", "reason"),
    [
        ({"loss": NAN}, (1.0, NAN), "agent 3 diverged: its loss is nan in round 2"),
        ({"loss": 1.0, "loss_after": math.inf}, (1.0, 1.0), "agent 3 diverged: its loss_after is inf in round 2"),
        ({"loss": 42.0}, (2.0, 9.0), "agent 3 diverged: its loss is 42 in round 2, 21 times the best mean so far (2)"),
        ({"loss": 19.0}, (2.0, 9.0), ""),  # not ten times the best
        ({"loss": 9.0}, (0.001, 2.0), ""),  # ten times the best, but an ordinary loss
        ({"loss": 900.0}, (1000.0, 50.0), ""),  # better than at the start
        ({}, (NAN, NAN), ""),  # a task without a loss
    ],
)
def test_divergence_names_the_agent(metrics: dict[str, float], losses: tuple[float, ...], reason: str) -> None:
    stop, said = judge(rounds(0.5, 0.5, losses=losses), (report(0, loss=1.0), report(3, **metrics)))
    if reason:
        assert stop == Stop("diverged", 2, 4, reason)
        assert said == reason
    else:
        assert stop is None


def test_divergence_counts_more_than_a_target() -> None:
    stop, _ = judge(rounds(0.99), (report(0, loss=NAN),), target_accuracy=0.9)
    assert stop is not None
    assert stop.kind == "diverged"


@given(st.integers(1, 30), st.integers(0, 12), st.integers(1, 8), st.integers(30, 40))
def test_the_round_named_is_one_that_nobody_has_passed(decided: int, ahead: int, diameter: int, last: int) -> None:
    newest = min(decided + ahead, last)
    named = stop_round(decided, newest, options(diameter=diameter, rounds=last))
    assert named <= last
    assert named > newest or named == last
    if ahead < diameter:  # as it always is in synchronous rounds: the same round, whoever was fast
        assert named == min(last, decided + diameter)


@pytest.mark.parametrize(
    ("reported", "begun", "named", "kind"),
    [
        (4, 5, 5, "interrupted"),
        (4, 4, 5, "interrupted"),
        (4, 7, 7, "interrupted"),
        (19, 20, 20, "rounds"),
        (20, 20, 20, "rounds"),
    ],
)
def test_the_users_wish_ends_the_round_that_the_fastest_is_in(reported: int, begun: int, named: int, kind: str) -> None:
    stop = interrupt(reported, begun, "SIGINT", options())
    assert (stop.kind, stop.stop_after, stop.decided_in) == (kind, named, reported)
    assert stop.reason == f"SIGINT: stopping after round {named} of 20"


def test_a_decision_stands_unless_the_way_there_diverges() -> None:
    plateau, target = Stop("plateau", 5, 7, "p"), Stop("target", 6, 8, "t")
    assert upgrade(plateau, target) == plateau
    assert upgrade(plateau, None) == plateau
    assert upgrade(plateau, Stop("diverged", 6, 8, "d")) == Stop("diverged", 6, 7, "d")


@pytest.mark.parametrize(
    ("kind", "target", "accuracies", "last", "ended", "reached", "code"),
    [
        ("rounds", None, (0.5,), 20, "rounds", None, 0),
        (None, None, (0.5,), 20, "rounds", None, 0),
        ("rounds", 0.9, (0.5,), 20, "rounds", False, 3),
        ("plateau", 0.9, (0.5,), 9, "plateau", False, 3),
        ("plateau", 0.9, (0.5, 0.91), 9, "plateau", True, 0),
        ("target", 0.9, (0.95, 0.8), 9, "target", True, 0),
        ("diverged", None, (0.5,), 9, "diverged", None, 1),
        ("interrupted", 0.9, (0.5,), 9, "interrupted", False, 130),
        ("interrupted", None, (), -1, "interrupted", None, 130),
        ("target", 0.9, (0.95,), -1, "failed", True, 1),
        (None, None, (0.5,), -1, "failed", None, 1),
        (None, None, (0.5,), 7, "failed", None, 1),
    ],
)
def test_outcomes_and_exit_codes(
    kind: str | None,
    target: float | None,
    accuracies: tuple[float, ...],
    last: int,
    ended: str,
    reached: bool | None,
    code: int,
) -> None:
    stop = Stop(kind, 5, 9, "because") if kind else None
    found = outcome(stop, rounds(*accuracies), last, "agent 1: boom", options(target_accuracy=target))
    assert (found.kind, found.target_reached, found.exit_code) == (ended, reached, code)
    assert found.round == len(accuracies)
    if ended == "failed" and last < 0:
        assert found.reason == "no agent came to the end: agent 1: boom"


def test_an_outcome_without_a_target_cannot_miss_it() -> None:
    assert Outcome("rounds", "", 20).exit_code == 0
