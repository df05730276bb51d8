"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus weighted MTP and balance losses.

With `indexer` other than frozen the indexers of DeepSeek-V3.2 learn too, or alone (models.indexer).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from models.checkpoint import load_model
from models.indexer import Lessons, Stage, TaughtLayout, wake
from sft.batch import EMPTY, Row
from sft.config import IndexerStage
from training.policy import PackedRow, Policy, RowTensors
from training.trainer import Trainer


class SupervisedTrainer(Trainer):
    def __init__(self, *args, indexer: IndexerStage = "frozen", **kwargs):
        self.stage: Stage | None = None if indexer == "frozen" else indexer
        self.lessons: Lessons | None = None  # of the last pass
        super().__init__(*args, **kwargs)

    def _load_model(self) -> PreTrainedModel:
        return load_model(self.checkpoint, indexed=self.stage is not None)

    def _shard(self, policy: Policy) -> Policy:
        if self.stage:
            wake(policy, self.stage)
        return super()._shard(policy)

    def _row(self, row: PackedRow) -> RowTensors:
        tensors = super()._row(row)
        if self.stage is None:
            return tensors
        layout = TaughtLayout.over(tensors.layout, self.stage)
        self.lessons = layout.lessons
        return replace(tensors, layout=layout)

    def step(
        self, rows: list[Row], lr: float, mtp_weight: float, bias_speed: float, balance_weight: float = 0.0
    ) -> dict[str, float]:
        """One optimizer step on the rows of all ranks, of which `rows` are this one's. The loss is the mean over all
        target tokens of all rows (nats per token).

        balance_weight: of the sequence-wise balance loss, its mean over all tokens of all rows, summed over routers.
        The loss of indexers is such a mean too, summed over layers; in warm-up it is all the loss there is.
        """
        counts = self.ranks.gather([(len(row.target_ids), len(row.input_ids)) for row in rows])
        targets, tokens = (sum(column) for column in zip(*(row for share in counts for row in share), strict=True))
        if targets == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")
        sums = {"loss/nll": 0.0, "loss/mtp": 0.0}
        sums |= {"loss/balance": 0.0} if balance_weight > 0 and self.load.counts else {}
        sums |= {"loss/indexer": 0.0} if self.stage else {}
        recalled: list[torch.Tensor] = []
        for row in self.even(rows, EMPTY):
            loss, parts = self._loss(row, targets, tokens, mtp_weight, balance_weight)
            for name, value in parts.items():
                sums[name] += value
            recalled += self.lessons.recalled if self.lessons else []
            loss.backward()
        metrics = self.ranks.add_up(sums) | self._recall(recalled)
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        if self.load.counts:
            self.load.sum_over_ranks()
            metrics |= self.load.metrics() | {"moe/bias_speed": bias_speed}
            self.load.update_bias(bias_speed)
        return metrics

    def _loss(
        self, row: Row, targets: int, tokens: int, mtp_weight: float, balance_weight: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """What a row adds to the loss of the batch, and that of each part, unweighted."""
        with self.balance.watch(np.diff(row.cu_seqlens).tolist(), balance_weight > 0) as imbalances:
            nll, mtp_nll = self.next_token_losses(row)
        loss, parts = nll / targets, {"loss/nll": nll.item() / targets}
        if mtp_nll is not None:
            loss = loss + mtp_weight * mtp_nll / targets
            parts["loss/mtp"] = mtp_nll.item() / targets
        if imbalances:
            imbalance = torch.stack(imbalances).sum() / tokens
            loss = loss + balance_weight * imbalance
            parts["loss/balance"] = imbalance.item()
        if self.lessons is not None:
            taught = torch.stack(self.lessons.losses).sum() / tokens
            loss = taught if self.stage == "warmup" else loss + taught
            parts["loss/indexer"] = taught.item()
        return loss, parts

    def _recall(self, recalled: Sequence[torch.Tensor]) -> dict[str, float]:
        """Of the index_topk tokens that attention looks at most, the share that indexers choose; over all layers and
        the queries that have a choice."""
        if self.stage != "warmup":
            return {}
        found, wanted = torch.stack([torch.zeros(2), *(counts.cpu() for counts in recalled)]).sum(dim=0).tolist()
        counts = self.ranks.add_up({"found": found, "wanted": wanted})
        return {"indexer/recall": counts["found"] / counts["wanted"]} if counts["wanted"] else {}
