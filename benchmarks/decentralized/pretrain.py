"""Agents that were trained apart: checkpoints made once for every method and graph that begins with them.

They are made by dimat itself: one round of `pretrain` epochs that ends without a merge.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.decentralized.cells import MODELS, PARTITIONS, Cell


def key(cell: Cell) -> str:
    """What a set of checkpoints depends on, as a folder's name; empty where a cell needs none."""
    setting = cell.setting
    if setting.start != "apart":
        return ""
    return f"{setting.dataset}-{setting.model}-{setting.partition}-{setting.agents}-p{setting.pretrain}-s{cell.seed}"


def folder_of(cell: Cell, cache: Path) -> Path:
    """Where the checkpoints of the cell's start are, or will be."""
    return (cache / "apart" / key(cell)).absolute()


def checkpoints(cell: Cell, task: tuple[str, ...], cache: Path, scratch: Path) -> Path:
    """The folder with one model per agent for the cell's start, trained now if it is not there yet.

    The folder appears whole or not at all; of two processes that make it at once the first wins, with the same bytes.
    """
    target = folder_of(cell, cache)
    if target.is_dir():
        return target
    from safetensors.torch import load_file, save_file

    from dimat.config import load_config
    from dimat.runfolder import prepare
    from dimat.simulate import simulate

    setting = cell.setting
    config = load_config(
        None,
        [
            "name=apart", f"seed={cell.seed}", f"agents={setting.agents}", "rounds=1", "threads=1", "init=different",
            f"train.epochs={setting.pretrain}", "merge.align=none", "merge.every=2", "topology.graph=complete",
            *task, *MODELS[setting.model], *PARTITIONS[setting.partition],
        ],
    )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as run, tempfile.TemporaryDirectory(dir=target.parent) as beside:
        folder = prepare(config, Path(run) / "run")
        simulate(config, folder)
        made = Path(beside) / "made"
        made.mkdir()
        for agent in range(setting.agents):
            tensors = load_file(folder / "checkpoints" / str(agent) / "1.safetensors")
            model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
            save_file(model, made / f"{agent}.safetensors")
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(made)
    return target
