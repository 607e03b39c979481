"""What is learnt, from which data, how, and who neighbours are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dimat.config.part import Part, name_with_options


class PartitionConfig(Part):
    """How the training data is dealt to the agents."""

    scheme: Literal["iid", "dirichlet", "classes", "column"] = "dirichlet"
    """iid; dirichlet: class shares drawn per agent; classes: class c to agent c mod n; column: by an array's values."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of `dirichlet`: small is skewed, large is even."""
    column: str | None = None
    """The array in the data file whose values part the data, for `column` (such as `subject_train`)."""

    @model_validator(mode="after")
    def _column_is_named(self) -> Self:
        if self.scheme == "column" and not self.column:
            raise ValueError("scheme 'column' needs the array's name: partition.column")
        if self.column and self.scheme != "column":
            raise ValueError(f"column {self.column!r} is used by scheme 'column' only, and scheme is {self.scheme!r}")
        return self


class TaskConfig(Part):
    """What is learnt: data, model, loss and evaluation."""

    name: str = "digits"
    """`digits`, `arrays`, an entry point, `package.module:Class` or `file.py:Class`."""
    model: str | dict[str, Any] = "cnn"
    """A built-in model's name, `{name: resnet20, width: 2}`, or `module:factory`."""
    data: str | None = None
    """Path of the data file, for tasks that read one."""
    partition: PartitionConfig = PartitionConfig()
    options: dict[str, Any] = {}
    """Further keyword arguments of the task's class."""


class TrainConfig(Part):
    """Local training between two merges."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Local epochs a round."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; the others keep their own defaults. With algorithm dsgd, which has none, 0 unless it is given."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """cosine: from `lr` to zero over all local epochs of the run."""


class AlgorithmConfig(Part):
    """How the agents train together: a name, or `{name: choco, ratio: 0.01, gamma: 0.3}`. See docs/baselines.md."""

    name: str = "merge"
    """merge: dimat's own rounds, local epochs and then one merge. dsgd, cdmsgd, sgp, cga, swarm, choco: methods that
    exchange while they train. Or an entry point, `package.module:function`, `file.py:function`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Gradient steps of a round, the same for every agent. None: what `train.epochs` take the agent with most data.
    Not for `merge`, whose rounds are epochs."""
    options: dict[str, Any] = {}
    """Options of the algorithm. They may as well stand beside `name`, one by one."""

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        return name_with_options(cls, values)


class TopologyConfig(Part):
    """Who reads whom, and with which weight."""

    graph: str = "ring"
    """A built-in name, a file (.yaml, .graphml, .edgelist, .json, .py:function), `module:function`, an entry point."""
    mixing: Literal["metropolis", "uniform", "max_degree", "lazy", "edge_weights"] | None = None
    """None: metropolis on undirected graphs, uniform on directed ones."""
    options: dict[str, Any] = {}
    """Options of the generator, such as `p` of erdos_renyi."""
