"""What is told of E4M3's rounding, against counts and sums made number by number."""

import numpy as np
import pytest
import torch
from torch import nn

from fp8.config import Fp8Config
from fp8.convert import convert, weight_blocks
from fp8.quantize import ROWS, quantize, quantize_both
from fp8.rounding import Rounding, rounding_metrics, rounding_sums


def by_hand(matrix, got) -> Rounding:
    x, q = matrix.double().numpy(), got.double().numpy()
    return Rounding(int(np.count_nonzero(x)), int(((x != 0) & (q == 0)).sum()), ((q - x) ** 2).sum(), (x**2).sum())


@pytest.mark.parametrize("rows", [1, 7, 1024, 2500])
def test_sums_are_those_of_single_numbers(rows):
    torch.manual_seed(0)
    matrix = torch.randn(rows, 300) * torch.logspace(0, -20, 300)  # the small ones of a tile vanish
    matrix[0, :5] = 0
    quantised = quantize(matrix, ROWS)
    found, expected = Rounding(*rounding_sums(matrix, quantised).tolist()), by_hand(matrix, quantised.dequantize())
    assert found[:2] == expected[:2] and found.zeroed > 0
    assert found[2:] == pytest.approx(expected[2:], rel=1e-6)


def test_rows_that_were_taken_are_compared_with_where_they_are_from():
    torch.manual_seed(0)
    matrix, take = torch.randn(200, 130), torch.full((1280,), -1)
    take[:150], take[1024:1074] = torch.randperm(200)[:150], torch.arange(50)
    quantised, _ = quantize_both(matrix, take=take)
    found = Rounding(*rounding_sums(matrix, quantised, take).tolist())
    assert found.nonzero == 200 * 130
    assert found.relative_error == pytest.approx(0.026, abs=0.001)


def test_a_layer_tells_of_both_directions_and_only_while_asked():
    torch.manual_seed(0)
    model = nn.ModuleDict({"o_proj": nn.Linear(128, 96, bias=False)})
    convert(model, Fp8Config())
    ((name, blocks),) = weight_blocks(model).items()
    x = torch.ones(40, 128)
    x[:, 64:] = 1e-9  # less than half of the smallest step beside 1
    grad = torch.ones(40, 96)
    model["o_proj"](x).backward(grad)
    assert blocks.rounding is None
    blocks.rounding = {}
    model["o_proj"](x.requires_grad_()).backward(grad)
    noted = {(kind, name): Rounding(*sums.tolist()) for kind, sums in blocks.rounding.items()}
    assert noted["activations", "o_proj"][:2] == (40 * 128, 40 * 64)
    assert noted["gradients", "o_proj"][:3] == (40 * 96, 0, 0)
    metrics = rounding_metrics([noted, noted])
    assert metrics["fp8/activations_zeroed"] == metrics["fp8/activations_zeroed_max"] == 0.5
    assert metrics["fp8/gradients_error"] == 0


def test_the_worst_layer_is_told_beside_the_whole():
    one, other = Rounding(100, 10, 1.0, 100.0), Rounding(300, 0, 3.0, 300.0)
    ranks = [{("gradients", "a"): one, ("gradients", "b"): other}, {("gradients", "a"): one}]
    assert rounding_metrics(ranks) == pytest.approx({
        "fp8/gradients_zeroed": 20 / 500, "fp8/gradients_zeroed_max": 20 / 200,
        "fp8/gradients_error": 0.1, "fp8/gradients_error_max": 0.1,
    })  # fmt: skip
    assert rounding_metrics([{}]) == {}
    assert Rounding(0, 0, 0.0, 0.0).share_zeroed == Rounding(0, 0, 0.0, 0.0).relative_error == 0
