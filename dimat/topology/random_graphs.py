"""Random graphs by name: drawn from the seed, and drawn again until connected, a bounded number of times."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import networkx as nx

from dimat.errors import TopologyError
from dimat.topology.options import fraction, whole

TRIES = 100


def erdos_renyi(n: int, *, round: int = 0, seed: int = 0, p: float | None = None) -> nx.Graph[int]:
    """Every pair is joined with probability p (default min(1, 2 ln n / n), twice where graphs become connected).

    Raises:
        TopologyError: p is not in (0, 1], or so small that no connected graph turned up.
    """
    del round  # the same every round
    chance = min(1.0, 2 * math.log(n) / n) if p is None else fraction("erdos_renyi", "p", p)
    cure = f"p={chance:.3g} is too small for {n} agents: connected graphs need about ln n / n = {math.log(n) / n:.3g}"
    return _connected("erdos_renyi", seed, lambda rng: nx.gnp_random_graph(n, chance, seed=rng), cure)


def random_regular(n: int, *, round: int = 0, seed: int = 0, degree: int | None = None) -> nx.Graph[int]:
    """Every agent has `degree` neighbours (default 4, fewer when n is small), otherwise at random.

    Its gap stays away from 0 as n grows, at a constant cost per agent.

    Raises:
        TopologyError: no graph has that degree (n × degree must be even and degree below n) or none was connected.
    """
    del round  # the same every round
    each = min(4, n - 1) if degree is None else whole("random_regular", "degree", degree, 1, n - 1)
    if n * each % 2:
        raise TopologyError(
            f"random_regular: no graph of {n} agents has degree {each} (an odd number times an odd number of ends); "
            f"try degree {each - 1 if each > 2 else each + 1}"
        )
    cure = f"degree {each} is too small for {n} agents: take at least {min(3, n - 1)}"
    return _connected("random_regular", seed, lambda rng: nx.random_regular_graph(each, n, seed=rng), cure)


def watts_strogatz(n: int, *, round: int = 0, seed: int = 0, k: int | None = None, p: float = 0.2) -> nx.Graph[int]:
    """A ring where everyone knows its k nearest (default 4), each edge rewired at random with probability p.

    Raises:
        TopologyError: fewer than 3 agents, k odd or not in [2, n - 1], p not in (0, 1], or no connected graph.
    """
    del round  # the same every round
    if n < 3:
        raise TopologyError(f"watts_strogatz: needs at least 3 agents, not {n}", hint="complete joins any two")
    near = min(4, (n - 1) // 2 * 2) if k is None else whole("watts_strogatz", "k", k, 2, n - 1)
    if near % 2:
        raise TopologyError(f"watts_strogatz: k counts neighbours on both sides and must be even, not {near}")
    chance = fraction("watts_strogatz", "p", p)
    cure = f"k={near} with p={chance:.3g} falls apart too often: raise k or lower p"
    return _connected("watts_strogatz", seed, lambda rng: nx.watts_strogatz_graph(n, near, chance, seed=rng), cure)


def _connected(name: str, seed: int, draw: Callable[[random.Random], nx.Graph[int]], cure: str) -> nx.Graph[int]:
    # One generator for all tries: the k-th draw depends on the seed alone, and no try repeats another.
    rng = random.Random(seed)
    for _ in range(TRIES):
        graph = draw(rng)
        if nx.is_connected(graph):
            return graph
    raise TopologyError(f"{name}: none of {TRIES} graphs drawn from seed {seed} is connected; {cure}")
