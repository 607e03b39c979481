"""The methods of mergekit that dimat has: what each is called here, and which parameters it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spec:
    """What a method of mergekit takes.

    Attributes:
        ours: the method of dimat that it becomes.
        shared: its parameters of a slice or of the recipe.
        each: its parameters of each model.
        elect: whether signs are elected.
        normalize: its default.
        rescale: its default.
    """

    ours: str
    shared: tuple[str, ...]
    each: tuple[str, ...] = ()
    elect: bool = False
    normalize: bool = False
    rescale: bool = False


_OF_TASKS = ("lambda", "normalize", "rescale", "int8_mask")

SPECS = {
    "linear": Spec("mean", ("normalize",), ("weight",), normalize=True),
    "slerp": Spec("slerp", ("t",)),
    "task_arithmetic": Spec("task_arithmetic", _OF_TASKS, ("weight", "density")),
    "ties": Spec("ties", _OF_TASKS, ("weight", "density"), elect=True, normalize=True),
    "dare_linear": Spec("dare", _OF_TASKS, ("weight", "density"), rescale=True),
    "dare_ties": Spec("dare", _OF_TASKS, ("weight", "density"), elect=True, rescale=True),
    "breadcrumbs": Spec("breadcrumbs", _OF_TASKS, ("weight", "density", "gamma")),
    "breadcrumbs_ties": Spec("breadcrumbs", _OF_TASKS, ("weight", "density", "gamma"), elect=True),
    "model_stock": Spec("model_stock", ("filter_wise",)),
}
"""By the value of `merge_method`."""
