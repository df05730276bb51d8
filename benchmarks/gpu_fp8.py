"""FP8 against BF16 on one GPU, at DeepSeek-V3's shapes: quantisers, products, layers, and steps of the trainer.

    python benchmarks/gpu_fp8.py                                       # a Hopper GPU; prints tables, writes JSON
    python benchmarks/gpu_fp8.py --parts layers training_step          # some of it
    python benchmarks/gpu_fp8.py --device cpu --small --out out.json   # tries the script itself, by the reference

One process, random data, median over rounds of CUDA-event times; the subjects of a table take turns in every round,
each after the caches were flushed. Kernels (quantisers, products) are timed while the device has a queue; linear
layers, experts, layers and steps as a program launches them, so that what the host cannot hide counts. TFLOP/s count
products alone (2 M N K; of a layer 6 x active parameters x tokens, and attention's), share_of_peak is theirs of the
fastest product of two squares of 8192, in bfloat16 or FP8, which `peak` measures first in every run. Errors are
relative, in the Frobenius norm: against float64, of a kernel against the reference on the same FP8 numbers, and of
layers against bfloat16. A part that fails is noted, and the others go on. Targets: GEMM at 80 % of what DeepGEMM
publishes for the shape, wgrad 900 TFLOP/s, MoE layer 1.3 times BF16, quantisers at 90 % of a copy, memory of a step
below BF16.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from conditions import conditions
from gpu_bench import Bench, Line, failure
from gpu_fp8_layers import layers
from gpu_fp8_products import experts, gemms, linears, peak, quantisers
from gpu_fp8_step import training_step
from rich.console import Console
from rich.table import Table

REPO = Path(__file__).parents[1]
PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "peak": peak, "quantisers": quantisers, "gemms": gemms, "linears": linears, "experts": experts, "layers": layers,
    "training_step": training_step,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes, two rounds: to try the script")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backend", default="auto", choices=("auto", "reference", "cublaslt", "deepgemm"))
    parser.add_argument(
        "--recompute",
        default="norms_and_up_projections",
        choices=("none", "norms_and_up_projections", "blocks"),
        help="in the training step (trainer.recompute); the default is V3's",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="peak is always measured")
    parser.add_argument("--out", type=Path, help="docs/results/gpu_fp8.json when all parts are run")
    arguments = parser.parse_args()
    arguments.parts = list(dict.fromkeys(["peak", *arguments.parts]))
    if arguments.out is None:
        some = set(arguments.parts) != set(PARTS) or arguments.small
        arguments.out = Path("gpu_fp8_some.json") if some else REPO / "docs" / "results" / "gpu_fp8.json"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --small tries the script on the reference")
    bench = Bench(arguments)
    result = conditions("torch", "transformers") | bench.machine()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "out"}
    for part in arguments.parts:
        result[part] = _lines(part, bench)
        _print(part, result[part])
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if failed := [part for part in arguments.parts if "part_failed" in result[part][-1]]:
        sys.exit(f"did not come to their end: {', '.join(failed)}")


def _lines(part: str, bench: Bench) -> list[Line]:
    """What a part yields until it ends or fails: minutes of a GPU are too rare for one part to cost the others'."""
    lines = []
    try:
        for line in PARTS[part](bench):
            lines.append(line)
    except Exception as error:
        traceback.print_exc()
        lines.append({"part_failed": part} | failure(error))
    return lines


def _print(part: str, lines: list[Line]) -> None:
    keys = list(dict.fromkeys(key for line in lines for key in line))
    table = Table(*keys, title=part)
    for line in lines:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in (line.get(key, "") for key in keys)))
    Console().print(table)


if __name__ == "__main__":
    main()
