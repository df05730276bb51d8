"""The SFT stage: conversations to batches, one optimizer step each (DeepSeek-R1, arXiv:2501.12948v2, B.4.2)."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.chat import Template, template_fault
from models.checkpoint import context_length, load_tokenizer
from sft.batch import Example, Row, pack_examples
from sft.config import SFTConfig
from sft.conversations import conversation_examples, read_conversations
from sft.loop import train
from training.checkpoint_config import check_settings_are_used
from training.run_log import write_stats
from training.stage import StageContext, StageError

Sample = list[Example]  # a conversation; mostly one Example
NOTABLE_SHARE = 0.05  # of rows that do not fit; more are said in the log, not in stats.json alone
logger = logging.getLogger(__name__)


def run(config: SFTConfig, context: StageContext) -> None:
    fine_tune(config, context, checkpoint=context.inputs["policy"], dataset=context.inputs["dataset"])


def fine_tune(
    config: SFTConfig, context: StageContext, *, checkpoint: Path, dataset: Path, token_budget: int | None = None
) -> None:
    """Train `checkpoint` on the conversations of the artifact `dataset`; the result is left in the stage's folder.

    token_budget: target tokens after which training ends, within the epochs.
    """
    check_settings_are_used(config, checkpoint, context.name)
    samples, dropped = load_samples(config.template, checkpoint, dataset)
    epochs = Epochs([target_tokens(sample) for sample in samples], config.batch_size, config.epochs, context.seed)
    steps = epochs.steps_within(token_budget)
    write_sample_stats(context.output, samples, dropped, epochs, steps)

    def batches(step: int) -> list[Row]:
        return pack_examples([e for index in epochs.samples(step) for e in samples[index]], config.trainer.row_tokens)

    train(checkpoint, batches, steps, config, context, indexer=config.indexer)


class Epochs:
    """Which samples each optimizer step takes: in every epoch each of them once, in another order."""

    def __init__(self, tokens: Sequence[int], batch_size: int, epochs: int, seed: int):
        """tokens: of each sample, those that are learnt."""
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed
        self.per_epoch = math.ceil(len(tokens) / batch_size)
        self.steps = self.per_epoch * epochs
        self._order = -1, np.zeros(0, np.int64)  # the epoch asked for last, and its order

    def samples(self, step: int) -> np.ndarray:
        """Indices, int64, by seed and step alone."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.tokens), self.seed, epoch)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def steps_within(self, budget: int | None) -> int:
        """The steps that it takes to learn `budget` tokens, or all there are."""
        if budget is None:
            return self.steps
        whole = sum(self.tokens)
        first = min(budget // whole, self.steps // self.per_epoch) * self.per_epoch if whole else self.steps
        learnt = first // self.per_epoch * whole
        for step in range(first, self.steps):
            if learnt >= budget:
                return step
            learnt += self._tokens_of(step)
        return self.steps

    def tokens_in(self, steps: int) -> int:
        """Learnt in the first `steps`."""
        epochs, rest = divmod(steps, self.per_epoch)
        return epochs * sum(self.tokens) + sum(self._tokens_of(steps - rest + place) for place in range(rest))

    def _tokens_of(self, step: int) -> int:
        return sum(self.tokens[index] for index in self.samples(step))


def load_samples(
    template: Template, checkpoint: Path, dataset: Path, longest: float = math.inf
) -> tuple[list[Sample], int]:
    """The tokenised conversations that fit, and how many do not: they are dropped whole, since a cut one has no answer.

    The limit is the model's context, or `longest` where that is less. Raises StageError when nothing is left, or when
    the template has no room for a conversation.
    """
    tokenizer = load_tokenizer(checkpoint)
    _check_tokenizer(tokenizer, checkpoint, template)
    limit = min(longest, context_length(checkpoint))
    samples, dropped = [], 0
    for row in read_conversations(dataset):
        try:
            sample = conversation_examples(tokenizer, row["messages"], template)
        except ValueError as error:
            raise StageError(f"{dataset}, row {row['id']}: {error}") from None
        if max(len(example.token_ids) for example in sample) <= limit:
            samples.append(sample)
        else:
            dropped += 1
    if samples and dropped > NOTABLE_SHARE * (len(samples) + dropped):
        logger.warning(
            "%s: %d of %d rows are longer than %.0f tokens and are left out",
            dataset,
            dropped,
            len(samples) + dropped,
            limit,
        )
    if not samples and dropped:
        sentence = f"{dataset}: all {dropped} rows are longer than the {limit} tokens of the model's context"
        raise StageError(sentence)
    if not samples:
        raise StageError(f"{dataset} has no rows: there is nothing to train on; make the dataset again")
    return samples, dropped


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the samples in one epoch, [count] int64, by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _check_tokenizer(tokenizer: Any, checkpoint: Path, template: Template) -> None:
    if fault := template_fault(tokenizer, template):
        raise StageError(f"{checkpoint}: {fault}")


def target_tokens(sample: Sample) -> int:
    return sum(int(example.loss_mask[1:].sum()) for example in sample)


def write_sample_stats(folder: Path, samples: Sequence[Sample], dropped: int, epochs: Epochs, steps: int) -> None:
    stats = {
        "samples": len(samples),
        "dropped_too_long": dropped,
        "tokens": sum(len(example.token_ids) for sample in samples for example in sample),
        "target_tokens": sum(epochs.tokens),
        "steps": steps,
        "tokens_trained": epochs.tokens_in(steps),
    }
    write_stats(folder, stats)
