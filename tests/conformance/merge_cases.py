"""The rows of the conformance suite of merge methods, and the models it folds. A new method is a row here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from dimat.merge import Fold, make_fold
from dimat.merge.trial import Models, Trial, small_models, try_out


@dataclass(frozen=True)
class Case:
    """A method with options, and what may be expected of it beside the contract.

    Attributes:
        method: its name.
        options: of the method.
        tolerance: relative and absolute, of what shall be the same up to rounding.
        keeps_one: whether a single model comes back.
        keeps_equal: whether models that are all alike give that model.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6
    keeps_one: bool = False
    keeps_equal: bool = True

    def __str__(self) -> str:
        return ",".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def fold(self) -> Fold:
        return make_fold(self.method, self.options)


CASES = [
    Case("breadcrumbs"),
    Case("breadcrumbs", {"trim": "tensor", "signs": "ties", "density": 0.5}),
    Case("breadcrumbs", {"trim": "tensor", "rescale": "l1", "density": 0.5}),
    Case("clipping"),
    Case("clipping", {"radius": 0.5}),
    Case("dare"),
    Case("dare", {"signs": "ties", "seed": 3}),
    Case("dare", {"rescale": "l1"}),
    Case("fisher", keeps_one=True),
    Case("krum", keeps_one=True),
    Case("krum", {"num_kept": 2, "num_liars": 0}, keeps_one=True),
    Case("magmax"),
    Case("mean", keeps_one=True),
    Case("mean", {"normalize": False}, keeps_equal=False),
    Case("median", keeps_one=True),
    Case("model_stock", keeps_one=True),
    Case("model_stock", {"filter_wise": True}, keeps_one=True),
    Case("opcm", keeps_one=True),
    Case("opcm", {"convolutions": True, "plain": "wide"}, keeps_one=True),
    Case("slerp", keeps_one=True),
    Case("slerp", {"t": 0.3}, keeps_one=True),
    Case("slerp", {"zeros": "orthogonal"}, keeps_one=True),
    Case("task_arithmetic", keeps_one=True),
    Case("task_arithmetic", {"scale": 0.4, "normalize": True}),
    Case("trimmed_mean", keeps_one=True),
    Case("trimmed_mean", {"trim": 0.4}, keeps_one=True),
    Case("ties"),
    Case("ties", {"trim": "tensor", "combine": "sum", "density": 0.6}),
    Case("ties", {"trim": "tensor", "rescale": "l1", "density": 0.6}),
    Case("ties", {"density": 1.0}, keeps_one=True),
]
COMMUTATIVE = [case for case in CASES if case.fold.commutative]
SEQUENTIAL = [case for case in CASES if not case.fold.commutative]
REMOVABLE = [case for case in CASES if case.fold.remove is not None]
ELEMENTWISE = [case for case in CASES if case.fold.elementwise]


@cache
def models_for(case: Case, num_models: int = 4, dtype: torch.dtype = torch.float32) -> Models:
    """Models with a mask beside what `small_models` has, and statistics where the method wants them."""
    given = small_models(case.fold.stats, num_models, dtype)
    masks = [torch.tensor([i % 2 == 0, False, i == 1]) for i in range(num_models + 1)]
    models = tuple({**model, "mask": masks[i]} for i, model in enumerate(given.models))
    return replace(given, base={**given.base, "mask": masks[-1]}, models=models)


def digests(num_models: int) -> list[str]:
    """Names for models, so that the same numbers in another dtype draw the same random numbers."""
    return [f"{i:064x}" for i in range(num_models)]


def trial_of(case: Case, num_models: int = 4) -> Trial:
    return try_out(case.fold, models_for(case, num_models))


def arguments(case: Case, given: Models) -> dict[str, Any]:
    """What `dimat.merge.fold` is called with beside the method and the models."""
    fold = case.fold
    return {
        "base": given.base if fold.needs_base else None,
        "weights": given.weights,
        "stats": [{kind: kinds[kind] for kind in fold.stats} for kinds in given.stats] if fold.stats else None,
        **case.options,
    }
