"""The supervised loop: batches in, checkpoints and metrics out, resumed where it was cut off."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.actors import start_ray, wait
from data.packing import fill_rate
from sft.batch import Row
from sft.config import IndexerStage, PretrainConfig, SFTConfig
from training.background_save import BackgroundSave, Wait
from training.checkpoint import AVERAGE, CheckpointStore
from training.checkpoint_config import check_settings_are_used
from training.config import TrainingConfig
from training.group import PerRank, TrainerGroup, spawn_trainer
from training.run_log import RunLog
from training.stage import StageContext

Batches = Callable[[int], Sequence[Row]]  # optimizer step -> its packed rows; the same rows every time it is asked


def train(
    checkpoint: Path,
    batches: Batches,
    steps: int,
    config: SFTConfig | PretrainConfig,
    context: StageContext,
    save_dtype: str = "float32",
    indexer: IndexerStage = "frozen",
) -> None:
    """Take `steps` optimizer steps from `checkpoint` in an actor and leave the result in the stage's folder."""
    check_settings_are_used(config, checkpoint, context.name)
    start_ray()
    trainer = spawn_trainer(
        "sft.trainer:SupervisedTrainer", config.trainer, str(checkpoint), config.optimizer, mtp=config.mtp_weight > 0,
        indexer=indexer, seed=context.seed,
    )  # fmt: skip

    def step(rows: PerRank, lr: float) -> Any:
        return trainer.step.remote(rows, lr, config.mtp_weight, config.bias_speed, config.balance_weight)

    train_by(trainer, step, batches, steps, config, context, save_dtype=save_dtype)


def train_by(
    trainer: TrainerGroup,
    step: Callable[[PerRank, float], Any],
    batches: Batches,
    steps: int,
    config: TrainingConfig,
    context: StageContext,
    *,
    loss: str = "loss/nll",
    save_dtype: str = "float32",
) -> None:
    """The loop for any trainer: `step` begins an optimizer step on dealt rows at a learning rate, and its answer has
    metrics, among them `loss`. The trainer is stopped at the end, or by an error."""
    try:
        _take_steps(trainer, step, batches, steps, config, context, loss)
        phase, deadline_s = f"{context.name}: saving the checkpoint", config.trainer.deadline_s
        wait(trainer.save_checkpoint.remote(str(context.output), save_dtype), phase=phase, deadline_s=deadline_s)
        average = trainer.save_average.remote(str(context.output / AVERAGE), save_dtype)
        wait(average, phase=phase, deadline_s=deadline_s)
    finally:
        trainer.stop()


def _take_steps(
    trainer: TrainerGroup,
    take_step: Callable[[PerRank, float], Any],
    batches: Batches,
    steps: int,
    config: TrainingConfig,
    context: StageContext,
    loss: str,
) -> None:
    def waits(ref: Any, phase: str) -> Any:
        return wait(ref, phase=f"{context.name}: {phase}", deadline_s=config.trainer.deadline_s)

    log = RunLog(context.output)
    store = CheckpointStore(context.output / "checkpoints", log=log)
    saving = BackgroundSave(trainer, store, waits)
    first = resume(trainer, store, log, waits)
    rows = batches(first) if first < steps else []
    for step in range(first, steps):
        started = time.monotonic()
        lr = config.optimizer.lr_at(step, steps)
        dealt = trainer.dealt(rows, lambda row: len(row.input_ids))
        pending = take_step(dealt, lr)
        lengths = [[len(row.input_ids) for row in share] for share in dealt.values]
        tokens = sum(map(sum, lengths))
        rows = batches(step + 1) if step + 1 < steps else []  # made while the trainer computes
        metrics = waits(pending, f"step {step}")
        seconds = time.monotonic() - started
        saving.poll()
        log.log(step + 1, metrics)
        speed = {"time/step_s": seconds, "throughput/tokens_per_s": tokens / seconds}
        log.log_timing(step + 1, speed | {"packing/fill": fill_rate(lengths, config.trainer.row_tokens)})
        context.report(
            {"step": step + 1, "total_steps": steps, "loss": metrics[loss], "tokens_per_s": tokens / seconds}
        )
        if (step + 1) % config.trainer.checkpoint_every == 0 and step + 1 < steps:
            saving.begin(step + 1)
    saving.finish()


def resume(trainer: TrainerGroup, store: CheckpointStore, log: RunLog, waits: Wait) -> int:
    """Load the last whole checkpoint, if any, and cut the logs back to it. Returns the optimizer steps taken."""
    found = store.latest()
    step = 0
    if found:
        step, folder = found
        waits(trainer.load_state.remote(str(folder)), "loading a checkpoint")
    log.truncate_after(step)
    waits(trainer.write_audit.remote(str(log.folder)), "saying what computes in what")
    return step
