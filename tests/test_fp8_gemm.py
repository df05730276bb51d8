"""The FP8 products against float64: forward, dgrad and wgrad, by the definition and on outlier-heavy data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fp8.experts
import fp8.gemm
import fp8.linear
from fp8.config import Fp8Config
from fp8.experts import grouped_mlp
from fp8.gemm import _column_major, _padded_column_major, _padded_values, backends, choose, matmul_nt
from fp8.linear import Fp8Linear
from fp8.quantize import COLUMNS, ROWS, SQUARE, quantize
from fp8.weights import WeightBlocks


def data(shape: tuple[int, ...], kind: str, seed: int) -> torch.Tensor:
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


def test_deepgemm_needs_cublaslt_too(monkeypatch):
    monkeypatch.setattr(fp8.gemm, "_why_not_hopper", lambda device: "")
    monkeypatch.setattr(fp8.gemm, "_why_not_deepgemm", lambda: "")
    monkeypatch.setattr(fp8.gemm, "_why_not_cublaslt", lambda: "built for CUDA 12.6")
    backends.cache_clear()
    try:
        assert backends("cuda") == {
            "reference": "",
            "cublaslt": "built for CUDA 12.6",
            "deepgemm": "built for CUDA 12.6",
        }
    finally:
        backends.cache_clear()


@pytest.mark.parametrize(("by_itself", "in_vllm"), [(True, True), (False, True), (False, False)])
def test_deepgemm_is_found_by_itself_or_in_vllm(tmp_path, by_itself, in_vllm):
    """In a process of its own, without the vllm that may be installed."""
    for there, folder in ((by_itself, "deep_gemm"), (in_vllm, "vllm/third_party/deep_gemm")):
        if there:
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "__init__.py").write_text(f"from . import inner\nwhere = '{folder}', inner.__name__\n")
            (tmp_path / folder / "inner.py").write_text("")
    (tmp_path / "vllm").mkdir(exist_ok=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('not to be run')\n")
    program = (
        "import fp8.gemm\ntry:\n  print(fp8.gemm._deep_gemm().where)\nexcept ImportError as error:\n  print(error)"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(fp8.gemm.__file__).parents[1])])
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=True)
    expected = "('deep_gemm', 'deep_gemm.inner')" if by_itself else "('vllm/third_party/deep_gemm', 'deep_gemm.inner')"
    assert told.stdout.strip() == (expected if by_itself or in_vllm else
                                   "neither the package deep_gemm nor a vllm that has it is installed")  # fmt: skip


def test_rows_that_are_padded_already_are_not_copied():
    wide = quantize(data((40, 304), "normal", 0), ROWS).values
    wide[:, 300:] = 0
    narrow = wide[:, :300]
    values = _padded_values(narrow)
    assert values.data_ptr() == wide.data_ptr() and torch.equal(values.float(), wide.float())
    assert _padded_values(wide[:, :280]).data_ptr() != wide.data_ptr()  # 288 is the next multiple of 16


@pytest.mark.parametrize("frozen", [False, True])
def test_only_what_a_backward_pass_needs_is_quantised(monkeypatch, frozen):
    asked = []
    for module in (fp8.linear, fp8.experts):
        both, one = module.quantize_both, module.quantize
        monkeypatch.setattr(module, "quantize_both", lambda *a, both=both, **k: asked.append(2) or both(*a, **k))
        monkeypatch.setattr(module, "quantize", lambda *a, one=one, **k: asked.append(1) or one(*a, **k))
    linear = torch.nn.Linear(160, 96, bias=False).requires_grad_(not frozen)
    Fp8Linear.swap(linear, WeightBlocks(Fp8Config()))
    x = data((40, 160), "normal", 0).requires_grad_()
    with torch.no_grad():
        quiet = linear(x)
    assert asked == [1]
    y = linear(x)
    assert torch.equal(y, quiet)
    y.sum().backward()
    assert asked == [1, 1, 1] if frozen else asked == [1, 2, 2]
    asked.clear()
    weights = [data((2, 192, 160), "normal", 1).requires_grad_(), data((2, 160, 96), "normal", 2).requires_grad_()]
    with torch.no_grad():
        quiet = grouped_mlp(x, torch.tensor([30, 10]), *weights, WeightBlocks(Fp8Config()))
    assert asked == [1]
    y = grouped_mlp(x, torch.tensor([30, 10]), *weights, WeightBlocks(Fp8Config()))
    assert torch.equal(y, quiet) and asked == [1, 2]


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
