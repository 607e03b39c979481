"""From rows [from, to] or [from, to, weight] to a graph on the agents 0..n-1.

Ids that are all whole numbers are the agents themselves, counted from 0. Any other ids are names, and agents are
numbered in the order in which the file first mentions them. A weight becomes the edge attribute `weight`, a name the
node attribute `name`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx as nx

from dimat import plugins


class WrongContent(Exception):
    """What is wrong inside a file; the reader puts the file's name before it."""


def graph_from_rows(
    rows: Iterable[Sequence[Any]],
    *,
    directed: bool = False,
    nodes: Iterable[Any] = (),
    num_agents: int | None = None,
    names: Sequence[str] = (),
    titles: Mapping[Any, str] | None = None,
) -> nx.Graph[int]:
    """The graph of a file's edges.

    Args:
        rows: [from, to] or [from, to, weight].
        directed: an edge [a, b] lets b read a; otherwise both read each other.
        nodes: all ids in the file's order, where the format lists them.
        num_agents: how many agents there are, where the file says so.
        names: the names of the agents 0, 1, 2, …; the rows may then use either.
        titles: a name for some ids, where the format keeps ids and names apart.

    Raises:
        WrongContent: a row that is no edge, an edge listed twice, an agent that does not exist.

    >>> graph_from_rows([["Oslo", "Bergen"], ["Bergen", "Lund"]]).nodes(data="name")
    NodeDataView({0: 'Oslo', 1: 'Bergen', 2: 'Lund'}, data='name')
    """
    rows = list(rows)
    for row in rows:
        if len(row) not in (2, 3) or not all(_is_id(end) for end in row[:2]):
            raise WrongContent(f"an edge is [from, to] or [from, to, weight], not {list(row)!r}")
    ids = list(dict.fromkeys([*nodes, *(end for row in rows for end in row[:2])]))
    agent = _agents(ids, names)
    size = num_agents or len(names) or max(agent.values(), default=-1) + 1
    if size > len(agent) + 10_000 and not num_agents and not names:
        # Before anything of that size is made: a slip of the finger must not build a hundred million agents.
        gap = next(number for number in range(size) if number not in set(agent.values()))
        raise WrongContent(f"agent {gap} has no edge, though the edges name agent {size - 1}; number agents from 0")
    if names and len(names) != size:
        raise WrongContent(f"{len(names)} names were given for {size} agents")
    graph: nx.Graph[int] = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(size))
    for row in rows:
        u, v = (agent[end] for end in row[:2])
        if max(u, v) >= size:
            raise WrongContent(f"edge {row[0]} - {row[1]} names agent {max(u, v)}, and the agents are 0 to {size - 1}")
        if graph.has_edge(u, v):
            raise WrongContent(f"edge {row[0]} - {row[1]} is listed twice")
        graph.add_edge(u, v, **({"weight": finite(row[2], f"edge {row[0]} - {row[1]}")} if len(row) == 3 else {}))
    spoken = {number: str(name) for name, number in agent.items() if str(name) != str(number)}
    spoken |= {agent[name]: title for name, title in (titles or {}).items()} | dict(enumerate(names))
    nx.set_node_attributes(graph, spoken, "name")
    return graph


def finite(value: Any, where: str) -> float:
    """`value` as a float, from a number or its text.

    Raises:
        WrongContent: it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise WrongContent(f"{where}: a weight must be a number, not {value!r}")
    return number


def _agents(ids: Sequence[Any], names: Sequence[str]) -> dict[Any, int]:
    if all(_is_whole(i) for i in ids):
        agents = {i: int(i) for i in ids}
        if agents and min(agents.values()) != 0:
            raise WrongContent(
                f"agents are numbered from 0, and the lowest number in the file is {min(agents.values())}"
            )
        return agents
    if names:
        for i in ids:
            if i not in names:
                raise WrongContent(plugins.unknown("agent", str(i), names))
    return {name: agent for agent, name in enumerate(names or ids)}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.removeprefix("-").isdecimal())


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
