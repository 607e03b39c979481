"""Memory over a long run: resident memory of every process of `dimat run`, as a line over the rounds.

    python benchmarks/soak.py            500 rounds of the demo with a tiny model and 200 digits: some minutes
    python benchmarks/soak.py --smoke    30 rounds, no claim

The demo config (five agents on a ring, under torchrun) with a model of a few hundred weights, so that what grows is
dimat's own. Resident memory of each process is read from the system a few times a second, together with the round that
its agent is in (its own metrics file). A straight line is fitted through what lies after round 100. Checked: it rises
by less than 20 KB a round for every agent and by less than 10 KB for the coordinator. The numbers go to
benchmarks/results/soak.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from sklearn.datasets import load_digits

from dimat.runfolder import processes

RESULTS = Path(__file__).parent / "results" / "soak.json"
NUM_AGENTS = 5
WARM_UP = 100
"""Rounds before the line begins: caches, buffers and the allocator's pools fill first."""
LIMITS_KB = {"agent": 20.0, "coordinator": 10.0}
EVERY_S = 0.25

Samples = dict[str, list[tuple[int, int]]]
"""(round, resident bytes) by process."""


def write_digits(path: Path, num_train: int = 200, num_test: int = 50) -> None:
    """The first of scikit-learn's digits as the arrays task reads them."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    train, test = slice(num_train), slice(num_train, num_train + num_test)
    np.savez(path, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])


def watch(run: subprocess.Popen[bytes], folder: Path) -> Samples:
    """Read memory until the run has ended; a process that was started again begins a row of its own."""
    samples: Samples = {}
    while run.poll() is None:
        rounds = {agent: num_lines(folder / "metrics" / f"{agent}.jsonl") for agent in range(NUM_AGENTS)}
        for entry in processes(folder):
            role = entry["role"]
            name = role if entry["id"] is None else f"{role} {entry['id']}"
            # The coordinator is in no round of its own: it is as far as the slowest agent.
            round_ = min(rounds.values()) if entry["id"] is None else rounds[entry["id"]]
            with suppress(psutil.NoSuchProcess):
                resident = psutil.Process(entry["pid"]).memory_info().rss
                if resident:  # one that has ended and was not waited for yet holds nothing
                    samples.setdefault(name, []).append((round_, resident))
        time.sleep(EVERY_S)
    return samples


def num_lines(path: Path) -> int:
    """Rounds that an agent has written down."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def slope_kb(points: list[tuple[int, int]], after: int) -> float:
    """Kilobytes a round by which resident memory rises after round `after`: the slope of the least-squares line.

    >>> slope_kb([(1, 9_000_000), (100, 0), (101, 2_000), (102, 4_000)], after=100)
    2.0
    """
    rounds, resident = np.array([point for point in points if point[0] >= after], dtype=float).T
    return round(float(np.polyfit(rounds, resident, 1)[0]) / 1e3, 6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="30 rounds, no claim")
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    rounds = 30 if arguments.smoke else arguments.rounds
    after = 10 if arguments.smoke else WARM_UP

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        data, folder = Path(scratch) / "digits.npz", Path(scratch) / "run"
        write_digits(data)
        settings = [
            "name=soak", f"rounds={rounds}", "task.name=arrays", f"task.data={data}", "task.model.name=mlp",
            "task.model.hidden=[4]", "task.partition.scheme=iid", "train.epochs=1", "train.batch_size=40",
        ]  # fmt: skip
        flags = [part for setting in settings for part in ("-s", setting)]
        command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(folder), "--quiet"]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            samples = watch(run, folder)
        finally:
            if run.poll() is None:
                run.terminate()
            code = run.wait()
    seconds = time.perf_counter() - started
    if code:
        print(f"FAILS  the run ended with exit code {code}")
        return 1

    table, holds = {}, True
    print(f"{rounds} rounds of {NUM_AGENTS} agents in {seconds:.0f} s; resident memory after round {after}")
    print(f"{'process':<14}{'first MB':>10}{'last MB':>10}{'KB a round':>12}{'allowed':>9}")
    for name, points in sorted(samples.items()):
        later = [point for point in points if point[0] >= after]
        slope, limit = slope_kb(points, after), LIMITS_KB[name.split()[0]]
        holds &= slope < limit
        table[name] = {"kb_a_round": slope, "first_bytes": later[0][1], "last_bytes": later[-1][1]}
        print(f"{name:<14}{later[0][1] / 1e6:>10.1f}{later[-1][1] / 1e6:>10.1f}{slope:>12.2f}{limit:>9.0f}")
    print(f"{'holds ' if holds else 'FAILS '} agents rise by less than 20 KB a round, the coordinator by less than 10")
    if arguments.smoke:
        return 0  # thirty rounds show that the script works, and nothing about memory
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"rounds": rounds, "after": after, "seconds": seconds, "processes": table}, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
