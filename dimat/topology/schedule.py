"""Topologies that change from round to round.

A topology declares `period`, a whole number of rounds (or a function of n). Rounds come in windows
[k·period, (k + 1)·period); a single round may leave agents apart, the union of one window must not. Without a
declaration the period is 1: every round must be connected by itself.

A window is judged by the product of its matrices, ‖W_T … W_1 - J‖₂, because a single round may have gap 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from dimat.errors import TopologyError

Function = TypeVar("Function", bound=Callable[..., object])


def periodic(period: int | Callable[[int], int]) -> Callable[[Function], Function]:
    """Declare after how many rounds the union of a topology's graphs is connected.

    >>> @periodic(2)
    ... def alternating(n, *, round=0, seed=0): ...
    >>> alternating.period
    2
    """

    def declare(function: Function) -> Function:
        function.period = period  # type: ignore[attr-defined]
        return function

    return declare


def period_of(name: str, function: object, n: int) -> int:
    """The period that a topology function declares, for n agents; 1 when it declares none.

    Raises:
        TopologyError: what it declares is no whole number of at least 1.
    """
    declared = getattr(function, "period", 1)
    try:
        value = declared(n) if callable(declared) else declared
    except Exception as error:  # a user's function
        raise TopologyError(f"the period of topology {name!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TopologyError(
            f"topology {name!r} declares period={value!r}; a period is a whole number of rounds from 1 up"
        )
    return value


def union(graphs: Iterable[nx.Graph[int]]) -> nx.Graph[int]:
    """All edges of all graphs; directed when one of them is."""
    every = list(graphs)
    joint: nx.Graph[int] = nx.DiGraph() if any(graph.is_directed() for graph in every) else nx.Graph()
    for graph in every:
        joint.add_nodes_from(graph.nodes)
        joint.add_edges_from(graph.to_directed().edges if joint.is_directed() else graph.edges)
    return joint


def rounds_to_hear(graphs: Sequence[nx.Graph[int]]) -> int:
    """The rounds until everyone has heard from everyone, from the worst first round; the schedule repeats `graphs`.

    For a single graph it is the diameter. It bounds how many rounds two agents that wait for what they read can
    be apart.

    >>> rounds_to_hear([nx.path_graph(4)])
    3
    """
    if len(graphs) == 1:
        return int(
            nx.diameter(graphs[0])
        )  # of a ring of a thousand in a second, where products of matrices take minutes
    steps = [_reads(graph) for graph in graphs]
    worst = 0
    for start in range(len(steps)):
        heard = np.eye(len(steps[0]), dtype=np.float32)
        rounds = 0
        while not heard.all():
            heard = np.minimum(steps[(start + rounds) % len(steps)] @ heard, 1)
            rounds += 1
        worst = max(worst, rounds)
    return worst


def _reads(graph: nx.Graph[int]) -> NDArray[np.float32]:
    # (n, n): row i has a 1 for all that agent i knows after the round, itself too; floats, as BLAS multiplies no bools.
    know = np.eye(len(graph), dtype=np.float32)
    for source, reader in graph.edges:
        know[reader, source] = 1
        if not graph.is_directed():
            know[source, reader] = 1
    return know


@periodic(lambda n: (n - 1).bit_length())
def one_peer_exponential(n: int, *, round: int = 0, seed: int = 0) -> nx.DiGraph[int]:
    """Directed, one read a round: in round r agent i reads the one 2^(r mod ⌈log₂ n⌉) places before it.

    After ⌈log₂ n⌉ rounds the average is exact when n is a power of two, and close otherwise.
    Source: Ying et al., arXiv 2110.13363.

    >>> [list(one_peer_exponential(8, round=r).predecessors(0)) for r in range(4)]
    [[7], [6], [4], [7]]
    """
    del seed  # nothing random
    hop = 1 << (round % (n - 1).bit_length())
    graph: nx.DiGraph[int] = nx.empty_graph(n, create_using=nx.DiGraph)
    graph.add_edges_from((j, (j + hop) % n) for j in range(n))
    return graph


@periodic(lambda n: n - 1 + n % 2)
def random_matching(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """Pairs at random: everyone has one partner a round (one rests when n is odd) and meets all others in a window.

    A window is a round-robin tournament among shuffled agents, n - 1 rounds long (n when n is odd); the next window
    shuffles anew. Everyone meets everyone once per window, so no draw can leave the union in pieces.

    >>> sorted(random_matching(4, seed=1).degree)
    [(0, 1), (1, 1), (2, 1), (3, 1)]
    """
    length = n - 1 + n % 2
    window, turn = divmod(round, length)
    rng = random.Random(f"{seed}/{window}")
    seats: list[int] = list(range(n))
    rng.shuffle(seats)
    turns = list(range(length))
    rng.shuffle(turns)
    # Circle method: seats 0..length-1 rotate; i and j are paired in the turn (i + j) mod length. Whoever would be
    # paired with itself plays the seat that does not rotate, or rests when there is none.
    graph: nx.Graph[int] = nx.empty_graph(n)
    for i in range(length):
        j = (turns[turn] - i) % length
        if i < j:
            graph.add_edge(seats[i], seats[j])
        elif i == j and n > length:
            graph.add_edge(seats[i], seats[length])
    return graph
