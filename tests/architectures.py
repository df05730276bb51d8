"""Very small models of every architecture in docs/rollouts.md, and a probe of what an engine makes of one.

The probe is a program of its own (`python -m tests.architectures ENGINE CHECKPOINT`): a vLLM engine that fails to start
leaves its process unusable, and one that ends takes the process groups of others along.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = [[9, 40, 300, 12], [77, 15, 201, 33, 8, 120, 90], [250] * 12, list(range(20, 60))]

_MLA = {  # vLLM's CPU kernel takes no other latents
    "q_lora_rank": 64, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
_EXPERTS = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
_V3 = _MLA | _EXPERTS | {
    "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid",
}  # fmt: skip
_DENSE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "qwen2": _DENSE,
    "qwen3": _DENSE,
    "qwen3_moe": _DENSE | {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [0],
    },
    "deepseek_v2": _MLA | _EXPERTS | {
        "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5,
        "norm_topk_prob": False,
    },
    "deepseek_v3": _V3,
    "deepseek_v32": _V3 | {"index_topk": 128, "index_n_heads": 4, "index_head_dim": 128},
    "deepseek_v4": {
        "q_lora_rank": 64, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1, "o_groups": 2, "o_lora_rank": 32,
        "index_n_heads": 16, "index_head_dim": 64, "index_topk": 2, "sliding_window": 6, "num_hash_layers": 1,
        "num_nextn_predict_layers": 0, "hc_mult": 2,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
}  # fmt: skip


def make_architecture(folder: Path, model_type: str, **changes) -> Path:
    """A checkpoint of three layers with strong random weights: peaked attention, next tokens far from uniform."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from data.corpus import documents
    from models.checkpoint import save_model
    from models.config import TinyModelConfig
    from models.tiny import build_tokenizer

    texts = [document.text for document in islice(documents("tests"), 60)]
    tokenizer = build_tokenizer(texts, TinyModelConfig(vocab_size=340, max_length=128))
    common = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96,
        "max_position_embeddings": 128, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if model_type == "deepseek_v4":
        del common["intermediate_size"]
    config = AutoConfig.for_model(model_type, **common | CONFIGS[model_type] | changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter *= 25 if ".q_" in name else 5
            elif name.endswith(".kv_norm.weight"):  # V4 normalises queries and keys
                parameter *= 4
        for name, buffer in model.named_buffers():
            if name.endswith(".tid2eid"):  # V4's table of experts by token, empty in a new model
                buffer.copy_(torch.stack([torch.randperm(8)[:2] for _ in buffer]))
    save_model(folder, model, tokenizer)
    return folder


def changed(checkpoint: str) -> dict[str, Any]:
    """Other weights, by checkpoint name."""
    import torch
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(0)
    tensors = load_file(f"{checkpoint}/model.safetensors")
    return {
        name: t * (1 + 0.2 * torch.randn(t.shape, generator=generator)) if t.is_floating_point() and t.ndim > 1 else t
        for name, t in tensors.items()
    }


def start(engine: str, checkpoint: str):
    if engine == "transformers":
        from rollouts.transformers_generator import TransformersGenerator

        return TransformersGenerator(checkpoint, device="cpu")
    from rollouts.vllm_generator import VLLMGenerator

    return VLLMGenerator(checkpoint, device="cpu", engine_args={"kv_cache_memory_bytes": 64 << 20})


def reference(checkpoint: str, weights: dict[str, Any] | None = None):
    """transformers' own model with its own attention, float32; `weights` by checkpoint name, else the checkpoint's."""
    import tempfile

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        if weights is not None:
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            (Path(folder) / "config.json").write_text((Path(checkpoint) / "config.json").read_text())
        where = checkpoint if weights is None else folder
        return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, attn_implementation="eager").eval()


def compare(groups, model) -> dict[str, Any]:
    """Largest difference of sampled logprobs, nats, and the share of routed experts that agree with `model`'s own."""
    import torch

    chosen: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: chosen.append(output[2]))
        for name, module in model.named_modules()
        if name.endswith("mlp.gate")
    ]
    gap, agree, seen, tokens = 0.0, 0, 0, []
    for group in groups:
        for completion in group.completions:
            chosen.clear()
            ids = torch.tensor([*group.prompt_ids, *completion.token_ids])[None]
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].double()
            expected = torch.log_softmax(logits, -1)[range(len(completion.token_ids)), completion.token_ids]
            gap = max(gap, float(np.abs(expected.numpy() - completion.sampling_logprobs).max()))
            tokens.append(completion.token_ids.tolist())
            if completion.routed_experts is not None:
                own = torch.stack(chosen, 1).sort(-1).values.numpy()[:-1]
                agree += int((np.sort(completion.routed_experts, -1) == own).all(-1).sum())
                seen += own.shape[0] * own.shape[1]
    for hook in hooks:
        hook.remove()
    return {"gap": gap, "routed": agree / seen if seen else None, "moe_layers": len(hooks), "tokens": tokens}


def probe(engine: str, checkpoint: str) -> dict[str, Any]:
    """What `engine` makes of `checkpoint`: see tests/test_rollouts_architectures.py for what it must be."""
    from rollouts.records import Request, SamplingParams

    requests = [Request(key=f"p{i}", prompt_ids=ids) for i, ids in enumerate(PROMPTS)]
    params = SamplingParams(max_new_tokens=12, group_size=2, seed=1, return_routed_experts=True)
    try:
        generator = start(engine, checkpoint)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return {"refused": str(error)}
    before = compare(generator.sample(requests, params), reference(checkpoint))
    new = changed(checkpoint)
    generator.load_weights(new, version=1)
    after = compare(generator.sample(requests, params), reference(checkpoint, new))
    return {
        "gap": before["gap"], "gap_after_sync": after["gap"], "changed": before["tokens"] != after["tokens"],
        "routed": before["routed"], "routed_after_sync": after["routed"], "moe_layers": before["moe_layers"],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2])))
