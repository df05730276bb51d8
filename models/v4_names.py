"""DeepSeek-V4's weights under the names of the released checkpoints, which vLLM reads and transformers renames.

transformers renames them back in another way for a model that it has loaded than for one that it has made, so the
names are given here.
"""

MODEL_TYPE = "deepseek_v4"
EXPERT_PARTS = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
_BEGINNINGS = {
    "model.layers.": "layers.", "model.embed_tokens.": "embed.", "model.norm.": "norm.", "lm_head.": "head.",
    "model.hc_head.hc_": "hc_head_",
}  # fmt: skip
_INDEXER = ".self_attn.compressor.indexer."
_PARTS = (  # in this order: a name is changed by each that it has
    (f"{_INDEXER}scorer.weights_proj.", ".attn.indexer.weights_proj."),
    (f"{_INDEXER}q_b_proj.", ".attn.indexer.wq_b."),
    (_INDEXER, ".attn.indexer.compressor."),
    (".self_attn.", ".attn."),
    (".mlp.shared_experts.gate_proj.", ".mlp.shared_experts.w1."),
    (".mlp.shared_experts.down_proj.", ".mlp.shared_experts.w2."),
    (".mlp.shared_experts.up_proj.", ".mlp.shared_experts.w3."),
    (".gate.e_score_correction_bias", ".gate.bias"),
    (".mlp.", ".ffn."),
    (".compressor.kv_norm.", ".compressor.norm."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".position_bias", ".ape"),
    (".sinks", ".attn_sink"),
    (".q_a_proj.", ".wq_a."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".q_a_norm.", ".q_norm."),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
)


def released_name(name: str) -> str:
    """`name` as in the model's state dict -> as in a checkpoint; fused experts keep their leaf (EXPERT_PARTS)."""
    for old, new in _BEGINNINGS.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in _PARTS:
        name = name.replace(old, new)
    return name
