"""Parts of gpu_fp8.py: the device's fastest products, quantisers, the three products of a linear layer, whole linear
layers, and routed experts."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from gpu_bench import Bench, Line, apart, kind_of, rate
from torch import nn

from fp8.experts import grouped_mlp
from fp8.gemm import backends, matmul_nt
from fp8.linear import Fp8Linear
from fp8.quantize import COLUMNS, ROWS, SQUARE, Quantized, quantize, quantize_both, quantize_stack
from fp8.weights import WeightBlocks

# (N, K) of V3's linear layers, and what DeepGEMM publishes for M = 4096 on an H800 (TFLOP/s; forward).
DENSE = {
    (2112, 7168): 1058,
    (24576, 1536): 990,
    (32768, 512): 590,
    (7168, 16384): 1358,
    (4096, 7168): 1304,
    (7168, 2048): 1025,
}
TORCHAO = (4096, 4096, 7168)  # M, N, K: its products are compiled and tuned for each shape, so for this one alone
Subjects = dict[str, Callable[[], Any]]


def peak(bench: Bench) -> Iterator[Line]:
    """The product of two large squares, which most programs compute at their best: what shares of the peak refer to."""
    size = 256 if bench.small else 8192
    x, w = bench.normal(size, size), bench.normal(size, size)
    subjects = {"bfloat16": partial(torch.matmul, x, w.T)}
    subjects |= _programs(bench, (quantize_both(x)[0], quantize(w, SQUARE)), torch.bfloat16, fast=True)
    found = bench.compare(subjects, queued=True)
    rates = {subject: rate(line, "tflops", 2 * size**3 / 1e12) for subject, line in found.items()}
    bench.peaks = {
        kind: max(line["tflops"] for subject, line in rates.items() if line and kind_of(subject) == kind)
        for kind in {kind_of(subject) for subject, line in rates.items() if line}
    }
    for subject, line in found.items():
        head = {"m_n_k": [size] * 3, "subject": subject}
        yield head | line | bench.tflops(subject, line, 2 * size**3)


def _programs(bench: Bench, fp8: tuple[Quantized, Quantized], dtype: torch.dtype, *, fast: bool = False) -> Subjects:
    """Whatever multiplies the FP8 numbers here. Those with one scale a matrix or a row get ones, for their time alone.

    fast: also with sums that the tensor cores keep in fewer bits, which is no training's but a device's best.
    """
    subjects: Subjects = {}
    for backend, missing in backends(bench.device.type).items():
        if not missing and (backend != "reference" or bench.device.type == "cpu"):
            subjects[backend] = partial(matmul_nt, *fp8, dtype, backend)
    if bench.device.type == "cuda":
        one, each = torch.ones((), device=bench.device), partial(torch.ones, device=bench.device)
        values, others = (operand.values.contiguous() for operand in fp8)
        scaled_mm = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        whole = partial(scaled_mm, values, others.T, out_dtype=torch.bfloat16)
        row_scales = {"scale_a": each(len(values), 1), "scale_b": each(1, len(others))}
        subjects["torch, one scale a matrix"] = partial(whole, scale_a=one, scale_b=one)
        subjects["torch, one scale a row"] = partial(whole, **row_scales)
        if fast:
            subjects["torch, one scale a matrix, fast sums"] = partial(
                whole, scale_a=one, scale_b=one, use_fast_accum=True
            )
    return subjects


def quantisers(bench: Bench) -> Iterator[Line]:
    for rows, columns in [(512, 256)] if bench.small else [(8192, 7168), (32768, 2048), (32768, 7168)]:
        x, out = bench.normal(rows, columns), torch.empty(rows, columns, dtype=torch.bfloat16, device=bench.device)
        subjects = {
            "copy": (lambda x=x, out=out: out.copy_(x), 4),  # bytes moved per element
            "rows": (lambda x=x: quantize(x, ROWS), 3),
            "rows and columns": (lambda x=x: quantize_both(x), 4),
            "blocks": (lambda x=x: quantize(x, SQUARE), 3),
        }
        if torchao := _torchao(bench, "kernels"):
            subjects["torchao rows"] = (lambda x=x: torchao.triton_fp8_blockwise_act_quant_lhs(x), 3)
            subjects["torchao columns"] = (lambda x=x: torchao.triton_fp8_blockwise_act_quant_transposed_lhs(x), 3)
        for name, line in bench.compare({name: work for name, (work, _) in subjects.items()}, queued=True).items():
            moved = subjects[name][1] * x.numel()
            yield {"shape": [rows, columns], "subject": name} | line | rate(line, "gb_per_s", moved / 1e9)
        same = all(
            torch.equal(a.values.cpu().view(torch.uint8), b.values.view(torch.uint8))
            and torch.equal(a.scales.cpu(), b.scales)
            for tile in (ROWS, COLUMNS, SQUARE)
            for a, b in [(quantize(x[:1024], tile), quantize(x[:1024].cpu(), tile))]
        )
        yield {"shape": [rows, columns], "subject": "equal to the CPU, bit for bit", "same": same}


def gemms(bench: Bench) -> Iterator[Line]:
    shapes = {(256, 384): 0} if bench.small else DENSE
    for tokens in (256,) if bench.small else (4096, 8192):
        for (n, k), published in shapes.items():
            x, w, g = bench.normal(tokens, k), bench.normal(n, k), bench.normal(tokens, n)
            (x_rows, x_columns), (g_rows, g_columns) = quantize_both(x), quantize_both(g)
            stack = quantize_stack(w[None])
            blocks, blocks_t = stack[0], stack.transposed()[0]
            also = (tokens, n, k) == TORCHAO
            for line in chain(
                _product(bench, "fprop", (x, w.T), (x_rows, blocks), torch.bfloat16, also),
                _product(bench, "dgrad", (g, w), (g_rows, blocks_t), torch.bfloat16, also),
                _product(bench, "wgrad", (g.T, x), (g_columns.T, x_columns.T), torch.bfloat16, also),
                _product(bench, "wgrad, float32", (g.T, x), (g_columns.T, x_columns.T), torch.float32),
            ):
                extra = {"published_tflops": published} if line["product"] == "fprop" and tokens == 4096 else {}
                yield line | extra


def _product(
    bench: Bench,
    name: str,
    exact: tuple[Any, Any],
    fp8: tuple[Quantized, Quantized],
    dtype: torch.dtype,
    torchao: bool = False,
) -> Iterator[Line]:
    subjects = {"bfloat16": partial(torch.matmul, *exact)} | _programs(bench, fp8, dtype)
    if torchao and (work := _torchao_product(bench, *fp8, dtype)):
        subjects["torchao, Triton"] = work
    truth = exact[0].double() @ exact[1].double()
    reference = matmul_nt(*fp8, torch.float32, "reference").double()
    (m, k), n = exact[0].shape, exact[1].shape[1]
    for subject, line in bench.compare(subjects, queued=True).items():
        errors = {}
        if "error" not in line and "one scale" not in subject:
            got = subjects[subject]().double()
            errors["against_float64"] = apart(got, truth)
            if subject != "bfloat16":
                errors["against_reference"] = apart(got, reference)
        head = {"product": name, "m_n_k": [m, n, k], "subject": subject}
        yield head | line | bench.tflops(subject, line, 2 * m * n * k) | errors


def _torchao_product(bench: Bench, a: Quantized, b: Quantized, dtype: torch.dtype) -> Callable[[], Any] | None:
    """torchao's product of the same numbers; the layouts that it wants are made beforehand."""
    square = b.tile == SQUARE
    name = "triton_fp8_gemm_1x128_128x128" if square else "triton_fp8_gemm_1x128_128x1"
    multiply = getattr(_torchao(bench, "kernels"), name, None)
    if multiply is None:
        return None
    scales_b = b.scales.contiguous().T if square else b.scales.T.contiguous()
    values = a.values.contiguous(), b.values.contiguous().T
    return partial(multiply, *values, a.scales.T.contiguous().T, scales_b, out_dtype=dtype)


def linears(bench: Bench) -> Iterator[Line]:
    """A linear layer forward and backward, weights in bfloat16 as FSDP gathers them, its quantisers with it."""
    tokens = 256 if bench.small else 8192
    for n, k in [(256, 384)] if bench.small else DENSE:
        x, gradient = bench.normal(tokens, k).requires_grad_(), bench.normal(tokens, n)
        weight = nn.Parameter(bench.normal(n, k, size=k**-0.5))
        layers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "bfloat16": partial(F.linear, weight=weight),
            "fp8": _fp8_linear(bench, weight, keep=False),
            "fp8, weights kept": _fp8_linear(bench, weight, keep=True),
        }
        if torchao := _torchao(bench, "linear"):
            layers["torchao"] = lambda x, w=weight: torchao.fp8_blockwise_mm.apply(x, w, 128, torch.bfloat16)
        passes = {name: partial(_gradients, layer, x, weight, gradient) for name, layer in layers.items()}
        exact = passes["bfloat16"]()
        for subject, line in bench.compare(passes).items():
            errors = {}
            if "error" not in line and subject != "bfloat16":
                found = zip(("dx", "dw"), passes[subject](), exact, strict=True)
                errors = {f"{what}_off": apart(one, other) for what, one, other in found}
            head = {"m_n_k": [tokens, n, k], "subject": subject}
            yield head | line | bench.tflops(subject, line, 3 * 2 * tokens * n * k) | errors


def _fp8_linear(bench: Bench, weight: nn.Parameter, *, keep: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight
    Fp8Linear.swap(linear, WeightBlocks(bench.fp8, keep=keep))
    return linear


def _gradients(layer, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> tuple[Any, Any]:
    """Of x and of the weight."""
    x.grad = weight.grad = None
    layer(x).backward(gradient)
    return x.grad, weight.grad


def experts(bench: Bench) -> Iterator[Line]:
    hidden, inner = bench.shape["hidden_size"], bench.shape["moe_intermediate_size"]
    for count in (4,) if bench.small else (4, 8, 32):
        for kind in ("balanced", "skewed"):
            rows = 512 if bench.small else 32768
            share = torch.ones(count) if kind == "balanced" else 1 / torch.arange(1, count + 1)
            counts = (rows * share / share.sum()).int()
            counts[0] += rows - counts.sum()
            x = bench.normal(rows, hidden).requires_grad_()
            gate_up = bench.normal(count, 2 * inner, hidden, size=hidden**-0.5).requires_grad_()
            down = bench.normal(count, hidden, inner, size=inner**-0.5).requires_grad_()
            gradient, ends = bench.normal(rows, hidden), counts.cumsum(0).int().to(bench.device)

            def bf16(x=x, gate_up=gate_up, down=down, ends=ends, gradient=gradient):
                x.grad = gate_up.grad = down.grad = None
                gate, up = F.grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
                h = F.silu(gate) * up
                F.grouped_mm(h, down.transpose(1, 2), offs=ends).backward(gradient)

            def fp8(blocks, x=x, gate_up=gate_up, down=down, counts=counts, gradient=gradient):
                x.grad = gate_up.grad = down.grad = None
                grouped_mlp(x, counts, gate_up, down, blocks).backward(gradient)

            ours = {
                "fp8": partial(fp8, WeightBlocks(bench.fp8)),  # as a trainer on GPUs
                "fp8, blocks of weights kept": partial(fp8, WeightBlocks(bench.fp8, keep=True)),
            }

            flops = 3 * 2 * rows * 3 * inner * hidden
            leaves, gradients = (x, gate_up, down), {}
            for name, work in (("bf16", bf16), ("fp8", ours["fp8"])):
                work()
                gradients[name] = [leaf.grad for leaf in leaves]
                x.grad = gate_up.grad = down.grad = None
            off = max(apart(*pair) for pair in zip(gradients["fp8"], gradients["bf16"], strict=True))
            for subject, line in bench.compare({"bfloat16 grouped_mm": bf16} | ours).items():
                head = {"experts": count, "rows": rows, "load": kind, "subject": subject}
                extra = {"gradients_from_bf16": off} if subject in ours else {}
                yield head | line | bench.tflops(subject, line, flops) | extra


def _torchao(bench: Bench, module: str) -> Any:
    """A module of torchao's block-wise FP8 training, a prototype; None where it, or a GPU for its kernels, is not."""
    if bench.device.type != "cuda":
        return None
    try:
        return import_module(f"torchao.prototype.blockwise_fp8_training.{module}")
    except Exception:  # it loads kernels that were built for one version of torch
        return None
