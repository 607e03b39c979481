"""Recipes: a merge written down as YAML, in dimat's own form or in mergekit's.

    read_recipe(path) -> Recipe | MergekitRecipe       which of both it is, the file itself tells (`merge_method`)
    plan_mergekit(recipe, folder, num) -> ...          mergekit's parameters on dimat's methods: `dimat.recipes.mapped`

Reading needs no torch; only mapping mergekit's parameters to tensors does.
"""

from dimat.recipes.read import read_recipe
from dimat.recipes.recipe import Recipe

__all__ = ["Recipe", "read_recipe"]
