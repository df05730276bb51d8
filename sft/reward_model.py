"""The reward-model stage: pairs or labels to a policy with a scalar head (DeepSeek-R1, arXiv:2501.12948v2, 3.1)."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.actors import start_ray, wait
from data.config import PreferenceSource
from data.preference_sources import Tally, read_pairs, read_safety_labels
from data.preferences import PreferencePair, SafetyLabel
from data.schemas import SourceError
from data.scored_text import scored_ids
from models.checkpoint import context_length, load_tokenizer
from models.reward_head import RewardDescription, save_description
from sft.loop import resume
from sft.preference_config import RewardModelConfig
from sft.reward_measures import Judged, measures
from sft.reward_trainer import Scored, ScoreRow, pack_scored
from sft.train import epoch_order
from training.background_save import BackgroundSave
from training.checkpoint import CheckpointStore
from training.group import TrainerGroup, put_back, spawn_trainer
from training.run_log import RunLog, write_stats
from training.stage import StageContext, StageError

Record = PreferencePair | SafetyLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What is trained on and what measures the model, each record with its tokens."""

    train: list[Scored]
    held_out: list[tuple[Record, Scored]]
    too_long: int  # records left out
    refused: Counter[str]  # why rows were no record -> rows


def run(config: RewardModelConfig, context: StageContext) -> None:
    policy = context.inputs["policy"]
    examples = load_examples(config, policy, context.inputs["dataset"], context.seed)
    per_epoch = math.ceil(len(examples.train) / config.batch_size)
    steps = per_epoch * config.epochs

    def batch(step: int) -> list[ScoreRow]:
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(len(examples.train), context.seed, epoch)
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        return pack_scored([examples.train[index] for index in chosen], config.trainer.row_tokens)

    start_ray()
    settings = config.trainer.model_copy(update={"drop_mtp": True})  # a module that drafts has nothing to score
    trainer = spawn_trainer(
        "sft.reward_trainer:RewardTrainer", settings, str(policy), config.optimizer, seed=context.seed
    )
    try:
        _take_steps(trainer, batch, steps, config, context)
        held_out = _measure(trainer, examples, config, context)
        saved = trainer.save_checkpoint.remote(str(context.output))
        wait(saved, phase=f"{context.name}: saving the reward model", deadline_s=settings.deadline_s)
    finally:
        trainer.stop()
    save_description(context.output, held_out)
    write_stats(context.output, _stats(examples, held_out, steps))


def load_examples(config: RewardModelConfig, policy: Path, dataset: Path, seed: int) -> Examples:
    """The records of a dataset artifact, split by prompt: no prompt is in both parts, whatever their order.

    Raises StageError for a dataset of the other kind, and when either part is empty.
    """
    tokenizer, limit = load_tokenizer(policy), min(config.max_length, context_length(policy))
    read = read_pairs if config.objective == "helpful" else read_safety_labels
    train: list[Scored] = []
    held_out: list[tuple[Record, Scored]] = []
    too_long, tally = 0, Tally()
    try:
        for record in read(PreferenceSource(path=str(dataset / "data.parquet"), bad_row_limit=1.0), tally):
            _refuse_other_labels(record, config.objective, dataset)
            item = _scored(tokenizer, record)
            if max(map(len, item.token_ids)) > limit:
                too_long += 1
            elif _share(record.prompt, seed) < config.held_out_share:
                held_out.append((record, item))
            else:
                train.append(item)
    except SourceError as error:
        raise StageError(f"reward_model, objective {config.objective}: {error}") from None
    if not train or not held_out:
        raise StageError(
            f"{dataset}: {len(train)} records to train on and {len(held_out)} held out"
            f"{f', {too_long} are longer than {limit:.0f} tokens' if too_long else ''}; make more of them, or change "
            "held_out_share"
        )
    return Examples(train=train, held_out=held_out, too_long=too_long, refused=tally.refused)


def _refuse_other_labels(record: Record, objective: str, dataset: Path) -> None:
    """Raise StageError where labels say something else than the objective: both kinds have the same columns."""
    if isinstance(record, PreferencePair) or record.is_of_a_judgement == (objective == "judgement"):
        return
    found, right = ("right judgements", "judgement") if record.is_of_a_judgement else ("safe responses", "safety")
    raise StageError(f"reward_model, objective {objective}: {dataset} labels {found}; take objective: {right}")


def _scored(tokenizer: Any, record: Record) -> Scored:
    texts = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)
    ids = tuple(np.array(scored_ids(tokenizer, record.messages, text), dtype=np.int64) for text in texts)
    return Scored(token_ids=ids, safe=not isinstance(record, SafetyLabel) or record.safe)


def _share(prompt: str, seed: int) -> float:
    """In [0, 1), the same for equal prompts."""
    digest = hashlib.blake2b(f"{seed}/held out/{prompt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _take_steps(
    trainer: TrainerGroup,
    batch: Callable[[int], list[ScoreRow]],
    steps: int,
    config: RewardModelConfig,
    context: StageContext,
) -> None:
    def waits(ref: Any, phase: str) -> Any:
        return wait(ref, phase=f"{context.name}: {phase}", deadline_s=config.trainer.deadline_s)

    log = RunLog(context.output)
    store = CheckpointStore(context.output / "checkpoints", log=log)
    saving = BackgroundSave(trainer, store, waits)
    for step in range(resume(trainer, store, log, waits), steps):
        started = time.monotonic()
        rows = batch(step)
        dealt = trainer.dealt(rows, lambda row: len(row.input_ids))
        metrics = waits(trainer.step.remote(dealt, config.optimizer.lr_at(step, steps)), f"step {step + 1}")
        seconds, tokens = time.monotonic() - started, sum(len(row.input_ids) for row in rows)
        saving.poll()
        log.log(step + 1, metrics)
        log.log_timing(step + 1, {"time/step_s": seconds, "throughput/tokens_per_s": tokens / seconds})
        context.report(
            {
                "step": step + 1, "total_steps": steps, "loss": metrics["loss/preference"],
                "accuracy": metrics["preference/accuracy"], "tokens_per_s": tokens / seconds,
            }
        )  # fmt: skip
        if (step + 1) % config.trainer.checkpoint_every == 0 and step + 1 < steps:
            saving.begin(step + 1)
    saving.finish()


def _measure(
    trainer: TrainerGroup, examples: Examples, config: RewardModelConfig, context: StageContext
) -> RewardDescription:
    """Score what was held out."""
    rows = pack_scored([item for _, item in examples.held_out], config.trainer.row_tokens)
    shares = trainer.shares(rows, lambda row: len(row.input_ids))
    pending = trainer.score.each(trainer.dealt(rows, lambda row: len(row.input_ids)))
    parts = wait(pending, phase=f"{context.name}: held-out scores", deadline_s=config.trainer.deadline_s)
    judged = _put_back(rows, put_back(shares, parts), examples)
    scores = [score for each in judged for score in each.scores]
    std = float(np.std(scores))
    return RewardDescription(
        objective=config.objective,
        mean=float(np.mean(scores)),
        std=std if std > 0 else 1.0,
        held_out=measures(judged),
    )


def _put_back(rows: Sequence[ScoreRow], scores: Sequence[list[float]], examples: Examples) -> list[Judged]:
    """The scores of each record, in the order of the records."""
    found: dict[int, Judged] = {}
    for row, of_row in zip(rows, scores, strict=True):
        left = list(of_row)
        for place in row.members:
            record, item = examples.held_out[place]
            found[place] = Judged(record=record, scores=tuple(left[: len(item.token_ids)]))
            del left[: len(item.token_ids)]
    return [found[place] for place in range(len(examples.held_out))]


def _stats(examples: Examples, description: RewardDescription, steps: int) -> dict[str, Any]:
    return {
        "samples": len(examples.train),
        "held_out": len(examples.held_out),
        "dropped_too_long": examples.too_long,
        **{f"dropped_{reason}": count for reason, count in sorted(examples.refused.items())},
        "tokens": sum(map(len, examples.train)),
        "steps": steps,
        **{f"held_out_{name}": value for name, value in description.held_out.items()},
    }
