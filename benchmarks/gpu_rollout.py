"""Sampling and routing replay on one GPU in BF16: the embedded generator beside transformers' generate.

    python benchmarks/gpu_rollout.py                                       # one GPU; prints tables, writes JSON
    python benchmarks/gpu_rollout.py --device cpu --small --out out.json   # tries the script itself

A DeepSeek-V3-shaped model with random weights, so that completions run to their limit and both do the same work, in
alternating rounds. Then the completions with the experts that computed them go through the packed forward pass of
training, routed by itself and by the record.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from models.attention import NAME as LAYOUT_ATTENTION
from models.attention import PackedLayout
from models.checkpoint import load_tokenizer
from models.experts import NAME as EXPERTS
from models.routing_replay import RoutingReplay
from rollouts.records import Group, Request, SamplingParams
from rollouts.transformers_generator import ModelSampler

REPO = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "moe_intermediate_size": 1024, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 32, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 8, "q_lora_rank": 32,
    "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model and few tokens: to try the script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512], help="completions at a time")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "gpu_rollout.json")
    arguments = parser.parse_args()
    batches, new_tokens = ([8], 8) if arguments.small else (arguments.batches, 96)
    tokenizer = load_tokenizer(REPO / "recipes" / "tiny" / "base")
    model = make_model(SMALL if arguments.small else SHAPE, len(tokenizer), torch.device(arguments.device))
    result = conditions("torch", "transformers") | {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"} | {"new_tokens": new_tokens},
    }
    sampler = ModelSampler(model, tokenizer, max(batches))
    sampler.eos_ids = frozenset()
    result["sampling"] = [sampling(sampler, batch, new_tokens, arguments.rounds) for batch in batches]
    result["routing_replay"] = replay(sampler, min(batches), new_tokens)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for part in ("sampling", "routing_replay"):
        show(part, result[part])


def make_model(shape: dict[str, int], vocabulary: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **shape, vocab_size=vocabulary, n_shared_experts=1, first_k_dense_replace=1, num_experts_per_tok=4, n_group=1,
        topk_group=1, max_position_embeddings=4096,
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = LAYOUT_ATTENTION, EXPERTS
    with device:
        model = DeepseekV3ForCausalLM(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.04)
    return model


def sampling(sampler: ModelSampler, batch: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both, median and range over rounds, at `batch` completions of 32-token prompts."""
    subjects = {
        "ours": lambda: [len(c.token_ids) for g in draw(sampler, batch, new_tokens, 0) for c in g.completions],
        "generate": lambda: generate(sampler.model, batch, new_tokens),
    }
    seen: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, work in subjects.items():
            as_it_is = name == "ours"
            sampler.model.config._attn_implementation = LAYOUT_ATTENTION if as_it_is else "sdpa"
            sampler.model.config._experts_implementation = EXPERTS if as_it_is else "grouped_mm"
            started = time.perf_counter()
            tokens = sum(work())
            if sampler.device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seen[name].append(tokens / (time.perf_counter() - started))
    sampler.model.config._attn_implementation, sampler.model.config._experts_implementation = LAYOUT_ATTENTION, EXPERTS
    lines = {name: {"tokens_per_s": median(v), "min": min(v), "max": max(v)} for name, v in seen.items()}
    return {"batch": batch} | lines | {"ratio": median(seen["ours"]) / median(seen["generate"])}


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(5, vocabulary, (count, 32)).tolist()


def draw(sampler: ModelSampler, batch: int, new_tokens: int, seed: int) -> list[Group]:
    ids = prompts(batch // 8, sampler.model.config.vocab_size)
    requests = [Request(key=f"{index}", prompt_ids=prompt) for index, prompt in enumerate(ids)]
    params = SamplingParams(max_new_tokens=new_tokens, group_size=8, seed=seed, return_routed_experts=True)
    return sampler.sample(requests, params)


@torch.inference_mode()
def generate(model: Any, batch: int, new_tokens: int) -> list[int]:
    ids = torch.tensor(prompts(batch // 8, model.config.vocab_size), device=model.device).repeat_interleave(8, 0)
    torch.manual_seed(0)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        top_k=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return [out.shape[1] - ids.shape[1]] * batch


@torch.inference_mode()
def replay(sampler: ModelSampler, batch: int, new_tokens: int) -> list[dict[str, Any]]:
    """One packed forward pass over what was sampled, routed by itself and by the record."""
    groups = draw(sampler, batch, new_tokens, 1)
    pairs = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
    rows = [[*prompt, *completion.token_ids.tolist()] for prompt, completion in pairs]
    ids = torch.tensor([token for row in rows for token in row], device=sampler.device)
    positions = torch.cat([torch.arange(len(row), device=sampler.device) for row in rows])
    layout = PackedLayout.from_lengths([len(row) for row in rows], sampler.device)
    layers, top_k = pairs[0][1].routed_experts.shape[1:]
    missing = np.full((1, layers, top_k), -1)  # the last token of each completion was never read
    given = np.concatenate([part for _, c in pairs for part in (c.routed_experts.astype(np.int64), missing)])
    sampled = torch.tensor(np.concatenate([c.sampling_logprobs for _, c in pairs]), device=sampler.device)
    lines = []
    for force in (False, True):
        watcher = RoutingReplay(sampler.model)
        started = time.perf_counter()
        with watcher.watch(given, force=force) as routes:
            hidden = sampler.model.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=layout
            ).last_hidden_state[0]
        logprobs = torch.log_softmax(sampler.model.lm_head(hidden).float(), dim=-1)
        picked, start = [], 0
        for (prompt, completion), row in zip(pairs, rows, strict=True):
            first, count = start + len(prompt) - 1, len(completion.token_ids)
            picked.append(logprobs[first : first + count].gather(1, ids[first + 1 : first + 1 + count, None])[:, 0])
            start += len(row)
        gap = (torch.cat(picked) - sampled).abs().double()
        equal, pairs_seen = routes.agreement(routes.used)
        lines.append(
            {"routed_by": "the record" if force else "itself", "tokens": len(gap), "agreement": equal / pairs_seen,
             "mean_abs_log_ratio": float(gap.mean()), "max_abs_log_ratio": float(gap.max()),
             "seconds": time.perf_counter() - started}
        )  # fmt: skip
    return lines


def show(title: str, lines: list[dict[str, Any]]) -> None:
    table = Table(*lines[0], title=title)
    for line in lines:
        cells = (
            v if isinstance(v, str) else json.dumps(v) if isinstance(v, dict) else f"{v:.6g}" for v in line.values()
        )
        table.add_row(*cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
