"""The routed experts of an MoE layer: rows sorted by expert, perhaps sent to the rank that holds it, multiplied, and
brought back.

Registered with transformers as `r1_grouped`. What an experts module has decides what happens:

    grouped_mlp     computes sorted rows in place of torch's grouped product (fp8.convert puts one there)
    expert_group    the ranks over which the experts are spread, in order (training.parallel puts it there); each holds
                    E / R of them, and tokens travel both ways by all-to-all
    fp8_dispatch    the scales of tokens that travel to their experts in FP8, and of gradients that do (fp8.convert);
                    what comes back from experts is not rounded (DeepSeek-V3, arXiv:2412.19437, section 3.3.3)

A module with neither runs transformers' own grouped product.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear, grouped_mm_experts_forward

from fp8.quantize import ACTIVATION_FLOOR, ROWS, Quantized, quantize

NAME = "r1_grouped"


def experts_forward(self: Any, hidden_TD: torch.Tensor, experts_TK: torch.Tensor, gates_TK: torch.Tensor):
    """[T, D]: for each token the sum over its K experts of gate * expert(hidden). experts_TK int64 in [0, E)."""
    group = getattr(self, "expert_group", None)
    if group is None and getattr(self, "grouped_mlp", None) is None:
        return grouped_mm_experts_forward(self, hidden_TD, experts_TK, gates_TK)
    top_k = experts_TK.shape[1]
    order = torch.argsort(experts_TK.flatten(), stable=True)
    counts_E = torch.bincount(experts_TK.flatten(), minlength=self.num_experts)
    rows_SD = hidden_TD[order // top_k]
    done_SD = _multiply(self, rows_SD, counts_E) if group is None else _travel(self, rows_SD, counts_E, group)
    in_order = torch.empty_like(order)
    in_order[order] = torch.arange(len(order), device=order.device)
    # A sum over K, not index_add: deterministic on GPUs, and in float32, as gates are, whatever the dtype.
    done_TKD = done_SD[in_order].view(-1, top_k, hidden_TD.shape[1])
    return (done_TKD * gates_TK[..., None]).sum(dim=1).to(hidden_TD.dtype)


def _multiply(self: Any, rows_ND: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """[N, D]: each row through its expert; counts_E says how many rows in turn belong to each one held here."""
    gate_up, down = (w.to_local() if isinstance(w, DTensor) else w for w in (self.gate_up_proj, self.down_proj))
    if (own := getattr(self, "grouped_mlp", None)) is not None:
        return own(rows_ND, counts_E, gate_up, down)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    return _grouped_linear(self._apply_gate(_grouped_linear(rows_ND, gate_up, ends_E)), down, ends_E)


def _travel(self: Any, rows_SD: torch.Tensor, counts_E: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[S, D]: as `_multiply`, by the ranks that hold the experts. Any of them may get no rows, but all must call."""
    counts_RE = counts_E.view(group.size(), -1)  # E from here on: experts of one rank
    arriving_RE = torch.empty_like(counts_RE)
    dist.all_to_all_single(arriving_RE, counts_RE.contiguous(), group=group)
    leaving, arriving = counts_RE.sum(1).tolist(), arriving_RE.sum(1).tolist()
    scales = getattr(self, "fp8_dispatch", None)
    rows_ND = _Exchange.apply(rows_SD, leaving, arriving, group, scales, None)
    # They come sorted by sender, then by expert.
    expert_N = torch.arange(counts_RE.shape[1], device=rows_SD.device).repeat(group.size())
    order = torch.argsort(expert_N.repeat_interleave(arriving_RE.flatten()), stable=True)
    in_order = torch.empty_like(order)
    in_order[order] = torch.arange(len(order), device=order.device)
    done_ND = _multiply(self, rows_ND[order], arriving_RE.sum(0))
    return _Exchange.apply(done_ND[in_order], arriving, leaving, group, None, scales)


class _Exchange(torch.autograd.Function):
    """Rows to the ranks of a group: the first leaving[0] to rank 0, and so on. Gradients go back the same way.

    scales, grad_scales: of rows and of gradients that travel in FP8; None: as they are.
    """

    @staticmethod
    def forward(ctx: Any, rows_ND, leaving: list[int], arriving: list[int], group, scales, grad_scales):
        ctx.sizes, ctx.group, ctx.scales = (leaving, arriving), group, grad_scales
        if scales is None:
            return _all_to_all(rows_ND, leaving, arriving, group)
        rounded = quantize(rows_ND, ROWS, scales=scales, floor=ACTIVATION_FLOOR)
        return _in_fp8(rounded, leaving, arriving, group).to(rows_ND.dtype)

    @staticmethod
    def backward(ctx: Any, grad_MD: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        leaving, arriving = ctx.sizes
        if ctx.scales is None:
            grad_ND = _all_to_all(grad_MD, arriving, leaving, ctx.group)
        else:
            rounded = quantize(grad_MD, ROWS, scales=ctx.scales)
            grad_ND = _in_fp8(rounded, arriving, leaving, ctx.group).to(grad_MD.dtype)
        return grad_ND, None, None, None, None, None


def _in_fp8(rows: Quantized, leaving: list[int], arriving: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    values = _all_to_all(rows.values.view(torch.uint8), leaving, arriving, group).view(rows.values.dtype)
    scales = _all_to_all(rows.scales, leaving, arriving, group)
    return Quantized(values, scales, ROWS).dequantize()


def _all_to_all(rows_ND: torch.Tensor, leaving: list[int], arriving: list[int], group: dist.ProcessGroup):
    received = rows_ND.new_empty(sum(arriving), rows_ND.shape[1])
    dist.all_to_all_single(received, rows_ND.contiguous(), arriving, leaving, group=group)
    return received


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
