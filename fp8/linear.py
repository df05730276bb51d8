"""A linear layer whose three GEMMs run in FP8 (DeepSeek-V3, section 3.3.1): Fprop, Dgrad and Wgrad.

    y = x W^T    x in tiles of 1x128 along its features, W in blocks of 128x128
    dx = g W     g in tiles of 1x128 along its features, the same blocks of W
    dW = g^T x   both in tiles of 128 tokens, which is what this product sums over

The weight stays as it is (FP32 master, or the copy that FSDP gathers) and is quantised where it is used. What backward
needs of x is kept in FP8 and nothing else: its tiles of 128 tokens are made in the forward pass, from x itself, where
the paper re-tiles 1x128 to 128x1 in backward. A value is thus rounded once, and the power-of-two scales that the paper
needs for re-tiling are not needed.
"""

from typing import Any, cast

import torch
from torch import nn

from fp8.config import Fp8Config
from fp8.gemm import matmul_nt
from fp8.quantize import ACTIVATION_FLOOR, COLUMNS, ROWS, Quantized, quantize, quantize_both
from fp8.weights import WeightBlocks


class Fp8Linear(nn.Linear):
    """nn.Linear with FP8 GEMMs. Parameters, their names and dtypes are nn.Linear's; `blocks` holds the settings."""

    blocks: WeightBlocks

    @classmethod
    def swap(cls, linear: nn.Linear, blocks: WeightBlocks) -> None:
        """Turn `linear` into one, in place: hooks, tied weights and references to it stay good.

        Raises ValueError for a subclass of nn.Linear, whose own forward would be lost.
        """
        if type(linear) is not nn.Linear:
            raise ValueError(f"only a plain nn.Linear can run in FP8, this is {type(linear).__name__}")
        linear.__class__ = cls
        cast(Fp8Linear, linear).blocks = blocks

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows_TK, keep = input.flatten(0, -2), torch.is_grad_enabled()
        y = cast(torch.Tensor, _Fp8Matmul.apply(rows_TK, self.weight, self.blocks, keep))
        y = y.unflatten(0, input.shape[:-1])
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fp8={self.blocks.config.backend}/{self.blocks.config.scales}"


class _Fp8Matmul(torch.autograd.Function):
    """x [T, K] @ weight [N, K]^T -> [T, N] in x's dtype. The weight's gradient has the weight's dtype."""

    @staticmethod
    def forward(
        ctx: Any, x_TK: torch.Tensor, weight_NK: torch.Tensor, blocks: WeightBlocks, keep: bool
    ) -> torch.Tensor:
        """keep: whether there will be a backward pass, which needs_input_grad does not tell."""
        ctx.blocks, ctx.x_dtype, config = blocks, x_TK.dtype, blocks.config
        if keep and ctx.needs_input_grad[1]:
            x_rows, kept = quantize_both(x_TK, scales=config.scales, floor=ACTIVATION_FLOOR)
            ctx.save_for_backward(weight_NK, kept.values, kept.scales)
        else:
            x_rows = activation_rows(x_TK, config)
            ctx.save_for_backward(weight_NK)
        blocks.note("activations", x_TK, x_rows)
        return matmul_nt(x_rows, blocks(weight_NK)[0][0], x_TK.dtype, config.backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TN: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        config = ctx.blocks.config
        weight_NK, *kept = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_rows, grad_columns = quantize_both(grad_TN, scales=config.scales)
        else:
            grad_rows, grad_columns = quantize(grad_TN, ROWS, scales=config.scales), None
        ctx.blocks.note("gradients", grad_TN, grad_rows)
        if ctx.needs_input_grad[0]:
            weight_KN = ctx.blocks.transposed(weight_NK)[0][0]
            grad_x = matmul_nt(grad_rows, weight_KN, ctx.x_dtype, config.backend)
        if grad_columns is not None:
            values, scales = kept
            x_TK = Quantized(values, scales, COLUMNS)
            grad_weight = matmul_nt(grad_columns.T, x_TK.T, weight_NK.dtype, config.backend)
        return grad_x, grad_weight, None, None


def activation_rows(x_TK: torch.Tensor, config: Fp8Config) -> Quantized:
    return quantize(x_TK, ROWS, scales=config.scales, floor=ACTIVATION_FLOOR)
