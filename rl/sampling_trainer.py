"""A trainer rank whose weights sample: in its own process, or in generators that it sends them to."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from rl.batch import MicroBatch, TrainingSequence, empty_row, pack
from rollouts.records import Group, Request, SamplingParams
from rollouts.transformers_generator import ModelSampler
from rollouts.weight_sender import WeightSender
from training.passes import Predict
from training.policy import evaluating
from training.stage import StageError
from training.trainer import Trainer


class SamplingTrainer(Trainer, WeightSender):
    def __init__(self, *args, row_tokens: int, max_slots: int = 256, **kwargs):
        super().__init__(*args, **kwargs)
        self.leads, self.rounds = self.ranks.rank == 0, self.ranks.rounds
        self.row_tokens = row_tokens
        # Sampling needs the weights in one piece.
        self.sampler = ModelSampler(self.model, self.tokenizer, max_slots) if not self.ranks.in_pieces else None

    def set_version(self, version: int) -> None:
        """Stamp what `stream` samples from now on."""
        if self.sampler is None:
            raise StageError(
                "sample_in_trainer samples with whole weights, and precision fp8 on a GPU shards them (the rest is "
                "bfloat16); set sample_in_trainer: false"
            )
        self.sampler.policy_version = version

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """Groups as they finish, from the weights as they are (see rollouts.generator)."""
        assert self.sampler is not None
        self.weights_away.fetch()
        self.model.eval()
        try:
            yield from self.sampler.stream(requests, params, version)
        finally:
            self.model.train()

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs, float32 [T - 1], of every token of each sequence but its first, at temperature 1, to compare with
        the generators'. All ranks score the same sequences, of two tokens at least."""
        ids = [np.array(sequence) for sequence in sequences]
        texts = [TrainingSequence(prompt_ids=s[:1], completion_ids=s[1:], advantage=0.0) for s in ids]
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(ids)
        rows = self._rows(texts)
        with evaluating(self.policy):
            found = self.read(rows, partial(row_logprobs, temperature=1.0))
        for row, logprobs in zip(rows, found, strict=True):
            for index, of_sequence in zip(row.sequence_indices, row.split(logprobs), strict=True):
                scores[index] = of_sequence
        return scores

    def _rows(self, sequences: Sequence[TrainingSequence]) -> list[MicroBatch]:
        """This rank's sequences in as many rows as the other ranks have."""
        return self.even(pack(sequences, self.row_tokens), empty_row())


def row_logprobs(row: MicroBatch, predict: Predict, temperature: float) -> np.ndarray:
    """[C] float32."""
    logprobs_C = predict(temperature).logprobs_C
    assert logprobs_C is not None
    return logprobs_C.cpu().numpy()
