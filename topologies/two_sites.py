"""A topology as a Python function, for graphs that no name or file describes.

Use this one when agents stand at two sites with fast links inside each and a thin line between them: all agents of a
site read each other every round, and the line is used in every `every`-th round only. Name it as
`topologies/two_sites.py:build`.
"""

import networkx as nx

from dimat.errors import TopologyError
from dimat.topology import periodic


@periodic(4)
def build(n: int, *, round: int = 0, seed: int = 0, every: int = 4) -> nx.Graph:
    """Two complete halves, joined by one edge in every `every`-th round.

    Args:
        n: the number of agents; the first half of them stands at the first site.
        round: the round, from 0.
        seed: nothing is random here.
        every: how often the line is used; at most 4, because `periodic(4)` promises it once in four rounds.
    """
    del seed
    if every not in (1, 2, 3, 4):
        raise TopologyError(f"two_sites: every must be 1, 2, 3 or 4, not {every!r}")
    half = n // 2
    graph = nx.disjoint_union(nx.complete_graph(half), nx.complete_graph(n - half))
    if round % every == 0:
        graph.add_edge(half - 1, half)
    return graph
