"""The shipped recipes, each as `r1 run --dry-run` sees it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_is_valid(recipe, tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--dry-run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_recipes_are_short():
    for recipe in RECIPES:
        assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 40, recipe
