"""Why `exchange.mode: async` uses a snapshot again until a newer one is there, and less the older it is.

    python benchmarks/staleness.py            ring of 5 on digits, one agent 10 times slower, 3 seeds: a few minutes
    python benchmarks/staleness.py --smoke    one seed, three rounds, no claim

In simulation, where turns stand for the clock: the slow agent has one turn while the others have ten. Compared are
using a snapshot again and leaving it out, discounts, and the oldest that counts; printed is the mean accuracy after
the last round of the others, of the worst of them, and of the slow agent. Checked: with the defaults of the config the
others are better off than when repeats are left out, and than without a discount. The numbers go to
benchmarks/results/staleness.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean

import dimat.agent.round
from dimat.agent.gather import Gathered
from dimat.agent.newest import discounted_row, gather_newest
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.runfolder import prepare
from dimat.simulate import simulate

RESULTS = Path(__file__).parent / "results" / "staleness.json"
SLOW, FACTOR = 1, 10
VARIANTS = (
    # used again, staleness_power, max_staleness
    (True, 0.5, 10),
    (True, 0.5, 50),
    (True, 1.0, 50),
    (True, 0.0, 50),
    (False, 0.5, 10),
    (False, 0.5, 50),
)


@contextmanager
def leaving_out_repeats() -> Iterator[None]:
    """Within it, nobody merges with one snapshot twice."""
    merged_with: dict[tuple[int, int], int] = {}

    def gather(agent: Agent, number: int, row: Mapping[int, float], clock: PhaseClock) -> Steps[Gathered]:
        got = yield from gather_newest(agent, number, row, clock)
        new = {peer for peer in got.states if agent.newest[peer] > merged_with.get((agent.id, peer), -1)}
        merged_with.update({(agent.id, peer): agent.newest[peer] for peer in new})
        ages = {peer: max(0, number - agent.newest[peer]) for peer in new}
        weights = discounted_row(agent.id, row, ages, agent.config.exchange.staleness_power)
        return replace(got, states={peer: got.states[peer] for peer in new}, weights=weights)

    dimat.agent.round.gather_newest = gather
    try:
        yield
    finally:
        dimat.agent.round.gather_newest = gather_newest


def accuracies(seed: int, rounds: int, power: float, oldest: int) -> tuple[float, float, float]:
    """After the last round: mean of the others, worst of the others, the slow agent."""
    config = load_config(
        None,
        [
            "task.model.name=mlp", "task.model.hidden=[32]", "train.epochs=1", f"rounds={rounds}", f"seed={seed}",
            "exchange.mode=async", f"exchange.staleness_power={power}", f"exchange.max_staleness={oldest}",
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = prepare(config, Path(folder) / "run")
        simulate(config, out, pace={SLOW: FACTOR})
        with Store.open(out, read_only=True) as store:
            last = {r.agent: r.metrics["accuracy"] for r in store.reports(sketches=False) if r.round == rounds}
    others = [accuracy for agent, accuracy in last.items() if agent != SLOW]
    return mean(others), min(others), last[SLOW]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one seed, three rounds, two variants, no claim")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    seeds, rounds = (1, 3) if arguments.smoke else (arguments.seeds, arguments.rounds)
    print("snapshots merged with before | discount      | oldest | the others | worst of them | the slow one")
    table: dict[tuple[bool, float, int], tuple[float, float, float]] = {}
    for again, power, oldest in (VARIANTS[0], VARIANTS[4]) if arguments.smoke else VARIANTS:
        rows = []
        for seed in range(seeds):
            with nullcontext() if again else leaving_out_repeats():
                rows.append(accuracies(seed, rounds, power, oldest))
        others, worst, slow = (mean(column) for column in zip(*rows, strict=True))
        table[again, power, oldest] = others, worst, slow
        words = "used again" if again else "left out"
        print(
            f"{words:28} | (1 + s) ** -{power:<3g} | {oldest:6} | {others:10.3f} | {worst:13.3f} | {slow:12.3f}",
            flush=True,
        )
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    default = table[True, 0.5, 10][0]
    checks = {
        "using snapshots again beats leaving them out": default > table[False, 0.5, 10][0],
        "discounting the old beats using them in full": default > table[True, 0.0, 50][0],
    }
    for words, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {words}")
    RESULTS.parent.mkdir(exist_ok=True)
    rows_by_variant = {f"again={a} power={p} oldest={o}": values for (a, p, o), values in table.items()}
    RESULTS.write_text(json.dumps({"seeds": seeds, "rounds": rounds, "variants": rows_by_variant}, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
