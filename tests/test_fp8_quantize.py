"""Block-wise E4M3 against the definition, worked out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8.quantize import (
    ACTIVATION_FLOOR,
    COLUMNS,
    ROWS,
    SQUARE,
    dequantize_blocks,
    quantize,
    quantize_blocks,
    quantize_both,
    requantize_blocks,
)

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


# --- tiles ---


def codes(values: torch.Tensor) -> list[int]:
    return values.view(torch.uint8).flatten().tolist()


def test_golden_vectors_of_the_published_convention():
    """Worked out by hand: largest 1, so scale 1/448; 0.3 * 448 = 134.4 lies between 128 and 144, 0.448 between 14 and
    15 steps of 1/32, and 0.00045 below half of the smallest step, 2^-9."""
    tile = torch.zeros(1, 128)
    tile[0, :6] = torch.tensor([1.0, -0.5, 0.3, 1e-3, 1e-6, -1e-2])
    got = quantize(tile, ROWS, floor=ACTIVATION_FLOOR)
    assert got.scales.item() == np.float32(1) / np.float32(448)
    assert codes(got.values)[:6] == [0x7E, 0xF6, 0x70, 0x2E, 0x00, 0xC9]  # 448, -224, 128, 0.4375, 0, -4.5
    up = quantize(tile, ROWS, scales="power_of_two")
    assert up.scales.item() == 2.0**-8  # the power above 1/448
    assert codes(up.values)[:6] == [0x78, 0xF0, 0x6A, 0x28, 0x00, 0xC2]  # 256, -128, 80 (76.8), 0.25, 0, -2.5 (-2.56)


def test_the_floor_of_activations_is_deepseeks_and_gradients_have_none():
    small = torch.full((1, 128), 1e-5)
    assert quantize(small, ROWS, floor=ACTIVATION_FLOOR).scales.item() == np.float32(1e-4) / np.float32(448)
    assert torch.allclose(quantize(small * 1e-20, ROWS).dequantize(), small * 1e-20, rtol=1e-5, atol=0)


@given(
    st.tuples(st.integers(1, 270), st.integers(1, 270)),
    st.sampled_from([ROWS, COLUMNS, SQUARE]),
    st.sampled_from(["float32", "power_of_two"]),
    st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_every_tile_by_the_formula(shape, tile, scales, seed):
    matrix = np.random.default_rng(seed).standard_t(2, shape).astype(np.float32)
    got = quantize(torch.from_numpy(matrix), tile, scales=scales)
    assert got.scales.shape == (-(-shape[0] // tile[0]), -(-shape[1] // tile[1]))
    for (i, j), scale in np.ndenumerate(got.scales.numpy()):
        rows = slice(i * tile[0], (i + 1) * tile[0])
        columns = slice(j * tile[1], (j + 1) * tile[1])
        expected = np.abs(matrix[rows, columns]).max() / np.float32(448)
        if scales == "power_of_two":
            assert expected <= scale < 2 * expected and np.log2(np.float64(scale)).is_integer()
        else:
            assert scale == expected
        exact = torch.from_numpy(matrix[rows, columns] / scale).to(torch.float8_e4m3fn)
        assert torch.equal(got.values[rows, columns].view(torch.uint8), exact.view(torch.uint8))


@pytest.mark.parametrize("tile", [ROWS, COLUMNS, SQUARE])
def test_transposing_and_cutting_rows_keep_the_numbers(tile):
    matrix = torch.randn(300, 200)
    got = quantize(matrix, tile)
    assert torch.equal(got.T.dequantize(), got.dequantize().T)
    assert torch.equal(got.rows(128, 300).dequantize(), got.dequantize()[128:300])


def test_a_scale_that_is_a_power_of_two_already_stays():
    for exponent in (-20, -1, 0, 7):
        assert quantize(torch.full((1, 1), 448 * 2.0**exponent), ROWS, scales="power_of_two").scales == 2.0**exponent


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_tile_with_a_bad_value_is_bad_as_a_whole(bad):
    matrix = torch.ones(2, 256)
    matrix[1, 200] = bad
    assert torch.isnan(quantize(matrix, ROWS).dequantize()).nonzero()[:, 0].unique().tolist() == [1]
    assert torch.isnan(quantize(matrix, ROWS).dequantize()[1, 128:]).all()


@given(st.integers(0, 2**31), st.floats(0.3, 3.0))
@settings(max_examples=20)
def test_weights_read_and_written_again_are_the_same(seed, stretch):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(0, 40, (150, 140)).astype("f4")).to(torch.float8_e4m3fn)
    scale = torch.from_numpy((rng.uniform(1e-3, 1e-2, (2, 2)) * stretch).astype("f4"))
    for dtype in (torch.float32, torch.bfloat16):
        weight = dequantize_blocks(values, scale).to(dtype)
        again, scale_again = requantize_blocks(weight, scale)
        assert torch.equal(scale_again, scale)
        assert torch.equal(again.float(), values.float())  # as numbers: minus zero may lose its sign


def test_changed_blocks_of_powers_of_two_get_powers_of_two():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    values, scale = quantize_blocks(weight, "power_of_two")
    changed = dequantize_blocks(values, scale)
    changed[:128, :128] *= 1.37
    again, scale_again = requantize_blocks(changed, scale.to(torch.float8_e8m0fnu))
    assert scale_again.dtype == torch.float8_e8m0fnu and torch.equal(scale_again.float()[1], scale[1])
    error = dequantize_blocks(again, scale_again.float()) - changed
    assert error.norm() / changed.norm() < 0.04 and not error[128:].any()


def test_rows_that_are_not_there_are_zeros_whatever_the_first_row_holds():
    matrix = torch.randn(3, 200)
    matrix[0] = torch.inf
    rows, columns = quantize_both(matrix, take=torch.tensor([1, -1, 2, -1]))
    for found in (rows.dequantize(), columns.dequantize()):
        assert torch.isfinite(found).all() and not found[[1, 3]].any() and found[[0, 2]].any()
