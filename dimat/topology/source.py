"""From what a user names to graphs that a run can use.

A *source* is the name's generator with its options and seed filled in: a function (n, round) -> graph, and what it says
of itself. `rounds_of` puts validation and memory in front of it; everything that needs a graph goes through there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import networkx as nx

from dimat import plugins
from dimat.errors import DimatError, TopologyError
from dimat.topology import files
from dimat.topology.catalogue import BUILTIN, builtin_name
from dimat.topology.options import check_call
from dimat.topology.schedule import period_of, union
from dimat.topology.validate import check_connected, check_count, checked_shape

GROUP = "dimat.topologies"
_PROBED_ROUNDS = 8  # as many rounds of an unknown function are compared before it is called static


@dataclass(frozen=True, slots=True)
class Source:
    """A topology before the number of agents is known.

    Attributes:
        name: how messages call it: the built-in's name, or the reference as given.
        make: (n, round) -> graph, not validated.
        size: the number of agents that a file fixes, or None.
        period: n -> rounds per window (`dimat.topology.schedule`).
        static: True or False when known, None when only comparing rounds can tell.
    """

    name: str
    make: Callable[[int, int], Any]
    size: int | None
    period: Callable[[int], int]
    static: bool | None


def build(name_or_file: str, n: int | None = None, *, round: int = 0, seed: int = 0, **options: Any) -> nx.Graph[int]:
    """The graph of one round, validated; an nx.DiGraph when directed, where j -> i means that agent i reads j.

    Args:
        name_or_file: a built-in name, an entry point of `dimat.topologies`, `package.module:function`,
            `path/to/file.py:function`, or a file: .yaml, .yml, .graphml, .json (node-link), .edgelist, .txt.
        n: the number of agents; None takes the size that a file fixes.
        round: the round, from 0; static topologies give the same graph in each.
        seed: of what is random in it.
        options: the topology's own options, such as `p=0.3` for erdos_renyi.

    Raises:
        TopologyError: anything about the graph that could not carry a run, from an unknown option to two components.
        PluginError: nothing answers to the name.

    Example:
        >>> build("ring", 5).number_of_edges()
        5
        >>> sorted(build("exponential", 8).predecessors(0))
        [4, 6, 7]
    """
    source = find_source(name_or_file, seed=seed, options=options)
    return rounds_of(source, agree_size(source, n))(round).copy()


def find_source(reference: str, *, seed: int = 0, options: dict[str, Any] | None = None) -> Source:
    """The source that `reference` names, with its options checked; files are read now.

    Raises:
        TopologyError: an unreadable or wrong file, an option that is not one.
        PluginError: nothing answers to the name.
    """
    options = dict(options or {})
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TopologyError(f"the seed of a topology must be a whole number from 0 up, not {seed!r}")
    if files.is_file_reference(reference):
        return _file_source(reference, seed, options)
    name = builtin_name(reference)
    if name is not None:
        function: Any = BUILTIN[name].function
        return _function_source(name, function, seed, options, static=not BUILTIN[name].changes)
    return _function_source(reference, _resolve(reference), seed, options, static=None)


def agree_size(source: Source, n: int | None) -> int:
    """The number of agents, from what was asked for and what a file fixes.

    Raises:
        TopologyError: fewer than two, none given at all, or the two differ.
    """
    who = f"topology {source.name!r}"
    if n is None and source.size is None:
        raise TopologyError(f"{who} can be built for any number of agents; say how many")
    if n is not None:
        check_count(n, who)
    if source.size is not None and n not in (None, source.size):
        raise TopologyError(
            f"{who} has {source.size} agents, and {n} were asked for",
            hint=f"ask for {source.size} agents, or take another topology",
        )
    return check_count(source.size if n is None else n, who)


def rounds_of(source: Source, n: int) -> Callable[[int], nx.Graph[int]]:
    """A function round -> frozen graph: validated alone, and its window of `period` rounds validated together.

    Raises:
        TopologyError: from the function, when a round's graph cannot carry a run.
    """
    period = source.period(n)

    @lru_cache(maxsize=256)
    def shape(round: int) -> nx.Graph[int]:
        try:
            graph = source.make(n, round)
        except DimatError:
            raise
        except Exception as error:
            raise TopologyError(
                f"topology {source.name!r} failed for {n} agents in round {round}: {type(error).__name__}: {error}"
            ) from error
        return checked_shape(graph, n, who(round))

    @lru_cache(maxsize=256)
    def connected(window: int) -> None:
        first = window * period
        if period == 1:
            check_connected(shape(first), who(first))
        else:
            joint = union(shape(round) for round in range(first, first + period))
            check_connected(joint, f"topology {source.name!r}, rounds {first} to {first + period - 1} together,")

    def who(round: int) -> str:
        return f"topology {source.name!r}" + ("" if source.static else f" in round {round}")

    def at(round: int) -> nx.Graph[int]:
        if isinstance(round, bool) or not isinstance(round, int) or round < 0:
            raise TopologyError(f"rounds are counted from 0; {round!r} is none")
        round = 0 if source.static else round
        connected(round // period)
        return shape(round)

    return at


def is_static(source: Source, at: Callable[[int], nx.Graph[int]]) -> bool:
    """Whether every round has the same graph; an unknown function is judged by its first rounds."""
    if source.static is not None:
        return source.static
    first = at(0)
    return all(nx.utils.graphs_equal(first, at(round)) for round in range(1, _PROBED_ROUNDS))


def _function_source(name: str, function: Any, seed: int, options: dict[str, Any], *, static: bool | None) -> Source:
    if not callable(function):
        raise TopologyError(
            f"topology {name!r} is a {type(function).__name__}; expected a function `fn(n, *, round=0, seed=0)`"
        )
    check_call(name, function, options)
    return Source(
        name=name,
        make=lambda n, round: function(n, round=round, seed=seed, **options),
        size=None,
        period=lambda n: period_of(name, function, n),
        static=static,
    )


def _file_source(reference: str, seed: int, options: dict[str, Any]) -> Source:
    drawn = files.read(Path(reference))
    if isinstance(drawn, files.Recipe):
        inner = find_source(drawn.generator, seed=seed, options={**drawn.options, **options})
        return Source(reference, inner.make, drawn.num_agents, inner.period, inner.static)
    if options:
        raise TopologyError(
            f"topology {reference!r} is a fixed graph without options, and {sorted(options)} were given"
        )
    return Source(reference, lambda n, round: drawn, drawn.number_of_nodes(), lambda n: 1, static=True)


def _resolve(reference: str) -> Any:
    functions = {name: named.function for name, named in BUILTIN.items()}
    return plugins.resolve("topology", reference, functions, group=GROUP)
