"""What is compared with what: settings, cells, their names, and the config settings that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.decentralized.methods import METHODS

MODELS: Mapping[str, tuple[str, ...]] = {
    "cnn": ("task.model=cnn",),
    "tiny": ("task.model.name=cnn", "task.model.width=0.125"),
    "resnet20": ("task.model=resnet20",),
    "vgg16_bn": ("task.model=vgg16_bn",),
    "vgg16_bn_quarter": ("task.model.name=vgg16_bn", "task.model.width=0.25"),
}
PARTITIONS: Mapping[str, tuple[str, ...]] = {
    "iid": ("task.partition.scheme=iid",),
    "dirichlet.5": ("task.partition.scheme=dirichlet", "task.partition.alpha=0.5"),
    "dirichlet.1": ("task.partition.scheme=dirichlet", "task.partition.alpha=0.1"),
    "classes": ("task.partition.scheme=classes",),
    "natural": ("task.partition.scheme=column", "task.partition.column=subject_train"),
}
GRAPHS: Mapping[str, str] = {
    "ring": "ring",
    "complete": "complete",
    "bipartite": f"{Path(__file__).parents[2] / 'topologies' / 'bipartite.py'}:build",
    "exponential": "exponential",
}
STARTS = ("same", "different", "apart")
"""One initialisation; one each; one each and trained on the own shard for `pretrain` epochs without any exchange."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """Work on which methods are compared."""

    dataset: str
    model: str
    partition: str
    graph: str
    agents: int
    start: str
    rounds: int
    epochs: int = 2
    """Local epochs a round."""
    pretrain: int = 0
    """Epochs before the first round, for the start `apart`."""

    @property
    def title(self) -> str:
        """The setting in words, without its lengths.

        >>> Setting("digits", "cnn", "iid", "ring", 5, "same", 20).title
        'digits cnn iid ring 5 same'
        """
        return f"{self.dataset} {self.model} {self.partition} {self.graph} {self.agents} {self.start}"

    @property
    def name(self) -> str:
        """The whole setting as one word.

        >>> Setting("digits", "cnn", "iid", "ring", 5, "apart", 20, 2, 10).name
        'digits-cnn-iid-ring-5-apart-r20-e2-p10'
        """
        lengths = f"r{self.rounds}-e{self.epochs}" + (f"-p{self.pretrain}" if self.start == "apart" else "")
        return f"{self.title.replace(' ', '-')}-{lengths}"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run: a setting, a method, a seed."""

    setting: Setting
    method: str
    seed: int

    @property
    def name(self) -> str:
        """What `--only` is matched with, and what the table knows the cell by.

        >>> Cell(Setting("digits", "cnn", "iid", "ring", 5, "same", 20), "wa", 0).name
        'digits-cnn-iid-ring-5-same-r20-e2-wa-s0'
        """
        return f"{self.setting.name}-{self.method}-s{self.seed}"

    def settings(self, task: tuple[str, ...], init: str) -> list[str]:
        """The `-s key=value` of this cell's run.

        Args:
            task: the settings of its data.
            init: `same`, `different` or a folder of checkpoints.
        """
        setting = self.setting
        return [
            f"name={self.name}", f"seed={self.seed}", f"agents={setting.agents}", f"rounds={setting.rounds}",
            "threads=1", f"init={init}", f"train.epochs={setting.epochs}", f"topology.graph={GRAPHS[setting.graph]}",
            *task, *MODELS[setting.model], *PARTITIONS[setting.partition], *METHODS[self.method].settings,
        ]  # fmt: skip


SETTING_COLUMNS = tuple(field.name for field in fields(Setting))


def matches(cell: Cell, patterns: list[str]) -> bool:
    """Whether any shell pattern is found anywhere in the cell's name; no pattern matches everything.

    >>> cell = Cell(Setting("digits", "cnn", "iid", "ring", 5, "same", 20), "wa", 0)
    >>> matches(cell, ["digits*ring*-wa-"]), matches(cell, ["complete"])
    (True, False)
    """
    return not patterns or any(fnmatchcase(cell.name, f"*{pattern}*") for pattern in patterns)
