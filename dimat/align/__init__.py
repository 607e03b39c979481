"""Bring models that were trained apart into one basis: hidden units have no order of their own.

    spec = permutation_spec(model, example_input)                # which units may move, found by tracing
    spec.verify(model, example_input)                            # random permutation in, same outputs out
    perms = activation_matching(spec, mine, theirs, batches)     # or weight_matching(spec, state, state)
    theirs.load_state_dict(spec.apply(theirs.state_dict(), perms))

Names load when they are used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimat.align.activations import activation_matching, correlations, match_activations, match_correlations
    from dimat.align.assign import linear_assignment
    from dimat.align.barrier_picture import plot_barriers
    from dimat.align.barriers import Barrier, barrier
    from dimat.align.correlation import Correlations, PairSums
    from dimat.align.groups import PermutationSpec
    from dimat.align.identity import identity_is_best
    from dimat.align.many import match_many
    from dimat.align.matching import GroupMatch, Matching
    from dimat.align.operators import register_operator
    from dimat.align.partial import PartialMatch, partial_matching
    from dimat.align.ste import match_straight_through, straight_through
    from dimat.align.trace import permutation_spec
    from dimat.align.units import Axis, Frozen, Group, Tap, TensorInfo
    from dimat.align.weights import match_weights, weight_matching

_HOMES = {
    "activations": ("activation_matching", "correlations", "match_activations", "match_correlations"),
    "assign": ("linear_assignment",),
    "barrier_picture": ("plot_barriers",),
    "barriers": ("Barrier", "barrier"),
    "correlation": ("Correlations", "PairSums"),
    "groups": ("PermutationSpec",),
    "identity": ("identity_is_best",),
    "many": ("match_many",),
    "matching": ("GroupMatch", "Matching"),
    "operators": ("register_operator",),
    "partial": ("PartialMatch", "partial_matching"),
    "ste": ("match_straight_through", "straight_through"),
    "trace": ("permutation_spec",),
    "units": ("Axis", "Frozen", "Group", "Tap", "TensorInfo"),
    "weights": ("match_weights", "weight_matching"),
}

__all__ = [
    "Axis",
    "Barrier",
    "Correlations",
    "Frozen",
    "Group",
    "GroupMatch",
    "Matching",
    "PairSums",
    "PartialMatch",
    "PermutationSpec",
    "Tap",
    "TensorInfo",
    "activation_matching",
    "barrier",
    "correlations",
    "identity_is_best",
    "linear_assignment",
    "match_activations",
    "match_correlations",
    "match_many",
    "match_straight_through",
    "match_weights",
    "partial_matching",
    "permutation_spec",
    "plot_barriers",
    "register_operator",
    "straight_through",
    "weight_matching",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dimat.align.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
