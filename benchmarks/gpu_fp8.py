"""FP8 against BF16 on one GPU, at DeepSeek-V3's shapes: quantisers, GEMMs, experts, an MoE layer, MLA, a training step.

    python benchmarks/gpu_fp8.py                                       # a Hopper GPU; prints tables, writes JSON
    python benchmarks/gpu_fp8.py --device cpu --small --out out.json   # tries the script itself, by the reference

One process, random data, median over rounds of CUDA-event times; the subjects of a table take turns in every round,
each after the caches were flushed. Kernels (quantisers, products) are timed while the device has a queue; experts,
layers and steps as a program launches them, so that what the host cannot hide counts. TFLOP/s count the products alone
(2 M N K); errors are relative, in the Frobenius norm: against float64, and of a kernel against the reference on the
same FP8 numbers. Targets: GEMM at 80 % of what DeepGEMM publishes for the shape, wgrad 900 TFLOP/s, MoE layer 1.3 times
BF16, quantisers at 90 % of a copy, memory of a step below BF16.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from fp8.config import Fp8Config
from fp8.convert import convert
from fp8.experts import grouped_mlp
from fp8.gemm import backends, matmul_nt
from fp8.quantize import COLUMNS, ROWS, SQUARE, Quantized, quantize, quantize_both, quantize_stack
from fp8.weights import WeightBlocks
from models.attention import NAME as LAYOUT_ATTENTION
from models.attention import PackedLayout
from models.experts import NAME as EXPERTS

REPO = Path(__file__).parents[1]
# (N, K) of V3's linear layers, and what DeepGEMM publishes for M = 4096 on an H800 (TFLOP/s; forward).
DENSE = {
    (2112, 7168): 1058,
    (24576, 1536): 990,
    (32768, 512): 590,
    (7168, 16384): 1358,
    (4096, 7168): 1304,
    (7168, 2048): 1025,
}
KINDS = ("bfloat16", "fp8", "fp8, weights kept")  # quantised at every use, or once for all uses until they change
V3 = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
SMALL = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1, "q_lora_rank": 128,
    "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes, two rounds: to try the script")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backend", default="auto", choices=("auto", "reference", "cublaslt", "deepgemm"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, help="docs/results/gpu_fp8.json when all parts are run")
    arguments = parser.parse_args()
    if arguments.out is None:
        some = set(arguments.parts) != set(PARTS) or arguments.small
        arguments.out = Path("gpu_fp8_some.json") if some else REPO / "docs" / "results" / "gpu_fp8.json"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --small tries the script on the reference")
    bench = Bench(arguments)
    result = conditions("torch", "transformers") | bench.machine()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "out"}
    for part in arguments.parts:
        result[part] = PARTS[part](bench)
        _print(part, result[part])
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


class Bench:
    def __init__(self, arguments: argparse.Namespace):
        self.device = torch.device(arguments.device)
        self.small, self.rounds = arguments.small, 2 if arguments.small else arguments.rounds
        self.fp8 = Fp8Config(backend=arguments.backend)
        self.shape = SMALL if self.small else V3
        self.flushed = torch.empty(0 if self.device.type == "cpu" else 2**28, dtype=torch.int8, device=self.device)
        torch.manual_seed(0)

    def machine(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cuda": torch.version.cuda,
            "backends": backends(self.device.type),
        }

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device=self.device) * size).to(dtype)

    def seconds(self, work: Callable[[], Any], queued: bool) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flushed.zero_()
        if queued:
            torch.cuda._sleep(1_000_000)  # cycles, half a millisecond: the host has launched before the device is free
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def compare(self, subjects: dict[str, Callable[[], Any]], queued: bool = False) -> dict[str, Any]:
        """Median seconds, spread and peak memory of each; {"error": ...} for one that cannot run."""
        seen: dict[str, Any] = {name: [] for name in subjects}
        for _ in range(3):
            for name, work in subjects.items():
                if isinstance(seen[name], list):
                    try:
                        self.seconds(work, queued)
                    except (RuntimeError, ValueError, NotImplementedError) as error:
                        seen[name] = {"error": str(error).splitlines()[0][:200]}
        for _ in range(self.rounds):
            for name, work in subjects.items():
                if isinstance(seen[name], list):
                    seen[name].append(self.seconds(work, queued))
        return {
            name: value if isinstance(value, dict) else self._summary(value, subjects[name])
            for name, value in seen.items()
        }

    def _summary(self, seconds: list[float], work: Callable[[], Any]) -> dict[str, float]:
        line = {"seconds": median(seconds), "min": min(seconds), "max": max(seconds)}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            line["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return line


def quantisers(bench: Bench) -> Iterator[dict[str, Any]]:
    for rows, columns in [(512, 256)] if bench.small else [(8192, 7168), (32768, 2048), (32768, 7168)]:
        x, out = bench.normal(rows, columns), torch.empty(rows, columns, dtype=torch.bfloat16, device=bench.device)
        subjects = {
            "copy": (lambda x=x, out=out: out.copy_(x), 4),  # bytes moved per element
            "rows": (lambda x=x: quantize(x, ROWS), 3),
            "rows and columns": (lambda x=x: quantize_both(x), 4),
            "blocks": (lambda x=x: quantize(x, SQUARE), 3),
        }
        if torchao := _torchao():
            subjects["torchao rows"] = (lambda x=x: torchao.triton_fp8_blockwise_act_quant_lhs(x), 3)
            subjects["torchao columns"] = (lambda x=x: torchao.triton_fp8_blockwise_act_quant_transposed_lhs(x), 3)
        for name, line in bench.compare({name: work for name, (work, _) in subjects.items()}, queued=True).items():
            moved = subjects[name][1] * x.numel()
            yield {"shape": [rows, columns], "subject": name} | line | _rate(line, "gb_per_s", moved / 1e9)
        same = all(
            torch.equal(a.values.cpu().view(torch.uint8), b.values.view(torch.uint8))
            and torch.equal(a.scales.cpu(), b.scales)
            for tile in (ROWS, COLUMNS, SQUARE)
            for a, b in [(quantize(x[:1024], tile), quantize(x[:1024].cpu(), tile))]
        )
        yield {"shape": [rows, columns], "subject": "equal to the CPU, bit for bit", "same": same}


def gemms(bench: Bench) -> Iterator[dict[str, Any]]:
    shapes = {(256, 384): 0} if bench.small else DENSE
    for tokens in (256,) if bench.small else (4096, 8192):
        for (n, k), published in shapes.items():
            x, w, g = bench.normal(tokens, k), bench.normal(n, k), bench.normal(tokens, n)
            (x_rows, x_columns), (g_rows, g_columns) = quantize_both(x), quantize_both(g)
            stack = quantize_stack(w[None])
            blocks, blocks_t = stack[0], stack.transposed()[0]
            for line in chain(
                product(bench, "fprop", (x, w.T), (x_rows, blocks), torch.bfloat16),
                product(bench, "dgrad", (g, w), (g_rows, blocks_t), torch.bfloat16),
                product(bench, "wgrad", (g.T, x), (g_columns.T, x_columns.T), torch.bfloat16),
                product(bench, "wgrad, float32", (g.T, x), (g_columns.T, x_columns.T), torch.float32),
            ):
                extra = {"published_tflops": published} if line["product"] == "fprop" and tokens == 4096 else {}
                yield line | extra


def product(
    bench: Bench, name: str, exact: tuple[Any, Any], fp8: tuple[Quantized, Quantized], dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    subjects: dict[str, Callable[[], Any]] = {"bfloat16": partial(torch.matmul, *exact)}
    for backend, missing in backends(bench.device.type).items():
        if not missing and (backend != "reference" or bench.device.type == "cpu"):
            subjects[backend] = partial(matmul_nt, *fp8, dtype, backend)
    if bench.device.type == "cuda":
        one, each = torch.ones((), device=bench.device), partial(torch.ones, device=bench.device)
        whole = partial(torch._scaled_mm, fp8[0].values, fp8[1].values.T, out_dtype=torch.bfloat16)
        row_scales = {"scale_a": each(len(fp8[0].values), 1), "scale_b": each(1, len(fp8[1].values))}
        subjects["torch, one scale a matrix"] = partial(whole, scale_a=one, scale_b=one)
        subjects["torch, one scale a row"] = partial(whole, **row_scales)
    truth = exact[0].double() @ exact[1].double()
    reference = matmul_nt(*fp8, torch.float32, "reference").double()
    (m, k), n = exact[0].shape, exact[1].shape[1]
    for subject, line in bench.compare(subjects, queued=True).items():
        errors = {}
        if "error" not in line:
            got = subjects[subject]().double()
            errors = {} if "scale" in subject else {"against_float64": float((got - truth).norm() / truth.norm())}
            if subject in backends(bench.device.type):
                errors["against_reference"] = float((got - reference).norm() / reference.norm())
        head = {"product": name, "m_n_k": [m, n, k], "subject": subject}
        yield head | line | _rate(line, "tflops", 2 * m * n * k / 1e12) | errors


def experts(bench: Bench) -> Iterator[dict[str, Any]]:
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
            kept = WeightBlocks(bench.fp8, keep=True)

            def bf16(x=x, gate_up=gate_up, down=down, ends=ends, gradient=gradient):
                x.grad = gate_up.grad = down.grad = None
                gate, up = torch._grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
                h = torch.nn.functional.silu(gate) * up
                torch._grouped_mm(h, down.transpose(1, 2), offs=ends).backward(gradient)

            def fp8(x=x, gate_up=gate_up, down=down, counts=counts, gradient=gradient, kept=kept):
                x.grad = gate_up.grad = down.grad = None
                grouped_mlp(x, counts, gate_up, down, kept).backward(gradient)

            flops = 3 * 2 * rows * 3 * inner * hidden
            leaves, gradients = (x, gate_up, down), {}
            for name, work in (("bf16", bf16), ("fp8", fp8)):
                work()
                gradients[name] = [leaf.grad for leaf in leaves]
                x.grad = gate_up.grad = down.grad = None
            apart = max(_apart(*pair) for pair in zip(gradients["fp8"], gradients["bf16"], strict=True))
            for subject, line in bench.compare({"bfloat16 grouped_mm": bf16, "fp8": fp8}).items():
                head = {"experts": count, "rows": rows, "load": kind, "subject": subject}
                extra = {"gradients_from_bf16": apart} if subject == "fp8" else {}
                yield head | line | _rate(line, "tflops", flops / 1e12) | extra


def layers(bench: Bench) -> Iterator[dict[str, Any]]:
    """One MoE layer, with as many experts as one of 32 devices holds, and one MLA block, forward and backward."""
    tokens = 256 if bench.small else 8192
    config = _config(bench, num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=8)
    layout = PackedLayout.from_lengths([tokens // 4] * 4, bench.device)
    hidden, gradient = bench.normal(1, tokens, config.hidden_size), bench.normal(1, tokens, config.hidden_size)
    rotary = v3.DeepseekV3RotaryEmbedding(config).to(bench.device)(
        hidden, torch.arange(tokens, device=bench.device)[None]
    )

    def moe(layer: Any) -> dict[str, torch.Tensor]:
        x = hidden.detach().requires_grad_()
        return _passed(layer, x, layer(x), gradient)

    def attention(layer: Any) -> dict[str, torch.Tensor]:
        x = hidden.detach().requires_grad_()
        out, _ = layer(x, position_embeddings=rotary, attention_mask=None, layout=layout)
        return _passed(layer, x, out, gradient)

    makers = {
        "moe": (lambda: v3.DeepseekV3MoE(config), moe),
        "mla": (lambda: v3.DeepseekV3Attention(config, 1), attention),
    }
    for name, (make, work) in makers.items():
        subjects = {kind: _layer(bench, make, kind) for kind in KINDS}
        expected = work(subjects[KINDS[0]])
        runs = {kind: (lambda layer=layer, work=work: work(layer)) for kind, layer in subjects.items()}
        for subject, line in bench.compare(runs).items():
            line |= {} if "error" in line else _off(work(subjects[subject]), expected)
            yield {"layer": name, "tokens": tokens, "subject": subject} | line | _rate(line, "tokens_per_s", tokens)


def _passed(layer: Any, x: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Backward; the output, and the gradients of the input and of the largest weight."""
    out.backward(gradient)
    largest = max(layer.parameters(), key=torch.Tensor.numel)
    found = {"output": out.detach(), "dx": x.grad, "dw": largest.grad}
    layer.zero_grad()
    return found


def _off(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {f"{what}_off": _apart(found[what], expected[what]) for what in expected}


def training_step(bench: Bench) -> Iterator[dict[str, Any]]:
    """Forward, backward and AdamW of a V3-shaped model of 2-4 billion parameters: same weights, same batch."""
    tokens = 256 if bench.small else 8192
    sizes = {} if bench.small else {"hidden_size": 2048, "intermediate_size": 8192, "moe_intermediate_size": 1024}
    heads = {} if bench.small else {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}
    config = _config(
        bench, num_hidden_layers=3 if bench.small else 12, first_k_dense_replace=1,
        n_routed_experts=8 if bench.small else 32, **sizes, **heads,
    )  # fmt: skip
    ids = torch.randint(0, config.vocab_size, (1, tokens), device=bench.device)
    layout = PackedLayout.from_lengths([tokens // 4] * 4, bench.device)
    for kind in KINDS:  # one after the other: both together would not fit
        model: Any = _layer(bench, lambda: v3.DeepseekV3ForCausalLM(config), kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=bench.device.type == "cuda")
        positions = torch.arange(tokens // 4, device=bench.device).repeat(4)[None]

        def step(model=model, optimizer=optimizer, positions=positions):
            hidden = model.model(
                input_ids=ids, position_ids=positions, use_cache=False, layout=layout
            ).last_hidden_state
            logits = model.lm_head(hidden[0, :-1])
            torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()

        (line,) = bench.compare({kind: step}).values()
        parameters = sum(p.numel() for p in model.parameters())
        yield {"subject": kind, "parameters": parameters, "tokens": tokens} | line | _rate(line, "tokens_per_s", tokens)
        del model, optimizer, step


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def _torchao() -> Any:
    try:
        from torchao.prototype.blockwise_fp8_training import kernels
    except ImportError:
        return None
    return kernels


def _config(bench: Bench, **settings: Any) -> DeepseekV3Config:
    routing = {"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "max_position_embeddings": 8192}
    config = DeepseekV3Config(**(bench.shape | routing | settings))
    config._attn_implementation, config._experts_implementation = LAYOUT_ATTENTION, EXPERTS
    return config


def _layer(bench: Bench, make: Callable[[], torch.nn.Module], kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = make().to(bench.device, torch.bfloat16)
    for parameter in layer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    if kind != "bfloat16":
        convert(layer, bench.fp8, keep_blocks=kind == "fp8, weights kept")
    return layer.train()


def _rate(line: dict[str, Any], unit: str, amount: float) -> dict[str, float]:
    return {} if "error" in line else {unit: amount / line["seconds"]}


PARTS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    name: (lambda bench, part=part: list(part(bench)))
    for name, part in {
        "quantisers": quantisers, "gemms": gemms, "experts": experts, "layers": layers, "training_step": training_step,
    }.items()
}  # fmt: skip


def _print(part: str, lines: list[dict[str, Any]]) -> None:
    keys = list(dict.fromkeys(key for line in lines for key in line))
    table = Table(*keys, title=part)
    for line in lines:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in (line.get(key, "") for key in keys)))
    Console().print(table)


if __name__ == "__main__":
    main()
