"""The supervised trainer rank: mean cross-entropy over a batch of packed rows, plus weighted MTP and balance losses."""

import torch

from sft.batch import EMPTY, Row
from training.passes import Balance, Found, Predict, total
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

        def lesson(row: Row, predict: Predict) -> tuple[torch.Tensor, Found]:
            predictions = predict(None, mtp="joint" if self.train_mtp else "off")
            assert predictions.loss is not None
            loss, mtp_nll = predictions.loss / targets, predictions.mtp_nll
            found = {"loss/nll": predictions.loss.item() / targets, "loss/mtp": 0.0}
            if mtp_nll is not None:
                loss = loss + mtp_weight * mtp_nll / targets
                found["loss/mtp"] = mtp_nll.item() / targets
            return loss, found

        balance = Balance(balance_weight, tokens) if balance_weight > 0 and self.router_names else None
        metrics = self.ranks.add_up(total(self.learn(self.even(rows, EMPTY), lesson, balance)))
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        return metrics | self.move_biases(bias_speed)
