"""What a merge method says of itself, checked before it is tried: its docstring, and what its fold declares."""

from __future__ import annotations

from collections.abc import Iterator

from dimat.merge.api import Fold
from dimat.merge.describe import describe
from dimat.merge.trial import small_models


def documented(reference: str) -> Iterator[str]:
    """What the docstring leaves open."""
    described = describe(reference)
    if not described.summary:
        yield "it has no docstring: `dimat methods` has nothing to show"
    for option in described.options:
        if described.summary and not option.explanation:
            yield f"option {option.name!r} is not explained: add `{option.name}: ...` below `Args:` in the docstring"


def declared_problems(method: Fold) -> Iterator[str]:
    """Declarations that nothing can be made of, or that differ between the fold and its folds of single tensors."""
    if not isinstance(method.stats, tuple) or not all(isinstance(kind, str) for kind in method.stats):
        yield f"stats is {method.stats!r}, expected a tuple of names, such as ('fisher',)"
    if method.memory not in ("constant", "linear"):
        yield f"memory is {method.memory!r}, expected 'constant' or 'linear'"
    if method.survey is not None and method.survey.scope not in ("model", "tensor"):
        yield f"the scope of its survey is {method.survey.scope!r}, expected 'model' or 'tensor'"
    for name, tensor in small_models().base.items():
        tailored = method.of(name, tuple(tensor.shape))
        for key in ("needs_base", "commutative", "memory", "stats", "digests", "norms"):
            if getattr(tailored, key) != getattr(method, key):
                yield f"its fold of one tensor says another {key} than the fold it returns: say the same on both"
        if (tailored.measure is None) != (method.measure is None):
            yield "measure is on its fold of one tensor, or on the fold it returns: say it on both"
