"""Two hosts under `torchrun --nnodes 2` over a long, lossy line that is cut for half a minute: does the run end?

    python benchmarks/lab.py            a clear line; 50 ms and 1 % loss; the same cut for 30 s: about eight minutes
    python benchmarks/lab.py --smoke    6 rounds, 50 ms, 1 % loss, cut for 4 s

The hosts are network namespaces of this machine, built by launch/lab.sh (needs root): a run folder each, two agents
each, ring of four, lines of 100 Mbit/s. 50 ms is the way of every packet in one direction; packets are lost in each.
The line is cut once every agent has reported round 3; there are so many rounds that it is mended while some are left
also for two agents that go on alone. Checked in every case: torchrun ends with 0 on both hosts, no worker was started
twice, every agent is in the last round. Where the cut is no longer than a lease every agent reported every round; in a
longer one those beyond it leave out what they missed. The numbers go to benchmarks/results/lab.json; exit code 1
when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dimat.config import MembershipConfig, load_config
from dimat.coordinator import Store
from dimat.runfolder import processes

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "lab.json"
LAB = ROOT / "launch" / "lab.sh"
NUM_AGENTS = 4
CUT_AFTER_ROUND = 3
LEASE_S = MembershipConfig().lease_s
CASES = {
    "clear line": {},
    "50 ms, 1 % loss": {"delay_ms": 50, "loss_percent": 1},
    "50 ms, 1 % loss, cut for 30 s": {"delay_ms": 50, "loss_percent": 1, "cut_s": 30},
}
SMOKE = {"50 ms, 1 % loss, cut for 4 s": {"delay_ms": 50, "loss_percent": 1, "cut_s": 4}}


def reached(out: Path, round: int) -> bool:
    """Whether every agent has written down the numbers of `round`."""
    files = list(out.glob("host-*/metrics/*.jsonl"))
    return len(files) == NUM_AGENTS and all(len(file.read_text().splitlines()) >= round for file in files)


def carry_out(
    out: Path, rounds: int, epochs: int, delay_ms: int = 0, loss_percent: int = 0, cut_s: int = 0
) -> dict[str, Any]:
    """One job across two hosts; what came of it."""
    settings = [f"agents={NUM_AGENTS}", f"rounds={rounds}", f"train.epochs={epochs}"]
    out.mkdir()
    config = out / "lab.yaml"
    config.write_text(load_config(None, settings).to_yaml())
    environment = {
        **os.environ,
        "PYTHON": sys.executable, "LAB": f"d{os.getpid()}", "HOSTS": "2", "AGENTS_PER_HOST": "2",
        "RATE": "100mbit", "DELAY_MS": str(delay_ms), "LOSS_PERCENT": str(loss_percent),
    }  # fmt: skip
    started = time.monotonic()
    job = subprocess.Popen(
        [str(LAB), "run", str(config), str(out)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if cut_s:
            while not reached(out, CUT_AFTER_ROUND) and job.poll() is None:
                time.sleep(0.1)  # another process writes the files
            for order, pause_s in (("cut", cut_s), ("heal", 0)):
                subprocess.run([str(LAB), order], env=environment, check=job.poll() is None)
                time.sleep(pause_s)
        code = job.wait(timeout=600)
    finally:
        job.terminate()
        job.wait()
    with Store.open(out / "host-0", read_only=True) as store:
        reports, summaries = store.reports(sketches=False), store.summaries()
    starts = Counter(
        entry["id"] for host in out.glob("host-*") for entry in processes(host) if entry["role"] == "agent"
    )
    switch = out / "switch.json"
    return {
        "exit_code": code,
        "seconds": time.monotonic() - started,
        "rounds_reported": sorted(Counter(report.agent for report in reports).values()),
        "last_round": (summaries[-1].round, summaries[-1].num_agents) if summaries else (0, 0),
        "starts_of_agents": [starts[agent] for agent in range(NUM_AGENTS)],
        "missing_edges": sum(len(report.missing) for report in reports),
        "longest_wait_s": max((report.seconds.get("wait", 0.0) for report in reports), default=0.0),
        "mean_accuracy": summaries[-1].mean_accuracy if summaries else None,
        "frames": json.loads(switch.read_text()) if switch.is_file() else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="6 rounds, one case with a cut of 4 s")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    rounds = 6 if arguments.smoke else arguments.rounds
    if subprocess.run([str(LAB), "check"], stdout=sys.stderr, check=False).returncode:
        return 2

    results, holds = {}, True
    print(f"{'two hosts, two agents each':<32}{'seconds':>8}{'longest wait':>14}{'edges missed':>14}{'accuracy':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, line) in enumerate((SMOKE if arguments.smoke else CASES).items()):
            result = results[name] = carry_out(Path(folder) / str(number), rounds, 1 if arguments.smoke else 8, **line)
            fine = (
                result["exit_code"] == 0
                and result["last_round"] == (rounds, NUM_AGENTS)
                and (line.get("cut_s", 0) > LEASE_S or result["rounds_reported"] == [rounds] * NUM_AGENTS)
                and result["starts_of_agents"] == [1] * NUM_AGENTS
            )
            holds = holds and fine
            print(
                f"{name:<32}{result['seconds']:8.1f}{result['longest_wait_s']:12.1f} s{result['missing_edges']:14}"
                f"{result['mean_accuracy'] or 0:10.3f}"
            )
            if not fine:
                print(json.dumps(result), *(log.read_text()[-2000:] for log in Path(folder).glob("*/host-*.log")))
    print(f"{'holds ' if holds else 'FAILS '} every run ends by itself, all agents in its last round, none restarted")
    if arguments.smoke:
        return 0 if holds else 1
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
