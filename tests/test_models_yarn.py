"""The context extension of DeepSeek-V3 (arXiv:2412.19437, section 4.3) as the released config.json states it."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer, save_model

ROPE, FACTOR, ORIGINAL = 16, 40, 32
RELEASED = {
    "type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_checkpoint):
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=340, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=48,
        qk_nope_head_dim=16, qk_rope_head_dim=ROPE, v_head_dim=16, max_position_embeddings=FACTOR * ORIGINAL,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter *= 25 if ".q_" in name else 5  # peaked attention: positions matter
    folder = tmp_path_factory.mktemp("yarn")
    save_model(folder, model, load_tokenizer(tiny_checkpoint))
    written = json.loads((folder / "config.json").read_text())
    written.pop("rope_parameters", None)
    written |= {"rope_theta": 10000, "rope_scaling": RELEASED}  # as the released file has it
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def yarn_frequencies() -> np.ndarray:
    """YaRN (arXiv:2309.00071), section 3.2: interpolated below beta_slow turns in the original context, kept above
    beta_fast, a linear ramp over dimensions in between."""
    dimension = np.arange(0, ROPE, 2) / ROPE
    kept = 10000.0**-dimension
    bounds = [ROPE * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(10000)) for turns in (32, 1)]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), ROPE - 1)
    ramp = np.clip((np.arange(ROPE // 2) - low) / max(high - low, 1e-3), 0, 1)
    return kept / FACTOR * ramp + kept * (1 - ramp)


def test_frequencies_and_scale_are_the_papers(checkpoint):
    model = load_model(checkpoint)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), yarn_frequencies(), rtol=1e-6)
    mscale = 0.1 * math.log(FACTOR) + 1
    assert mscale == pytest.approx(1.3689, abs=1e-4)
    for layer in model.model.layers:
        assert layer.self_attn.scaling == pytest.approx((16 + ROPE) ** -0.5 * mscale**2)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.0)  # it is in the softmax, once


def test_packed_rows_beyond_the_original_context_are_transformers_own(checkpoint):
    packed, own = load_model(checkpoint), load_model(checkpoint, attention="eager").eval()
    lengths = [ORIGINAL // 2, 5 * ORIGINAL, 3]
    sequences = [torch.randint(0, 340, (length,)) for length in lengths]
    with torch.no_grad():
        row = packed.model(
            input_ids=torch.cat(sequences)[None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            use_cache=False,
            layout=PackedLayout.from_lengths(lengths),
        ).last_hidden_state[0]
        for sequence, got in zip(sequences, row.split(lengths), strict=True):
            assert torch.allclose(got, own.model(sequence[None]).last_hidden_state[0], atol=2e-4)
