"""Merge methods as folds: one engine for a list, a stream, a ledger and a neighbourhood."""

from dimat.merge.api import Fold, State
from dimat.merge.engine import fold, fold_models
from dimat.merge.registry import builtin_methods, find_method, make_fold, merge_method, options_of
from dimat.merge.survey import Survey

__all__ = [
    "Fold",
    "State",
    "Survey",
    "builtin_methods",
    "find_method",
    "fold",
    "fold_models",
    "make_fold",
    "merge_method",
    "options_of",
]
