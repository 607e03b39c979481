"""Every built-in algorithm with a config at which it is small and quick."""

from dimat.agent.algorithms import builtin_algorithms

SMALL = [
    "task.model.name=mlp", "task.model.hidden=[12]", "task.partition.scheme=iid", "train.epochs=1",
    "train.batch_size=64", "train.lr_schedule=constant", "agents=4", "rounds=3", "algorithm.steps=4",
    "exchange.timeout_s=5",
]  # fmt: skip

OWN = {
    "dsgd": [],
    "cdmsgd": [],
    "sgp": [],
    "cga": [],
    "swarm": ["algorithm.local_steps=2"],
    "choco": ["algorithm.ratio=0.2", "algorithm.gamma=0.5"],
}
"""Settings of each: an algorithm without an entry here is not tested, which the suite refuses."""

NAMES = sorted(builtin_algorithms())


def settings(name: str, *more: str) -> list[str]:
    """The config of one algorithm as `-s` takes it."""
    return [*SMALL, f"algorithm={name}", *OWN[name], *more]
