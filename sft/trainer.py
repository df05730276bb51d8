"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus weighted MTP and balance losses."""

import numpy as np
import torch

from sft.batch import EMPTY, Row
from training.trainer import Trainer


class SupervisedTrainer(Trainer):
    def step(
        self, rows: list[Row], lr: float, mtp_weight: float, bias_speed: float, balance_weight: float = 0.0
    ) -> dict[str, float]:
        """One optimizer step on the rows of all ranks, of which `rows` are this one's. The loss is the mean over all
        target tokens of all rows (nats per token).

        balance_weight: of the sequence-wise balance loss, its mean over all tokens of all rows, summed over routers.
        """
        counts = self.ranks.gather([(len(row.target_ids), len(row.input_ids)) for row in rows])
        targets, tokens = (sum(column) for column in zip(*(row for share in counts for row in share), strict=True))
        if targets == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")
        sums = {"loss/nll": 0.0, "loss/mtp": 0.0}
        sums |= {"loss/balance": 0.0} if balance_weight > 0 and self.load.counts else {}
        for row in self.even(rows, EMPTY):
            with self.balance.watch(np.diff(row.cu_seqlens).tolist(), balance_weight > 0) as imbalances:
                nll, mtp_nll = self.next_token_losses(row)
            loss = nll / targets
            sums["loss/nll"] += nll.item() / targets
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / targets
                sums["loss/mtp"] += mtp_nll.item() / targets
            if imbalances:
                imbalance = torch.stack(imbalances).sum() / tokens
                loss = loss + balance_weight * imbalance
                sums["loss/balance"] += imbalance.item()
            loss.backward()
        metrics = self.ranks.add_up(sums)
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        if self.load.counts:
            self.load.sum_over_ranks()
            metrics |= self.load.metrics() | {"moe/bias_speed": bias_speed}
            self.load.update_bias(bias_speed)
        return metrics
