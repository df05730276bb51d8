"""C = A B^T of two quantised matrices: one definition, and the programs that compute it.

    C[m, n] = sum over tiles k of (sum inside the tile of qA qB) * scaleA[m, k] * scaleB[n, k]

with sums in float32 (DeepSeek-V3, section 3.3.2: partial sums are promoted every 128 elements of K). All three GEMMs of
a linear layer have this form. Which programs a machine has is asked once, told by `backends()`, and never changes
silently: a named one that cannot run is an error.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from fp8.config import Backend
from fp8.quantize import ROWS, SQUARE, Quantized, Stack

Program = Callable[[Quantized, Quantized, torch.Tensor], None]  # fills the last, [M, N]


def matmul_nt(
    a_MK: Quantized,
    b_NK: Quantized,
    dtype: torch.dtype,
    backend: Backend = "auto",
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A B^T in `dtype`, [M, N], in `out` if given. A has 1x128 tiles, B 1x128 or 128x128: the sum runs along both.

    Raises ValueError for other tiles or sizes, RuntimeError for a backend that this machine does not have.
    """
    if a_MK.tile != ROWS or b_NK.tile not in (ROWS, SQUARE) or a_MK.values.shape[1] != b_NK.values.shape[1]:
        raise ValueError(
            f"FP8 product of {tuple(a_MK.values.shape)} in tiles {a_MK.tile} and {tuple(b_NK.values.shape)} in tiles "
            f"{b_NK.tile}: both must have as many columns, the first tiles of 1x128, the second of 1x128 or 128x128"
        )
    if out is not None:
        _fill(out, a_MK, b_NK, backend)
        return out
    is_square = b_NK.tile == SQUARE
    return _product(
        a_MK.values, a_MK.scales, b_NK.values, b_NK.scales, b_NK.multiplied_out, is_square, dtype, str(backend)
    )


def grouped_matmul_nt(
    rows_PK: Quantized,
    spans: list[tuple[int, int]],
    group_P: torch.Tensor,
    weights_ENK: Stack,
    dtype: torch.dtype,
    backend: Backend = "auto",
) -> torch.Tensor:
    """[P, N]: every row times the transpose of the weight of its group.

    spans: first row of each group and the one after its last, all multiples of 128; group_P: the same by row, int32.
    """
    bounds = [bound for span in spans for bound in span]
    weights = weights_ENK.values, weights_ENK.scales, weights_ENK.multiplied_out
    return _grouped_product(rows_PK.values, rows_PK.scales, bounds, group_P, *weights, dtype, str(backend))


# Products are operators, so that models.recompute can keep their results. They take tensors in place of our classes.


@torch.library.custom_op("r1::fp8_product", mutates_args=())
def _product(
    a: torch.Tensor, a_scales: torch.Tensor,
    b: torch.Tensor, b_scales: torch.Tensor, b_multiplied_out: torch.Tensor | None, b_is_square: bool,
    dtype: torch.dtype, backend: str,
) -> torch.Tensor:  # fmt: skip
    out = torch.empty(len(a), len(b), dtype=dtype, device=a.device)
    other = Quantized(b, b_scales, SQUARE if b_is_square else ROWS, b_multiplied_out)
    _fill(out, Quantized(a, a_scales, ROWS), other, cast(Backend, backend))
    return out


@torch.library.custom_op("r1::fp8_grouped_product", mutates_args=())
def _grouped_product(
    rows: torch.Tensor, row_scales: torch.Tensor, bounds: Sequence[int], group_P: torch.Tensor,
    weights: torch.Tensor, weight_scales: torch.Tensor, weights_multiplied_out: torch.Tensor | None,
    dtype: torch.dtype, backend: str,
) -> torch.Tensor:  # fmt: skip
    """bounds: the spans one after the other."""
    rows_PK, stack = Quantized(rows, row_scales, ROWS), Stack(weights, weight_scales, weights_multiplied_out)
    out, chosen = torch.empty(len(rows), weights.shape[1], dtype=dtype, device=rows.device), cast(Backend, backend)
    if dtype == torch.bfloat16 and choose(chosen, out.device) == "deepgemm":
        _deepgemm_grouped(rows_PK, group_P, stack, out)
        return out
    for index, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True)):
        if end > start:
            _fill(out[start:end], rows_PK.rows(start, end), stack[index], chosen)
    return out


OPERATORS = (torch.ops.r1.fp8_product.default, torch.ops.r1.fp8_grouped_product.default)


def _fill(out: torch.Tensor, a_MK: Quantized, b_NK: Quantized, backend: Backend) -> None:
    if a_MK.values.numel() and b_NK.values.numel():
        _PROGRAMS[choose(backend, a_MK.values.device)](a_MK, b_NK, out)
    else:
        out.zero_()


def choose(backend: Backend, device: torch.device) -> Backend:
    """`auto` is the reference on a CPU, on a GPU DeepGEMM or else cuBLASLt. Raises RuntimeError with the reason."""
    missing = backends(device.type)
    if backend == "auto":
        order: tuple[Backend, ...] = ("reference",) if device.type == "cpu" else ("deepgemm", "cublaslt")
        possible: list[Backend] = [name for name in order if not missing[name]]
        if not possible:
            reasons = "; ".join(f"{name}: {missing[name]}" for name in order)
            raise RuntimeError(
                f"no FP8 kernels here ({reasons}). Set fp8.backend to reference, which is slow, to go on"
            )
        backend = possible[0]
    if missing[backend]:
        raise RuntimeError(f"FP8 backend {backend} cannot run here: {missing[backend]}")
    return backend


@cache
def backends(device: str) -> dict[Backend, str]:
    """Backend -> why it cannot run on this machine's `device` ("cpu", "cuda"); "" where it can."""
    hopper = _why_not_hopper(device)
    return {
        "reference": "",
        "cublaslt": hopper or _why_not_cublaslt(),
        # Its weight gradients are cuBLASLt's: see _deepgemm.
        "deepgemm": hopper or _why_not_deepgemm() or _why_not_cublaslt(),
    }


def _why_not_hopper(device: str) -> str:
    if device != "cuda" or not torch.cuda.is_available():
        return "it needs a CUDA device"
    major, minor = torch.cuda.get_device_capability()
    return (
        "" if (major, minor) == (9, 0) else f"it needs compute capability 9.0 (Hopper), this device has {major}.{minor}"
    )


def _why_not_cublaslt() -> str:
    if not hasattr(F, "scaled_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.scaled_mm (2.10 has)"
    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split("."))
    return "" if version >= (12, 9) else f"block-wise scales need CUDA 12.9, torch was built for {torch.version.cuda}"


@cache
def _deep_gemm() -> Any:
    """The package by itself, or else the copy in vLLM's, without vLLM around it, which sets up its process for serving.
    Raises what their import raises."""
    with suppress(ModuleNotFoundError):
        return importlib.import_module("deep_gemm")
    vllm = find_spec("vllm")
    folders = (vllm.submodule_search_locations or []) if vllm is not None else []
    places = [
        place for folder in folders if (place := Path(folder, "third_party", "deep_gemm", "__init__.py")).exists()
    ]
    if not places:
        raise ModuleNotFoundError("neither the package deep_gemm nor a vllm that has it is installed")
    spec = spec_from_file_location("deep_gemm", places[0])
    assert spec is not None and spec.loader is not None
    sys.modules["deep_gemm"] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["deep_gemm"]
        raise
    return module


def _why_not_deepgemm() -> str:
    try:
        _deep_gemm()
    except Exception as error:  # it loads its kernels, and looks for CUDA's compiler
        return f"deep_gemm cannot be imported ({type(error).__name__}: {error})"
    return ""


def _reference(a_MK: Quantized, b_NK: Quantized, out: torch.Tensor) -> None:
    """Multiplied out to float32: within 4e-7 of the sum by tiles (tests/test_fp8_gemm.py)."""
    out.copy_(a_MK.dequantize() @ b_NK.dequantize().T)


def _cublaslt(a_MK: Quantized, b_NK: Quantized, out: torch.Tensor) -> None:
    # What torch.nn.functional.scaled_mm calls, which has no `out`.
    torch.ops.aten._scaled_mm_v2.out(
        _padded_values(a_MK.values),
        _padded_values(b_NK.values).T,
        [_column_major(a_MK.scales)],
        [F.ScalingType.BlockWise1x128.value],
        [],
        [_padded_column_major(b_NK.scales) if b_NK.tile == SQUARE else _column_major(b_NK.scales)],
        [(F.ScalingType.BlockWise128x128 if b_NK.tile == SQUARE else F.ScalingType.BlockWise1x128).value],
        [],
        None,
        out.dtype,
        out=out,
    )


def _padded_values(values: torch.Tensor) -> torch.Tensor:
    """Rows that are contiguous, of a multiple of 16 columns, which cuBLASLt wants: wgrad sums over any count."""
    if missing := -values.shape[1] % 16:
        padded = values.shape[1] + missing
        if values.stride() == (padded, 1):  # fp8.kernels.quantize_tiles has left zeros there
            return values.as_strided((len(values), padded), (padded, 1))
        return F.pad(values.contiguous().view(torch.uint8), (0, missing)).view(values.dtype)
    in_rows = values.stride(1) == 1 and values.stride(0) % 16 == 0 and values.stride(0) >= values.shape[1]
    return values if in_rows else values.contiguous()


def _column_major(scales_MK: torch.Tensor) -> torch.Tensor:
    """The same numbers with strides (1, M), which cuBLASLt wants of 1x128 scales."""
    return scales_MK.T.contiguous().T


def _padded_column_major(scales_NK: torch.Tensor) -> torch.Tensor:
    """Scales of 128x128 blocks as cuBLASLt wants them: [K tiles rounded up to 4, N tiles], strides (1, that)."""
    padded = F.pad(scales_NK, (0, -scales_NK.shape[1] % 4))
    return padded.contiguous().T


def _deepgemm(a_MK: Quantized, b_NK: Quantized, out: torch.Tensor) -> None:
    # DeepGEMM only adds products of two sets of 1x128 tiles to a float32 matrix, which costs passes over it.
    if b_NK.tile == ROWS or out.dtype != torch.bfloat16 or a_MK.values.shape[1] % 16:
        return _cublaslt(a_MK, b_NK, out)
    _deep_gemm().fp8_gemm_nt((a_MK.values, a_MK.scales), (b_NK.values.contiguous(), b_NK.scales), out)


def _deepgemm_grouped(rows_PK: Quantized, group_P: torch.Tensor, weights_ENK: Stack, out: torch.Tensor) -> None:
    weights = weights_ENK.values.contiguous(), weights_ENK.scales
    _deep_gemm().m_grouped_fp8_gemm_nt_contiguous((rows_PK.values, rows_PK.scales), weights, out, group_P)


_PROGRAMS: dict[str, Program] = {"reference": _reference, "cublaslt": _cublaslt, "deepgemm": _deepgemm}
