"""Block-wise E4M3 against the definition, worked out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8.quantize import dequantize_blocks, quantize_blocks

# All finite values of E4M3: 4 exponent bits with bias 7, 3 mantissa bits; the top code is NaN, so 448 is the largest.
_GRID = np.array(
    sorted(
        {m / 8 * 2.0**-6 for m in range(8)}
        | {(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)}
    )
)


def naive(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights after the round trip, scales), block by block."""
    out, scales = np.zeros_like(weight), np.ones((-(-weight.shape[0] // 128), -(-weight.shape[1] // 128)), np.float32)
    for row in range(0, weight.shape[0], 128):
        for column in range(0, weight.shape[1], 128):
            block = weight[row : row + 128, column : column + 128]
            scale = np.float32(np.abs(block).max()) / np.float32(448) if np.abs(block).max() > 0 else np.float32(1)
            scaled = (block / scale).astype(np.float64)
            nearest = _GRID[np.abs(np.abs(scaled)[..., None] - _GRID).argmin(-1)]
            out[row : row + 128, column : column + 128] = np.sign(scaled) * nearest * scale
            scales[row // 128, column // 128] = scale
    return out, scales


@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (127, 129), (300, 64), (256, 384)])
def test_against_the_definition(shape):
    weight = np.random.default_rng(0).standard_t(3, shape).astype(np.float32)
    quantised, scale = quantize_blocks(torch.from_numpy(weight))
    expected, scales = naive(weight)
    np.testing.assert_array_equal(scale.numpy(), scales)
    got = dequantize_blocks(quantised, scale).numpy()
    assert got.shape == shape and quantised.dtype == torch.float8_e4m3fn
    ties = np.isclose(np.abs(got - weight), np.abs(expected - weight), rtol=1e-5)  # either neighbour of a midpoint
    assert (np.isclose(got, expected, rtol=1e-6) | ties).all()


@given(st.integers(1, 200), st.integers(1, 200), st.floats(1e-6, 1e4))
@settings(deadline=None)
def test_error_is_at_most_a_sixteenth_of_a_value_or_a_step_near_zero(rows, columns, size):
    weight = torch.from_numpy(
        np.random.default_rng(rows * 1000 + columns).normal(0, size, (rows, columns)).astype("f4")
    )
    quantised, scale = quantize_blocks(weight)
    error = (dequantize_blocks(quantised, scale) - weight).abs()
    per_value = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    assert (error <= torch.maximum(weight.abs() / 16, per_value * 2.0**-10) * 1.001).all()


def test_values_on_the_grid_survive_exactly():
    block = torch.zeros(128, 128)
    block.view(-1)[: len(_GRID)] = torch.from_numpy(_GRID).float()
    quantised, scale = quantize_blocks(block)
    assert scale.item() == 1.0
    assert torch.equal(dequantize_blocks(quantised, scale), block)


def test_zero_blocks_stay_zero():
    quantised, scale = quantize_blocks(torch.zeros(130, 5))
    assert torch.equal(dequantize_blocks(quantised, scale), torch.zeros(130, 5))


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([[float("inf")]]), torch.tensor([[float("nan")]])])
def test_what_cannot_be_quantised_is_refused(bad):
    with pytest.raises(ValueError, match="finite matrix"):
        quantize_blocks(bad)


def test_scales_of_another_weight_are_refused():
    quantised, scale = quantize_blocks(torch.ones(200, 10))
    with pytest.raises(ValueError, match="scales have shape"):
        dequantize_blocks(quantised, scale[:1])
