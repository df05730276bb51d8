"""h = silu(gate) * up between the products of a feed-forward, with what FP8 training keeps of it and needs back.

Kept is gate next to up, in FP8 (DeepSeek-V3, section 3.3.3), and h is computed from it again in backward. All of it is
arithmetic in float32 between roundings to E4M3; on GPUs nothing of it is ever in memory but as E4M3.
"""

import torch
import torch.nn.functional as F

from fp8.config import Scales
from fp8.quantize import ACTIVATION_FLOOR, BLOCK, COLUMNS, ROWS, Quantized, has_kernels, quantize, quantize_both

Both = tuple[Quantized, Quantized]  # in tiles of 1x128 and of 128x1


def forward(gate_up_P2I: torch.Tensor, scales: Scales) -> tuple[Quantized, Quantized]:
    """(h [P, I] in tiles of 1x128, what to keep: gate and up [P, 2I] in the same)."""
    if _in_one_kernel(gate_up_P2I):
        from fp8 import swiglu_kernels

        return swiglu_kernels.forward(gate_up_P2I.contiguous(), scales, ACTIVATION_FLOOR)
    gate, up = gate_up_P2I.float().chunk(2, dim=1)
    h = quantize(F.silu(gate) * up, ROWS, scales=scales, floor=ACTIVATION_FLOOR)
    return h, quantize(gate_up_P2I, ROWS, scales=scales, floor=ACTIVATION_FLOOR)


def backward(kept_P2I: Quantized, grad_h_PI: torch.Tensor, scales: Scales) -> tuple[Quantized, list[Both]]:
    """(h [P, I] in tiles of 128x1, the gradients of gate and up).

    Both gradients are one matrix [P, 2I] when I is a multiple of 128, else two: no tile has some of each.
    """
    if _in_one_kernel(kept_P2I.values):
        from fp8 import swiglu_kernels

        h, both = swiglu_kernels.backward(kept_P2I, grad_h_PI.contiguous(), scales, ACTIVATION_FLOOR)
        return h, [both]
    gate, up = kept_P2I.dequantize().chunk(2, dim=1)
    grad, sigmoid = grad_h_PI.float(), torch.sigmoid(gate)
    silu = gate * sigmoid
    h = quantize(silu * up, COLUMNS, scales=scales, floor=ACTIVATION_FLOOR)
    # silu'(z) = s + z s (1 - s) with s = sigmoid(z)
    grads = [grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu]
    if halves(grad_h_PI.shape[1]) == 1:
        grads = [torch.cat(grads, dim=1)]
    return h, [quantize_both(half, scales=scales) for half in grads]


def halves(inner: int) -> int:
    """1 where gate and up of `inner` features may be one matrix, as blocks of 128 end where gate does; else 2."""
    return 1 if inner % BLOCK == 0 else 2


def _in_one_kernel(gate_up_P2I: torch.Tensor) -> bool:
    return has_kernels(gate_up_P2I.device) and halves(gate_up_P2I.shape[1] // 2) == 1
