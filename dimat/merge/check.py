"""What the author of a merge method wants to know before others use it."""

from __future__ import annotations

import torch

from dimat.errors import DimatError
from dimat.merge.api import Fold, State, find_method, make_fold

TOLERANCE = 1e-6


def check_merge(reference: str) -> list[str]:
    """The problems of the merge method `reference`, each a sentence with its cure; empty when it keeps the contract.

    >>> check_merge("mean")
    []
    """
    try:
        method = make_fold(reference)
    except DimatError as error:
        return [str(error)]
    problems = [] if find_method(reference).__doc__ else ["it has no docstring: `dimat methods` has nothing to show"]
    try:
        problems += _behaviour(method)
    except Exception as error:  # a user's code may raise anything; here that is a finding
        problems.append(f"folding three small models raised {type(error).__name__}: {error}")
    return problems


def _behaviour(method: Fold) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    models = [torch.randn(4, 3, generator=generator) for _ in range(3)]
    base = torch.zeros(4, 3) if method.needs_base else None
    problems = []
    merged = method.finish(_absorb(method, models, base), base, {})
    if merged.shape != models[0].shape:
        problems.append(
            f"the merged tensor is {list(merged.shape)}, its models are {list(models[0].shape)}: keep the shape"
        )
    if not torch.isfinite(merged).all():
        problems.append("merging three finite models gave NaN or Inf")
    if not all(isinstance(value, torch.Tensor) for value in _absorb(method, models, base).values()):
        problems.append(
            "the state holds something that is not a tensor: make scalars 0-d tensors, so that states can be saved"
        )
    first = method.init(base)
    before = {key: value.clone() for key, value in first.items()}
    method.absorb(first, models[0], base, 1.0)
    if first.keys() != before.keys() or any(not torch.equal(first[key], before[key]) for key in before):
        problems.append("absorb changed the state it was given: return a new one")
    if method.commutative:
        other = method.finish(_absorb(method, models[::-1], base), base, {})
        if not torch.allclose(merged, other, atol=TOLERANCE):
            problems.append("another order gave another result: declare commutative=False, or make absorb symmetric")
        halves = method.combine(_absorb(method, models[:1], base), _absorb(method, models[1:], base))
        if not torch.allclose(merged, method.finish(halves, base, {}), atol=TOLERANCE):
            problems.append(
                "combine of two halves is not the whole: combine(absorb(a), absorb(b)) must equal absorb(a, b)"
            )
    return problems


def _absorb(method: Fold, models: list[torch.Tensor], base: torch.Tensor | None) -> State:
    state = method.init(base)
    for model in models:
        # A weight of its own for every model, whatever the order.
        state = method.absorb(state, model, base, 1.0 + float(model[0, 0].abs()))
    return state
