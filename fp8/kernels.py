"""Triton kernels of the quantisers, which are bound by memory: each reads its input once and writes all that is needed.

Bit for bit the numbers of fp8.quantize. A GEMM on Hopper wants both operands with the summed dimension contiguous, so
tiles of 128 rows are written transposed. Programs hold a block as four parts, of rows 0, 4, 8, ..., of rows 1, 5, 9,
..., and so on: four rows of a column are then one 32-bit word without any exchange, and words, not bytes, are
transposed.
"""

# pyright: reportArgumentType=false

import torch
import triton
import triton.language as tl

from fp8.config import Scales
from fp8.quantize import BLOCK, COLUMNS, LARGEST, ROWS, Quantized

_FP8 = torch.float8_e4m3fn
_PITCH = 16  # bytes: rows of transposed values begin at multiples, as cuBLASLt and TMA want


def divides_exactly(device: torch.device) -> bool:
    """Whether quotients are made the slow way: not on Hopper, whose conversion to E4M3 rounds once."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0)


def quantize_tiles(
    x_RC: torch.Tensor,
    scales: Scales,
    floor: float,
    *,
    take: torch.Tensor | None = None,
    want_rows: bool = True,
    want_columns: bool = True,
) -> tuple[Quantized, Quantized]:
    """Tiles of 1x128 and of 128x1 of one matrix; the second is a transposed view of contiguous rows.

    x_RC: float32 or bfloat16, contiguous. take: int64, the row of x_RC that each row of the matrix is, -1 for zeros.
    What is not wanted comes back empty.
    """
    rows, columns = (len(x_RC) if take is None else len(take)), x_RC.shape[1]
    empty = x_RC.new_empty
    q = empty(rows if want_rows else 0, columns, dtype=_FP8)
    q_t = empty(columns if want_columns else 0, -(-rows // _PITCH) * _PITCH, dtype=_FP8)
    s = empty(triton.cdiv(columns, BLOCK), len(q), dtype=torch.float32)  # column-major, as cuBLASLt wants it
    s_t = empty(triton.cdiv(rows, BLOCK), len(q_t), dtype=torch.float32)

    part, warps = (BLOCK // 4, 8 if want_rows else 4) if want_columns else (8, 4)  # the fastest on an H100
    if rows and columns:
        _tiles[(triton.cdiv(rows, 4 * part), triton.cdiv(columns, BLOCK))](
            x_RC, take, q, q_t.view(torch.int32), s, s_t, rows, columns, q_t.shape[1] // 4, floor, LARGEST,
            scales == "power_of_two", take is not None, want_rows, want_columns, part, BLOCK,
            floor < 1e-20, divides_exactly(x_RC.device), num_warps=warps,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return Quantized(q, s.T, ROWS), Quantized(q_t.T[:rows], s_t, COLUMNS)


def quantize_stack(weights_ENK: torch.Tensor, scales: Scales, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(values [E, N, K], scales [E, n, k]) of matrices in blocks of 128x128.

    weights_ENK: float32 or bfloat16, contiguous.
    """
    count, rows, columns = weights_ENK.shape
    q = weights_ENK.new_empty(weights_ENK.shape, dtype=_FP8)
    s = weights_ENK.new_empty(count, triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK), dtype=torch.float32)
    if weights_ENK.numel():
        _square[(count * s.shape[1], s.shape[2])](
            weights_ENK, q, s, rows, columns, floor, LARGEST, scales == "power_of_two", BLOCK,
            floor < 1e-20, divides_exactly(weights_ENK.device), num_warps=8,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return q, s


@triton.jit
def _tiles(
    x, take, q, q_t, s, s_t, rows, columns, pitch, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, TAKE: tl.constexpr, WANT_ROWS: tl.constexpr,
    WANT_COLUMNS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    row = (tile * PART + tl.arange(0, PART)) * 4
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x0 = load_rows(x, take, row, column, rows, columns, TAKE)
    x1 = load_rows(x, take, row + 1, column, rows, columns, TAKE)
    x2 = load_rows(x, take, row + 2, column, rows, columns, TAKE)
    x3 = load_rows(x, take, row + 3, column, rows, columns, TAKE)
    if WANT_ROWS:
        s += tl.program_id(1).to(tl.int64) * rows
        store_rows(q, s, x0, row, column, rows, columns, floor, LARGEST, POWERS, LIFT, EXACT)
        store_rows(q, s, x1, row + 1, column, rows, columns, floor, LARGEST, POWERS, LIFT, EXACT)
        store_rows(q, s, x2, row + 2, column, rows, columns, floor, LARGEST, POWERS, LIFT, EXACT)
        store_rows(q, s, x3, row + 3, column, rows, columns, floor, LARGEST, POWERS, LIFT, EXACT)
    if WANT_COLUMNS:
        word = tile * PART + tl.arange(0, PART)
        s_t += tile * columns
        store_columns(q_t, s_t, x0, x1, x2, x3, word, column, columns, pitch, floor, LARGEST, POWERS, LIFT, EXACT)


@triton.jit
def _square(
    w, q, s, rows, columns, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, BLOCK: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    height = tl.cdiv(rows, BLOCK)
    matrix, tile = (tl.program_id(0) // height).to(tl.int64), (tl.program_id(0) % height).to(tl.int64)
    w += matrix * rows * columns
    q += matrix * rows * columns
    row = tile * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = load_rows(w, w, row, column, rows, columns, False)
    largest = tl.max(tl.max(_size(x), axis=1), axis=0)
    scale, divisor, reciprocal, lift = _scale(largest, floor, LARGEST, POWERS, LIFT, EXACT)
    tl.store(s + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1), scale)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = q + row[:, None] * columns + column[None, :]
    tl.store(at, _e4m3(x, divisor, reciprocal, lift, LARGEST, LIFT, EXACT), mask=inside)


@triton.jit
def load_rows(x, take, row, column, rows, columns, TAKE: tl.constexpr):
    """float32 [rows given, columns given]; zeros outside the matrix."""
    inside = row < rows
    if TAKE:
        row = tl.load(take + row, mask=inside, other=-1)
        inside = row >= 0
    at = x + row[:, None] * columns + column[None, :]
    return tl.load(at, mask=inside[:, None] & (column < columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_rows(
    q, s, x, row, column, rows, columns, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Tiles of 1x128. s: the scales of this column of tiles, one per row."""
    scale, divisor, reciprocal, lift = _scale(tl.max(_size(x), axis=1), floor, LARGEST, POWERS, LIFT, EXACT)
    tl.store(s + row, scale, mask=row < rows)
    at = q + row[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(at, _e4m3(x, divisor[:, None], reciprocal[:, None], lift[:, None], LARGEST, LIFT, EXACT), mask=inside)


@triton.jit
def store_columns(
    q_t, s_t, x0, x1, x2, x3, word, column, columns, pitch, floor,
    LARGEST: tl.constexpr, POWERS: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Tiles of 128x1, transposed. s_t: the scales of this row of tiles; pitch: words of a transposed row."""
    size = tl.maximum(tl.maximum(_size(x0), _size(x1)), tl.maximum(_size(x2), _size(x3)))
    scale, divisor, reciprocal, lift = _scale(tl.max(size, axis=0), floor, LARGEST, POWERS, LIFT, EXACT)
    tl.store(s_t + column, scale, mask=column < columns)
    divisor, reciprocal, lift = divisor[None, :], reciprocal[None, :], lift[None, :]
    x0 = _e4m3(x0, divisor, reciprocal, lift, LARGEST, LIFT, EXACT)
    x1 = _e4m3(x1, divisor, reciprocal, lift, LARGEST, LIFT, EXACT)
    x2 = _e4m3(x2, divisor, reciprocal, lift, LARGEST, LIFT, EXACT)
    x3 = _e4m3(x3, divisor, reciprocal, lift, LARGEST, LIFT, EXACT)
    _store_words(q_t, x0, x1, x2, x3, word, column, columns, pitch)


@triton.jit
def _store_words(q_t, x0, x1, x2, x3, word, column, columns, pitch):
    words = _byte(x0) | (_byte(x1) << 8) | (_byte(x2) << 16) | (_byte(x3) << 24)
    at = q_t + column[:, None] * pitch + word[None, :]
    tl.store(at, tl.trans(words), mask=(column < columns)[:, None] & (word < pitch)[None, :])


@triton.jit
def _byte(x):
    return x.to(tl.uint8, bitcast=True).to(tl.int32)


@triton.jit
def _size(x):
    """The bits of |x|, which are ordered as the numbers are, with NaN above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _scale(
    bits, floor, LARGEST: tl.constexpr, POWERS: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """(scale, and what `_e4m3` divides by: scale * lift, its reciprocal, lift), from the largest `_size` in a tile.

    LIFT, for tiles that may be tiny: they are divided 2^64 times larger, so that nothing underflows on the way.
    """
    largest = tl.maximum(bits.to(tl.float32, bitcast=True), floor)
    lift = tl.where(largest < 1e-20, 18446744073709551616.0, 1.0)
    if EXACT:
        divisor = tl.div_rn(largest, LARGEST)
    else:  # multiplication by a reciprocal, corrected: rounded as the quotient is (Markstein, IBM J. R&D 34, 1990)
        if LIFT:
            largest *= lift
        quotient = largest * (1.0 / LARGEST)
        divisor = tl.fma(tl.fma(-quotient, LARGEST, largest), 1.0 / LARGEST, quotient)
    if POWERS:  # the next power of two: one more in the exponent unless the mantissa is zero
        up = divisor.to(tl.int32, bitcast=True) + 0x7FFFFF
        divisor = (up & 0x7F800000).to(tl.float32, bitcast=True)
    scale = divisor
    if LIFT and not EXACT:
        scale = tl.where(lift == 1.0, divisor, divisor * 5.421010862427522e-20)
    zero = scale == 0.0
    scale, divisor = tl.where(zero, 1.0, scale), tl.where(zero, 1.0, divisor)
    lift = tl.where(zero, 1.0, lift)
    bad = bits >= 0x7F800000
    scale, divisor = tl.where(bad, float("nan"), scale), tl.where(bad, float("nan"), divisor)
    reciprocal = 1.0 / divisor
    reciprocal = tl.fma(tl.fma(-reciprocal, divisor, 1.0), reciprocal, reciprocal)
    return scale, divisor, reciprocal, lift


@triton.jit
def _e4m3(
    x, divisor, reciprocal, lift, LARGEST: tl.constexpr, LIFT: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """x / scale, rounded to float32 and then to E4M3.

    EXACT puts the quotient on E4M3's grid first: then the cast is exact wherever it is done (Triton's interpreter drops
    the carry of a mantissa, and devices before Hopper round twice).
    """
    if EXACT:
        y = tl.div_rn(x, tl.broadcast_to(divisor, x.shape))
        bits = y.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)  # 3 bits of mantissa
        small = (y + 24576.0) - 24576.0  # float32 has steps of 2^-9 there, as E4M3 has below 2^-6
        y = tl.where(tl.abs(y) < 0.015625, small, normal)
        y = tl.minimum(tl.maximum(y, -LARGEST), LARGEST)  # where y is NaN, so is the scale
    else:
        if LIFT:
            x *= lift
        y = x * reciprocal
        remainder = tl.fma(-y, tl.broadcast_to(divisor, x.shape), x)
        y = tl.fma(remainder, tl.broadcast_to(reciprocal, x.shape), y)
    return y.to(tl.float8e4nv)  # saturates
