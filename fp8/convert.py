"""Which layers of a model run in FP8, by an explicit list, and the audit that says so.

As in the released DeepSeek-V3: linear layers of attention and feed-forward, shared and routed experts. Never the
embedding, output head, router, norms, the attention between its projections, nor the projection of the MTP layer.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fp8.config import Fp8Config
from fp8.experts import grouped_mlp
from fp8.gemm import choose
from fp8.linear import Fp8Linear
from fp8.weights import WeightBlocks

LINEARS = (
    "q_proj", "q_a_proj", "q_b_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
    "gate_proj", "up_proj", "down_proj",
)  # fmt: skip

# transformers' routers that multiply in float32, whatever they are handed.
_FLOAT32_ROUTERS = ("DeepseekV2TopkRouter", "DeepseekV3TopkRouter", "DeepseekV32TopkRouter")


def is_quantised(name: str) -> bool:
    """Whether the weight of this checkpoint name is FP8, in training as in what engines are sent."""
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and layer.rpartition(".")[2] in LINEARS


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """One line of the audit: a module that owns weights, and what its products are computed in."""

    module: str
    kind: str  # its class
    parameters: int
    computes_in: str  # "fp8", or the dtype of what comes out of it; norms are float32 in between


def convert(
    model: nn.Module,
    config: Fp8Config,
    *,
    device: torch.device | None = None,
    keep_blocks: bool = False,
    rounded: bool = False,
) -> list[LayerPrecision]:
    """Make the listed layers of `model` compute in FP8, in place, and return the audit of all its weights.

    device: where it will compute, if not where its weights are now.
    rounded: whether FSDP2 will hand all weights over in bfloat16, for the audit.
    keep_blocks: hold quantised weights until they change (fp8.weights.WeightBlocks); not under FSDP.
    Raises ValueError when a listed layer cannot (it is no plain nn.Linear, or experts with another activation than
    SiLU), RuntimeError when the backend cannot run there; before anything is changed.
    """
    choose(config.backend, device or next(model.parameters()).device)
    linears = [(name, m) for name, m in model.named_modules() if is_quantised(f"{name}.weight")]
    experts = [(name, m) for name, m in model.named_modules() if _is_experts(m)]
    for name, module in [*linears, *experts]:
        if why := _why_not(module):
            raise ValueError(f"{name} cannot run in FP8: {why}")
    for _, linear in linears:
        Fp8Linear.swap(linear, WeightBlocks(config, keep=keep_blocks))  # pyright: ignore[reportArgumentType]
    for _, module in experts:
        blocks = WeightBlocks(config, keep=keep_blocks)
        module.grouped_mlp = partial(grouped_mlp, blocks=blocks)  # pyright: ignore[reportArgumentType]
        module.fp8_dispatch = config.scales if config.dispatch else None  # pyright: ignore[reportArgumentType]
    return audit(model, rounded)


def audit(model: nn.Module, rounded: bool = False) -> list[LayerPrecision]:
    """What every module with weights of its own computes in, in the order of the model. rounded: see `convert`."""
    lines = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            size = sum(p.numel() for p in own)
            lines.append(LayerPrecision(name, type(module).__name__, size, _computes_in(module, own[0], rounded)))
    return lines


def _computes_in(module: nn.Module, weight: torch.Tensor, rounded: bool) -> str:
    if isinstance(module, Fp8Linear) or hasattr(module, "grouped_mlp"):
        return "fp8"
    rounds = rounded and type(module).__name__ not in _FLOAT32_ROUTERS
    return "bfloat16" if rounds else str(weight.dtype).removeprefix("torch.")


def weight_blocks(model: nn.Module) -> dict[str, WeightBlocks]:
    """Of every module that computes in FP8, by name."""
    found = {name: module.blocks for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    experts: dict[str, Any] = {n: m.grouped_mlp for n, m in model.named_modules() if hasattr(m, "grouped_mlp")}
    return found | {name: mlp.keywords["blocks"] for name, mlp in experts.items()}


def quantised_names(model: nn.Module) -> set[str]:
    """Checkpoint names of the weights that `model` multiplies in FP8, experts one by one."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            names.add(f"{name}.weight")
        elif hasattr(module, "grouped_mlp"):
            count = module.gate_up_proj.shape[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
            kinds = ("gate_proj", "up_proj", "down_proj")
            names |= {f"{name}.{index}.{kind}.weight" for index in range(count) for kind in kinds}
    return names


def _is_experts(module: Any) -> bool:
    weights = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(isinstance(weight, torch.Tensor) and weight.ndim == 3 for weight in weights)


def _why_not(module: nn.Module) -> str:
    if not _is_experts(module):
        return "" if type(module) is nn.Linear else f"it is a {type(module).__name__}, not a plain nn.Linear"
    if hasattr(module, "limit"):
        return "it limits what its experts multiply (DeepSeek-V4's swiglu_limit), which FP8 experts do not"
    activation = type(module.act_fn).__name__
    return "" if activation in ("SiLU", "SiLUActivation") else f"its activation is {activation}, not SiLU"
