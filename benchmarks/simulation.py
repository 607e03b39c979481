"""What simulating costs: 64 agents one after the other and as one, and a thousand agents in one process.

    python benchmarks/simulation.py                      both parts, some minutes
    python benchmarks/simulation.py --data FILE.npz      MNIST-like samples of a file instead of generated ones
    python benchmarks/simulation.py --smoke              8 and 12 agents, two rounds, no claim

First part: 64 agents on a ring share the digits out (22 samples each) and train an MLP, five epochs a round in batches
of 8, with `simulation.vectorise: off` and with `auto`, in turns within this one process. Compared are processor
seconds, so that who else uses the machine plays as little part as can be: those of local training in the rounds after
the first (in which the check is made), and those of all rounds, with evaluation, exchange, merge, reports and the last
round's checkpoint. Checked: an MLP with one hidden layer of 64 trains at least 4 times as fast.
This workload was chosen for the claim: the default MLP with the default batch size, where a shard is a single batch,
stays below 4 and is told beside it, also with checkpoints in every round, as is the default. Larger ones are told
beside it: where arithmetic and memory decide, and not the number of operations, there is less to gain.

Second part: 1000 agents on a ring with 60 samples of 28x28 bytes each, in a process of its own. Told are seconds and
the peak of its memory (VmHWM); checked: every round has the reports of all agents.

The numbers go to benchmarks/results/simulation.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dimat.agent import host
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.simulate.together import Together

RESULTS = Path(__file__).parent / "results" / "simulation.json"
FACTOR = 4.0
"""How many times as fast training as one has to be."""
RING = ["init=same", "merge.align=none", "task.partition.scheme=iid", "topology.graph=ring"]


def generate(path: Path, num_train: int, num_test: int) -> None:
    """Bytes of MNIST's shape: a pattern for each of ten classes, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 160, size=(10, 28, 28))
    made: dict[str, Any] = {}
    for name, num in (("train", num_train), ("test", num_test)):
        labels = np.arange(num) % 10
        made[f"x_{name}"] = (patterns[labels] + rng.integers(0, 96, size=(num, 28, 28))).astype(np.uint8)
        made[f"y_{name}"] = labels
    np.savez(path, **made)


def measure(config: RunConfig) -> dict[str, float]:
    """Simulate; processor seconds of training in the rounds after the first, and of all rounds."""
    training: dict[int, float] = defaultdict(float)

    def timed(function: Callable[..., Any], number_of: Callable[..., int]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.process_time()
            result = function(*arguments)
            training[number_of(*arguments)] += time.process_time() - begun
            return result

        return call

    marks: list[float] = []
    one_by_one = timed(host.train_agent, lambda agent, number: number)
    as_one = timed(Together._train, lambda together, requests: requests[0].number)
    with tempfile.TemporaryDirectory() as folder:
        out = prepare(config, Path(folder) / "run")
        with mock.patch.object(host, "train_agent", one_by_one), mock.patch.object(Together, "_train", as_one):
            simulate(config, out, lambda view: marks.append(time.process_time()))
        rounds_s = time.process_time() - marks[0]
        with Store.open(out, read_only=True) as store:
            accuracy = store.summaries()[-1].mean_accuracy
            fell_back = [event.text for event in store.events() if event.kind == "vectorise"]
    if fell_back:
        raise SystemExit(fell_back[0])
    train_s = sum(seconds for number, seconds in training.items() if number > 1)
    return {"train_s": train_s, "rounds_s": rounds_s, "accuracy": accuracy}


def compare(name: str, settings: list[str], repeats: int) -> dict[str, Any]:
    """One line of the first table: the least of some repetitions, both ways in turns."""
    found: dict[str, list[dict[str, float]]] = {"off": [], "auto": []}
    for _ in range(repeats):
        for way, measured in found.items():
            measured.append(measure(load_config(None, [*settings, f"simulation.vectorise={way}"])))
    least = {
        way: {key: min(one[key] for one in measured) for key in ("train_s", "rounds_s")}
        for way, measured in found.items()
    }
    ratios = {key: least["off"][key] / least["auto"][key] for key in ("train_s", "rounds_s")}
    apart = abs(found["off"][0]["accuracy"] - found["auto"][0]["accuracy"])
    print(
        f"{name:34}{least['off']['train_s']:9.2f} -> {least['auto']['train_s']:5.2f}{ratios['train_s']:7.1f}x"
        f"{least['off']['rounds_s']:11.2f} -> {least['auto']['rounds_s']:5.2f}{ratios['rounds_s']:7.1f}x{apart:12.4f}",
        flush=True,
    )
    return {"seconds": least, "ratios": ratios, "accuracies_apart": apart}


def many(num_agents: int, rounds: int, data: Path) -> dict[str, float]:
    """Simulate very many agents in this process; how long it took, and the most memory that it had."""
    begun = time.monotonic()
    config = load_config(
        None,
        [
            *RING, f"agents={num_agents}", f"rounds={rounds}", "task.name=arrays", f"task.data={data}",
            f"task.options.train_limit={60 * num_agents}", "task.options.test_limit=500", "task.model.name=mlp",
            "task.model.hidden=[64]", "train.epochs=1", "simulation.vectorise=auto",
        ],
    )  # fmt: skip
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = prepare(config, Path(folder) / "run")
        simulate(config, out, lambda view: marks.append(time.monotonic()))
        ended = time.monotonic()
        with Store.open(out, read_only=True) as store:
            summaries = store.summaries()
    return {
        "agents": num_agents, "rounds": rounds, "parameters": 784 * 64 + 64 + 64 * 10 + 10,
        "reports": sum(summary.num_agents for summary in summaries), "building_s": marks[0] - begun,
        "rounds_s": ended - marks[0], "processor_s": time.process_time(), "peak_bytes": peak_bytes(),
        "accuracy": summaries[-1].mean_accuracy,
    }  # fmt: skip


def peak_bytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="8 and 12 agents, two rounds, no claim")
    parser.add_argument("--data", type=Path, help="an .npz with 28x28 images; 60 samples of it per agent are used")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many", type=int, help=argparse.SUPPRESS)  # the second part, in a process of its own
    arguments = parser.parse_args()
    few, thousand, rounds, repeats = (8, 12, 2, 1) if arguments.smoke else (64, 1000, 3, arguments.repeats)
    if arguments.many:
        print(json.dumps(many(arguments.many, rounds, arguments.data)))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or Path(folder) / "images.npz"
        if arguments.data is None:
            generate(data, 60 * thousand, 500)
        print(f"{few} agents, processor seconds of {rounds} rounds: off -> auto")
        print(f"{'':34}{'training':>24}{'':4}{'all of a round':>24}  accuracies apart")
        size = [*RING, f"agents={few}", f"rounds={rounds}", "train.epochs=5", "train.batch_size=8"]
        size.append("simulation.checkpoint_every=100")
        images = ["task.name=arrays", f"task.data={data}", "task.options.test_limit=500", "train.epochs=2"]
        table = {
            "small": compare("digits, MLP 64-64-10", [*size, "task.model={name: mlp, hidden: [64]}"], repeats),
            "default": compare("digits, MLP 64-128-128-10", [*size, "task.model=mlp"], repeats),
            "one_batch": compare(
                "the same, one batch an epoch", [*size, "task.model=mlp", "train.batch_size=32"], repeats
            ),
            "checkpoints": compare(
                "the same, checkpoint every round",
                [*size, "task.model=mlp", "train.batch_size=32", "simulation.checkpoint_every=1"],
                repeats,
            ),
            "images": compare(
                "28x28 bytes, MLP 784-64-10",
                [*size, *images, f"task.options.train_limit={60 * few}", "task.model={name: mlp, hidden: [64]}"],
                repeats,
            ),
        }
        command = [sys.executable, __file__, "--many", str(thousand), "--data", str(data)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        smoke = ["--smoke"] if arguments.smoke else []
        done = subprocess.run([*command, *smoke], stdout=subprocess.PIPE, text=True, check=True, env=environment)
        large = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{large['agents']} agents of 60 samples, {large['parameters']} parameters, {large['rounds']} rounds: "
        f"{large['building_s']:.0f} s to build, {large['rounds_s'] / large['rounds']:.0f} s a round, "
        f"peak memory {large['peak_bytes'] / 1e9:.2f} GB"
    )
    checks = {
        f"the small MLP trains at least {FACTOR:g} times as fast as one": table["small"]["ratios"]["train_s"] >= FACTOR,
        f"all {large['agents']} agents reported every round": large["reports"] == large["agents"] * large["rounds"],
    }
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    for words, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {words}")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({**about, "few": few, "table": table, "many": large, "checks": checks}, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
