"""Recipes: pipelines as data. `reuse` writes the recipe of what it made; `regraft run` replays it."""

from regraft.recipe.order import Step
from regraft.recipe.read import Recipe, read_recipe
from regraft.recipe.replay import replay

__all__ = ["Recipe", "Step", "read_recipe", "replay"]
