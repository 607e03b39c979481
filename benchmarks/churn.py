"""Kill agents and the coordinator at random instants of a run, and see whether the others notice more than that.

    python benchmarks/churn.py             ten scripts, one per seed: about a quarter of an hour
    python benchmarks/churn.py --smoke     one script of a shorter run, in which a sixth agent joins, too
    python benchmarks/churn.py --join      a sixth agent joins in all of them

Five agents on a ring, one launcher (torchrun) each, a small network on scikit-learn's digits, 200 rounds. A script
draws three rounds, in any order, and three victims: an agent is killed (SIGKILL, with its launcher) and started again
at once; the coordinator is killed and started again on its port; another agent is killed and never comes back.

Checked, for every seed:

  - the run ends with its 200 rounds, and every agent but the lost one says goodbye in order;
  - with `partition: iid` the survivors' mean accuracy is within 0.02 of the undisturbed run's (which is simulated: it
    ends with the bits of the processes); with dirichlet 0.5 the figure is shown: a lost shard takes its classes along;
  - every report that an agent has written down is in the coordinator's database with the same numbers. A killed
    process may have written one that it had not handed in yet; more of them are a failure;
  - the lost agent is out of the graph, its neighbours are joined, and the agent that came back is in it again;
    so is one that joined.

Numbers go to benchmarks/results/churn.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import psutil

from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.launch import commands
from dimat.launch.children import Child
from dimat.runfolder import prepare
from dimat.simulate import simulate

RESULTS = Path(__file__).parent / "results" / "churn.json"
NUM_SEEDS, NUM_ROUNDS, SMOKE_ROUNDS = 10, 200, 60
MOST_WORSE = 0.02
TIMEOUT_S = 900.0
SETTINGS = [
    "name=churn",
    "agents=5",
    "task.model.name=mlp",
    "task.model.hidden=[64,64]",
    "train.epochs=6",
    "train.batch_size=16",
    "membership.lease_s=3",
    "exchange.timeout_s=20",
]
ELASTIC = ["membership.elastic=true", "membership.max_agents=6"]
IID, DIRICHLET = ["task.partition.scheme=iid"], ["task.partition.scheme=dirichlet", "task.partition.alpha=0.5"]


@dataclass(slots=True)
class Script:
    """When whom is killed: rounds by victim."""

    returning: int
    lost: int
    rounds: dict[str, int]
    joins: bool = False
    """A sixth agent comes when the first kill is due."""

    @classmethod
    def drawn(cls, seed: int, num_agents: int, num_rounds: int, *, joins: bool = False) -> Script:
        """Three rounds in the middle of the run, far enough apart that each is a case of its own."""
        draw = random.Random(seed)
        returning, lost = draw.sample(range(num_agents), 2)
        first, last = num_rounds // 20, num_rounds * 3 // 5  # who comes back needs time to start
        while True:
            rounds = [draw.randrange(first, last) for _ in range(3)]
            if min(abs(a - b) for i, a in enumerate(rounds) for b in rounds[:i]) >= num_rounds // 20:
                kills = dict(zip(("returning", "coordinator", "lost"), rounds, strict=True))
                return cls(returning, lost, kills, joins)


@dataclass(slots=True)
class Processes:
    """Everything that one script runs."""

    config: RunConfig
    folder: Path
    address: str = ""
    coordinator: Child | None = None
    agents: dict[int, Child] = field(default_factory=dict)

    def start(self) -> None:
        """The coordinator, then the agents."""
        self.coordinator = Child("coordinator", commands.coordinator(self.folder), self.folder / "logs/coordinator.log")
        self.address = self.coordinator.start_and_ask(self.folder)
        for agent in range(self.config.agents):
            self.start_agent(agent)

    def start_agent(self, agent: int) -> None:
        """A founder, or one that joins."""
        log = self.folder / "logs" / f"agent-{agent}.log"
        command = commands.alone(self.config, self.folder, self.address, agent)
        self.agents[agent] = Child(f"agent {agent}", command, log, commands.environment(self.config))
        self.agents[agent].start()

    def close(self) -> None:
        """Leave nothing behind."""
        for child in (*self.agents.values(), self.coordinator):
            if child is not None:
                child.close()

    def kill_agent(self, agent: int) -> None:
        """SIGKILL to the worker and its launcher, at once."""
        child = self.agents[agent]
        launcher = psutil.Process(child.pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait(10.0)

    def kill_coordinator(self) -> None:
        """SIGKILL, and a new one on the same port."""
        assert self.coordinator is not None
        self.coordinator.signal(signal.SIGKILL)
        self.coordinator.wait(10.0)
        port = int(self.address.rpartition(":")[2])
        command = commands.coordinator(self.folder, port)
        self.coordinator = Child("coordinator", command, self.folder / "logs/coordinator.log")
        self.coordinator.start()


def play(config: RunConfig, script: Script, folder: Path) -> dict[str, Any]:
    """One run with its kills; what became of it."""
    run = Processes(config, prepare(config, folder))
    started = time.monotonic()
    written: dict[int, int] = {}
    try:
        run.start()
        due = sorted(script.rounds.items(), key=lambda pair: pair[1])
        joining = script.joins
        while any(child.poll() is None for agent, child in run.agents.items() if agent != script.lost):
            if time.monotonic() - started > TIMEOUT_S:
                return {"failure": f"not over after {TIMEOUT_S:.0f} s", "ends": ends(run)}
            now = newest_round(run.folder)
            if joining and now >= 2:
                run.start_agent(config.agents)
                joining = False
            if due and now >= due[0][1]:
                what, _ = due.pop(0)
                if what == "coordinator":
                    run.kill_coordinator()
                else:
                    agent = script.returning if what == "returning" else script.lost
                    run.kill_agent(agent)
                    written[agent] = len(lines(run.folder, agent))
                    if what == "returning":
                        run.agents[agent].start()
            time.sleep(0.02)
        assert run.coordinator is not None
        run.coordinator.wait(15.0)
        return {"seconds": time.monotonic() - started, "ends": ends(run), "kills_left": len(due), **judged(run, script)}
    finally:
        run.close()


def ends(run: Processes) -> dict[str, int | None]:
    return {child.name: child.poll() for child in (*run.agents.values(), run.coordinator) if child is not None}


def newest_round(folder: Path) -> int:
    """By what the agents have written down."""
    return max((found[-1]["round"] for agent in range(5) if (found := lines(folder, agent))), default=0)


def lines(folder: Path, agent: int) -> list[dict[str, Any]]:
    path = folder / "metrics" / f"{agent}.jsonl"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def judged(run: Processes, script: Script) -> dict[str, Any]:
    """What the database says, next to what the agents wrote down."""
    with Store.open(run.folder, read_only=True) as store:
        kept = {(report.agent, report.round): report for report in store.reports(sketches=False)}
        outcome = store.outcome()
        events = list(store.events())
    missing: dict[int, int] = {}
    for agent in run.agents:
        absent = [
            line["round"]
            for line in lines(run.folder, agent)
            if (found := kept.get((agent, line["round"]))) is None or found.metrics["accuracy"] != line["accuracy"]
        ]
        missing[agent] = len(absent)
    last = run.config.rounds
    accuracies = [kept[a, last].metrics["accuracy"] for a in run.agents if (a, last) in kept and a != script.lost]
    rows = {a: sorted(kept[a, last].weights) for a in run.agents if (a, last) in kept}
    return {
        "outcome": outcome.kind if outcome else None,
        "accuracy": sum(accuracies) / max(len(accuracies), 1),
        "num_finished": len(accuracies),
        "missing": missing,
        "rows": rows,
        "graph_changes": [event.text for event in events if event.kind == "graph"],
    }


def undisturbed(config: RunConfig, folder: Path) -> dict[int, float]:
    """Each agent's accuracy after the last round, when nothing happens."""
    run = prepare(config, folder)
    simulate(config, run)
    with Store.open(run, read_only=True) as store:
        kept = [report for report in store.reports(sketches=False) if report.round == config.rounds]
    return {report.agent: report.metrics["accuracy"] for report in kept}


def checks(found: dict[str, Any], script: Script, calm: float, partition: str) -> dict[str, bool]:
    """Name -> whether it holds."""
    if "failure" in found:
        return {found["failure"]: False}
    ring = nx.cycle_graph(5)
    if script.joins:
        ring.remove_edge(0, 1)
        ring.add_edges_from([(0, 5), (5, 1)])
    a, b = sorted(ring.adj[script.lost])
    ring.remove_node(script.lost)
    ring.add_edge(a, b)
    around = {agent: sorted({agent, *ring.adj[agent]}) for agent in ring}
    named = {
        "the run ends with all its rounds": found["outcome"] == "rounds" and found["num_finished"] == len(ring),
        "survivors and the coordinator end in order": all(
            code == 0 for name, code in found["ends"].items() if name != f"agent {script.lost}"
        ),
        "all kills were made": found["kills_left"] == 0,
        "no report is missing": all(
            number <= (1 if agent == script.lost else 0) for agent, number in found["missing"].items()
        ),
        "those who are there are a ring": {a: row for a, row in found["rows"].items() if a in around} == around,
    }
    if partition == "iid":
        gap = calm - found["accuracy"]
        named[f"accuracy {found['accuracy']:.3f}, undisturbed {calm:.3f} (at most {MOST_WORSE} less)"] = (
            gap <= MOST_WORSE
        )
    return named


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", help="which scripts; all by default")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    arguments = parser.parse_args()
    rounds = SMOKE_ROUNDS if arguments.smoke else NUM_ROUNDS
    seeds = arguments.seeds if arguments.seeds is not None else range(1 if arguments.smoke else NUM_SEEDS)
    holds = True
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        for partition, extra in (("iid", IID), *((("dirichlet", DIRICHLET),) if not arguments.smoke else ())):
            joins = arguments.smoke or arguments.join
            settings = [*SETTINGS, *extra, *(ELASTIC if joins else []), f"rounds={rounds}"]
            config = load_config(None, settings)
            accuracies = undisturbed(config, out / f"{partition}-undisturbed")
            for seed in seeds if partition == "iid" else list(seeds)[:2]:
                script = Script.drawn(seed, config.agents, rounds, joins=joins)
                survivors = [agent for agent in range(config.agents) if agent != script.lost]
                calm = sum(accuracies[agent] for agent in survivors) / len(survivors)
                found = play(config, script, out / f"{partition}-{seed}")
                named = checks(found, script, calm, partition)
                holds &= all(named.values())
                results.append({"partition": partition, "seed": seed, "undisturbed": calm, **found})
                print(
                    f"{partition} seed {seed}: agent {script.returning} comes back, agent {script.lost} does not, "
                    f"kills {script.rounds}; accuracy {found.get('accuracy', float('nan')):.3f}, undisturbed "
                    f"{calm:.3f}, {found.get('seconds', float('nan')):.0f} s"
                )
                for text in found.get("graph_changes", ()):
                    print(f"    {text}")
                for name, right in named.items():
                    print(f"  {'holds' if right else 'FAILS'}  {name}")
                sys.stdout.flush()
    if not arguments.smoke:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "runs": results}, indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
