"""Settings that would be ignored, or that fail only when ranks start, are refused when a recipe is read."""

import pytest
from pydantic import ValidationError

from distill.config import DistillConfig
from rl.config import GRPOConfig
from sft.config import PretrainConfig, SFTConfig
from training.config import OptimizerConfig

STAGES = [PretrainConfig, SFTConfig, GRPOConfig, DistillConfig]


@pytest.mark.parametrize("stage", STAGES)
def test_fp8_settings_need_fp8(stage):
    fp8 = {"scales": "power_of_two"}
    with pytest.raises(ValidationError, match="fp8 is set while precision is bfloat16"):
        stage.model_validate({"trainer": {"fp8": fp8, "precision": "bfloat16"}})
    stage.model_validate({"trainer": {"fp8": fp8, "precision": "fp8"}})


@pytest.mark.parametrize("stage", [PretrainConfig, SFTConfig, GRPOConfig])
def test_a_weight_for_a_dropped_mtp_layer_is_refused(stage):
    with pytest.raises(ValidationError, match=r"trainer\.drop_mtp leaves no layer to train"):
        stage.model_validate({"mtp_weight": 0.3, "trainer": {"drop_mtp": True}})
    stage.model_validate({"trainer": {"drop_mtp": True}})  # the default weight is nobody's wish


def test_fp8_dispatch_needs_experts_on_several_ranks():
    trainer = {"precision": "fp8", "fp8": {"dispatch": True}}
    with pytest.raises(ValidationError, match=r"with mesh\.expert 1 none does"):
        SFTConfig.model_validate({"trainer": trainer})
    SFTConfig.model_validate({"trainer": trainer | {"mesh": {"data": 2, "expert": 2}}})


def test_a_learning_rate_of_muon_needs_muon():
    with pytest.raises(ValueError, match="muon_lr_factor 3 would be ignored by adamw; set algorithm: muon"):
        OptimizerConfig(muon_lr_factor=3.0)
    assert OptimizerConfig(algorithm="muon", muon_lr_factor=3.0).muon_lr_factor == 3
