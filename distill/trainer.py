"""The student's trainer rank: KL to what teachers say, over tokens of theirs or of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.config import KLConfig
from distill.taught import NO_LECTURE, Lecture, TaughtRow
from distill.teacher_process import shared_tokens
from models.fp8_checkpoint import TensorFiles
from rl.sampling_trainer import SamplingTrainer
from training.passes import Found, Predict, total
from training.topk_kl import topk_kl
from training.vocabulary_kl import vocabulary_kl


class DistillTrainer(SamplingTrainer):
    def __init__(self, *args, kl: KLConfig, teachers: Mapping[str, str], **kwargs):
        """teachers: name -> checkpoint folder, whose head makes the teacher's logits of its hidden states."""
        super().__init__(*args, **kwargs)
        self.kl, self.teachers = kl, tuple(teachers)
        wanted = teachers if kl.top_k is None else {}
        heads = {name: _head(Path(folder)) for name, folder in wanted.items()}
        self.tokens = shared_tokens(self.checkpoint, self.model.config.vocab_size)
        self.heads = {name: head[: self.tokens].to(self.device) for name, head in heads.items()}

    def step(self, rows: Sequence[TaughtRow], lr: float) -> dict[str, float]:
        """One optimizer step on the rows of all ranks, of which `rows` are this one's. The loss: summed over teachers,
        weight times KL (nats), its mean over all predicted tokens of all rows."""
        targets = sum(self.ranks.gather(sum(len(row.target_ids) for row in rows)))
        if targets == 0:
            raise ValueError("a batch without target tokens: every sample's loss mask is empty")

        def lesson(row: TaughtRow, predict: Predict) -> tuple[torch.Tensor, Found]:
            found: Found = {f"{sum_of}/{teacher}": 0.0 for sum_of in ("kl", "tokens") for teacher in self.teachers}

            def at_head(hidden_CD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
                loss = 0.0 * (hidden_CD.sum() + weight_VD.sum())  # ranks without a lecture have gradients too
                weight_VD = weight_VD[: self.tokens]
                for lecture in row.lectures:
                    kl = self._kl(lecture, hidden_CD, weight_VD)
                    found[f"kl/{lecture.teacher}"] += kl.item()
                    found[f"tokens/{lecture.teacher}"] += len(lecture.places)
                    loss = loss + lecture.weight * kl
                return loss / targets

            loss = predict(None, head_loss=at_head).loss
            assert loss is not None
            return loss, found | {"loss/kl": loss.item()}

        sums = self.ranks.add_up(total(self.learn(self.even(rows, NO_LECTURE), lesson)))
        metrics = {"loss/kl": sums["loss/kl"], "tokens/targets": float(targets)}
        for teacher in self.teachers:
            if tokens := sums[f"tokens/{teacher}"]:
                metrics[f"kl/{teacher}"] = sums[f"kl/{teacher}"] / tokens
        metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        metrics["optimizer/lr"] = lr
        return metrics | self.finish_step(0.0)

    def _kl(self, lecture: Lecture, hidden_CD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Its sum over the places of a lecture."""
        told, hidden_ND = lecture.told, hidden_CD[self._tensor(lecture.places)]
        direction, temperature = self.kl.direction, self.kl.temperature
        if told.hidden is not None:
            head = self.heads[lecture.teacher]
            return vocabulary_kl(hidden_ND, weight_VD, self._tensor(told.hidden), head, direction, temperature)
        assert told.ids is not None and told.logprobs is not None
        ids, logprobs = self._tensor(told.ids.astype(np.int64)), self._tensor(told.logprobs)
        return topk_kl(hidden_ND, weight_VD, ids, logprobs, direction, temperature)[0]


def _head(folder: Path) -> torch.Tensor:
    """[V, E] of a checkpoint, without the rest of it."""
    files = TensorFiles(folder)
    name = "lm_head.weight" if "lm_head.weight" in files else "model.embed_tokens.weight"  # tied
    return files.weight(name).float()
