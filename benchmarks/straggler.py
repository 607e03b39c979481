"""What one slow agent costs the others: rounds per second undisturbed and beside a straggler, sync and async.

    python benchmarks/straggler.py            ring of 5, one agent 10 times slower, real processes: about four minutes
    python benchmarks/straggler.py --smoke    three agents, a few short rounds, no claim

Agents run as `dimat run --launch per-agent` starts them. Training is sleeping (the task below), so that the number of
cores decides nothing: a healthy agent's round takes half a second, the straggler's five. A run is ended once the others
have done their rounds; the first rounds, in which agents start and deadlines have no past, are not counted.

Checked: in async the others keep at least 0.9 of their undisturbed rounds per second; in sync no round of theirs takes
longer than their slowest undisturbed round and the deadline's ceiling, and with adaptive deadlines the mean round stays
within the floor. The numbers go to benchmarks/results/straggler.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dimat.tasks.digits import DigitsTask

RESULTS = Path(__file__).parent / "results" / "straggler.json"
STRAGGLER = 1
FACTOR = 10
KEPT = 0.9
CEILING_S, FLOOR_S = 3.0, 0.5
MEASURING_S = 0.25
"""What two cores under ten processes may add to the time of a single round."""


class SleepyDigits(DigitsTask):
    """Digits that train at the pace of a clock: every batch takes the same time, ten times that for the straggler."""

    def __init__(self, *, batch_s: float, slow: int | None, **options: Any) -> None:
        super().__init__(**options)
        self._batch_s = batch_s
        self._slow = slow

    def data(self, agent: int, num_agents: int, seed: int) -> Any:
        """Know who is slow."""
        self._factor = FACTOR if agent == self._slow else 1
        return super().data(agent, num_agents, seed)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Take one's time."""
        time.sleep(self._batch_s * self._factor)
        return super().loss(model, batch)


@dataclass(frozen=True)
class Measured:
    """What the others did in one run, over the rounds that count."""

    seconds: list[float]
    """How long each of their rounds took."""
    kept: float
    """Share of their edges to each other that were used."""
    with_straggler: float
    """Share of their edges to the straggler that were used."""

    @property
    def rate(self) -> float:
        """Rounds per second of one agent."""
        return len(self.seconds) / sum(self.seconds)


def measure(mode: Mapping[str, Any], *, slow: bool, agents: int, rounds: int, skip: int, batch_s: float) -> Measured:
    """Run until everybody but the straggler has done `rounds`; the first `skip` do not count."""
    settings = {
        "name": "straggler", "agents": agents, "rounds": 10 * rounds, "init": "same", "merge.align": "none",
        "task.name": f"{Path(__file__).resolve()}:SleepyDigits", "task.model.name": "mlp", "task.model.hidden": [16],
        "task.partition.scheme": "iid", "task.options.batch_s": batch_s,
        "task.options.slow": STRAGGLER if slow else "null", "train.epochs": 1, "train.batch_size": 64,
        "exchange.timeout_s": CEILING_S, "exchange.min_timeout_s": FLOOR_S, **mode,
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    others = [agent for agent in range(agents) if agent != STRAGGLER]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(out), "--launch", "per-agent", "-q"]
        log = Path(folder) / "log"
        with log.open("w") as words:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=words, stderr=words, env=environment)
        try:
            while any(len(lines(out, agent)) < rounds for agent in others):
                if process.poll() is not None:
                    raise SystemExit(f"the run ended before its time: {' '.join(command)}\n{log.read_text()}")
                time.sleep(0.2)  # another process's file has no event to wait for
            told = {agent: lines(out, agent)[:rounds] for agent in others}
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):  # the second one means: now
                process.send_signal(number)
                time.sleep(0.5)
            process.wait(timeout=60)
    seconds = [
        later["time"] - sooner["time"] for rows in told.values() for sooner, later in itertools.pairwise(rows[skip:])
    ]
    used: dict[bool, list[bool]] = {True: [], False: []}
    for agent, rows in told.items():
        for row in rows[skip + 1 :]:
            for peer in {int(name) for name in (*row["weights"], *row["missing"])} - {agent}:
                used[peer == STRAGGLER].append(str(peer) in row["weights"])
    return Measured(seconds, share(used[False]), share(used[True]))


def lines(out: Path, agent: int) -> list[dict[str, Any]]:
    """The rounds that an agent has written down so far."""
    path = out / "metrics" / f"{agent}.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def share(used: list[bool]) -> float:
    return sum(used) / len(used) if used else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="three agents, a few short rounds, no claim")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the others in each run")
    arguments = parser.parse_args()
    size: dict[str, Any] = {"agents": 5, "rounds": arguments.rounds, "skip": 10, "batch_s": 0.1}
    modes: dict[str, dict[str, Any]] = {
        "async": {"exchange.mode": "async"},
        "sync, adaptive deadlines": {},
        "sync, fixed deadlines": {"exchange.deadline": "fixed"},
    }
    if arguments.smoke:
        size = {"agents": 3, "rounds": 4, "skip": 1, "batch_s": 0.01}
        modes = {"async": modes["async"]}

    print(f"ring of {size['agents']}, one agent {FACTOR} times slower; deadlines from {FLOOR_S:g} to {CEILING_S:g} s")
    print(f"{'':26}{'rounds per second':>24}{'':8}{'longest round, s':>24}  edges used: others, straggler")
    table = {}
    for name, mode in modes.items():
        beside = measure(mode, slow=True, **size)
        alone = beside if arguments.smoke else measure(mode, slow=False, **size)
        print(
            f"{name:26}{alone.rate:10.3f} -> {beside.rate:10.3f}{beside.rate / alone.rate:8.1%}"
            f"{max(alone.seconds):10.3f} -> {max(beside.seconds):10.3f}"
            f"  {beside.kept:18.1%}{beside.with_straggler:11.1%}",
            flush=True,
        )
        table[name] = {"undisturbed": asdict(alone), "with_straggler": asdict(beside), "kept": beside.rate / alone.rate}
        table[name]["rates"] = [alone.rate, beside.rate]
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    checks = {f"async: the others keep at least {KEPT:g} of their rounds per second": table["async"]["kept"] >= KEPT}
    for name, extra_s in (("sync, adaptive deadlines", FLOOR_S), ("sync, fixed deadlines", CEILING_S)):
        alone, beside = table[name]["undisturbed"]["seconds"], table[name]["with_straggler"]["seconds"]
        checks[f"{name}: no round lasts {CEILING_S:g} s longer than the longest undisturbed one"] = (
            max(beside) <= max(alone) + CEILING_S + MEASURING_S
        )
        checks[f"{name}: the mean round is at most {extra_s:g} s longer"] = (
            statistics.mean(beside) <= statistics.mean(alone) + extra_s + MEASURING_S
        )
    for words, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {words}")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({**about, **size, "factor": FACTOR, "modes": table, "checks": checks}, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
