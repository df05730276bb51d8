"""Run by test_fp8_kernels.py with TRITON_INTERPRET=1: every kernel against fp8.quantize. Prints what differs."""

import sys

import torch

from fp8.kernels import quantize_square, quantize_tiles
from fp8.quantize import ACTIVATION_FLOOR, COLUMNS, ROWS, SQUARE, quantize

SHAPES = [(128, 128), (1, 1), (130, 70), (256, 384), (3, 300), (576, 160), (0, 64)]


def matrices():
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        wide = torch.randn(shape, generator=generator) * torch.exp(6 * torch.randn(shape, generator=generator))
        yield "wide", wide
        yield "zeros", torch.zeros(shape)
        if wide.numel() > 200:
            wide = wide.clone()
            wide[1, 2], wide[2, 1] = torch.inf, torch.nan
            yield "bad values", wide
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(0.0)[None]
    yield "the grid", grid
    yield "midpoints", (grid.sort().values[:, 1:] + grid.sort().values[:, :-1]) / 2


def same(one, two) -> bool:
    """Scales and values; in a tile whose scale is NaN the values do not matter."""
    finite = ~torch.isnan(two.dequantize())
    values = torch.equal(one.values.float()[finite], two.values.float()[finite])
    scales = torch.equal(one.scales.nan_to_num(-1.0), two.scales.nan_to_num(-1.0))
    return values and scales and one.tile == two.tile


failures = []
for kind, matrix in matrices():
    for dtype in (torch.float32, torch.bfloat16):
        for scales in ("float32", "power_of_two"):
            for floor in (0.0, ACTIVATION_FLOOR):
                x = matrix.to(dtype)
                rows, columns = quantize_tiles(x, scales, floor)
                pairs = {ROWS: rows, COLUMNS: columns, SQUARE: quantize_square(x, scales, floor)}
                for tile, got in pairs.items():
                    if not same(got, quantize(x, tile, scales=scales, floor=floor)):
                        failures.append(f"{kind} {tuple(x.shape)} {dtype} {scales} floor {floor} tile {tile}")
                if not columns.T.values.is_contiguous():
                    failures.append(f"{kind} {tuple(x.shape)}: tiles of 128 rows are not stored transposed")
print("\n".join(failures))
sys.exit(bool(failures))
