"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus weighted MTP and balance losses.

With `indexer` other than frozen the indexers of DeepSeek-V3.2 learn too, or alone (models.indexer).
"""

from dataclasses import replace

import torch

from models.indexer import Lessons, Stage, TaughtLayout, wake
from sft.batch import EMPTY, Row
from sft.config import IndexerStage
from training.passes import Balance, Found, Predict, total
from training.policy import PackedRow, Policy, RowTensors
from training.trainer import Trainer

RECALLED, WANTED = "indexer/recalled", "indexer/wanted"  # sums behind indexer/recall


class SupervisedTrainer(Trainer):
    def __init__(self, *args, indexer: IndexerStage = "frozen", **kwargs):
        self.stage: Stage | None = None if indexer == "frozen" else indexer
        self.lessons: Lessons | None = None  # of the last pass
        self.indexed = self.stage is not None
        super().__init__(*args, **kwargs)

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

        def lesson(row: Row, predict: Predict) -> tuple[torch.Tensor, Found]:
            predictions = predict(None, mtp="joint" if self.train_mtp else "off")
            assert predictions.loss is not None
            loss, mtp_nll = predictions.loss / targets, predictions.mtp_nll
            found = {"loss/nll": predictions.loss.item() / targets, "loss/mtp": 0.0}
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / targets
                found["loss/mtp"] = mtp_nll.item() / targets
            if self.lessons is not None:
                taught = torch.stack(self.lessons.losses).sum() / tokens
                loss = taught if self.stage == "warmup" else loss + taught
                found |= {"loss/indexer": taught.item()} | self._recalled(self.lessons)
            return loss, found

        balance = Balance(balance_weight, tokens) if balance_weight > 0 and self.router_names else None
        metrics = self.ranks.add_up(total(self.learn(self.even(rows, EMPTY), lesson, balance)))
        if self.stage == "warmup":
            recalled, wanted = metrics.pop(RECALLED), metrics.pop(WANTED)
            metrics |= {"indexer/recall": recalled / wanted} if wanted else {}
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        return metrics | self.finish_step(bias_speed)

    def _recalled(self, lessons: Lessons) -> Found:
        """Of the index_topk tokens that attention looks at most, those that indexers choose; over all layers and the
        queries that have a choice. Counted in warm-up, where attention looks at all tokens."""
        if self.stage != "warmup":
            return {}
        recalled, wanted = torch.stack([torch.zeros(2), *(c.cpu() for c in lessons.recalled)]).sum(dim=0).tolist()
        return {RECALLED: recalled, WANTED: wanted}
