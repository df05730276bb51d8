"""Peak memory and time of one supervised forward and backward pass over a long packed row, by recomputation policy.

    python benchmarks/activation_memory.py           # all policies in alternating fresh processes; a table and JSON
    python benchmarks/activation_memory.py blocks    # one measured process, by itself

The row is made of `--sequences` equal sequences of random tokens, on a model of the tiny shape with a context as long
as they are. Memory is the highest during the pass less that before, less the gradients of the weights, which every
policy makes: the process' resident high-water mark on CPU (Linux), torch's allocator on CUDA.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import conditions
from logprobs import PeakMemory, spread
from rich.console import Console
from rich.table import Table

from data.corpus import documents
from models.checkpoint import save_model
from models.config import TinyModelConfig
from models.tiny import build_model, build_tokenizer
from sft.batch import Example, pack_examples
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig

REPO = Path(__file__).parents[1]
POLICIES = ("none", "norms_and_up_projections", "blocks")


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.policy:
        print(json.dumps(run_unit(arguments)))
    else:
        compare(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", nargs="?", choices=POLICIES, help="run one unit of this policy and print its numbers")
    parser.add_argument("--n", type=int, default=3, help="rounds")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of the row")
    parser.add_argument("--sequences", type=int, default=8, help="equal sequences that make the row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "activation_memory.json")
    return parser


def run_unit(arguments: argparse.Namespace) -> dict[str, Any]:
    """One forward and backward pass in this process, after a short one."""
    torch.set_num_threads(arguments.threads)
    length = arguments.tokens // arguments.sequences
    with tempfile.TemporaryDirectory() as folder:
        _save_tiny(Path(folder), length)
        trainer = SupervisedTrainer(folder, OptimizerConfig(), device=arguments.device, recompute=arguments.policy)
    _pass(trainer, [32])
    memory = PeakMemory(arguments.device)
    started = time.perf_counter()
    loss = _pass(trainer, [length] * arguments.sequences)
    memory.synchronize()
    seconds = time.perf_counter() - started
    weights = sum(p.grad.nbytes for p in trainer.model.parameters() if p.grad is not None)
    return {"seconds": seconds, "extra_mib": (memory.extra_bytes() - weights) / 2**20, "loss": loss}


def _save_tiny(folder: Path, context: int) -> None:
    shape = TinyModelConfig(max_length=max(64, context))
    tokenizer = build_tokenizer((document.text for document in islice(documents("memory"), 2000)), shape)
    model, mtp = build_model(shape, tokenizer, seed=0)
    save_model(folder, model, tokenizer, mtp)


def _pass(trainer: SupervisedTrainer, lengths: list[int]) -> float:
    rng = np.random.default_rng(0)
    examples = [Example(token_ids=rng.integers(8, 1000, n), loss_mask=np.ones(n, bool)) for n in lengths]
    (row,) = pack_examples(examples, sum(lengths))
    loss = trainer.next_token_losses(row)[0] / sum(lengths)
    loss.backward()
    result = loss.item()
    for parameter in trainer.model.parameters():
        if len(lengths) == 1:  # the warm-up: the measured pass makes its own gradients
            parameter.grad = None
    return result


def compare(arguments: argparse.Namespace) -> None:
    console, head = Console(), conditions("torch", "transformers")
    units: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    for turn in range(arguments.n):
        for policy in POLICIES:
            unit = _fresh_process(policy, arguments)
            units[policy].append(unit)
            console.print(
                f"{turn + 1}/{arguments.n} {policy:>25}: {unit['extra_mib']:,.0f} MiB, {unit['seconds']:.1f} s"
            )
    numbers = {p: {key: spread([u[key] for u in own]) for key in ("extra_mib", "seconds")} for p, own in units.items()}
    shape = {key: getattr(arguments, key) for key in ("tokens", "sequences", "device", "threads")}
    record = {**head, "shape": shape, "n": arguments.n, "summary": numbers, "units": units}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    table = Table("median", "extra MiB", "to none", "seconds", "to none")
    for policy, row in numbers.items():
        cells = []
        for key, digits in (("extra_mib", 0), ("seconds", 1)):
            cells += [f"{row[key]['median']:,.{digits}f}", f"{row[key]['median'] / numbers['none'][key]['median']:.2f}"]
        table.add_row(policy, *cells)
    console.print(table)


def _fresh_process(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = [f"--{key}={getattr(arguments, key)}" for key in ("tokens", "sequences", "device", "threads")]
    done = subprocess.run([sys.executable, __file__, policy, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{policy} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
