"""Checkpoints that do not hold what they say are refused by a look at their headers, and again when they are read."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_model, load_tokenizer
from models.checkpoint_check import weights_fault
from tests.architectures import CONFIGS, make_architecture

LAYER = "model.layers.1.self_attn.o_proj.weight"


def changed(checkpoint: Path, folder: Path, change=lambda tensors: None, **config) -> Path:
    """A copy with other tensors or another config.json."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda tensors: tensors.pop(LAYER), {}, f"its files lack {LAYER}, which"),
        (lambda tensors: None, {"num_hidden_layers": 4}, r"lack model.layers.3.\S+ and \d+ more weights, which"),
        (
            lambda tensors: None,
            {"num_hidden_layers": 2},
            r"have model.layers.2.\S+ and \d+ more weights, which a model",
        ),
        (
            lambda tensors: tensors.update({LAYER[:-6] + "bias": torch.ones(64)}),
            {},
            r"have \S+o_proj.bias, which a model",
        ),
        (
            lambda tensors: None,
            {"vocab_size": 500},
            r"lm_head.weight is \[340, 64\] in its files, and \[500, 64\] by",
        ),
    ],
)
def test_weights_that_config_json_does_not_describe(llama_checkpoint, tmp_path, change, config, said):
    folder = changed(llama_checkpoint, tmp_path / "changed", change, **config)
    assert weights_fault(llama_checkpoint) is None
    fault = weights_fault(folder)
    assert fault is not None and fault.startswith(f"{folder}: ")
    with pytest.raises((ValueError, RuntimeError)) as raised:  # a size is transformers' own error
        load_model(folder)
    for words in [fault] if "is [340" in fault else [fault, str(raised.value)]:
        assert re.search(said, words)


def test_a_lost_weight_of_an_expert(tiny_checkpoint, tmp_path):
    expert = "model.layers.2.mlp.experts.3.up_proj.weight"
    assert weights_fault(tiny_checkpoint) is None
    folder = changed(tiny_checkpoint, tmp_path / "a", lambda tensors: tensors.pop(expert))
    assert weights_fault(folder) == f"{folder}: its files lack {expert}, and have that of other experts"
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        load_model(folder)


def test_what_is_not_of_a_layer_may_be_there_beside(llama_checkpoint, tmp_path):
    folder = changed(
        llama_checkpoint, tmp_path / "a", lambda tensors: tensors.update({"score.weight": torch.ones(1, 64)})
    )
    assert weights_fault(folder) is None and load_model(folder) is not None


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(llama_checkpoint, tmp_path):
    folder = changed(llama_checkpoint, tmp_path / "a")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<reasoning>", "</reasoning>"])
    tokenizer.save_pretrained(folder)
    ids, rows = len(tokenizer), json.loads((folder / "config.json").read_text())["vocab_size"]
    assert ids > rows
    assert f"the tokenizer has {ids} ids, and the embedding {rows} rows; resize it" in (weights_fault(folder) or "")


def test_models_that_are_not_computed_here(llama_checkpoint, tmp_path):
    folder = changed(llama_checkpoint, tmp_path / "a", model_type="gpt_oss", architectures=["GptOssForCausalLM"])
    assert "model type gpt_oss cannot be trained or sampled here" in (weights_fault(folder) or "")


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_passes(tmp_path, kind):
    assert weights_fault(make_architecture(tmp_path / kind, kind)) is None
