"""A check, after every weight sync, that the policy which samples is the policy which trains.

Both sides compute the logprobs of the same few prompts. What differs is rounding, or a fault: a kernel that reads
weights in another layout, a part that was not updated. In float32 faults are larger by orders of magnitude. With
bfloat16 or FP8 in between, a fault smaller than the rounding passes, and so do experts that no token of the probe
meets.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.actors import wait
from rollouts.config import GeneratorConfig
from rollouts.pool import GeneratorPool

# Nats per token on average. On the tiny MoE model vLLM is at 1e-6 from the trainer in float32.
_LIMITS = {"float32": 1e-4, "bfloat16": 0.1, "fp8": 0.3}


class SyncFault(Exception):
    """A generator does not hold the weights that the trainer has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Between two sides' logprobs of the same tokens: absolute, nats per token."""

    mean: float
    max: float


def gap(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Gap:
    """NaN when either side says NaN."""
    gaps = np.concatenate([np.abs(a.astype(np.float64) - b) for a, b in zip(expected, got, strict=True)])
    return Gap(mean=float(gaps.mean()), max=float(gaps.max()))


def limit(config: GeneratorConfig, trains_in: str = "float32") -> float:
    """The largest mean gap that passes: the recipe's, or that of the coarsest precision, the trainer's included."""
    if config.sync.probe_limit is not None:
        return config.sync.probe_limit
    return max(_LIMITS[kind] for kind in (config.dtype, config.sync.wire, trains_in))


def check_sync(
    trainer: Any,
    pool: GeneratorPool,
    version: int,
    prompts: Sequence[list[int]],
    expected: Sequence[np.ndarray],
    report: Path,
    trains_in: str = "float32",
) -> dict[str, float]:
    """Compare what replicas say of `prompts`, each of at least two tokens, with `expected`, the trainer's logprobs;
    returns metrics.

    Raises SyncFault, after writing to `report` which tensors differ, when a replica is further off than `limit`.
    """
    config = pool.config
    gaps = [gap(expected, scores) for scores in pool.score(prompts)]
    worst = max(gaps, key=lambda g: g.mean if g.mean == g.mean else float("inf"))
    allowed = limit(config, trains_in)
    if not worst.mean <= allowed:  # NaN does not pass either
        bad = wait(trainer.bad_weights.remote(), phase="looking for NaN", deadline_s=config.deadline_s)
        if bad:
            raise SyncFault(
                f"{len(bad)} of the policy's own weights have an infinity or a NaN, the first is {bad[0]}, so that "
                "nothing can be sampled from it; start from a checkpoint without any"
            )
        found = _explain(trainer, pool, version, gaps, report)
        raise SyncFault(
            f"after the weight sync to version {version} a generator's logprobs differ from the trainer's by "
            f"{worst.mean:.3g} nats per token, more than {allowed:g}; {found} (see {report})"
        )
    return {"sync/probe_abs_mean": worst.mean, "sync/probe_abs_max": max(g.max for g in gaps)}


def _explain(trainer: Any, pool: GeneratorPool, version: int, gaps: Sequence[Gap], report: Path) -> str:
    """Find out which tensors differ, by the checksums of what the trainer has and replicas hold; one sentence."""
    sync = pool.config.sync
    pool.sleep()  # the trainer's weights may need the room of their caches
    own = wait(trainer.weight_checksums.remote(), phase="checksums", deadline_s=pool.config.deadline_s)
    comparable = pool.config.dtype == sync.wire == "float32"  # else what is held is rounded
    pool.wake()
    held = pool.held_checksums() if comparable else [None] * len(gaps)
    wrong = [None if sums is None else sorted(name for name in sums if sums[name] != own[name]) for sums in held]
    replicas = [{**asdict(g), "held_differently": names} for g, names in zip(gaps, wrong, strict=True)]
    report.write_text(json.dumps({"version": version, "tensors": len(own), "replicas": replicas}, indent=1) + "\n")
    if named := next(filter(None, wrong), None):
        return f"{len(named)} of {len(own)} tensors differ, the first is {named[0]}"
    if not comparable:
        return f"its weights are {sync.wire} on the way and {pool.config.dtype} in the engine"
    if not sync.checksums or sync.transport == "files":
        return "whether the tensors arrive as they are sent was not checked: that needs sync.checksums, and no files"
    return f"all {len(own)} tensors arrive as they are sent, so the engine computes otherwise with them"
