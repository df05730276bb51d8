"""Weights and speeds that a recipe sets, on models that have something for them and on ones that have not."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from models.checkpoint import load_model
from models.routing import is_selection_bias, routers
from rl.config import GRPOConfig
from sft.config import SFTConfig
from tests.architectures import CONFIGS, make_architecture
from training.checkpoint_config import check_settings_are_used, read_config, unused_setting
from training.stage import StageError

V3 = {"model_type": "deepseek_v3", "n_routed_experts": 256, "num_nextn_predict_layers": 1}
QWEN_MOE = {"model_type": "qwen3_moe", "num_experts": 128}
LLAMA = {"model_type": "llama"}


def checkpoint(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("model", "setting", "missing"),
    [
        (LLAMA, "mtp_weight", "MTP layer"),
        (LLAMA, "balance_weight", "routed experts"),
        (QWEN_MOE, "bias_speed", "selection biases"),
        (V3 | {"num_nextn_predict_layers": 0}, "mtp_weight", "MTP layer"),
    ],
)
@pytest.mark.parametrize("stage", [SFTConfig, GRPOConfig])
def test_what_would_be_ignored_is_refused(tmp_path, model, setting, missing, stage):
    config = stage(**{setting: 0.01})
    with pytest.raises(StageError, match=f"rl: {setting} is 0.01, and .* has no {missing}.*leave it out"):
        check_settings_are_used(config, checkpoint(tmp_path, model), "rl")


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (V3, {"mtp_weight": 0.1, "balance_weight": 0.1, "bias_speed": 0.1}),
        (QWEN_MOE, {"balance_weight": 0.1}),
        (LLAMA, {"mtp_weight": 0, "balance_weight": 0, "bias_speed": 0}),
        (LLAMA, {}),  # SFT's default is nobody's wish
    ],
)
def test_what_is_used_or_nobodys_wish_is_not(tmp_path, model, settings):
    check_settings_are_used(SFTConfig(**settings), checkpoint(tmp_path, model), "sft")


def test_an_mtp_layer_that_only_config_json_has_is_none(tmp_path, tiny_checkpoint):
    """As models are released that were finetuned without it."""
    whole = shutil.copytree(tiny_checkpoint, tmp_path / "whole")
    check_settings_are_used(SFTConfig(mtp_weight=0.1), whole, "sft")
    tensors = load_file(whole / "model.safetensors")
    layer = f"model.layers.{read_config(whole)['num_hidden_layers']}."
    save_file({n: t for n, t in tensors.items() if not n.startswith(layer)}, whole / "model.safetensors")
    with pytest.raises(StageError, match="whole has no MTP layer"):
        check_settings_are_used(SFTConfig(mtp_weight=0.1), whole, "sft")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_architecture_has_what_its_config_says(tmp_path, model_type):
    """What is read here of config.json against the routers that transformers makes."""
    model = load_model(make_architecture(tmp_path / model_type, model_type))
    found = [router for _, router in routers(model)]
    has_biases = any(is_selection_bias(name) for name in model.state_dict())
    for setting, there in {"balance_weight": bool(found), "bias_speed": has_biases}.items():
        assert (unused_setting(SFTConfig(**{setting: 0.1}), tmp_path / model_type) is None) == there


def test_a_folder_without_a_config_is_for_others_to_refuse(tmp_path):
    check_settings_are_used(SFTConfig(mtp_weight=0.1), tmp_path, "sft")
    for odd in ("{", "null", "[1]", '"a"'):
        (tmp_path / "config.json").write_text(odd)
        assert read_config(tmp_path) == {}
