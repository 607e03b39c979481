"""The built-in topologies: their names, and when to use which."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx

from dimat.topology import graphs, random_graphs, schedule
from dimat.topology.options import schema


@dataclass(frozen=True, slots=True)
class Named:
    """A built-in topology and the advice that `dimat topology list` prints."""

    function: Callable[..., nx.Graph[int]]
    when: str

    @property
    def what(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").splitlines()[0]

    @property
    def options(self) -> dict[str, Any]:
        """Options with their defaults; None stands for a default that depends on the number of agents."""
        return schema(self.function)

    @property
    def changes(self) -> bool:
        """Whether the graph changes from round to round."""
        return hasattr(self.function, "period")


BUILTIN: dict[str, Named] = {
    "ring": Named(graphs.ring, "few agents, or the cheapest links; slow beyond about 16"),
    "path": Named(graphs.path, "a chain of sites; the hardest connected case, good for tests"),
    "star": Named(graphs.star, "a centre is wanted after all; it carries all traffic, and nothing moves without it"),
    "complete": Named(graphs.complete, "few agents with fast links; everyone pays n - 1 reads a round"),
    "torus": Named(graphs.torus, "at most 4 neighbours and faster than a ring; n should have a middle factor"),
    "grid": Named(graphs.grid, "agents that lie on a plane and reach only those beside them"),
    "hypercube": Named(graphs.hypercube, "2^k agents, undirected, fast for log₂ n reads a round"),
    "exponential": Named(graphs.exponential, "many agents, any number: fast for ⌈log₂ n⌉ reads a round"),
    "erdos_renyi": Named(random_graphs.erdos_renyi, "a model of links that came about by chance"),
    "random_regular": Named(random_graphs.random_regular, "many agents, equal cost for each, gap that does not shrink"),
    "watts_strogatz": Named(random_graphs.watts_strogatz, "mostly local links with a few far ones"),
    "barbell": Named(graphs.barbell, "two tight groups with one thin link: a stress test for agreement"),
    "one_peer_exponential": Named(
        schedule.one_peer_exponential, "one read a round, exact after log₂ n rounds for n = 2^k"
    ),
    "random_matching": Named(schedule.random_matching, "one partner a round and a fresh one each time"),
}


def builtin_name(name: str) -> str | None:
    """The built-in that `name` stands for; `-` and `_` are alike, so is case.

    >>> builtin_name("Erdos-Renyi")
    'erdos_renyi'
    """
    plain = name.strip().lower().replace("-", "_")
    return plain if plain in BUILTIN else None
