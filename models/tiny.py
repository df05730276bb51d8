"""Architectures small enough for a laptop CPU: every part of DeepSeek-V3, and a dense Llama student of similar size."""

from collections.abc import Iterable

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from models.config import TinyModelConfig
from models.mtp import MTPModule
from models.tokenizer import BOS, CHAT_TEMPLATE, EOS, train_tokenizer


def build_config(shape: TinyModelConfig, *, vocab_size: int, bos_id: int, eos_id: int) -> PreTrainedConfig:
    """The transformers config of a model of this shape."""
    common = {
        "vocab_size": vocab_size, "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size, "max_position_embeddings": shape.max_length,
        "bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": eos_id,
        "tie_word_embeddings": shape.tie_embeddings,
    }  # fmt: skip
    if shape.architecture == "llama":
        return LlamaConfig(architectures=["LlamaForCausalLM"], **common)
    return DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"],
        # vLLM's CPU MLA kernel takes only latents of 512 + 64.
        q_lora_rank=64, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32,
        first_k_dense_replace=1, n_routed_experts=shape.num_experts, num_experts_per_tok=shape.experts_per_token,
        moe_intermediate_size=shape.expert_size, n_shared_experts=1, n_group=4, topk_group=2,
        norm_topk_prob=True, routed_scaling_factor=2.5, num_mtp_layers=1,
        # read by vLLM, not written by transformers
        **{"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        **common,
    )  # fmt: skip


def build_tokenizer(texts: Iterable[str], shape: TinyModelConfig) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, shape.vocab_size),
        bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=shape.max_length,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(shape: TinyModelConfig, tokenizer, seed: int) -> tuple[PreTrainedModel, MTPModule | None]:
    """A freshly initialised model and, for DeepSeek-V3, its MTP module."""
    config = build_config(
        shape, vocab_size=len(tokenizer), bos_id=tokenizer.bos_token_id, eos_id=tokenizer.eos_token_id
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    if shape.architecture == "llama":
        return model, None
    mtp = MTPModule(config)
    mtp.init_weights(config.initializer_range, torch.Generator().manual_seed(seed))
    return model, mtp
