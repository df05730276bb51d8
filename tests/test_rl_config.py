"""Settings of GRPO that contradict each other, as a recipe meets them."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import load
from pipeline.errors import RecipeError
from rl.config import GRPOConfig
from rl.objective import PRESETS, ObjectiveConfig
from rollouts.config import RolloutConfig

ZERO = Path("recipes/tiny/zero.yaml")


def test_slots_and_deadline_count_when_the_trainer_samples():
    stage = load(ZERO, ["generator.max_slots=64", "generator.deadline_s=60"]).stages["zero"]
    assert stage.config.generator.max_slots == 64


def test_settings_of_generators_that_are_not_started_are_refused():
    for key, setting in {"generator.replicas": 4, "optimizer.offload": "all"}.items():
        with pytest.raises(RecipeError, match=f"sample_in_trainer starts no generators.* {re.escape(key)} would be"):
            load(ZERO, [f"{key}={setting}"])


@pytest.mark.parametrize(
    "settings",
    [["trainer.mesh.data=2"], ["trainer.precision=bfloat16"], ["trainer.precision=fp8", "trainer.device=cuda"]],
)
def test_sampling_in_the_trainer_needs_whole_weights(settings):
    with pytest.raises(RecipeError, match="set sample_in_trainer: false"):
        load(ZERO, [*settings, "sample_in_trainer=true"])
    assert load(ZERO, [*settings, "sample_in_trainer=false"]).stages["zero"].config.trainer


@pytest.mark.parametrize("setting", ["top_p=0.9", "top_k=20", "min_p=0.05"])
def test_truncated_sampling_needs_the_mask_or_a_word(setting):
    with pytest.raises(RecipeError) as refused:
        load(ZERO, [f"rollout.{setting}"])
    for part in (
        "biases every importance ratio",
        "objective.keep_sampling_mask: true",
        "allow_truncated_sampling: true",
    ):
        assert part in str(refused.value)
    for mended in ("objective.preset=v3_2", "objective.keep_sampling_mask=true", "allow_truncated_sampling=true"):
        assert load(ZERO, [f"rollout.{setting}", mended]).stages["zero"].config.rollout.truncates


@pytest.mark.parametrize("objective", [ObjectiveConfig(), ObjectiveConfig(keep_sampling_mask=True)])
def test_greedy_sampling_is_no_training(objective):
    with pytest.raises(ValidationError, match="training needs temperature above 0"):
        GRPOConfig(rollout=RolloutConfig(temperature=0, top_k=5), objective=objective, allow_truncated_sampling=True)


def test_only_v3_2_keeps_the_sampling_mask_by_itself():
    assert [name for name, preset in PRESETS.items() if preset.keep_sampling_mask] == ["v3_2"]
    assert ObjectiveConfig(preset="gspo", keep_sampling_mask=True).resolve().keep_sampling_mask


def test_stop_strings_of_a_recipe():
    stage = load(ZERO, ['rollout.stop=["</answer>", "User:"]']).stages["zero"]
    assert stage.config.rollout.params(group_size=2, seed=0).stop == ("</answer>", "User:")
    with pytest.raises(RecipeError, match=r"rollout\.stop"):
        load(ZERO, ['rollout.stop=[""]'])


# --- lengths that grow ---


def test_completions_may_grow_longer_at_a_step():
    """R1-Zero: 32,768 tokens, 65,536 from step 8,200 on (section 2.1)."""
    config = GRPOConfig(max_new_tokens_from={8200: 65536})
    assert [config.max_new_tokens_at(step) for step in (0, 8184, 8192, 8208, 10384)] == [
        32768,
        32768,
        32768,
        65536,
        65536,
    ]


def test_a_length_that_is_never_reached_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens_from: step 20 is not among the stage's 16 steps"):
        GRPOConfig(steps=16, max_new_tokens_from={20: 64})


def test_a_watch_needs_problems_that_are_not_trained_on():
    files = {"problems": {"sources": [{"path": "train.jsonl"}]}}
    with pytest.raises(ValidationError, match=r"give held-out ones as watch\.sources"):
        GRPOConfig.model_validate({**files, "watch": {}})
    GRPOConfig.model_validate({**files, "watch": {"sources": [{"path": "held_out.jsonl"}]}})
    with pytest.raises(ValidationError, match="there are no general problems to watch"):
        GRPOConfig.model_validate({"watch": {}})


def test_a_config_is_read_again_from_its_record_with_sources_of_several_layouts():
    """As `r1 replay` does: a record holds defaults too, and one of `columns` is no wish."""
    sources = [{"path": "a.jsonl", "row_schema": "columns", "columns": {"question": "prompt"}}, {"path": "b.jsonl"}]
    config = GRPOConfig.model_validate({"problems": {"sources": sources}})
    assert GRPOConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="`columns` only works with `row_schema: columns`"):
        GRPOConfig.model_validate({"problems": {"sources": [{"path": "b.jsonl", "columns": {"question": "prompt"}}]}})
