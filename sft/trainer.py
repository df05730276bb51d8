"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus weighted MTP and balance losses."""

import numpy as np
import torch

from sft.batch import Row
from training.trainer import Trainer


class SupervisedTrainer(Trainer):
    def step(
        self, rows: list[Row], lr: float, mtp_weight: float, bias_speed: float, balance_weight: float = 0.0
    ) -> dict[str, float]:
        """One optimizer step. The loss is the mean over all target tokens of all rows (nats per token).

        balance_weight: of the sequence-wise balance loss, its mean over all tokens of all rows, summed over routers.
        """
        tokens = sum(len(row.target_ids) for row in rows)
        if tokens == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")
        inputs = sum(len(row.input_ids) for row in rows)
        totals = {"loss/nll": 0.0, "loss/mtp": 0.0}
        for row in rows:
            with self.balance.watch(np.diff(row.cu_seqlens).tolist(), balance_weight > 0) as balance:
                nll, mtp_nll = self.next_token_losses(row)
            loss = nll / tokens
            totals["loss/nll"] += nll.item() / tokens
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / tokens
                totals["loss/mtp"] += mtp_nll.item() / tokens
            if balance:
                imbalance = torch.stack(balance).sum() / inputs
                loss = loss + balance_weight * imbalance
                totals["loss/balance"] = totals.get("loss/balance", 0.0) + imbalance.item()
            loss.backward()
        totals["optimizer/grad_norm"] = self.optimizer.step(lr)
        totals["optimizer/lr"] = lr
        if self.load.counts:
            totals |= self.load.metrics() | {"moe/bias_speed": bias_speed}
            self.load.update_bias(bias_speed)
        return totals
