"""Merge methods as folds: one engine for a list, a stream and a neighbourhood."""

from dimat.merge.api import Fold, State, find_method, make_fold, merge_method, options_of
from dimat.merge.engine import fold, fold_models

__all__ = ["Fold", "State", "find_method", "fold", "fold_models", "make_fold", "merge_method", "options_of"]
