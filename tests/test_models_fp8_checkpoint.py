"""Checkpoints in DeepSeek's FP8 format, written here by hand as the released ones are laid out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

from models.checkpoint import hub_state_dict, load_model, load_mtp_module, load_tokenizer, save_model
from models.mtp import MTPModule, mtp_state_dict
from models.weight_names import hub_views

KINDS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny_model() -> tuple[DeepseekV3ForCausalLM, MTPModule]:
    """576 rows in kv_a_proj_with_mqa, as the released models have."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=160, intermediate_size=200, moe_intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=96, kv_lora_rank=512,
        qk_nope_head_dim=32, qk_rope_head_dim=64, v_head_dim=32, max_position_embeddings=64, num_nextn_predict_layers=1,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).bfloat16().float()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn_like(buffer) / 7)  # no bfloat16 number
    mtp = MTPModule(config)
    mtp.init_weights(0.02, torch.Generator().manual_seed(1))
    return model, mtp.bfloat16().float()


def released(weight: torch.Tensor, powers_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) block by block in numpy; scales that are no largest/448, as another program may have chosen them."""
    rows, columns = weight.shape
    scale = np.ones((-(-rows // 128), -(-columns // 128)), np.float32)
    quotient = weight.numpy().copy()
    for i, j in np.ndindex(scale.shape):
        block = quotient[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
        scale[i, j] = np.abs(block).max() / np.float32(448) * np.float32(1.01)
        if powers_of_two:
            scale[i, j] = 2.0 ** np.ceil(np.log2(np.float64(scale[i, j])))
        block /= scale[i, j]
    return torch.from_numpy(quotient).to(torch.float8_e4m3fn), torch.from_numpy(scale)


@pytest.fixture(params=["float32", "ue8m0"], scope="module")
def fp8_checkpoint(request, tmp_path_factory, tiny_checkpoint):
    """Two files; the scales are not in the file of their weights."""
    folder = tmp_path_factory.mktemp("fp8")
    model, mtp = tiny_model()
    first, second = {}, {}
    for name, tensor in (hub_state_dict(model) | mtp_state_dict(model, mtp)).items():
        if name.split(".")[-2] in KINDS:
            first[name], second[f"{name}_scale_inv"] = released(tensor, request.param == "ue8m0")
        else:
            first[name] = tensor if name.endswith("bias") else tensor.bfloat16()
    save_file({n: t.contiguous() for n, t in first.items()}, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    config = model.config.to_dict() | {"architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16"}
    config["num_nextn_predict_layers"] = 1
    quantisation = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    config["quantization_config"] = quantisation | ({"scale_fmt": "ue8m0"} if request.param == "ue8m0" else {})
    (folder / "config.json").write_text(json.dumps(config))
    load_tokenizer(tiny_checkpoint).save_pretrained(folder)
    return folder


def stored(folder) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_weights_are_multiplied_out_exactly(fp8_checkpoint):
    model = load_model(fp8_checkpoint)
    tensors = stored(fp8_checkpoint)
    views = hub_views(model)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in views
    for name, view in views.items():
        expected = tensors[name].float()
        if f"{name}_scale_inv" in tensors:
            scale = tensors[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            expected = expected * scale[: expected.shape[0], : expected.shape[1]]
        assert torch.equal(view, expected), name
    mtp = load_mtp_module(fp8_checkpoint, model.config)
    eh_proj = tensors["model.layers.2.eh_proj.weight"]
    assert torch.equal(mtp.eh_proj.weight, eh_proj.float())
    ids = torch.arange(20)[None]
    original, _ = tiny_model()
    plain = load_model(fp8_checkpoint, attention="eager")
    with torch.no_grad():
        difference = (plain(ids).logits - original.eval()(ids).logits).abs().max()
    assert 1e-5 < difference < 0.1  # FP8 rounding, and nothing else


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_back_it_is_the_same_bit_for_bit(fp8_checkpoint, tmp_path, dtype):
    model = load_model(fp8_checkpoint, dtype=dtype)
    mtp = load_mtp_module(fp8_checkpoint, model.config)
    save_model(tmp_path, model, load_tokenizer(fp8_checkpoint), mtp, dtype="fp8", source=fp8_checkpoint)
    before, after = stored(fp8_checkpoint), stored(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        same = tensor.dtype == after[name].dtype and torch.equal(
            tensor.view(torch.uint8), after[name].view(torch.uint8)
        )
        assert same or (dtype == torch.bfloat16 and name.endswith("e_score_correction_bias")), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["quantization_config"] == json.loads((fp8_checkpoint / "config.json").read_text())["quantization_config"]
    )


def test_changed_blocks_get_scales_of_their_own(fp8_checkpoint, tmp_path):
    model = load_model(fp8_checkpoint)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    views = hub_views(model)
    with torch.no_grad():
        views[name][130, 5] = 100.0
    save_model(tmp_path, model, load_tokenizer(fp8_checkpoint), dtype="fp8", source=fp8_checkpoint)
    before, after = stored(fp8_checkpoint)[f"{name}_scale_inv"], stored(tmp_path)[f"{name}_scale_inv"]
    assert (before != after).nonzero().tolist() == [[1, 0]]
    powers = "scale_fmt" in json.loads((fp8_checkpoint / "config.json").read_text())["quantization_config"]
    assert after[1, 0].item() == pytest.approx(0.25 if powers else 100 / 448)
    again = hub_views(load_model(tmp_path))[name]
    assert again[130, 5].item() == pytest.approx(100.0, rel=1 / 16 if powers else 1e-6)
    assert torch.equal(again[:128], views[name][:128])


def test_a_model_that_never_was_fp8_is_saved_as_such(tmp_path, tiny_checkpoint):
    model, mtp = tiny_model()
    save_model(tmp_path, model, load_tokenizer(tiny_checkpoint), mtp, dtype="fp8")
    tensors = stored(tmp_path)
    assert {n.split(".")[-2] for n, t in tensors.items() if t.dtype == torch.float8_e4m3fn} == set(KINDS)
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    views, expected = hub_views(load_model(tmp_path)), hub_views(model)
    for name in views:
        error = (views[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)
        assert error < 0.04, name


def test_where_completions_end_is_read_too(fp8_checkpoint, tmp_path):
    for file in fp8_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2, 7]}')
    assert load_model(tmp_path).generation_config.eos_token_id == [1, 2, 7]


def test_another_quantisation_is_refused_with_what_to_do(fp8_checkpoint, tmp_path):
    config = json.loads((fp8_checkpoint / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [1, 32]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantised by fp8 with weight blocks \[1, 32\].*convert it"):
        load_model(tmp_path)


def test_a_missing_tensor_is_named(fp8_checkpoint, tmp_path):
    for file in fp8_checkpoint.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = stored(fp8_checkpoint)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"no tensor model\.norm\.weight"):
        load_model(tmp_path)
