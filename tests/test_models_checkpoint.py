"""Checkpoints as other programs read them, and weights handed from one model to another."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.attention import PackedLayout
from models.checkpoint import hub_state_dict, load_model, load_tokenizer, save_model
from models.weight_names import hub_views

IDS = torch.randint(8, 300, (1, 30), generator=torch.Generator().manual_seed(0))


def logits_of(model) -> torch.Tensor:
    packing = PackedLayout.from_lengths([IDS.shape[1]])
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False, layout=packing).logits


def copy(tensors, model) -> None:
    """By checkpoint name, through the model's own views."""
    for name, view in hub_views(model).items():
        view.copy_(tensors[name])


def shuffled(checkpoint):
    """The same model with other weights."""
    model = load_model(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    return model


@pytest.fixture(params=["tiny_checkpoint", "llama_checkpoint"])
def checkpoint(request):
    return request.getfixturevalue(request.param)


def test_plain_transformers_reads_it_with_the_same_logits(checkpoint):
    ours = load_model(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert type(theirs) is type(ours)
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits_of(ours), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert AutoTokenizer.from_pretrained(checkpoint)("1 + 1").input_ids == load_tokenizer(checkpoint)("1 + 1").input_ids


def test_weights_go_from_one_model_into_another(checkpoint):
    source, target = load_model(checkpoint), shuffled(checkpoint)
    copy(hub_state_dict(source), target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_experts_travel_one_by_one(tiny_checkpoint):
    names = set(hub_state_dict(load_model(tiny_checkpoint)))
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in names
    assert not any("gate_up_proj" in name for name in names)
    assert names <= set(load_file(tiny_checkpoint / "model.safetensors"))


def test_saved_in_bfloat16(tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint)
    save_model(tmp_path, model, load_tokenizer(tiny_checkpoint), dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    again = load_model(tmp_path)
    expected = model.lm_head.weight.to(torch.bfloat16).float()
    assert torch.equal(again.lm_head.weight, expected)


def test_tied_embeddings_are_stored_once_and_tied_again(tied_checkpoint, tmp_path):
    assert "lm_head.weight" not in load_file(tied_checkpoint / "model.safetensors")
    model = load_model(tied_checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    theirs = AutoModelForCausalLM.from_pretrained(tied_checkpoint).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_tied_weights_sync(tied_checkpoint):
    source, target = load_model(tied_checkpoint), shuffled(tied_checkpoint)
    copy(load_file(tied_checkpoint / "model.safetensors"), target)
    assert torch.equal(logits_of(source), logits_of(target))


def test_saving_twice_writes_the_same_bytes(checkpoint, tmp_path):
    for folder in ("a", "b"):
        save_model(tmp_path / folder, load_model(checkpoint), load_tokenizer(checkpoint))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_checkpoint_stops_where_the_loaded_one_did(checkpoint, tmp_path):
    loaded, saved, again = (tmp_path / name for name in ("loaded", "saved", "again"))
    save_model(loaded, load_model(checkpoint), load_tokenizer(checkpoint))
    assert not (loaded / "generation_config.json").exists()  # config.json says it all
    own = {"eos_token_id": [1, 5], "temperature": 0.5, "do_sample": False}  # which transformers itself refuses to save
    (loaded / "generation_config.json").write_text(json.dumps(own))
    save_model(saved, load_model(loaded), load_tokenizer(loaded))
    save_model(again, load_model(saved), load_tokenizer(saved))
    stored = (saved / "generation_config.json").read_bytes()
    kept = load_model(saved).generation_config
    assert (kept.eos_token_id, kept.temperature) == ([1, 5], 0.5)
    assert (again / "generation_config.json").read_bytes() == stored


def test_a_checkpoint_does_not_say_where_its_weights_came_from(tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint)
    save_model(tmp_path, model, load_tokenizer(tiny_checkpoint))
    assert str(tiny_checkpoint) not in (tmp_path / "config.json").read_text(encoding="utf-8")
