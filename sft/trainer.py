"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus the weighted MTP loss."""

from sft.batch import EMPTY, Row
from training.trainer import Trainer


class SupervisedTrainer(Trainer):
    def step(self, rows: list[Row], lr: float, mtp_weight: float, bias_speed: float) -> dict[str, float]:
        """One optimizer step on the rows of all ranks, of which `rows` are this one's. The loss is the mean over all
        target tokens of all rows (nats per token)."""
        tokens = sum(self.ranks.gather(sum(len(row.target_ids) for row in rows)))
        if tokens == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")
        nll_sum, mtp_sum = 0.0, 0.0
        for row in self.even(rows, EMPTY):
            nll, mtp_nll = self.next_token_losses(row)
            loss = nll / tokens
            nll_sum += nll.item() / tokens
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / tokens
                mtp_sum += mtp_nll.item() / tokens
            loss.backward()
        nll_sums, mtp_sums = zip(*self.ranks.gather((nll_sum, mtp_sum)), strict=True)
        totals: dict[str, float] = {"loss/nll": sum(nll_sums), "loss/mtp": sum(mtp_sums)}
        totals["optimizer/grad_norm"] = self.optimizer.step(lr)
        totals["optimizer/lr"] = lr
        if self.load.counts:
            self.load.sum_over_ranks()
            totals["moe/max_violation"] = self.load.max_violation()
            self.load.update_bias(bias_speed)
        return totals
