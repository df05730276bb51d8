"""Shapes of published models, for recipes whose checkpoints are not on this machine: what their config.json says.

DeepSeek-V3: arXiv:2412.19437, section 4.2, and deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json. The others:
config.json of the repositories on the Hugging Face hub that they are named after (Table 6 of DeepSeek-R1, SmolLM2).
"""

from typing import Any

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "first_k_dense_replace": 3, "hidden_size": 7168,
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "vocab_size": 129280,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
}  # fmt: skip


def _dense(kind: str, width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, **others: Any) -> dict:
    return {
        "model_type": kind, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocab,
        "max_position_embeddings": 131072, **others,
    }  # fmt: skip


_QWEN_1_5B = _dense("qwen2", 1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True)
_QWEN_7B = _dense("qwen2", 3584, 28, 28, 4, 18944, 152064)
_QWEN_14B = _dense("qwen2", 5120, 48, 40, 8, 13824, 152064)
_QWEN_32B = _dense("qwen2", 5120, 64, 40, 8, 27648, 152064)
_LLAMA_8B = _dense("llama", 4096, 32, 32, 8, 14336, 128256)
_LLAMA_70B = _dense("llama", 8192, 80, 64, 8, 28672, 128256)
_SMOLLM2_135M = _dense(
    "llama", 576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True, max_position_embeddings=8192
)  # fmt: skip

# The last part of a hub name or of a path, or a file of a package, in lower case; the longest it begins with counts.
SHAPES: dict[str, dict[str, Any]] = {
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-r1": DEEPSEEK_V3,
    "qwen2.5-math-1.5b": _QWEN_1_5B,
    "qwen2.5-1.5b": _QWEN_1_5B,
    "qwen2.5-math-7b": _QWEN_7B,
    "qwen2.5-7b": _QWEN_7B,
    "qwen2.5-14b": _QWEN_14B,
    "qwen2.5-32b": _QWEN_32B,
    "llama-3.1-8b": _LLAMA_8B,
    "llama-3.3-70b": _LLAMA_70B,
    "smollm2-135m": _SMOLLM2_135M,
}
_NOT = ("deepseek-v3.2", "deepseek-r1-distill")  # begin like one of these and are other models


def published(name: str) -> dict[str, Any] | None:
    """config.json of the model that a folder, hub name or GGUF file is called after; None for one not listed."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    if last.startswith(_NOT):
        return None
    found = max((known for known in SHAPES if last.startswith(known)), key=len, default=None)
    return SHAPES[found] if found else None
