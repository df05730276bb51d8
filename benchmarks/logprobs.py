"""Token logprobs and their gradients at a large vocabulary: ours beside the naive way, TRL's and Liger's.

    python benchmarks/logprobs.py                  # all subjects in alternating fresh processes; a table and JSON
    python benchmarks/logprobs.py ours_loss --json # one measured process, by itself

Needs the `bench` extra (TRL) and liger-kernel. A unit is one process: make hidden states [T, D] and a head [V, D], one
small untimed pass, then `--passes` passes of -sum(logprobs) forward and backward. Its time is the fastest pass. Its
memory is the highest during all passes less that before, less the two gradients, which every subject must return: on
CPU the process' resident high-water mark (Linux), on CUDA torch's allocator. Rounds alternate all subjects, so that a
machine that slows down slows all; ratios are to the naive unit of the same round.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch.utils.checkpoint import checkpoint

REPO = Path(__file__).parents[1]
PACKAGES = ("torch", "trl", "liger-kernel")
SHAPE = ("tokens", "width", "vocab", "dtype", "device", "threads", "passes")
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # hidden [T, D], head [V, D], targets [T]


def naive(hidden, weight, targets):
    """Whole logits, float32 log_softmax, gather."""
    return -F.log_softmax(F.linear(hidden, weight).float(), dim=-1).gather(1, targets[:, None]).sum()


def checkpointed(hidden, weight, targets):
    """What r1 did before: chunks of 64 MiB of logits, each under torch.utils.checkpoint, with entropy."""

    def of_chunk(hidden_CD, targets_C):
        logits = F.linear(hidden_CD, weight).float()
        normaliser = torch.logsumexp(logits, dim=-1)
        with torch.no_grad():
            entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return logits.gather(1, targets_C[:, None]).squeeze(1) - normaliser, entropy

    size = max(1, (1 << 24) // len(weight))
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    return -torch.cat([checkpoint(of_chunk, *piece, use_reentrant=False)[0] for piece in pieces]).sum()


def ours_values(hidden, weight, targets):
    """training.logprobs.token_logprobs: any loss of the values, with entropy; logits computed twice."""
    from training.logprobs import token_logprobs

    return -token_logprobs(hidden, weight, targets)[0].sum()


def ours_loss(hidden, weight, targets):
    """training.logprobs.token_loss: a sum over tokens, with entropy; logits computed once."""
    from training.logprobs import LossOf, token_loss

    return token_loss(hidden, weight, targets, LossOf(lambda logprobs_C, *_: -logprobs_C.sum()))[0]


def ours_entropy(hidden, weight, targets):
    """training.logprobs.token_loss with an entropy bonus, whose gradient is made too."""
    from training.logprobs import LossOf, token_loss

    loss_of = LossOf(lambda logprobs_C, entropy_C, _: -(logprobs_C + 1e-3 * entropy_C).sum())
    return token_loss(hidden, weight, targets, loss_of)[0]


def ours_moved(hidden, weight, targets):
    """training.logprobs.token_loss where an eighth of the tokens was guessed wrongly, and is made twice."""
    from training.logprobs import LossOf, token_loss

    def of_tokens(logprobs_C, _, tokens):
        return -logprobs_C.sum() * (1.0 if isinstance(tokens, slice) else 0.0)

    loss_of = LossOf(of_tokens, moved=lambda logprobs_T: torch.arange(len(targets) // 8, device=targets.device))
    return token_loss(hidden, weight, targets, loss_of)[0]


def ours_nll(hidden, weight, targets):
    """training.logprobs.summed_nll, what SFT uses: the same without entropy."""
    from training.logprobs import summed_nll

    return summed_nll(hidden, weight, targets)


def trl_whole(hidden, weight, targets):
    """Whole logits, then trl.trainer.utils.selective_log_softmax."""
    from trl.trainer.utils import selective_log_softmax

    return -selective_log_softmax(F.linear(hidden, weight), targets).sum()


def trl_chunked(hidden, weight, targets):
    """trl.kernels.ChunkedLogProbFunction with its own chunk size and entropy. Triton on CUDA, torch elsewhere."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as SIZE

    return -ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, SIZE, None, 1.0, ("entropy",))[0].sum()


def liger_chunked(hidden, weight, targets):
    """liger_kernel.chunked_loss' selective logprobs, what its GRPO loss uses; plain torch, without entropy."""
    from liger_kernel.chunked_loss import fused_linear_ppo as liger

    size = liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
    return -liger._ChunkedSelectiveLogProbFunction.apply(hidden, weight, targets, None, 1.0, size).sum()


def liger_cross_entropy(hidden, weight, targets):
    """LigerFusedLinearCrossEntropyLoss with float32 accumulation: a Triton kernel, hence CUDA only."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)(weight, hidden, targets)


SUBJECTS: dict[str, Loss] = {
    f.__name__: f
    for f in (
        naive,
        ours_nll,
        ours_loss,
        ours_entropy,
        ours_moved,
        ours_values,
        checkpointed,
        trl_whole,
        trl_chunked,
        liger_chunked,
    )
}
CUDA_ONLY: dict[str, Loss] = {"liger_cross_entropy": liger_cross_entropy}


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.subject:
        print(json.dumps(run_unit(arguments)))
    else:
        compare(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=(*SUBJECTS, *CUDA_ONLY), help="run one unit of this subject")
    parser.add_argument(
        "--json", action="store_true", help="with a subject: kept for the shape of the other benchmarks"
    )
    parser.add_argument("--n", type=int, default=5, help="rounds")
    parser.add_argument("--tokens", type=int, default=2048, help="T; the naive way takes some 4 GiB at 2048")
    parser.add_argument("--width", type=int, default=1024, help="D")
    parser.add_argument("--vocab", type=int, default=129_280, help="V; DeepSeek-V3's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of hidden states and head")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2, help="timed passes per process; the fastest counts")
    parser.add_argument("--subjects", nargs="+", help="only these, besides naive")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "logprobs.json")
    return parser


def run_unit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of one subject in this process."""
    torch.set_num_threads(arguments.threads)
    loss_of = (SUBJECTS | CUDA_ONLY)[arguments.subject]
    hidden, weight, targets = _inputs(arguments, arguments.tokens)
    loss_of(*_inputs(arguments, 4)).backward()  # imports and first calls
    memory = PeakMemory(arguments.device)
    seconds = []
    for _ in range(arguments.passes):
        hidden.grad = weight.grad = None
        memory.synchronize()
        started = time.perf_counter()
        loss = loss_of(hidden, weight, targets)
        loss.backward()
        memory.synchronize()
        seconds.append(time.perf_counter() - started)
    assert hidden.grad is not None and weight.grad is not None
    return {
        "seconds": min(seconds),
        "extra_mib": (memory.extra_bytes() - hidden.grad.nbytes - weight.grad.nbytes) / 2**20,
        "loss_per_token": float(loss.detach()) / arguments.tokens,
        "grad_hidden": float(hidden.grad.double().norm()),
        "grad_weight": float(weight.grad.double().norm()),
    }


def _inputs(arguments: argparse.Namespace, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of about unit variance, so that the softmax is neither flat nor peaked."""
    rng = torch.Generator().manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    hidden = torch.randn(tokens, arguments.width, generator=rng).to(arguments.device, dtype)
    weight = torch.randn(arguments.vocab, arguments.width, generator=rng).mul_(arguments.width**-0.5)
    targets = torch.randint(0, arguments.vocab, (tokens,), generator=rng).to(arguments.device)
    return hidden.requires_grad_(), weight.to(arguments.device, dtype).requires_grad_(), targets


class PeakMemory:
    """The most memory in use since this object was made, less that in use then."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.before = _status_bytes("VmRSS")

    def extra_bytes(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else _status_bytes("VmHWM")) - self.before

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _status_bytes(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def compare(arguments: argparse.Namespace) -> None:
    console = Console()
    head = conditions(*PACKAGES)
    if arguments.device == "cuda":
        head["machine"]["gpu"] = torch.cuda.get_device_name()
    subjects = [*SUBJECTS, *(CUDA_ONLY if arguments.device == "cuda" else ())]
    if arguments.subjects:
        subjects = ["naive", *(name for name in subjects if name in arguments.subjects)]
    units: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
    for turn in range(arguments.n):
        for name in subjects:
            unit = _fresh_process(name, arguments)
            units[name].append(unit)
            console.print(f"{turn + 1}/{arguments.n} {name:>20}: {unit['seconds']:.2f} s, {unit['extra_mib']:,.0f} MiB")
    shape = {key: getattr(arguments, key) for key in SHAPE}
    record = {**head, "shape": shape, "n": arguments.n, "summary": summary(units), "units": units}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    show(console, record)


def _fresh_process(subject: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = [f"--{key}={getattr(arguments, key)}" for key in SHAPE]
    command = [sys.executable, __file__, subject, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{subject} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(units: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per subject: min, median and max of seconds and MiB, and of their ratios to the naive unit of the same round."""
    result = {}
    for name, own in units.items():
        pairs = list(zip(own, units["naive"], strict=True))
        result[name] = {
            "what": (SUBJECTS | CUDA_ONLY)[name].__doc__,
            **{key: spread([unit[key] for unit in own]) for key in ("seconds", "extra_mib")},
            **{f"{key}_to_naive": spread([a[key] / b[key] for a, b in pairs]) for key in ("seconds", "extra_mib")},
            "gradient_norms_differ_by": max(
                abs(a[key] / b[key] - 1) for a, b in pairs for key in ("grad_hidden", "grad_weight")
            ),
        }
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def show(console: Console, record: dict[str, Any]) -> None:
    console.print(f"\n{record['shape']}, n = {record['n']}, {record['machine']}")
    table = Table("min / median / max", "seconds", "to naive", "extra MiB", "to naive")
    for name, row in record["summary"].items():
        cells = [
            _cell(row[key], digits)
            for key, digits in (("seconds", 2), ("seconds_to_naive", 2), ("extra_mib", 0), ("extra_mib_to_naive", 3))
        ]
        table.add_row(name, *cells)
    console.print(table)


def _cell(spread: dict[str, float], digits: int) -> str:
    return " / ".join(f"{spread[key]:,.{digits}f}" for key in ("min", "median", "max"))


if __name__ == "__main__":
    main()
