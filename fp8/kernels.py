"""Triton kernels of the quantisers, which are bound by memory: each reads its input once and writes all that is needed.

Bit for bit the numbers of fp8.quantize. A GEMM on Hopper wants both operands with the summed dimension contiguous, so
tiles of 128 rows are written transposed, and the two tilings of an activation are made in one pass. Programs work on
blocks of 128x128; edges are masked.
"""

import torch
import triton
import triton.language as tl

from fp8.config import Scales
from fp8.quantize import BLOCK, COLUMNS, LARGEST, ROWS, SQUARE, Quantized


def quantize_tiles(
    x_TK: torch.Tensor, scales: Scales, floor: float, *, want_rows: bool = True, want_columns: bool = True
) -> tuple[Quantized, Quantized]:
    """Tiles of 1x128 and of 128x1 of one matrix; the second is a transposed view of contiguous memory.

    x_TK: float32 or bfloat16, contiguous. What is not wanted comes back uninitialised.
    """
    rows, columns = x_TK.shape
    row_tiles, column_tiles = triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK)
    q = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x_TK.device)
    q_t = torch.empty(columns, rows, dtype=torch.float8_e4m3fn, device=x_TK.device)
    s = torch.empty(column_tiles, rows, dtype=torch.float32, device=x_TK.device)  # column-major, as cuBLASLt wants it
    s_t = torch.empty(row_tiles, columns, dtype=torch.float32, device=x_TK.device)
    if x_TK.numel():
        _both[(row_tiles, column_tiles)](
            x_TK,
            q,
            q_t,
            s,
            s_t,
            rows,
            columns,
            floor,
            LARGEST,
            scales == "power_of_two",
            want_rows,
            want_columns,
            BLOCK,
            num_warps=8,  # pyright: ignore[reportCallIssue]
        )
    return Quantized(q, s.T, ROWS), Quantized(q_t.T, s_t, COLUMNS)


def quantize_square(weight_NK: torch.Tensor, scales: Scales, floor: float) -> Quantized:
    """Blocks of 128x128. weight_NK: float32 or bfloat16, contiguous."""
    rows, columns = weight_NK.shape
    grid = triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK)
    q = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight_NK.device)
    s = torch.empty(grid, dtype=torch.float32, device=weight_NK.device)
    if weight_NK.numel():
        _square[grid](weight_NK, q, s, rows, columns, floor, LARGEST, scales == "power_of_two", BLOCK, num_warps=8)  # pyright: ignore[reportCallIssue]
    return Quantized(q, s, SQUARE)


@triton.jit
def _both(
    x, q, q_t, s, s_t, rows, columns, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    row = row_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = column_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.where(tile == tile, tl.abs(tile), float("inf"))  # tl.max would pass a NaN over
    if ROWS:
        scale = _scale(tl.max(size, axis=1), floor, LARGEST, POWERS)
        tl.store(s + column_tile.to(tl.int64) * rows + row, scale, mask=row < rows)
        tl.store(q + at, _e4m3(tile, scale[:, None], LARGEST), mask=inside)
    if COLUMNS:
        scale = _scale(tl.max(size, axis=0), floor, LARGEST, POWERS)
        tl.store(s_t + row_tile.to(tl.int64) * columns + column, scale, mask=column < columns)
        transposed = tl.trans(_e4m3(tile, scale[None, :], LARGEST))
        tl.store(q_t + column[:, None] * rows + row[None, :], transposed, mask=tl.trans(inside))


@triton.jit
def _square(w, q, s, rows, columns, floor, LARGEST: tl.constexpr, POWERS: tl.constexpr, BLOCK: tl.constexpr):
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    row = row_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = column_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tile = tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.where(tile == tile, tl.abs(tile), float("inf"))
    scale = _scale(tl.max(tl.max(size, axis=1), axis=0), floor, LARGEST, POWERS)
    tl.store(s + row_tile * tl.num_programs(1) + column_tile, scale)
    tl.store(q + at, _e4m3(tile, scale, LARGEST), mask=inside)


@triton.jit
def _scale(largest, floor, LARGEST: tl.constexpr, POWERS: tl.constexpr):
    scale = tl.div_rn(tl.maximum(largest, floor), LARGEST)
    scale = tl.where(scale == 0.0, 1.0, scale)
    if POWERS:  # the next power of two: one more in the exponent unless the mantissa is zero
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(scale == float("inf"), float("nan"), scale)


@triton.jit
def _e4m3(x, scale, LARGEST: tl.constexpr):
    """x / scale, first put on the grid of E4M3: then the cast is exact wherever it is done (Triton's interpreter drops
    the carry of a mantissa, and devices before Hopper round twice)."""
    y = tl.div_rn(x, scale + x * 0.0)  # both of one shape
    bits = y.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)  # 3 bits of mantissa
    small = (y + 24576.0) - 24576.0  # float32 has steps of 2^-9 there, as E4M3 has below 2^-6
    y = tl.where(tl.abs(y) < 0.015625, small, normal)
    return tl.minimum(tl.maximum(y, -LARGEST), LARGEST).to(tl.float8e4nv)  # where y is NaN, so is the scale
