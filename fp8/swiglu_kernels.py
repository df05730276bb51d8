"""Triton kernels of fp8.swiglu, which write E4M3 as those of fp8.kernels do, one output after the other.

Equal to the definition but for the last place of exp, which devices compute differently.
"""

# pyright: reportArgumentType=false

import torch
import triton
import triton.language as tl

from fp8.config import Scales
from fp8.kernels import divides_exactly, load_rows, store_columns, store_rows
from fp8.quantize import BLOCK, COLUMNS, LARGEST, ROWS, Quantized

_FP8 = torch.float8_e4m3fn
WARPS_COLUMNS = 8


def forward(gate_up_P2I: torch.Tensor, scales: Scales, floor: float) -> tuple[Quantized, Quantized]:
    """As fp8.swiglu.forward. I is a multiple of 128; float32 or bfloat16, contiguous."""
    rows, inner = gate_up_P2I.shape[0], gate_up_P2I.shape[1] // 2
    empty = gate_up_P2I.new_empty
    kept, h = empty(rows, 2 * inner, dtype=_FP8), empty(rows, inner, dtype=_FP8)
    kept_s = empty(2 * inner // BLOCK, rows, dtype=torch.float32)
    h_s = empty(inner // BLOCK, rows, dtype=torch.float32)
    if rows:
        _forward[(triton.cdiv(rows, 16), inner // BLOCK)](
            gate_up_P2I, kept, kept_s, h, h_s, rows, inner, floor, LARGEST, scales == "power_of_two", 16, BLOCK,
            floor < 1e-20, divides_exactly(gate_up_P2I.device), num_warps=4,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return Quantized(h, h_s.T, ROWS), Quantized(kept, kept_s.T, ROWS)


def backward(
    kept_P2I: Quantized, grad_h_PI: torch.Tensor, scales: Scales, floor: float
) -> tuple[Quantized, tuple[Quantized, Quantized]]:
    """As fp8.swiglu.backward. I and P are multiples of 128; the floor is of h, gradients have none."""
    rows, inner = grad_h_PI.shape
    empty = grad_h_PI.new_empty
    h_t, h_s = empty(inner, rows, dtype=_FP8), empty(rows // BLOCK, inner, dtype=torch.float32)
    g, g_s = empty(rows, 2 * inner, dtype=_FP8), empty(2 * inner // BLOCK, rows, dtype=torch.float32)
    g_t, g_st = empty(2 * inner, rows, dtype=_FP8), empty(rows // BLOCK, 2 * inner, dtype=torch.float32)
    if rows:
        kept_s = kept_P2I.scales.T.contiguous()
        given = kept_P2I.values, kept_s, grad_h_PI
        fixed = LARGEST, scales == "power_of_two"
        exact = divides_exactly(grad_h_PI.device)
        _backward_rows[(rows // 16, inner // BLOCK)](
            *given,
            g,
            g_s,
            rows,
            inner,
            *fixed,
            16,
            BLOCK,
            exact,
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )
        for output, (q_t, s_t) in enumerate(((h_t, h_s), (g_t, g_st), (g_t, g_st))):
            _backward_columns[(rows // BLOCK, inner // BLOCK)](
                *given, q_t.view(torch.int32), s_t, rows, inner, 0.0 if output else floor, *fixed, output, BLOCK // 4,
                BLOCK, output > 0, exact, num_warps=WARPS_COLUMNS,  # pyright: ignore[reportCallIssue]
            )  # fmt: skip
    return Quantized(h_t.T, h_s, COLUMNS), (Quantized(g, g_s.T, ROWS), Quantized(g_t.T, g_st, COLUMNS))


@triton.jit
def _forward(
    x, kept, kept_s, h, h_s, rows, inner, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
    LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PART + tl.arange(0, PART)
    tile, tiles = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    gate = load_rows(x, x, row, column, rows, 2 * inner, False)
    up = load_rows(x, x, row, column + inner, rows, 2 * inner, False)
    store_rows(kept, kept_s + tile * rows, gate, row, column, rows, 2 * inner, floor, LARGEST, POWERS, LIFT, EXACT)
    s = kept_s + (tiles + tile) * rows
    store_rows(kept, s, up, row, column + inner, rows, 2 * inner, floor, LARGEST, POWERS, LIFT, EXACT)
    product = gate * tl.sigmoid(gate) * up
    store_rows(h, h_s + tile * rows, product, row, column, rows, inner, floor, LARGEST, POWERS, LIFT, EXACT)


@triton.jit
def _backward_rows(
    kept, kept_s, grad, g, g_s, rows, inner,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PART + tl.arange(0, PART)
    tile, tiles = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    x = _of_rows(kept, kept_s, grad, row, column, tile, tiles, rows, inner, 1)
    store_rows(g, g_s + tile * rows, x, row, column, rows, 2 * inner, 0.0, LARGEST, POWERS, True, EXACT)
    x = _of_rows(kept, kept_s, grad, row, column, tile, tiles, rows, inner, 2)
    s = g_s + (tiles + tile) * rows
    store_rows(g, s, x, row, column + inner, rows, 2 * inner, 0.0, LARGEST, POWERS, True, EXACT)


@triton.jit
def _backward_columns(
    kept, kept_s, grad, q_t, s_t, rows, inner, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, OUTPUT: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
    LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    tall, tile, tiles = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    word = tall * PART + tl.arange(0, PART)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    x0 = _of_rows(kept, kept_s, grad, word * 4, column, tile, tiles, rows, inner, OUTPUT)
    x1 = _of_rows(kept, kept_s, grad, word * 4 + 1, column, tile, tiles, rows, inner, OUTPUT)
    x2 = _of_rows(kept, kept_s, grad, word * 4 + 2, column, tile, tiles, rows, inner, OUTPUT)
    x3 = _of_rows(kept, kept_s, grad, word * 4 + 3, column, tile, tiles, rows, inner, OUTPUT)
    width = inner if OUTPUT == 0 else 2 * inner
    place = column + inner if OUTPUT == 2 else column
    s_t += tall * width
    store_columns(q_t, s_t, x0, x1, x2, x3, word, place, width, rows // 4, floor, LARGEST, POWERS, LIFT, EXACT)


@triton.jit
def _of_rows(kept, kept_s, grad, row, column, tile, tiles, rows, inner, OUTPUT: tl.constexpr):
    """h (OUTPUT 0), the gradient of gate (1) or that of up (2)."""
    gate = load_rows(kept, kept, row, column, rows, 2 * inner, False)
    gate *= tl.load(kept_s + tile * rows + row)[:, None]
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    if OUTPUT == 2:
        result = silu * load_rows(grad, grad, row, column, rows, inner, False)
    else:
        up = load_rows(kept, kept, row, column + inner, rows, 2 * inner, False)
        up *= tl.load(kept_s + (tiles + tile) * rows + row)[:, None]
        if OUTPUT == 0:
            result = silu * up
        else:
            result = load_rows(grad, grad, row, column, rows, inner, False) * up * (sigmoid + silu * (1 - sigmoid))
    return result
