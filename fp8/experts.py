"""The routed experts of an MoE layer in FP8: y = down(silu(gate(x)) * up(x)) on rows sorted by expert.

Nine GEMMs per expert, forward and backward, as in fp8.linear; gate and up are one where that changes no block. Kept for
backward, all in FP8 (DeepSeek-V3, section 3.3.3): the rows x, and gate(x) and up(x), from which the input of `down` is
computed again. Every expert's rows begin where a tile of 128 does, so that no tile mixes two experts.
"""

from dataclasses import dataclass
from typing import Any

import torch

from fp8 import swiglu
from fp8.config import Fp8Config
from fp8.gemm import grouped_matmul_nt, matmul_nt
from fp8.quantize import ACTIVATION_FLOOR, BLOCK, COLUMNS, ROWS, Quantized, Stack, quantize, quantize_both
from fp8.weights import WeightBlocks


@dataclass(frozen=True, slots=True)
class Groups:
    """Where the rows of each expert stand once every expert begins at a multiple of 128; P rows in all."""

    spans: list[tuple[int, int]]  # of expert e: first padded row, and the one after its last padded row
    place_N: torch.Tensor  # int64: padded row of each given row
    take_P: torch.Tensor  # int64: given row of each padded one, -1 where there is none
    group_P: torch.Tensor  # int32: expert of each padded row

    @classmethod
    def of(cls, counts_E: torch.Tensor) -> "Groups":
        counts: list[int] = counts_E.tolist()
        spans, end = [], 0
        for count in counts:
            spans.append((end, end := end + -(-count // BLOCK) * BLOCK))
        padded_E = (counts_E + BLOCK - 1) // BLOCK * BLOCK
        rows = torch.arange(sum(counts), device=counts_E.device)
        shifts_E = padded_E.cumsum(0) - padded_E - (counts_E.cumsum(0) - counts_E)
        place_N = rows + torch.repeat_interleave(shifts_E, counts_E, output_size=len(rows))
        take_P = torch.full((end,), -1, device=counts_E.device).index_copy(0, place_N, rows)
        experts = torch.arange(len(counts), device=counts_E.device, dtype=torch.int32)
        return cls(spans, place_N, take_P, torch.repeat_interleave(experts, padded_E, output_size=end))

    def multiply(self, rows: Quantized, weights: Stack, dtype: torch.dtype, config: Fp8Config) -> torch.Tensor:
        """[P, N]: the rows of each expert times the transpose of its weight [N, K]."""
        return grouped_matmul_nt(rows, self.spans, self.group_P, weights, dtype, config.backend)

    def outer(self, grads: Quantized, rows: Quantized, dtype: torch.dtype, config: Fp8Config) -> torch.Tensor:
        """[E, N, K]: the sum over each expert's rows of grad^T row, both in tiles of 128 rows."""
        shape = len(self.spans), grads.values.shape[1], rows.values.shape[1]
        out = torch.empty(shape, dtype=dtype, device=rows.values.device)
        for expert, (start, end) in enumerate(self.spans):
            one, other = grads.rows(start, end).T, rows.rows(start, end).T
            matmul_nt(one, other, dtype, config.backend, out=out[expert])
        return out


def grouped_mlp(
    x_ND: torch.Tensor,
    counts_E: torch.Tensor,
    gate_up_E2IH: torch.Tensor,
    down_EHI: torch.Tensor,
    blocks: WeightBlocks,
) -> torch.Tensor:
    """[N, D] in x's dtype. Rows are sorted by expert, counts_E (integers) says how many each has; zero is allowed.

    gate_up_E2IH holds gate and up one above the other, as transformers stores them; the activation is SiLU.
    """
    groups = Groups.of(counts_E.to(x_ND.device, torch.int64))
    return _Fp8Experts.apply(x_ND, gate_up_E2IH, down_EHI, groups, blocks, torch.is_grad_enabled())


class _Fp8Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND, gate_up_E2IH, down_EHI, groups: Groups, blocks: WeightBlocks, keep: bool):
        dtype, config, halves = x_ND.dtype, blocks.config, swiglu.halves(down_EHI.shape[2])
        how = {"scales": config.scales, "floor": ACTIVATION_FLOOR, "take": groups.take_P}
        x_rows, x_columns = quantize_both(x_ND, **how) if keep else (quantize(x_ND, ROWS, **how), None)
        blocks.note("activations", x_ND, x_rows, groups.take_P)
        gate_up = [groups.multiply(x_rows, half, dtype, config) for half in blocks(gate_up_E2IH, halves)]
        h_rows, kept = swiglu.forward(gate_up[0] if halves == 1 else torch.cat(gate_up, dim=1), config.scales)
        y = groups.multiply(h_rows, blocks(down_EHI)[0], dtype, config)
        if x_columns is None:
            return y[groups.place_N]
        ctx.groups, ctx.blocks, ctx.dtype, ctx.halves = groups, blocks, dtype, halves
        ctx.save_for_backward(gate_up_E2IH, down_EHI, x_columns.values, x_columns.scales, kept.values, kept.scales)
        return y[groups.place_N]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        groups, blocks, dtype, config = ctx.groups, ctx.blocks, ctx.dtype, ctx.blocks.config
        gate_up_E2IH, down_EHI, x, x_scales, kept, kept_scales = ctx.saved_tensors
        grad_rows, grad_columns = quantize_both(grad_ND, scales=config.scales, take=groups.take_P)
        blocks.note("gradients", grad_ND, grad_rows, groups.take_P)
        grad_h = groups.multiply(grad_rows, blocks.transposed(down_EHI)[0], dtype, config)
        h_columns, grads = swiglu.backward(Quantized(kept, kept_scales, ROWS), grad_h, config.scales)
        grad_down = groups.outer(grad_columns, h_columns, down_EHI.dtype, config)

        x_columns, grads_x, grads_gate_up = Quantized(x, x_scales, COLUMNS), [], []
        weights = blocks.transposed(gate_up_E2IH, ctx.halves)
        for (grad_rows, grad_columns), half in zip(grads, weights, strict=True):
            grads_x.append(groups.multiply(grad_rows, half, dtype, config))
            grads_gate_up.append(groups.outer(grad_columns, x_columns, gate_up_E2IH.dtype, config))
        grad_x, grad_gate_up = grads_x[0], grads_gate_up[0]
        if ctx.halves == 2:
            grad_x, grad_gate_up = grad_x + grads_x[1], torch.cat(grads_gate_up, dim=1)
        return grad_x[groups.place_N], grad_gate_up, grad_down, None, None, None
