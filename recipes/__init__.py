"""Recipes: what to run, as YAML, one folder per size; `tiny` is the whole chain on a CPU."""
