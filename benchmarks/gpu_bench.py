"""What the parts of gpu_fp8.py share: a device, the shapes of a run, and how work is timed."""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from fp8.config import Fp8Config
from fp8.gemm import backends

Line = dict[str, Any]  # of a table; or sizes by name
V3: Line = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
SMALL: Line = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1, "q_lora_rank": 128,
    "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
WARM_UP = 3  # rounds before those that count: kernels are compiled and chosen in them


class Bench:
    """One run. A subject whose name begins with bfloat16 is held against the peak of bfloat16, others against FP8's."""

    def __init__(self, arguments: argparse.Namespace):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic trainers need, as in actors
        self.device = torch.device(arguments.device)
        self.small, self.rounds = arguments.small, 2 if arguments.small else arguments.rounds
        self.fp8, self.recompute = Fp8Config(backend=arguments.backend), arguments.recompute
        self.shape = SMALL if self.small else V3
        self.flushed = torch.empty(0 if self.device.type == "cpu" else 2**28, dtype=torch.int8, device=self.device)
        self.peaks: dict[str, float] = {}  # TFLOP/s of the fastest products, "bfloat16" and "fp8"; see the part `peak`
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

    def compare(self, subjects: dict[str, Callable[[], Any]], queued: bool = False) -> dict[str, Line]:
        """Median seconds, spread and peak memory of each; {"error": ...} for one that cannot run."""
        seen: dict[str, list[float]] = {name: [] for name in subjects}
        errors: dict[str, Line] = {}
        for _ in range(WARM_UP + self.rounds):
            for name, work in subjects.items():
                if name not in errors:
                    try:
                        seen[name].append(self.seconds(work, queued))
                    except Exception as error:  # other packages' kernels raise whatever their versions do
                        errors[name] = failure(error)
        return {name: errors.get(name) or self._summary(seen[name][WARM_UP:], subjects[name]) for name in subjects}

    def _summary(self, seconds: list[float], work: Callable[[], Any]) -> Line:
        line = {"seconds": median(seconds), "min": min(seconds), "max": max(seconds)}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            line["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return line

    def tflops(self, subject: str, line: Line, flops: float) -> Line:
        """TFLOP/s of a line and, once the peaks are known, the share of the fastest product's."""
        found = rate(line, "tflops", flops / 1e12)
        peak = self.peaks.get(kind_of(subject))
        return found | {"share_of_peak": found["tflops"] / peak} if found and peak else found


def kind_of(subject: str) -> str:
    return "bfloat16" if subject.startswith("bfloat16") else "fp8"


def rate(line: Line, unit: str, amount: float) -> Line:
    return {} if "error" in line else {unit: amount / line["seconds"]}


def failure(error: Exception) -> Line:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative difference, in the Frobenius norm."""
    return float((one.double() - other.double()).norm() / other.double().norm())
