"""Kills a change of a ledger at one of its lines, in a process of its own; `python killed.py HOME OPERATION STRIDE`.

A process that has everything imported forks; the child counts the lines that it runs of the ledger's own code and ends
itself with SIGKILL at the line that was asked for. The parent looks at what is left, gives the same command again, and
compares with a ledger that nobody disturbed. One JSON object on stdout: the lines, kills before and after the change.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dimat.continual import AlreadyAbsorbed, Ledger
from dimat.continual import ledger as home_of_code
from dimat.modelfile import write_model

CODE = str(Path(home_of_code.__file__).parent)
Change = Callable[[Ledger], Any]


def count_lines(change: Callable[[], object], die_at: int | None) -> int:
    """How many lines of the ledger's code `change` runs; it does not come back when it dies at one of them."""
    lines = 0

    def on_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    sys.settrace(lambda frame, event, argument: on_line if frame.f_code.co_filename.startswith(CODE) else None)
    try:
        change()
    finally:
        sys.settrace(None)
    return lines


def killed(change: Callable[[], object], line: int) -> None:
    """Have a child die at `line` of `change`."""
    child = os.fork()
    if not child:
        count_lines(change, line)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, f"it did not get to line {line}"


def picture(ledger: Ledger) -> dict[str, Any]:
    """Everything that has to be the same, to the bit."""
    return {
        "states": {file.name: file.read_bytes().hex() for file in sorted((ledger.path / "states").iterdir())},
        "models": [(one.name, one.digest, one.order, one.norm, one.cosine, one.version) for one in ledger.entries()],
        "merged": {name: tensor.tolist() for name, tensor in ledger.merged().items()},
    }


def write(folder: Path, name: str, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    path = folder / f"{name}.safetensors"
    tensors = {"w": torch.randn(5, 3, generator=generator), "b": torch.randn(5, generator=generator)}
    write_model(path, tensors)
    return path


def every_line(home: Path, operation: str, stride: int) -> dict[str, int]:
    """Kill `operation` at every `stride`-th line of its own, each time on a copy of the same ledger."""
    models = [write(home, f"m{i}", i) for i in range(4)]
    start = Ledger.create(home / "start", models[0], "mean", keep=2)
    for path in models[1:3]:
        start.add(path)
    change: Change = {
        "add": lambda ledger: ledger.add(models[3]),
        "remove": lambda ledger: ledger.remove("m1", models[1]),
        "undo": lambda ledger: ledger.undo(),
    }[operation]
    undisturbed = Ledger.open(Path(shutil.copytree(start.path, home / "undisturbed")))
    before = picture(start)
    lines = count_lines(lambda: change(undisturbed), None)
    after = picture(undisturbed)
    kills = {"before": 0, "after": 0}
    for line in range(1, lines + 1, stride):
        ledger = Ledger.open(Path(shutil.copytree(start.path, home / "ledger")))
        killed(lambda ledger=ledger: change(ledger), line)  # type: ignore[misc]
        assert ledger.verify() == [], (line, ledger.verify())
        done = ledger.version != start.version
        kills["after" if done else "before"] += 1
        found, wanted = picture(ledger), after if done else before
        assert (found["models"], found["merged"]) == (wanted["models"], wanted["merged"]), line
        if not done:
            change(ledger)
        else:  # the next writer clears what the killed one left
            with ledger.writing("looks"):
                pass
        assert picture(ledger) == after, line
        shutil.rmtree(ledger.path)
    return {"lines": lines, **kills}


def many_adds(home: Path, count: int) -> dict[str, int]:
    """Add `count` models one after another, each killed once at another share of its way, and retried."""
    start = write(home, "base", 0)
    models = [write(home, f"m{i}", i + 1) for i in range(count)]
    ledger, undisturbed = (Ledger.create(home / name, start, "opcm") for name in ("ledger", "undisturbed"))
    kills = {"before": 0, "after": 0}
    for i, path in enumerate(models):
        lines = count_lines(lambda path=path: undisturbed.add(path), None)  # type: ignore[misc]
        killed(lambda path=path: ledger.add(path), 1 + lines * i // count)  # type: ignore[misc]
        try:
            ledger.add(path)
            kills["before"] += 1
        except AlreadyAbsorbed:
            kills["after"] += 1
    assert ledger.verify() == []
    assert picture(ledger) == picture(undisturbed)
    return {"lines": lines, **kills}


def main() -> None:
    torch.set_num_threads(1)
    home, operation, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    print(json.dumps(many_adds(home, number) if operation == "many" else every_line(home, operation, number)))


if __name__ == "__main__":
    main()
