"""The "bipartite" graph of the DIMAT experiments (arXiv 2404.08079): two agents that everybody else reads.

Use it to compare with the published figures, or where two machines have fast lines and the others do not. With the
metropolis weights that undirected graphs get, row and column sums are those of the original's matrices: at five agents
.25 everywhere in the two rows of the middle, .5 for itself and .25 for each of the two in all others. Name it as
`topologies/bipartite.py:build`.
"""

import networkx as nx

from dimat.errors import TopologyError


def build(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph:
    """The complete bipartite graph between agents 0 and 1 and all others.

    Args:
        n: the number of agents, at least 4: with fewer there is no second group of two.
        round: the same every round.
        seed: nothing is random here.
    """
    del round, seed
    if n < 4:
        raise TopologyError(f"bipartite: two groups of at least two need at least 4 agents, not {n}")
    return nx.complete_bipartite_graph(2, n - 2)
