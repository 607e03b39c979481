"""What `exchange.overlap` saves: the time of async rounds over links of limited bandwidth, with and without.

    python benchmarks/overlap.py            three agents, three bandwidths, 10 rounds each way: three minutes
    python benchmarks/overlap.py --smoke    two agents, one bandwidth, three rounds, no claim

Agents are threads that run the real round over gRPC. On each edge stands a relay of its own that passes so many bytes
a second (tests/faults/relay.py); two readers of one address would share a connection, being one process. Training is
sleeping (the task below), as on a device of its own: so the number of cores decides nothing, and what receiving costs
a processor that trains is not in these figures. A transfer takes half as long as training, as long, or twice as long.
The first rounds, in which there is nothing to read yet, do not count.

Checked: with overlap a round lasts as long as the longer of the two and without as long as both together, within a
fifth and what evaluating and merging take. What the age of the snapshots costs is shown in simulation, on a ring of
five whose transfers take as long as its training: mean accuracy after the same rounds, and in the same virtual time.
The numbers go to benchmarks/results/overlap.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "faults"))
from relay import Relay  # noqa: E402

from dimat.agent.build import build_agent  # noqa: E402
from dimat.agent.round import run_round  # noqa: E402
from dimat.agent.state import Agent  # noqa: E402
from dimat.agent.steps import drive  # noqa: E402
from dimat.agent.waiting import wait_on_network  # noqa: E402
from dimat.config import load_config  # noqa: E402
from dimat.messages import Report, Schema  # noqa: E402
from dimat.runfolder import prepare  # noqa: E402
from dimat.simulate import simulate  # noqa: E402
from dimat.tasks.digits import DigitsTask  # noqa: E402
from dimat.transport.grpc import GrpcTransport  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "overlap.json"
SKIP = 2
"""Rounds that do not count."""
SHARES = (0.5, 1.0, 2.0)
"""How long a transfer takes, in trainings."""
TOLERANCE = 0.2


class SleepyDigits(DigitsTask):
    """Digits whose training takes as long as it says: its shard is one batch."""

    def __init__(self, *, train_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._train_s = train_s

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Take one's time."""
        time.sleep(self._train_s)
        return super().loss(model, batch)


def measure(overlap: bool, share: float, *, agents: int, rounds: int, train_s: float, hidden: int) -> dict[str, Any]:
    """Medians over the rounds that count of all agents, in seconds."""
    config = load_config(
        None,
        [
            f"agents={agents}", f"rounds={rounds}", "init=same", "topology.graph=complete", "merge.align=none",
            f"task.name={Path(__file__).resolve()}:SleepyDigits", f"task.options.train_s={train_s}",
            "task.model.name=mlp", f"task.model.hidden=[{hidden}, {hidden}]", "task.partition.scheme=iid",
            "train.epochs=1", "train.batch_size=2000", "exchange.mode=async", f"exchange.overlap={overlap}",
        ],
    )  # fmt: skip

    def door(number: int) -> Callable[[Schema], GrpcTransport]:
        return lambda schema: GrpcTransport(number, "s", schema)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as relays, ExitStack() as doors:
        group = [build_agent(config, number, Path(folder), "s", door(number)) for number in range(agents)]
        bandwidth = group[0].schema.num_bytes / (share * train_s)
        lines: dict[int, dict[int, str]] = {agent.id: {} for agent in group}
        for agent in group:
            door_at = agent.transport.start()
            doors.callback(agent.transport.close)
            for reader in lines.keys() - {agent.id}:
                relay = Relay(door_at, bytes_per_s=bandwidth)
                lines[reader][agent.id] = relay.start()
                relays.callback(relay.close)
        for agent in group:
            agent.transport.connect(lines[agent.id])
        told = together([partial(all_rounds, agent, rounds) for agent in group])
    counted = [(seconds, report) for one in told for seconds, report in one[SKIP:]]
    return {
        "round_s": median(seconds for seconds, _ in counted),
        "train_s": median(report.seconds["train"] for _, report in counted),
        "gather_s": median(report.seconds["gather"] for _, report in counted),
        "hidden_s": median(report.metrics.get("hidden_s", 0.0) for _, report in counted),
        "models_read": mean(n > 0 for _, report in counted for n in report.bytes_received.values()),
        "missing": sum(len(report.missing) for _, report in counted),
        "model_bytes": group[0].schema.num_bytes,
        "bytes_per_s": bandwidth,
    }


def all_rounds(agent: Agent, rounds: int) -> list[tuple[float, Report]]:
    """How long each round of one agent took, and its report."""
    told = []
    for number in range(1, rounds + 1):
        begun = time.monotonic()
        report = drive(run_round(agent, number), partial(wait_on_network, agent))
        told.append((time.monotonic() - begun, report))
    return told


def learn(overlap: bool, seed: int, rounds: int) -> list[dict[str, Any]]:
    """What the agents of a simulation wrote down: transfers take as long as training, in virtual time."""
    samples, hidden = 287, 64
    model_bytes = 4 * (64 * hidden + hidden + hidden * 10 + 10)
    config = load_config(
        None,
        [
            f"rounds={rounds}", f"seed={seed}", "task.model.name=mlp", f"task.model.hidden=[{hidden}]",
            "train.epochs=1", "train.lr_schedule=constant", "exchange.mode=async",
            f"exchange.overlap={overlap}", "simulation.compute_s_per_sample=0.01",
            f"simulation.bandwidth_bytes_per_s={model_bytes / (samples * 0.01)}", "simulation.jitter=0.1",
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = prepare(config, Path(folder) / "run")
        simulate(config, out)
        return [json.loads(line) for path in (out / "metrics").iterdir() for line in path.read_text().splitlines()]


def accuracy(rows: list[dict[str, Any]], *, until_s: float = float("inf"), rounds: int = 1 << 30) -> float:
    """The mean over the agents of what each had reached by then."""
    last: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["round"]):
        if row["time"] <= until_s and row["round"] <= rounds:
            last[row["agent"]] = row
    return mean(row["accuracy"] for row in last.values())


def show_learning(seeds: int, rounds: int) -> list[dict[str, float]]:
    """Print what the age costs and the time brings, at some rounds of a run without overlap."""
    runs = [(learn(False, seed, rounds), learn(True, seed, 2 * rounds)) for seed in range(seeds)]
    table = []
    print("rounds without | accuracy without | with, same rounds | with, same time")
    for number in sorted({2, 5, rounds // 2, rounds} & set(range(2, rounds + 1))):
        ends = [max(row["time"] for row in without if row["round"] == number) for without, _ in runs]
        row = {
            "round": number,
            "without": mean(accuracy(without, rounds=number) for without, _ in runs),
            "same_rounds": mean(accuracy(with_it, rounds=number) for _, with_it in runs),
            "same_time": mean(accuracy(one[1], until_s=end) for one, end in zip(runs, ends, strict=True)),
        }
        print(
            f"{number:14} | {row['without']:16.3f} | {row['same_rounds']:17.3f} | {row['same_time']:15.3f}", flush=True
        )
        table.append(row)
    return table


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return that are made at the same time."""
    results: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda place=place, call=call: results.update({place: call()}), name=f"agent-{place}")
        for place, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[place] for place in range(len(calls))]  # one that failed has said so, and is missing here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two agents, one bandwidth, three rounds, no claim")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size: dict[str, Any] = {"agents": 3, "rounds": arguments.rounds, "train_s": 1.0, "hidden": 700}
    shares = SHARES
    if arguments.smoke:
        size, shares = {"agents": 2, "rounds": 3, "train_s": 0.05, "hidden": 64}, (1.0,)

    print(f"{size['agents']} agents that each read all others; training takes {size['train_s']:g} s")
    print("transfer, s | round without, s | with, s | ratio | waited, s | hidden, s | models read per edge and round")
    table, checks = {}, {}
    for share in shares:
        without, with_it = (measure(overlap, share, **size) for overlap in (False, True))
        lasts_s = share * size["train_s"]
        ratio = without["round_s"] / with_it["round_s"]
        print(
            f"{lasts_s:11.2f} | {without['round_s']:16.2f} | {with_it['round_s']:7.2f} | {ratio:5.2f}"
            f" | {with_it['gather_s']:9.2f} | {with_it['hidden_s']:9.2f}"
            f" | {without['models_read']:.2f} without, {with_it['models_read']:.2f} with",
            flush=True,
        )
        rest_s = without["round_s"] - without["train_s"] - without["gather_s"]
        bounds = {"without": size["train_s"] + lasts_s, "with": max(size["train_s"], lasts_s)}
        for name, one in (("without", without), ("with", with_it)):
            within = bounds[name] * (1 - TOLERANCE) <= one["round_s"] <= bounds[name] * (1 + TOLERANCE) + rest_s
            checks[f"{lasts_s:g} s a transfer, {name}: a round takes {bounds[name]:g} s and the rest"] = within
        table[f"{share:g}"] = {"without": without, "with": with_it, "ratio": ratio}
    learning = show_learning(1, 2) if arguments.smoke else show_learning(3, 20)
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    for words, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {words}")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(
        json.dumps({**about, **size, "transfers": table, "learning": learning, "checks": checks}, indent=1)
    )
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
