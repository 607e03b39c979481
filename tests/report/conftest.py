"""A run that never ran, yet obeys the mathematics: vectors on a ring that drift apart, train towards one point, mix.

Its summaries are computed from the vectors themselves, so that predicted, observed and bound must agree with what the
report works out from the reported rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimat.config import RunConfig
from dimat.coordinator.convergence import Outcome
from dimat.coordinator.store import Event
from dimat.messages import Member, Report, RoundSummary
from dimat.report.record import RunRecord

MODEL_BYTES = 154_920


def ring_matrix(n: int) -> np.ndarray:
    """Metropolis weights of a ring of n >= 3 agents."""
    mixing = np.zeros((n, n))
    for agent in range(n):
        mixing[agent, [agent, (agent + 1) % n, (agent - 1) % n]] = 1 / 3
    return mixing


def distance(x: np.ndarray) -> float:
    return float(np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()))


def make(n: int = 5, num_rounds: int = 20, *, seed: int = 0, aligned: str = "agree") -> RunRecord:
    """A run of n agents; `aligned`: agree (units move in round 1) | each_round | none."""
    rng = np.random.default_rng(seed)
    mixing, x, target = ring_matrix(n), rng.normal(size=(n, 400)), rng.normal(size=400)
    shares = rng.dirichlet([0.5] * n, size=10).T
    counts = np.floor(shares * 143).astype(int)
    skew = rng.uniform(0.0, 0.06, size=n)
    reports, summaries = [], []
    for number in range(1, num_rounds + 1):
        step = 0.45 * math.cos(math.pi * (number - 1) / (2 * num_rounds))
        x = x + step * (target + 0.35 * rng.normal(size=x.shape) - x)
        before, x = x, mixing @ x
        error_before = ((before - target) ** 2).mean(axis=1)
        error_after = ((x - target) ** 2).mean(axis=1)
        accuracy_before = 0.985 - 0.4 * np.sqrt(error_before) - (0.5 + 1 / number) * skew
        accuracy = 0.985 - 0.4 * np.sqrt(error_after) - (0.1 + 1 / number) * skew
        for agent in range(n):
            neighbours = [int(other) for other in np.flatnonzero(mixing[agent]) if other != agent]
            seconds = {"train": 1.4 + 0.1 * agent % 0.7, "publish": 0.01, "wait": 0.3 * ((agent * 7) % 5) / 4}
            seconds |= {"gather": 0.02, "fold": 0.03, "calibrate": 0.06, "evaluate": 0.09, "checkpoint": 0.02}
            moves = aligned == "each_round" or (aligned == "agree" and number == 1)
            if moves:
                seconds["align"] = 0.21
            groups = ("conv1", "conv2", "fc1")
            reports.append(
                Report(
                    agent=agent,
                    session="s",
                    round=number,
                    metrics={
                        "loss": float(2 * np.sqrt(error_before[agent])),
                        "accuracy_before": float(accuracy_before[agent]),
                        "accuracy": float(accuracy[agent]),
                    },
                    seconds={key: float(value * rng.uniform(0.95, 1.05)) for key, value in seconds.items()},
                    weights={int(other): float(mixing[agent, other]) for other in np.flatnonzero(mixing[agent])},
                    bytes_received=dict.fromkeys(neighbours, MODEL_BYTES),
                    moved={group: 0.0 if agent == 0 else float(rng.uniform(0.8, 1.0)) for group in groups}
                    if moves
                    else {},
                )
            )
        summaries.append(
            RoundSummary(
                round=number,
                mean_accuracy=float(accuracy.mean()),
                min_accuracy=float(accuracy.min()),
                mean_accuracy_before_merge=float(accuracy_before.mean()),
                consensus_distance=distance(x),
                consensus_distance_before=distance(before),
                predicted_contraction=distance(mixing @ before) / distance(before),
                observed_contraction=distance(x) / distance(before) * rng.uniform(0.99, 1.01),
                num_agents=n,
            )
        )
    newest = {report.agent: report for report in reports}
    members = tuple(
        Member(
            agent=agent,
            address=f"127.0.0.1:{40000 + agent}",
            state="done",
            round=num_rounds,
            metrics=newest[agent].metrics,
            num_samples=int(counts[agent].sum()),
            histogram={str(label): int(number) for label, number in enumerate(counts[agent])},
        )
        for agent in range(n)
    )
    return RunRecord(
        name="digits-ring",
        folder=Path("runs/digits-ring-0f0e0d0c"),
        config=RunConfig(agents=n, rounds=num_rounds).model_dump(mode="json"),
        reports=tuple(reports),
        summaries=tuple(summaries),
        members=members,
        events=(
            Event(1_700_000_000.0, "joined", f"all {n} agents have joined"),
            Event(1_700_000_040.0, "stop", f"all {num_rounds} rounds are done", round=num_rounds),
        ),
        environment={"python": "3.12.3", "packages": {"torch": "2.13.0", "numpy": "2.3.1"}, "cpus": 2},
        outcome=Outcome("rounds", f"all {num_rounds} rounds are done", num_rounds),
        seconds=41.7,
    )


def lose(record: RunRecord, agent: int, after: int) -> RunRecord:
    """The same run, in which `agent` reported nothing after round `after` and its neighbours went on without it."""
    reports = []
    for report in record.reports:
        if report.round > after and report.agent == agent:
            continue
        if report.round > after and agent in report.weights:
            weights = {other: weight for other, weight in report.weights.items() if other != agent}
            weights[report.agent] += report.weights[agent]
            received = {other: num for other, num in report.bytes_received.items() if other != agent}
            missing = {agent: "not heard for 60 s"}
            report = replace(report, weights=weights, bytes_received=received, missing=missing)
        reports.append(report)
    members = tuple(
        replace(member, state="lost", round=after) if member.agent == agent else member for member in record.members
    )
    return replace(record, reports=tuple(reports), members=members)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    return make


@pytest.fixture(scope="session")
def lose_agent() -> Callable[[RunRecord, int, int], RunRecord]:
    return lose


@pytest.fixture(scope="session")
def record() -> RunRecord:
    return make()
