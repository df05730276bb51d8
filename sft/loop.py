"""The supervised loop: batches in, checkpoints and metrics out, resumed where it was cut off."""

import time
from collections.abc import Callable
from typing import Any

from cluster.actors import wait
from sft.batch import Row
from training.checkpoint import CheckpointStore
from training.config import OptimizerConfig, TrainerConfig
from training.run_log import RunLog
from training.stage import StageContext

Batches = Callable[[int], list[Row]]  # optimizer step -> its packed rows; the same rows every time it is asked


def train(
    trainer: Any,
    batches: Batches,
    steps: int,
    *,
    optimizer: OptimizerConfig,
    settings: TrainerConfig,
    mtp_weight: float,
    bias_speed: float,
    context: StageContext,
    save_dtype: str = "float32",
) -> None:
    """Take `steps` optimizer steps with a SupervisedTrainer actor and leave the checkpoint in the stage's folder."""
    store, log = CheckpointStore(context.output / "checkpoints"), RunLog(context.output)
    first = resume(trainer, store, log, settings)
    rows = batches(first) if first < steps else []
    for step in range(first, steps):
        started = time.monotonic()
        pending = trainer.step.remote(rows, optimizer.lr_at(step, steps), mtp_weight, bias_speed)
        tokens = sum(len(row.input_ids) for row in rows)
        rows = batches(step + 1) if step + 1 < steps else []  # made while the trainer computes
        metrics = wait(pending, phase=f"{context.name}: step {step}", deadline_s=settings.deadline_s)
        seconds = time.monotonic() - started
        log.log(step + 1, metrics)
        log.log_timing(step + 1, {"time/step_s": seconds, "throughput/tokens_per_s": tokens / seconds})
        context.report(
            {"step": step + 1, "total_steps": steps, "loss": metrics["loss/nll"], "tokens_per_s": tokens / seconds}
        )
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < steps:
            save_state(trainer, store, step + 1, settings)
    phase = f"{context.name}: saving the checkpoint"
    wait(trainer.save_checkpoint.remote(str(context.output), save_dtype), phase=phase, deadline_s=settings.deadline_s)


def resume(trainer: Any, store: CheckpointStore, log: RunLog, settings: TrainerConfig) -> int:
    """Load the last whole checkpoint, if any, and cut the logs back to it. Returns the optimizer steps taken."""
    found = store.latest()
    step = 0
    if found:
        step, folder = found
        wait(trainer.load_state.remote(str(folder)), phase="loading a checkpoint", deadline_s=settings.deadline_s)
    log.truncate_after(step)
    return step


def save_state(trainer: Any, store: CheckpointStore, step: int, settings: TrainerConfig) -> None:
    def write(folder) -> None:
        wait(trainer.save_state.remote(str(folder)), phase="saving a checkpoint", deadline_s=settings.deadline_s)

    store.save(step, write)
