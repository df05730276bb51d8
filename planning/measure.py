"""Short measurements of this machine for planning.calibration: `python -m planning.measure FILE`, about a minute.

Models of shapes that no recipe has are trained, read and sampled for a moment, by the code that trains, reads and
samples; constants are fitted to that, in relative errors. Everything but the gain of several threads is CPU time of one
thread, which other work on the machine lengthens little.
"""

import ctypes
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

from models.attention import NAME as LAYOUT_ATTENTION
from models.config import TinyModelConfig
from models.experts import NAME as EXPERTS
from models.tiny import build_config
from planning.architecture import Architecture, Flops
from planning.calibration import Calibration, PassCosts, StepCosts
from planning.speed import pass_flops
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import ModelSampler
from sft.batch import Example, row_of
from training.config import OptimizerConfig
from training.optimizer import Optimizer
from training.policy import Policy, RowTensors

SHAPES = (
    TinyModelConfig(hidden_size=256, num_layers=3, intermediate_size=640, expert_size=128, vocab_size=1024),
    TinyModelConfig(hidden_size=128, num_layers=6, intermediate_size=384, expert_size=64, vocab_size=4096),
    TinyModelConfig(architecture="llama", hidden_size=128, num_layers=6, intermediate_size=320, vocab_size=2048),
    TinyModelConfig(
        architecture="llama", hidden_size=640, num_heads=10, num_layers=3, intermediate_size=1664, vocab_size=8192
    ),
)
ROWS = ((1, 48), (4, 64), (16, 64), (3, 256), (1, 500))  # sequences of tokens each
_HEAP_ROW = (16, 64)  # the row by which memory is measured
STEPS = ((2, 16), (24, 16), (96, 16), (24, 160))  # running completions, tokens of their prompts
_NEW_TOKENS = 11  # sampled after the first
_REPEATS = 2
_GAIN_PER_CORE = 0.85  # of several threads, where other work on the machine leaves no way to measure it


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement: amounts in the order of the fields of the costs, and the seconds that they took."""

    amounts: tuple[float, ...]
    seconds: float


def calibrate() -> Calibration:
    torch.set_num_threads(1)
    process_bytes, gemm = _process_bytes(), _gemm_flops()
    gain, busy = _thread_gain(), os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2
    forward, training, decoding = list[Point](), list[Point](), list[Point]()
    updates, heaps = list[float](), list[float]()
    for shape in SHAPES:
        model, architecture = _build(shape)
        policy = Policy(model)
        for sequences, length in ROWS:
            amounts = _pass_amounts(architecture, sequences, length)
            row = _row(sequences, length, shape.vocab_size)
            forward.append(Point(amounts, _read_s(policy, row)))
            training.append(Point(amounts, _learn_s(policy, row)))
        heaps.append(_heap_factor(policy, architecture, shape.vocab_size))
        updates.append(_update_s(policy) / architecture.parameters)
        decoding += [_step_point(model, architecture, *step) for step in STEPS]
    fits = {"forward": _fit(forward), "training": _fit(training), "decoding": _fit(decoding)}
    return Calibration(
        machine=_machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        forward=PassCosts(**dict(zip(PassCosts.model_fields, fits["forward"][0], strict=True))),
        training=PassCosts(**dict(zip(PassCosts.model_fields, fits["training"][0], strict=True))),
        decoding=StepCosts(**dict(zip(StepCosts.model_fields, fits["decoding"][0], strict=True))),
        optimizer_s=float(np.median(updates)),
        copy_bytes_per_s=_copy_bytes_per_s(),
        gemm_flops=gemm,
        thread_gain=max(1.0, _GAIN_PER_CORE * len(os.sched_getaffinity(0))) if busy else gain,
        thread_gain_measured=not busy,
        heap_factor=max(1.0, float(np.median(heaps))),
        process_bytes=process_bytes,
        residuals={name: error for name, (_, error) in fits.items()},
    )


def _build(shape: TinyModelConfig) -> tuple[Any, Architecture]:
    torch.manual_seed(0)
    config = build_config(shape, vocab_size=shape.vocab_size, bos_id=0, eos_id=1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=LAYOUT_ATTENTION)
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)
    described = config.to_dict() | {"num_nextn_predict_layers": 0}
    return model, Architecture.read(described, "measured")


# --- passes ---


def _row(sequences: int, length: int, vocab: int) -> RowTensors:
    rng = np.random.default_rng(0)
    examples = [
        Example(token_ids=rng.integers(8, vocab, length), loss_mask=np.ones(length, bool)) for _ in range(sequences)
    ]
    return RowTensors.of(row_of(examples), torch.device("cpu"))


def _read_s(policy: Policy, row: RowTensors) -> float:
    @torch.no_grad()
    def read() -> None:
        policy(row, 1.0)

    policy.train()
    return _cpu_s(read)


def _learn_s(policy: Policy, row: RowTensors) -> float:
    def learn() -> None:
        loss = policy(row, None).loss
        assert loss is not None
        loss.backward()

    policy.train()
    return _cpu_s(learn)


def _update_s(policy: Policy) -> float:
    optimizer = Optimizer(policy.named_parameters(), OptimizerConfig())
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    gradients = {id(p): p.grad for p in policy.parameters()}

    def step() -> None:
        for parameter in policy.parameters():
            parameter.grad = gradients[id(parameter)]
        optimizer.step(1e-6)

    return _cpu_s(step)


def _pass_amounts(model: Architecture, sequences: int, length: int) -> tuple[float, ...]:
    """As planning.speed.LocalSpeed counts them."""
    tokens, predicted = sequences * length, sequences * (length - 1)
    flops: Flops = pass_flops(model, tokens, length / 2, predicted)
    return (
        flops.dense + flops.head,
        flops.experts,
        flops.attention,
        model.kept * tokens,
        model.vocab * predicted,
        model.layers,
        model.moe_layers,
    )


# --- decoding ---


class _NoText:
    """A tokenizer for models whose tokens mean nothing."""

    eos_token_id = None
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 nobody writes to it

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return ""


def _step_point(model: Any, architecture: Architecture, running: int, prompt: int) -> Point:
    model.eval()
    model.generation_config.eos_token_id = None
    sampler = ModelSampler(model, _NoText(), max_slots=running)
    rng = np.random.default_rng(1)
    requests = [
        Request(key=str(i), prompt_ids=rng.integers(8, architecture.vocab, prompt).tolist()) for i in range(running)
    ]

    def sample(tokens: int) -> Callable[[], Any]:
        params = SamplingParams(max_new_tokens=tokens, temperature=1.0, group_size=1, seed=0)
        return lambda: sampler.sample(requests, params)

    seconds = (_cpu_s(sample(1 + _NEW_TOKENS)) - _cpu_s(sample(1))) / _NEW_TOKENS
    one = architecture.layer_flops(0)
    amounts = (
        running * (one.dense + architecture.head_flops),
        running * one.experts,
        architecture.active_parameters,
        running * (prompt + _NEW_TOKENS / 2) * architecture.expanded_cache,
        running * architecture.vocab,
        running,
        architecture.layers,
        architecture.moe_layers,
    )
    return Point(amounts, max(seconds, 1e-6))


# --- memory ---


def _process_bytes() -> float:
    """Of this process, which has imported what a trainer's has, after a pass of a model of 0.1 MB."""
    import ray  # noqa: F401 a trainer is an actor

    import rl.trainer  # noqa: F401

    shape = TinyModelConfig(architecture="llama", hidden_size=64, num_layers=2, intermediate_size=64, vocab_size=300)
    _learn_s(Policy(_build(shape)[0]), _row(1, 16, shape.vocab_size))
    return psutil.Process().memory_info().rss


def _heap_factor(policy: Policy, model: Architecture, vocab: int) -> float:
    """Peak of a forward and backward pass, less what was there, over what is counted of it."""
    row, tokens = _row(*_HEAP_ROW, vocab), math.prod(_HEAP_ROW)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = psutil.Process().memory_info().rss
    loss = policy(row, None).loss
    assert loss is not None
    loss.backward()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    counted = 4 * (model.kept * tokens + model.vocab * tokens + model.width * tokens + model.embedding_parameters)
    return (int(fields["VmHWM"].split()[0]) * 1024 - before) / counted


# --- the machine ---


def _gemm_flops(size: int = 768) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _cpu_s(lambda: torch.mm(a, b))


def _copy_bytes_per_s(mib: int = 64) -> float:
    """Larger than caches; read and written bytes both count."""
    source = torch.ones(mib << 18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _cpu_s(lambda: target.copy_(source))


def _thread_gain(size: int = 1024) -> float:
    """By the clock, so the fastest of several tries: other work on the machine makes it smaller."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    cores, seconds = len(os.sched_getaffinity(0)), {}
    for threads in (1, cores):
        torch.set_num_threads(threads)
        seconds[threads] = _fastest(lambda: torch.mm(a, b), time.perf_counter, 8)
    torch.set_num_threads(1)
    return max(1.0, seconds[1] / seconds[cores])


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(names, platform.machine()),
        "system": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "load_average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of the fastest of several calls, after one that is not counted."""
    work()
    return _fastest(work, time.process_time, _REPEATS)


def _fastest(work: Callable[[], Any], clock: Callable[[], float], tries: int) -> float:
    """Short work is repeated within a try, as clocks tick."""
    times, calls = [], 1
    while len(times) < tries:
        started = clock()
        for _ in range(calls):
            work()
        spent = clock() - started
        if spent < 0.02 and calls < 1000:
            calls *= 2
        else:
            times.append(spent / calls)
    return min(times)


def _fit(points: Sequence[Point]) -> tuple[list[float], float]:
    """Constants >= 0 whose sums of amounts are closest to the seconds, in relative errors; and their median error."""
    shares = np.array([point.amounts for point in points]) / np.array([[point.seconds] for point in points])
    scales = np.maximum(shares.max(axis=0), 1e-300)
    found = non_negative(shares / scales, np.ones(len(points)))
    errors = np.abs(shares / scales @ found - 1)
    return (found / scales).tolist(), float(np.median(errors))


def non_negative(matrix: np.ndarray, wanted: np.ndarray, rounds: int = 5000) -> np.ndarray:
    """argmin over x >= 0 of |matrix x - wanted|^2, by coordinate descent; matrix [N, F], wanted [N]."""
    gram, target = matrix.T @ matrix, matrix.T @ wanted
    found = np.zeros(matrix.shape[1])
    for _ in range(rounds):
        for i in range(len(found)):
            if gram[i, i] > 0:
                found[i] = max(0.0, found[i] + (target[i] - gram[i] @ found) / gram[i, i])
    return found


if __name__ == "__main__":
    calibrate().write(Path(sys.argv[1]))
