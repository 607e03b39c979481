"""Metrics of a continual merge, as functions of who was how accurate after which model.

`A` is the accuracy matrix: `A[k, i]` is the accuracy on task i right after model k was absorbed, NaN where it was not
measured. Task i comes with model i, so that the diagonal tells what a model brought, and the last row what is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(accuracies: ArrayLike) -> float:
    """ACC, the mean accuracy over all tasks after the last model: `1/T sum_i A[T, i]`.

    Args:
        accuracies: A, (num_steps, num_tasks), shares from 0 to 1.

    Returns:
        NaN when the last row lacks a task: a mean over some of the tasks is another metric.

    Raises:
        ValueError: not a matrix of at least one step and one task.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, arXiv 1706.08840.

    >>> average_accuracy([[0.9, np.nan], [0.7, 0.8]])
    0.75
    """
    return float(_matrix(accuracies)[-1].mean())


def backward_transfer(accuracies: ArrayLike) -> float:
    """BWT, what later models did to earlier tasks: `1/(T-1) sum_{i<T} (A[T, i] - A[i, i])`.

    Below zero: tasks were forgotten. The last task has no later model and takes no part, so the denominator is T - 1,
    as in the papers (arXiv 1706.08840, 2501.09522); published code that divides by T comes out closer to zero by
    (T-1)/T.

    Args:
        accuracies: A, (T, T); above the diagonal nothing is read.

    Returns:
        NaN with fewer than two tasks, or when one of the accuracies that are read was not measured.

    Raises:
        ValueError: not a square matrix.

    >>> round(backward_transfer([[0.9, np.nan, np.nan], [0.8, 0.7, np.nan], [0.6, 0.6, 0.5]]), 3)  # (-.3 - .1) / 2
    -0.2
    """
    a = _matrix(accuracies)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"accuracies are {a.shape}, expected as many steps as tasks")
    if len(a) < 2:
        return float("nan")
    return float((a[-1] - a.diagonal())[:-1].sum() / (len(a) - 1))


def negative_flips(before: ArrayLike, after: ArrayLike) -> float:
    """The share of samples that were right before and are wrong now: `mean(before & ~after)`.

    Two models of equal accuracy may differ in it: users of the earlier one notice what no longer works, whatever else
    does by now (Yan et al., Positive-Congruent Training, arXiv 2011.09161).

    Args:
        before: which samples were right, (num_samples,) bool.
        after: the same samples, in the same order.

    Returns:
        0 to 1; NaN without samples.

    Raises:
        ValueError: numbers of samples that differ.

    >>> negative_flips([True, True, False, False], [True, False, True, False])
    0.25
    """
    old, new = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if old.shape != new.shape or old.ndim != 1:
        raise ValueError(f"right before: {old.shape}, now: {new.shape}; expected one value each for the same samples")
    return float((old & ~new).mean()) if len(old) else float("nan")


def _matrix(accuracies: ArrayLike) -> NDArray[np.float64]:
    a = np.asarray(accuracies, dtype=np.float64)
    if a.ndim != 2 or not a.size:
        raise ValueError(f"accuracies are {a.shape}, expected a matrix of steps and tasks, at least one each")
    return a
