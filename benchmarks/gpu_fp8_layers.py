"""Part of gpu_fp8.py: one MoE layer and one MLA block; and the models of random weights that this and the step use."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_bench import Bench, Line, apart, rate
from torch import nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from fp8.convert import convert
from models.attention import NAME as LAYOUT_ATTENTION
from models.attention import PackedLayout
from models.experts import NAME as EXPERTS

KINDS = ("bfloat16", "fp8", "fp8, weights kept")  # quantised at every use, or once for all uses until they change
SEQUENCES = 4  # of equal length in a row


def layers(bench: Bench) -> Iterator[Line]:
    """One MoE layer, with as many experts as one of 32 devices holds, and one MLA block, forward and backward."""
    tokens = 256 if bench.small else 8192
    config = v3_config(bench, num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=8)
    layout = PackedLayout.from_lengths([tokens // SEQUENCES] * SEQUENCES, bench.device)
    hidden, gradient = bench.normal(1, tokens, config.hidden_size), bench.normal(1, tokens, config.hidden_size)
    rotary = v3.DeepseekV3RotaryEmbedding(config).to(bench.device)(
        hidden, torch.arange(tokens, device=bench.device)[None]
    )

    def moe(layer: Any) -> dict[str, torch.Tensor]:
        x = hidden.detach().requires_grad_()
        return _passed(layer, x, layer(x), gradient)

    def attention(layer: Any) -> dict[str, torch.Tensor]:
        x = hidden.detach().requires_grad_()
        out, _ = layer(x, position_embeddings=rotary, attention_mask=None, layout=layout)
        return _passed(layer, x, out, gradient)

    makers = {
        "moe": (lambda: v3.DeepseekV3MoE(config), moe, 0.0),
        "mla": (lambda: v3.DeepseekV3Attention(config, 1), attention, attention_flops(config, tokens)),
    }
    for name, (make, work, more_flops) in makers.items():
        subjects = {kind: _layer(bench, make, kind) for kind in KINDS}
        flops = 6 * active_parameters(subjects[KINDS[0]], config) * tokens + more_flops
        expected = work(subjects[KINDS[0]])
        runs = {kind: (lambda layer=layer, work=work: work(layer)) for kind, layer in subjects.items()}
        for subject, line in bench.compare(runs).items():
            speed = bench.tflops(subject, line, flops) | rate(line, "tokens_per_s", tokens)
            line |= {} if "error" in line else _off(work(subjects[subject]), expected)
            yield {"layer": name, "tokens": tokens, "subject": subject} | line | speed


def _passed(layer: Any, x: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Backward; the output, and the gradients of the input and of the largest weight."""
    out.backward(gradient)
    largest = max(layer.parameters(), key=torch.Tensor.numel)
    found = {"output": out.detach(), "dx": x.grad, "dw": largest.grad}
    layer.zero_grad()
    return found


def _off(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {f"{what}_off": apart(found[what], expected[what]) for what in expected}


def _layer(bench: Bench, make: Callable[[], nn.Module], kind: str) -> nn.Module:
    layer = random_weights(bench, make).to(torch.bfloat16)
    if kind != "bfloat16":
        convert(layer, bench.fp8, keep_blocks=kind == "fp8, weights kept")
    return layer.train()


def v3_config(bench: Bench, **settings: Any) -> Any:
    routing: Line = {"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "max_position_embeddings": 8192}
    config = DeepseekV3Config(**(bench.shape | routing | settings))
    config._attn_implementation, config._experts_implementation = LAYOUT_ATTENTION, EXPERTS
    return config


def random_weights(bench: Bench, make: Callable[[], nn.Module]) -> Any:
    """What `make` makes, on the device and in float32; its matrices are the same at every call."""
    with torch.device(bench.device):
        module = make()
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    return module


def active_parameters(module: nn.Module, config: Any) -> float:
    """Those that multiply one token: all matrices but the embedding's, and of the routed experts the chosen ones."""
    chosen = config.num_experts_per_tok / config.n_routed_experts
    return sum(
        weight.numel() * (chosen if weight.ndim == 3 else 1)
        for name, weight in module.named_parameters()
        if weight.ndim > 1 and "embed_tokens" not in name
    )


def attention_flops(config: Any, tokens: int) -> float:
    """Of the scores and weighted sums of one layer over one row, forward and backward; a query sees earlier tokens."""
    length = tokens // SEQUENCES
    pairs = SEQUENCES * length * (length + 1) / 2
    widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return 3 * 2 * pairs * config.num_attention_heads * widths
