"""The recipes as the page's lists show them."""

from __future__ import annotations

import functools

from prism_lite.recipe import load_recipe, recipe_names


@functools.cache
def recipe_titles() -> list[tuple[str, str]]:
    """Return (title, name) of each recipe: the name, its model and the memory of the card it is for."""
    titles: list[tuple[str, str]] = []
    for name in recipe_names():
        model = load_recipe(name).model
        short = model.name.rpartition("/")[2].removesuffix("-Instruct")
        needs = f"{short}, {model.min_gpu_gib:g} GiB" if model.min_gpu_gib else "no GPU needed"
        titles.append((f"{name} ({needs})", name))
    return titles


def titles_for(gpu_gib: float) -> list[str]:
    """Return the titles of the recipes for a GPU of so much memory, the largest of them first."""
    needs = {title: load_recipe(name).model.min_gpu_gib for title, name in recipe_titles()}
    fitting = [title for title, gib in needs.items() if 0 < gib <= gpu_gib]
    return sorted(fitting, key=lambda title: -needs[title])
