"""What `r1 plan --calibrate` found of a machine, and where it is kept. Free of torch: planning.measure measures."""

import json
import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

_ENVIRONMENT = "R1_CALIBRATION"  # another file, for tests and for machines that share a home


class PassCosts(BaseModel, extra="forbid", frozen=True):
    """Seconds of one thread per unit of what a pass does. A pass takes the sum."""

    dense_flop: float = Field(ge=0, description="of linear layers and of the head")
    expert_flop: float = Field(ge=0, description="of routed experts, whose products are small")
    attention_flop: float = Field(ge=0, description="of scores and weighted sums")
    element: float = Field(ge=0, description="of one element that a layer computes; planning.architecture.kept")
    logit: float = Field(ge=0, description="of one logit: softmax and what becomes of it")
    layer: float = Field(ge=0, description="of one layer, however few tokens: launches")
    moe_layer: float = Field(ge=0, description="of one layer with experts, beyond that")


class StepCosts(BaseModel, extra="forbid", frozen=True):
    """The same of a decoding step."""

    dense_flop: float = Field(ge=0, description="of linear layers and of the head")
    expert_flop: float = Field(ge=0, description="of routed experts")
    weight: float = Field(ge=0, description="of one weight that is read, however small the batch")
    cached: float = Field(ge=0, description="of one element of the cache that is read")
    logit: float = Field(ge=0, description="of one logit: softmax, sums and draw")
    slot: float = Field(ge=0, description="of one running completion: what Python does for each")
    layer: float = Field(ge=0, description="of one layer, however few completions")
    moe_layer: float = Field(ge=0, description="of one layer with experts, beyond that")


class Calibration(BaseModel, extra="forbid", frozen=True):
    """Constants of one machine, for CPUs and float32."""

    machine: dict[str, Any] = Field(description="processor, cores, system and versions that were measured")
    cores: int = Field(ge=1, description="processors that torch may use")
    memory_bytes: float = Field(gt=0, description="of the machine")
    forward: PassCosts = Field(description="a forward pass without gradient")
    training: PassCosts = Field(description="a forward and a backward pass")
    decoding: StepCosts = Field(description="one more token for each running completion")
    optimizer_s: float = Field(ge=0, description="seconds per parameter and optimizer step, AdamW in float32")
    copy_bytes_per_s: float = Field(gt=0, description="memory bandwidth of a copy, read and write together")
    gemm_flops: float = Field(gt=0, description="FLOP/s of a large float32 product, one thread")
    thread_gain: float = Field(ge=0.5, description="how much faster all cores are than one thread, in such a product")
    thread_gain_measured: bool = Field(
        description="false: the machine was busy, and the gain is a guess, 0.85 per core"
    )
    process_bytes: float = Field(
        ge=0, description="resident size of a trainer's process without a model, when it has computed something"
    )
    heap_factor: float = Field(
        ge=1,
        description="what a pass takes beyond what is there before it, as a multiple of what planning.memory counts",
    )
    residuals: dict[str, float] = Field(
        default={}, description="median relative error of what was measured against these constants"
    )

    def speed_up(self, threads: int) -> float:
        """Of `threads` against one: linear between 1 and the gain of all cores."""
        used = min(max(threads, 1), self.cores)
        return 1.0 if self.cores == 1 else 1 + (self.thread_gain - 1) * (used - 1) / (self.cores - 1)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where there is none, or one of another version."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, ValueError):
            return None


def calibration_file() -> Path:
    """Where this user's calibration lies: $R1_CALIBRATION, else r1/calibration.json under XDG's cache folder."""
    if named := os.environ.get(_ENVIRONMENT):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "r1" / "calibration.json"
