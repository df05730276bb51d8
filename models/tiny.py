"""Architectures small enough for a laptop CPU: every part of DeepSeek-V3, and a dense Llama student of similar size."""

from typing import Literal

from pydantic import BaseModel, Field
from transformers import DeepseekV3Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from models.tokenizer import BOS, CHAT_TEMPLATE, EOS, train_tokenizer


class TinyModelConfig(BaseModel, extra="forbid", frozen=True):
    """Shape of a model trained from scratch."""

    architecture: Literal["deepseek_v3", "llama"] = Field(
        "deepseek_v3", description="deepseek_v3 = MLA + MoE + MTP, the paper's architecture; llama = a dense student"
    )
    vocab_size: int = Field(1024, ge=300, le=8192, description="tokens; our text needs no more")
    hidden_size: int = Field(192, ge=64, description="model width")
    num_layers: int = Field(4, ge=2, description="decoder layers; the first is dense, the others MoE")
    num_heads: int = Field(4, ge=1, description="attention heads")
    intermediate_size: int = Field(512, ge=64, description="width of dense feed-forward layers")
    expert_size: int = Field(96, ge=16, description="width of one expert")
    num_experts: int = Field(8, ge=4, description="routed experts, in 4 groups of which 2 are kept")
    experts_per_token: int = Field(2, ge=1, description="routed experts per token")
    max_length: int = Field(512, ge=64, description="longest sequence, tokens")

    def build(self, eos_id: int, bos_id: int) -> PreTrainedConfig:
        common = {
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads, "num_key_value_heads": self.num_heads,
            "intermediate_size": self.intermediate_size, "max_position_embeddings": self.max_length,
            "bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": eos_id, "tie_word_embeddings": False,
        }  # fmt: skip
        if self.architecture == "llama":
            return LlamaConfig(architectures=["LlamaForCausalLM"], **common)
        return DeepseekV3Config(
            architectures=["DeepseekV3ForCausalLM"],
            # vLLM's CPU MLA kernel takes only latents of 512 + 64.
            q_lora_rank=64, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32,
            first_k_dense_replace=1, n_routed_experts=self.num_experts, num_experts_per_tok=self.experts_per_token,
            moe_intermediate_size=self.expert_size, n_shared_experts=1, n_group=4, topk_group=2,
            norm_topk_prob=True, routed_scaling_factor=2.5, num_mtp_layers=1,
            # read by vLLM, not written by transformers
            topk_method="noaux_tc", scoring_func="sigmoid",
            **common,
        )  # fmt: skip


def build_tokenizer(texts, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, vocab_size),
        bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
