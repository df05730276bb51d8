"""The routed experts of an MoE layer in FP8: y = down(silu(gate(x)) * up(x)) on rows sorted by expert.

Nine GEMMs per expert, forward and backward, as in fp8.linear. Kept for backward, all in FP8 (DeepSeek-V3, section
3.3.3): the rows x, and gate(x) and up(x), from which the input of `down` is computed again. Every expert's rows begin
where a tile of 128 does, so that no tile mixes two experts.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from fp8.config import Fp8Config
from fp8.gemm import matmul_nt
from fp8.linear import activation_rows
from fp8.quantize import ACTIVATION_FLOOR, BLOCK, COLUMNS, ROWS, Quantized, quantize, quantize_both
from fp8.weights import WeightBlocks


@dataclass(frozen=True, slots=True)
class Groups:
    """Where the rows of each expert stand once every expert begins at a multiple of 128; P rows in all."""

    spans: list[tuple[int, int]]  # of expert e: first padded row, and the one after its last padded row
    place_N: torch.Tensor  # int64: padded row of each given row

    @classmethod
    def of(cls, counts: list[int], device: torch.device) -> "Groups":
        ends, spans, places = 0, [], []
        for count in counts:
            padded = -(-count // BLOCK) * BLOCK
            places.append(torch.arange(ends, ends + count, device=device))
            spans.append((ends, ends + padded))
            ends += padded
        return cls(spans, torch.cat(places))

    def spread(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """[P, D], zeros between the experts."""
        padded = rows_ND.new_zeros(self.spans[-1][1], rows_ND.shape[1])
        return padded.index_copy(0, self.place_N, rows_ND)

    def multiply(self, rows: Quantized, weights: list[Quantized], dtype: torch.dtype, config: Fp8Config):
        """[P, N]: the rows of each expert times the transpose of its weight [N, K]."""
        parts = [
            matmul_nt(rows.rows(start, end), weight, dtype, config.backend)
            for (start, end), weight in zip(self.spans, weights, strict=True)
        ]
        return torch.cat(parts)

    def outer(self, grads: Quantized, rows: Quantized, dtype: torch.dtype, config: Fp8Config) -> torch.Tensor:
        """[E, N, K]: the sum over each expert's rows of grad^T row, both in tiles of 128 rows."""
        parts = [
            matmul_nt(grads.rows(start, end).T, rows.rows(start, end).T, dtype, config.backend)
            for start, end in self.spans
        ]
        return torch.stack(parts)


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
    return _Fp8Experts.apply(x_ND, gate_up_E2IH, down_EHI, counts_E.tolist(), blocks)


class _Fp8Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, gate_up_E2IH: torch.Tensor, down_EHI: torch.Tensor, counts, blocks):
        groups = Groups.of(counts, x_ND.device)
        dtype, config = x_ND.dtype, blocks.config
        x_rows, x_columns = quantize_both(groups.spread(x_ND), scales=config.scales, floor=ACTIVATION_FLOOR)
        gate_weights, up_weights, down_weights = _matrices(gate_up_E2IH, down_EHI, blocks)
        gate = groups.multiply(x_rows, gate_weights, dtype, config)
        up = groups.multiply(x_rows, up_weights, dtype, config)
        y = groups.multiply(activation_rows(_swiglu(gate, up), config), down_weights, dtype, config)
        ctx.groups, ctx.blocks, ctx.dtype = groups, blocks, dtype
        kept = (x_columns, activation_rows(gate, config), activation_rows(up, config))
        ctx.save_for_backward(gate_up_E2IH, down_EHI, *(t for q in kept for t in (q.values, q.scales)))
        return y[groups.place_N]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        groups, blocks, dtype = ctx.groups, ctx.blocks, ctx.dtype
        config = blocks.config
        gate_up_E2IH, down_EHI, x, x_scale, gate, gate_scale, up, up_scale = ctx.saved_tensors
        gate, up = (Quantized(q, s, ROWS).dequantize().to(dtype) for q, s in ((gate, gate_scale), (up, up_scale)))
        gate_weights, up_weights, down_weights = _matrices(gate_up_E2IH, down_EHI, blocks)

        h_columns = quantize(_swiglu(gate, up), COLUMNS, scales=config.scales, floor=ACTIVATION_FLOOR)
        grad_rows, grad_columns = quantize_both(groups.spread(grad_ND), scales=config.scales)
        grad_down = groups.outer(grad_columns, h_columns, down_EHI.dtype, config)
        grad_h = groups.multiply(grad_rows, [w.T for w in down_weights], dtype, config)

        x_columns, grads_x, halves = Quantized(x, x_scale, COLUMNS), [], []
        for grad, weights in zip(_swiglu_gradient(gate, up, grad_h), (gate_weights, up_weights), strict=True):
            grad_rows, grad_columns = quantize_both(grad, scales=config.scales)
            halves.append(groups.outer(grad_columns, x_columns, gate_up_E2IH.dtype, config))
            grads_x.append(groups.multiply(grad_rows, [w.T for w in weights], dtype, config))
        grad_x = grads_x[0] + grads_x[1]
        return grad_x[groups.place_N], torch.cat(halves, dim=1), grad_down, None, None


def _matrices(gate_up_E2IH: torch.Tensor, down_EHI: torch.Tensor, blocks: WeightBlocks) -> list[list[Quantized]]:
    """Gate, up and down of every expert, each matrix in blocks from its own corner, as checkpoints store them."""
    gate_up = blocks(gate_up_E2IH, halves=2)
    return [gate_up[0::2], gate_up[1::2], blocks(down_EHI)]


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _swiglu_gradient(gate: torch.Tensor, up: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(d gate, d up); silu'(z) = s + z s (1 - s) with s = sigmoid(z)."""
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu
