"""What merging costs, and what dimat's default costs over plain averaging, as shares of the round without its waiting.

    python benchmarks/overhead.py            resnet20, ring of 5, 2 epochs of 2000 samples: about fifteen minutes
    python benchmarks/overhead.py --smoke    20 samples per agent, one round
    python benchmarks/overhead.py --data FILE.npz    images of a file instead of generated ones

Five agents as processes under torchrun, as `dimat run` starts them, on 32x32x3 images. Every agent's seconds by phase
are its own report; merging is gather, align, fold, calibrate and the exchange of statistics. Run with the default and
with plain averaging (no alignment, no calibration). Checked, over all agents together: merging takes at most 20 % of
every round; in every round after the third the default's merging takes at most 5 % of the round more than plain
averaging's. The numbers go to benchmarks/results/overhead.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dimat.coordinator import Store

RESULTS = Path(__file__).parent / "results" / "overhead.json"
MERGING = ("gather", "align", "fold", "calibrate", "statistics")
METHODS = {"plain averaging": ["merge.align=none", "merge.calibrate=none"], "dimat's default": []}
LIMIT, LIMIT_OVER_PLAIN, SETTLED_ROUND = 0.20, 0.05, 3
NUM_AGENTS = 5


def generate(path: Path, num_train: int, num_test: int) -> None:
    """Images of ten classes: a pattern of their own each, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 160, size=(10, 32, 32, 3))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num) % 10
        return (patterns[labels] + rng.integers(0, 96, size=(num, 32, 32, 3))).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(num_train), draw(num_test)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="20 samples per agent, one round, no claim")
    parser.add_argument(
        "--data", type=Path, help="an .npz with 32x32x3 images; its first 2000 samples per agent are used"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    per_agent, num_test, rounds = (20, 20, 1) if arguments.smoke else (2000, 500, arguments.rounds)

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        if arguments.data is None:
            generate(data, per_agent * NUM_AGENTS, num_test)
        settings = [
            "name=overhead", f"agents={NUM_AGENTS}", f"rounds={rounds}", "exchange.timeout_s=600",
            "task.name=arrays", "task.model=resnet20", f"task.data={arguments.data or data}",
            f"task.options.train_limit={per_agent * NUM_AGENTS}", f"task.options.test_limit={num_test}",
            "task.partition.scheme=iid", "train.epochs=2",
        ]  # fmt: skip
        tables = {name: measure([*settings, *more], Path(folder) / name) for name, more in METHODS.items()}

    checks = {}
    for name, table in tables.items():
        print(f"{name}: resnet20, ring of {NUM_AGENTS}, 2 epochs of {per_agent} samples; seconds, mean over the agents")
        phases = ("train", "evaluate", "publish", "sketch", "wait", *MERGING)
        print("round  " + "".join(f"{phase:>11}" for phase in phases) + "    merging")
        for round_, row in table.items():
            numbers = "".join(f"{row['seconds'].get(phase, 0.0):11.3f}" for phase in phases)
            print(f"{round_:<7}{numbers}{row['merging'] / row['busy']:11.1%}")
        most = max(row["merging"] / row["busy"] for row in table.values())
        checks[f"{name}: merging takes {most:.1%} of a round at most ({LIMIT:.0%} allowed)"] = most <= LIMIT
    plain, default = tables.values()
    later = [round_ for round_ in default if round_ > SETTLED_ROUND]
    if later:
        over = max((default[r]["merging"] - plain[r]["merging"]) / default[r]["busy"] for r in later)
        words = f"after round {SETTLED_ROUND} the default takes {over:.1%} of the round more than plain averaging"
        checks[f"{words} ({LIMIT_OVER_PLAIN:.0%} allowed)"] = over <= LIMIT_OVER_PLAIN
    for check, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {check}")
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"samples_per_agent": per_agent, "tables": tables, "checks": checks}, indent=1))
    return 0 if all(checks.values()) else 1


def measure(settings: list[str], out: Path) -> dict[int, Any]:
    """One run; by round the mean seconds of the agents by phase, those of merging, and those of all but waiting."""
    flags = [part for setting in settings for part in ("-s", setting)]
    subprocess.run([sys.executable, "-m", "dimat", "run", *flags, "--out", str(out)], check=True)
    with Store.open(out, read_only=True) as store:
        reports = store.reports(sketches=False)
    table = {}
    for round_ in sorted({report.round for report in reports}):
        mine = [report.seconds for report in reports if report.round == round_]
        phases = sorted({phase for seconds in mine for phase in seconds})
        means = {phase: sum(seconds.get(phase, 0.0) for seconds in mine) / len(mine) for phase in phases}
        table[round_] = {
            "seconds": means,
            "merging": sum(means.get(phase, 0.0) for phase in MERGING),
            "busy": sum(seconds for phase, seconds in means.items() if phase not in ("wait", "checkpoint")),
        }
    return table


if __name__ == "__main__":
    sys.exit(main())
