"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus the weighted MTP loss."""

from sft.batch import Row
from training.trainer import Trainer


class SupervisedTrainer(Trainer):
    def step(self, rows: list[Row], lr: float, mtp_weight: float, bias_speed: float) -> dict[str, float]:
        """One optimizer step. The loss is the mean over all target tokens of all rows (nats per token)."""
        tokens = sum(len(row.target_ids) for row in rows)
        if tokens == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")
        totals = {"loss/nll": 0.0, "loss/mtp": 0.0}
        for row in rows:
            nll, mtp_nll = self.next_token_losses(row)
            loss = nll / tokens
            totals["loss/nll"] += nll.item() / tokens
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / tokens
                totals["loss/mtp"] += mtp_nll.item() / tokens
            loss.backward()
        totals["optimizer/grad_norm"] = self.optimizer.step(lr)
        totals["optimizer/lr"] = lr
        if self.load.counts:
            totals["moe/max_violation"] = self.load.max_violation()
            self.load.update_bias(bias_speed)
        return totals
