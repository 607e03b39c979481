"""A ring along which everybody reads the agent before it, and nobody is read by the one it reads."""

import networkx as nx


def ring(n: int, *, round: int = 0, seed: int = 0) -> nx.DiGraph:
    return nx.cycle_graph(n, create_using=nx.DiGraph)
