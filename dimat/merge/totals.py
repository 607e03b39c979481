"""What is known of all models together, beside the states of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts and sums over the models that a state holds; a few numbers, however many models.

    Attributes:
        num_models: models absorbed.
        sum_weights: sum of |w_i|.
        sum_norms: sum of |w_i| ||tau_i||, with tau_i = model - base over all floating-point tensors; 0 without a base.
    """

    num_models: int = 0
    sum_weights: float = 0.0
    sum_norms: float = 0.0

    def with_model(self, weight: float, norm: float) -> Totals:
        """With one model more, of the task-vector norm `norm`."""
        return Totals(self.num_models + 1, self.sum_weights + abs(weight), self.sum_norms + abs(weight) * norm)

    def without_model(self, weight: float, norm: float) -> Totals:
        """With one model less."""
        return Totals(self.num_models - 1, self.sum_weights - abs(weight), self.sum_norms - abs(weight) * norm)

    def combine(self, other: Totals) -> Totals:
        """Of the models of both."""
        return replace(
            self,
            num_models=self.num_models + other.num_models,
            sum_weights=self.sum_weights + other.sum_weights,
            sum_norms=self.sum_norms + other.sum_norms,
        )

    def scalars(self, measures: Mapping[str, float]) -> dict[str, float]:
        """What `finish` gets: the sums of `Fold.measure` over all tensors, `num_models`, and `mean_norm`."""
        mean_norm = self.sum_norms / self.sum_weights if self.sum_weights else 0.0
        return {**measures, "num_models": float(self.num_models), "mean_norm": mean_norm}
