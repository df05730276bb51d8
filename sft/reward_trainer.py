"""The trainer rank of a reward model: pairs by Bradley-Terry, labels by binary cross-entropy.

    pairs     loss = mean over pairs of   -log sigmoid(score(chosen) - score(rejected))
    labels    loss = mean over labels of  -log sigmoid(score) if safe else -log sigmoid(-score)

Losses carry the denominators of the whole batch, so it does not matter how pairs are dealt to ranks and rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from data.packing import best_fit
from models.mtp import MTPModule
from models.reward_head import RewardHead, save_head
from training.parallel import whole
from training.policy import Policy, RowTensors, evaluating, uncounted
from training.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What is learned from as a whole: chosen and rejected, or one response and its label."""

    token_ids: tuple[np.ndarray, ...]  # [T] int64 each; two, the chosen one first, or one
    safe: bool = True  # of one response

    def __len__(self) -> int:
        return sum(map(len, self.token_ids))


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A packed row of S sequences, of which those of a pair follow each other (training.policy.PackedRow)."""

    input_ids: np.ndarray  # [T] int64
    position_ids: np.ndarray  # [T] int64
    cu_seqlens: np.ndarray  # [S + 1] int32
    labels: np.ndarray  # [S] float32: 1 safe, 0 unsafe; empty for pairs
    members: tuple[int, ...] = ()  # places in the list that was packed
    predicting_positions: np.ndarray = field(default_factory=_none)  # nothing is predicted
    target_ids: np.ndarray = field(default_factory=_none)


EMPTY = ScoreRow(
    input_ids=_none(),
    position_ids=_none(),
    cu_seqlens=np.zeros(1, dtype=np.int32),
    labels=np.zeros(0, dtype=np.float32),
)


def pack_scored(items: Sequence[Scored], capacity: int) -> list[ScoreRow]:
    """Rows of at most `capacity` tokens; a longer pair is a row of its own, and no pair is torn apart."""
    return [_row(items, members) for members in best_fit([len(item) for item in items], capacity)]


def _row(items: Sequence[Scored], members: Sequence[int]) -> ScoreRow:
    sequences = [ids for place in members for ids in items[place].token_ids]
    lengths = [len(ids) for ids in sequences]
    return ScoreRow(
        input_ids=np.concatenate(sequences).astype(np.int64),
        position_ids=np.concatenate([np.arange(length) for length in lengths]).astype(np.int64),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        labels=np.array([items[p].safe for p in members if len(items[p].token_ids) == 1], dtype=np.float32),
        members=tuple(members),
    )


class ScoringPolicy(Policy):
    """A policy that reads a score off the last token of each sequence."""

    def __init__(self, model, head: RewardHead):
        super().__init__(model)
        self.head = head

    def forward(self, row: RowTensors) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scores [S] float32; one for a row without sequences."""
        return self.head(self.hidden_states(row)[0, row.ends])


class RewardTrainer(Trainer):
    def __init__(self, *args, seed: int, **kwargs):
        self.seed = seed
        super().__init__(*args, **kwargs)

    def _held_here(self, model: PreTrainedModel, mtp: MTPModule | None = None) -> ScoringPolicy:
        return ScoringPolicy(model, RewardHead(model.config.hidden_size, self.seed))

    def step(self, rows: list[ScoreRow], lr: float) -> dict[str, float]:
        """One optimizer step on the rows of all ranks, of which `rows` are this one's."""
        total = sum(self.ranks.gather(sum(len(row.members) for row in rows)))
        sums = {"loss/preference": 0.0, "preference/accuracy": 0.0, "preference/margin": 0.0}
        self.watch_rounding()
        for row in self.even(rows, EMPTY):
            margins = margins_of(self._scores(row), row.labels)
            loss = -F.logsigmoid(margins).sum() / total
            loss.backward()
            sums["loss/preference"] += loss.item()
            sums["preference/accuracy"] += (margins > 0).sum().item() / total
            sums["preference/margin"] += margins.sum().item() / total
        metrics = self.ranks.add_up(sums)
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        return metrics | self.finish_step(0.0)

    @torch.no_grad()
    def score(self, rows: list[ScoreRow]) -> list[list[float]]:
        """Per row, the scores of its sequences."""
        with evaluating(self.policy):
            return [self._scores(row).tolist() for row in self.even(rows, EMPTY)][: len(rows)]

    def _scores(self, row: ScoreRow) -> torch.Tensor:
        """[S]; [0], still in the graph, for an empty row, whose pass other ranks wait for."""
        tensors = RowTensors.of(row, self.device)
        if len(row.input_ids):
            return self.policy(tensors)
        with uncounted(self.policy):
            return self.policy(tensors)[:0]

    def save_checkpoint(self, folder: str, dtype: str = "float32") -> None:
        """The checkpoint and its head. All ranks put the head together; the first writes it."""
        super().save_checkpoint(folder, dtype)
        weight_D = whole(self.policy.head.weight_D)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        if self.ranks.rank == 0:
            save_head(Path(folder), weight_D)


def margins_of(scores_S: torch.Tensor, labels_S: np.ndarray) -> torch.Tensor:
    """By how much each pair, or label, is right: [S / 2] differences, or [S] scores with the sign of their label."""
    if len(labels_S):
        return scores_S * (2 * torch.from_numpy(labels_S).to(scores_S.device) - 1)
    return scores_S[0::2] - scores_S[1::2]
