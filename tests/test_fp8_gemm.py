"""The FP8 products against float64: forward, dgrad and wgrad, by the definition and on outlier-heavy data."""

import pytest
import torch

from fp8.config import Fp8Config
from fp8.gemm import _column_major, _padded_column_major, _padded_values, backends, choose, matmul_nt
from fp8.linear import Fp8Linear
from fp8.quantize import COLUMNS, ROWS, SQUARE, quantize
from fp8.weights import WeightBlocks


def data(shape: tuple[int, int], kind: str, seed: int) -> torch.Tensor:
    """normal: standard normal; outliers: a few tokens and channels are 30 times larger, and tails are heavy."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if kind == "outliers":
        x = (
            x
            * torch.exp(torch.randn(shape[0], 1, generator=generator))
            * torch.exp(torch.randn(shape[1], generator=generator))
        )
        x[:, torch.randperm(shape[1], generator=generator)[: max(1, shape[1] // 200)]] *= 30
    return x


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(5, 300, 7), (128, 256, 128), (130, 576, 200)])
@pytest.mark.parametrize("right", [ROWS, SQUARE])
def test_the_reference_is_the_sum_by_tiles(shape, right):
    m, k, n = shape
    a, b = quantize(data((m, k), "outliers", 0), ROWS), quantize(data((n, k), "outliers", 1), right)
    by_tiles = torch.zeros(m, n)  # float32 sums of unscaled products, promoted every 128, as the paper's kernel
    for tile, start in enumerate(range(0, k, 128)):
        stop = start + 128
        part = a.values[:, start:stop].float() @ b.values[:, start:stop].float().T
        scale_b = b.scales[:, tile] if right == ROWS else b.scales[:, tile].repeat_interleave(128)[:n]
        by_tiles += part * a.scales[:, tile, None] * scale_b
    assert error(matmul_nt(a, b, torch.float32, "reference"), by_tiles.double()) < 1e-6


# What E4M3 costs at K = 4096: 3.7 % on normal data (16 values per binade, both factors rounded). bfloat16 costs 0.23 %.
@pytest.mark.parametrize(("kind", "bound"), [("normal", 0.040), ("outliers", 0.045)])
@pytest.mark.parametrize("scales", ["float32", "power_of_two"])
def test_forward_dgrad_and_wgrad_against_float64(kind, bound, scales):
    tokens, features_in, features_out = 256, 4096, 384
    linear = torch.nn.Linear(features_in, features_out, bias=True)
    x = data((tokens, features_in), kind, 0).requires_grad_()
    gradient = data((tokens, features_out), kind, 2) * 1e-7  # far below the floor of activations
    exact = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    dx, dw, db = torch.autograd.grad(exact, [x, linear.weight, linear.bias], gradient.double())
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config(backend="reference", scales=scales)))
    y = linear(x)
    y.backward(gradient)
    assert error(y.detach(), exact.detach()) < bound
    assert error(x.grad, dx.double()) < bound and error(linear.weight.grad, dw.double()) < bound
    assert error(linear.bias.grad, db.double()) < 1e-6  # no product


def test_wgrad_sums_over_4096_tokens():
    linear = torch.nn.Linear(64, 96, bias=False)
    x, gradient = data((4096, 64), "outliers", 0), data((4096, 96), "normal", 1)
    exact = gradient.double().T @ x.double()
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config()))
    linear(x).backward(gradient)
    assert error(linear.weight.grad, exact) < 0.04


def test_what_backward_keeps_is_one_byte_per_activation():
    linear = torch.nn.Linear(512, 256, bias=False)
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config()))
    x = torch.randn(1024, 512, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(x)
    activations = [t for t in kept if t.data_ptr() != linear.weight.data_ptr()]
    assert sum(t.nbytes for t in activations) == 1024 * 512 + 4 * (1024 // 128) * 512


def test_frozen_and_first_layers_compute_what_is_needed():
    linear = torch.nn.Linear(32, 16, bias=False)
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config()))
    linear.weight.requires_grad_(False)
    x = torch.randn(2, 3, 32, requires_grad=True)
    linear(x).sum().backward()
    assert linear.weight.grad is None and x.grad.shape == (2, 3, 32)
    linear.weight.requires_grad_(True)
    linear(torch.randn(0, 32)).sum().backward()
    assert torch.equal(linear.weight.grad, torch.zeros(16, 32))


def test_a_bad_value_is_not_hidden():
    linear = torch.nn.Linear(256, 8, bias=False)
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config()))
    x = torch.randn(4, 256)
    x[1, 3] = torch.inf
    finite = torch.isfinite(linear(x)).all(dim=1)
    assert finite.tolist() == [True, False, True, True]


def test_tiles_that_do_not_run_along_the_sum_are_refused():
    a = quantize(torch.ones(128, 128), ROWS)
    with pytest.raises(ValueError, match="tiles"):
        matmul_nt(a, quantize(torch.ones(128, 128), COLUMNS), torch.float32)
    with pytest.raises(ValueError, match="as many columns"):
        matmul_nt(a, quantize(torch.ones(128, 64), ROWS), torch.float32)


def test_a_backend_that_cannot_run_is_an_error_with_the_reason():
    cpu = torch.device("cpu")
    assert choose("auto", cpu) == "reference"
    with pytest.raises(RuntimeError, match="cublaslt cannot run here: it needs a CUDA device"):
        choose("cublaslt", cpu)
    assert backends("cpu")["reference"] == "" and backends("cpu")["deepgemm"]


def test_what_cublaslt_is_given_has_its_layout():
    """The scales and values as torch documents them for block-wise scaled_mm; the product itself needs a Hopper GPU."""
    a, b = quantize(data((40, 300), "normal", 0), ROWS), quantize(data((272, 300), "normal", 1), SQUARE)
    values = _padded_values(a.values)
    assert values.shape == (40, 304) and values.is_contiguous()
    assert torch.equal(values[:, :300].float(), a.values.float()) and not values[:, 300:].float().any()
    rows = _column_major(a.scales)
    assert torch.equal(rows, a.scales) and rows.stride() == (1, 40)
    blocks = _padded_column_major(b.scales)
    assert blocks.shape == (4, 3) and blocks.stride() == (1, 4)  # 3 tiles of K, padded to 4, by 3 of N
    assert torch.equal(blocks[:3], b.scales.T)
