"""100 models are added to a ledger by processes that are killed at random instants, and added again until they are in.

    python benchmarks/continual_kill.py              100 adds: about two minutes
    python benchmarks/continual_kill.py --smoke      5 adds of a smaller model

Every add is a process of its own, forked from one that has everything imported, so that the instant lies within the
add and not within its imports. It gets SIGKILL after a random share of the time that an undisturbed add takes; after
that the same add is tried again, until the journal has the model. Checked: nothing is in twice or lost, `verify` finds
nothing, and every state file and the exported model have the bits of a ledger that nobody disturbed. The numbers go to
benchmarks/results/continual_kill.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dimat.continual import AlreadyAbsorbed, Ledger
from dimat.continual.manifest import file_digest
from dimat.modelfile import write_model

RESULTS = Path(__file__).parent / "results" / "continual_kill.json"


def write(path: Path, seed: int, width: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (2 * width, width), "up": (2 * width, width), "down": (width, 2 * width), "bias": (width,)}
    write_model(path, {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()})
    return path


def attempt(work: Callable[[], object], kill_after_s: float | None) -> tuple[bool, float]:
    """Run `work` in a forked process; whether it was killed, and the seconds it ran."""
    started = time.perf_counter()
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # nothing of this process is the child's to clean up
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status)
    if not killed and os.waitstatus_to_exitcode(status):
        raise SystemExit("an add failed by itself: see above")
    return killed, time.perf_counter() - started


def add(ledger: Ledger, model: Path) -> None:
    with suppress(AlreadyAbsorbed):  # the kill came after the transaction
        ledger.add(model)


def measure(home: Path, count: int, width: int, seed: int) -> dict[str, Any]:
    base = write(home / "base.safetensors", 0, width)
    ledger, undisturbed = (
        Ledger.create(home / name, base, "opcm", keep=2 * count) for name in ("killed", "undisturbed")
    )
    random_ = random.Random(seed)
    seconds, kills, in_vain = [], [], 0
    while sum(one > 0 for one in kills) < count:  # now and then an add is faster than its kill
        i = len(kills)
        model = write(home / f"m{i:03}.safetensors", i + 1, width)
        seconds.append(attempt(lambda model=model: add(undisturbed, model), None)[1])  # type: ignore[misc]
        usual, mine = statistics.median(seconds), 0
        while len(ledger.entries()) <= i:
            # The first try ends before the fastest add did; later ones get longer, so that they end.
            after = random_.uniform(0, 2 * usual if mine else min(seconds))
            killed, _ = attempt(lambda model=model: add(ledger, model), after)  # type: ignore[misc]
            mine += killed
            in_vain += killed and len(ledger.entries()) <= i
        kills.append(mine)
        model.unlink()
        if sys.stderr.isatty():
            print(f"\r{i + 1} adds, {sum(kills)} kills", end="", file=sys.stderr)
    found = [(one.name, one.digest, one.order, one.version, one.norm, one.cosine) for one in ledger.entries()]
    expected = [(one.name, one.digest, one.order, one.version, one.norm, one.cosine) for one in undisturbed.entries()]
    with ledger.writing("looks"):
        pass  # the next writer clears what the last kill left
    states = [
        {file.name: file_digest(file) for file in (one.path / "states").iterdir()} for one in (ledger, undisturbed)
    ]
    exports = [one.export(home / f"{one.path.name}.safetensors") for one in (ledger, undisturbed)]
    merged = [(home / f"{one.path.name}.safetensors").read_bytes() for one in (ledger, undisturbed)]
    return {
        "adds": len(kills),
        "model_bytes": base.stat().st_size,
        "seconds_per_add": statistics.median(seconds),
        "kills": sum(kills),
        "adds_killed_at_least_once": sum(one > 0 for one in kills),
        "kills_before_the_transaction": in_vain,
        "kills_after_the_transaction": sum(kills) - in_vain,
        "num_states": len(states[0]),
        "holds": {
            "nothing lost, nothing twice": found == expected and len(found) == len(kills),
            "verify finds nothing": ledger.verify() == [],
            "every state has the same bits": states[0] == states[1],
            "the exports have the same bits": exports[0] == exports[1] and merged[0] == merged[1],
            "kills on both sides of the transaction": count < 20 or 0 < in_vain < sum(kills),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="5 adds of a smaller model")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # also: a process that forks must have one thread
    count, width = (5, 64) if arguments.smoke else (100, 192)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), count, width, arguments.seed)
    print(f"{found['adds']} adds of {found['model_bytes']:,} bytes by opcm, {found['seconds_per_add']:.3f} s each")
    print(
        f"{found['kills']} kills: {found['kills_before_the_transaction']} before the transaction, "
        f"{found['kills_after_the_transaction']} after it; {found['adds_killed_at_least_once']} adds were killed"
    )
    for check, holds in found["holds"].items():
        print(f"{'holds ' if holds else 'MISSED'}  {check}")
    if not arguments.smoke:
        found |= {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if all(found["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
