"""Run by test_fp8_kernels.py with TRITON_INTERPRET=1: every kernel against fp8.quantize. Prints what differs."""

import sys

import torch

from fp8 import swiglu, swiglu_kernels
from fp8.kernels import quantize_stack, quantize_tiles
from fp8.quantize import ACTIVATION_FLOOR, COLUMNS, ROWS, SQUARE, Quantized, quantize, quantize_both

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


def check(got, expected, what: str) -> None:
    if not same(got, expected):
        failures.append(what)


for kind, matrix in matrices():
    for dtype in (torch.float32, torch.bfloat16):
        for scales in ("float32", "power_of_two"):
            for floor in (0.0, ACTIVATION_FLOOR):
                x, what = matrix.to(dtype), f"{kind} {tuple(matrix.shape)} {dtype} {scales} floor {floor}"
                rows, columns = quantize_tiles(x, scales, floor)
                check(rows, quantize(x, ROWS, scales=scales, floor=floor), f"{what}: rows")
                check(columns, quantize(x, COLUMNS, scales=scales, floor=floor), f"{what}: columns")
                if columns.T.values.stride(1) != 1:
                    failures.append(f"{what}: tiles of 128 rows are not stored transposed")
                pitch = -(-len(matrix) // 16) * 16  # what fp8.gemm takes for zeros, without looking
                if columns.values.numel():
                    tail = columns.T.values.as_strided((matrix.shape[1], pitch), (pitch, 1))[:, len(matrix) :]
                    if tail[~columns.scales[-1].isnan()].float().any():
                        failures.append(f"{what}: rows are not padded with zeros")
                pair = torch.stack([x, x.flip(0)])
                values, of_blocks = quantize_stack(pair, scales, floor)
                for index in range(2):
                    expected = quantize(pair[index], SQUARE, scales=scales, floor=floor)
                    check(Quantized(values[index], of_blocks[index], SQUARE), expected, f"{what}: blocks")

generator = torch.Generator().manual_seed(1)
x, take = torch.randn(150, 130, generator=generator), torch.randint(-1, 150, (256,), generator=generator)
for got, expected in zip(quantize_tiles(x, "float32", 0.0, take=take), quantize_both(x, take=take), strict=True):
    check(got, expected, f"taken rows, tiles {got.tile}")


def close(one, two) -> bool:
    """Up to one step of E4M3 here and there: exp is not the same everywhere."""
    return float((one.dequantize() - two.dequantize()).norm()) < 2e-3 * float(two.dequantize().norm())


gate_up, grad = torch.randn(256, 512, generator=generator), torch.randn(256, 256, generator=generator) * 1e-6
expected_h, expected_kept = swiglu.forward(gate_up, "float32")
h, kept = swiglu_kernels.forward(gate_up, "float32", ACTIVATION_FLOOR)
check(kept, expected_kept, "what SwiGLU keeps")
h_columns, grads = swiglu_kernels.backward(kept, grad, "float32", ACTIVATION_FLOOR)
expected_columns, (expected_grads,) = swiglu.backward(kept, grad, "float32")
pairs = [(h, expected_h), (h_columns, expected_columns), *zip(grads, expected_grads, strict=True)]
failures += [f"SwiGLU, output {place}" for place, pair in enumerate(pairs) if not close(*pair)]
print("\n".join(failures))
sys.exit(bool(failures))
