"""The suites: which settings, methods and seeds, and in which order, so that a part of one is of use already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from benchmarks.decentralized.cells import Cell, Setting
from benchmarks.decentralized.methods import METHODS

LOCAL = ("wa", "wa_own", "wm", "dimat_local", "dimat")
"""Methods that merge once a round and see no data but their own."""
GRADIENT = tuple(name for name, method in METHODS.items() if method.gradient)


@dataclass(frozen=True, slots=True)
class Group:
    """Settings that share their methods and seeds."""

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    num_seeds: int

    def cells(self, seed: int) -> Iterator[Cell]:
        """The cells of one seed, all methods of a setting next to each other."""
        if seed < self.num_seeds:
            for setting, method in product(self.settings, self.methods):
                yield Cell(setting, method, seed)


def _digits(partition: str, graph: str, start: str, agents: int = 5) -> Setting:
    return Setting("digits", "cnn", partition, graph, agents, start, rounds=20, pretrain=20 if start == "apart" else 0)


def _fashion(partition: str, graph: str, start: str) -> Setting:
    # One epoch a round: with two, these cells alone would take the two hours that the suite has.
    return Setting("fashion_mnist", "cnn", partition, graph, 5, start, 20, 1, pretrain=10 if start == "apart" else 0)


def smoke() -> tuple[Group, ...]:
    """Every method once, on next to nothing."""
    tiny = [Setting("digits", "tiny", "dirichlet.5", "complete", 2, start, rounds=2, epochs=1, pretrain=pretrain)
            for start, pretrain in (("apart", 1), ("different", 0))]  # fmt: skip
    return (Group((tiny[0],), tuple(METHODS), 1), Group((tiny[1],), ("wa", "dimat"), 2))


def small() -> tuple[Group, ...]:
    """All cells of digits on ring and complete graph, six of Fashion-MNIST, gradient methods on four."""
    grid = product(
        ("different", "apart", "same"), ("ring", "complete"), ("iid", "dirichlet.5", "dirichlet.1", "classes")
    )
    digits = tuple(_digits(partition, graph, start) for start, graph, partition in grid)
    fashion = (
        _fashion("iid", "ring", "apart"),
        _fashion("dirichlet.5", "ring", "apart"),
        _fashion("dirichlet.1", "ring", "different"),
        _fashion("dirichlet.5", "complete", "different"),
        _fashion("classes", "complete", "apart"),
        _fashion("classes", "ring", "same"),
    )
    # The literature starts gradient methods from one point; agents that were trained apart are DIMAT's own setting.
    against_gradient = (
        _digits("iid", "ring", "same"),
        _digits("dirichlet.1", "ring", "same"),
        _digits("classes", "complete", "same"),
        _digits("dirichlet.1", "ring", "apart"),
    )
    return (
        Group(digits, LOCAL, 3),
        Group(fashion, LOCAL, 3),
        Group(against_gradient, GRADIENT, 3),
    )


def paper() -> tuple[Group, ...]:
    """The setting of the paper at the scale of two cores, people's own data as shards, other graphs and more agents."""
    cifar = tuple(
        Setting("cifar10", "resnet20", partition, graph, 5, "apart", rounds=6, pretrain=10)
        for graph, partition in product(("ring", "complete"), ("iid", "classes"))
    )
    har = (
        Setting("har", "cnn", "natural", "ring", 21, "apart", rounds=20, pretrain=10),
        Setting("har", "cnn", "natural", "ring", 21, "different", rounds=20),
        Setting("har", "cnn", "natural", "exponential", 21, "different", rounds=20),
    )
    others = (
        _digits("dirichlet.5", "bipartite", "apart"),
        _digits("dirichlet.5", "exponential", "apart", 10),
        _digits("dirichlet.5", "ring", "different", 10),
        _digits("iid", "exponential", "different", 20),
    )
    vgg = (Setting("cifar10", "vgg16_bn_quarter", "iid", "bipartite", 5, "apart", rounds=6, pretrain=10),)
    return (
        Group(cifar, ("wa", "dsgd", "dimat_shared", "dimat"), 3),
        Group(har, LOCAL, 3),
        Group(cifar, ("wa_own", "wm", "dimat_local"), 3),
        Group(others, LOCAL, 3),
        Group(vgg, ("wa", "dimat_shared", "dimat"), 1),
    )


SUITES: Mapping[str, Callable[[], tuple[Group, ...]]] = {"smoke": smoke, "small": small, "paper": paper}


def cells_of(suite: str) -> list[Cell]:
    """The cells of a suite in the order in which they are run: seed 0 of everything first."""
    groups = SUITES[suite]()
    seeds = range(max(group.num_seeds for group in groups))
    return list(dict.fromkeys(cell for seed in seeds for group in groups for cell in group.cells(seed)))
