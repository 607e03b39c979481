"""Who reads whom, and with which weight: a networkx graph plus a mixing matrix, fixed or changing from round to round.

    build("ring", 8)             a graph by name, file or function      source, graphs, files, schedule
    mixing_matrix(graph)         its weights W, (n, n)                  mixing
    spectral_gap(W)              how fast the agents agree              spectral
    load_topology("ring", 8)     all of it for a run, by round          topology

Nothing here knows what travels along an edge. The names below load networkx and numpy when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimat.topology.catalogue import BUILTIN
    from dimat.topology.check import check_topology
    from dimat.topology.grow import with_newcomers
    from dimat.topology.mixing import (
        SCHEMES,
        MixingReport,
        check_mixing,
        default_scheme,
        mixing_matrix,
        mixing_weights,
        without_edges,
    )
    from dimat.topology.picture import draw, save_png
    from dimat.topology.repair import without_agents
    from dimat.topology.schedule import periodic
    from dimat.topology.source import build
    from dimat.topology.spectral import (
        bytes_per_round,
        contraction_bound,
        joint_matrix,
        rounds_per_tenfold,
        spectral_gap,
    )
    from dimat.topology.topology import Topology, load_topology
    from dimat.topology.tree import diameter, reading_tree, telling_tree

_HOME = {
    "BUILTIN": "catalogue",
    "MixingReport": "mixing",
    "SCHEMES": "mixing",
    "Topology": "topology",
    "build": "source",
    "bytes_per_round": "spectral",
    "check_mixing": "mixing",
    "check_topology": "check",
    "contraction_bound": "spectral",
    "default_scheme": "mixing",
    "diameter": "tree",
    "draw": "picture",
    "joint_matrix": "spectral",
    "load_topology": "topology",
    "mixing_matrix": "mixing",
    "mixing_weights": "mixing",
    "periodic": "schedule",
    "reading_tree": "tree",
    "rounds_per_tenfold": "spectral",
    "save_png": "picture",
    "spectral_gap": "spectral",
    "telling_tree": "tree",
    "with_newcomers": "grow",
    "without_agents": "repair",
    "without_edges": "mixing",
}

__all__ = [
    "BUILTIN",
    "SCHEMES",
    "MixingReport",
    "Topology",
    "build",
    "bytes_per_round",
    "check_mixing",
    "check_topology",
    "contraction_bound",
    "default_scheme",
    "diameter",
    "draw",
    "joint_matrix",
    "load_topology",
    "mixing_matrix",
    "mixing_weights",
    "periodic",
    "reading_tree",
    "rounds_per_tenfold",
    "save_png",
    "spectral_gap",
    "telling_tree",
    "with_newcomers",
    "without_agents",
    "without_edges",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
