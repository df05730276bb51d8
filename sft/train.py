"""The SFT stage: conversations to batches, one optimizer step each (DeepSeek-R1, arXiv:2501.12948v2, B.4.2)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import context_length, load_tokenizer
from sft.batch import Example, Row, pack_examples
from sft.config import SFTConfig
from sft.conversations import conversation_examples, read_conversations
from sft.loop import train
from training.run_log import write_stats
from training.stage import StageContext, StageError

Sample = list[Example]  # a conversation; mostly one Example


def run(config: SFTConfig, context: StageContext) -> None:
    fine_tune(config, context, checkpoint=context.inputs["policy"], dataset=context.inputs["dataset"])


def fine_tune(config: SFTConfig, context: StageContext, *, checkpoint: Path, dataset: Path) -> None:
    """Train `checkpoint` on the conversations of the artifact `dataset`; the result is left in the stage's folder."""
    samples, dropped = load_samples(config, checkpoint, dataset)
    steps_per_epoch = math.ceil(len(samples) / config.batch_size)
    steps = steps_per_epoch * config.epochs
    _write_stats(context.output, samples, dropped, steps)

    def batches(step: int) -> list[Row]:
        epoch, place = divmod(step, steps_per_epoch)
        order = epoch_order(len(samples), context.seed, epoch)
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        return pack_examples([e for index in chosen for e in samples[index]], config.trainer.row_tokens)

    train(checkpoint, batches, steps, config, context, indexer=config.indexer)


def load_samples(config: SFTConfig, checkpoint: Path, dataset: Path) -> tuple[list[Sample], int]:
    """The tokenised conversations that fit, and how many do not: they are dropped whole, since a cut one has no answer.

    The limit is the model's context. Raises StageError when nothing is left, or when the template has no room for a
    conversation.
    """
    tokenizer = load_tokenizer(checkpoint)
    _check_tokenizer(tokenizer, checkpoint, config)
    limit = context_length(checkpoint)
    samples, dropped = [], 0
    for row in read_conversations(dataset):
        try:
            sample = conversation_examples(tokenizer, row["messages"], config.template)
        except ValueError as error:
            raise StageError(f"{dataset}, row {row['id']}: {error}") from None
        if max(len(example.token_ids) for example in sample) <= limit:
            samples.append(sample)
        else:
            dropped += 1
    if not samples and dropped:
        sentence = f"{dataset}: all {dropped} rows are longer than the {limit} tokens of the model's context"
        raise StageError(sentence)
    if not samples:
        raise StageError(f"{dataset} has no rows: there is nothing to train on; make the dataset again")
    return samples, dropped


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the samples in one epoch, [count] int64, by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _check_tokenizer(tokenizer: Any, checkpoint: Path, config: SFTConfig) -> None:
    if tokenizer.eos_token_id is None:
        raise StageError(f"{checkpoint}: the tokenizer has no EOS token, so completions could not end; set eos_token")
    if config.template == "chat" and not tokenizer.chat_template:
        raise StageError(f"{checkpoint}: the tokenizer has no chat template; add one, or set template: plain")


def _write_stats(folder: Path, samples: Sequence[Sample], dropped: int, steps: int) -> None:
    examples = [example for sample in samples for example in sample]
    stats = {
        "samples": len(samples),
        "dropped_too_long": dropped,
        "tokens": sum(len(e.token_ids) for e in examples),
        "target_tokens": sum(int(e.loss_mask.sum()) for e in examples),
        "steps": steps,
    }
    write_stats(folder, stats)
