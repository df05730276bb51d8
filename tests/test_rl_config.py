"""Settings of GRPO that contradict each other, as a recipe meets them."""

from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import RecipeError

ZERO = Path("recipes/tiny/zero.yaml")


def test_slots_and_deadline_count_when_the_trainer_samples():
    stage = load(ZERO, ["generator.max_slots=64", "generator.deadline_s=60"]).stages["zero"]
    assert stage.config.generator.max_slots == 64


def test_settings_of_generators_that_are_not_started_are_refused():
    with pytest.raises(RecipeError, match=r"sample_in_trainer starts no generators, so generator\.replicas would"):
        load(ZERO, ["generator.replicas=4"])
