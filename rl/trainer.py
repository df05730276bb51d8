"""The GRPO trainer rank: old and reference logprobs, then one optimizer step per mini-batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from models.routing import routers
from models.routing_replay import RoutingReplay
from rl.batch import MicroBatch, MissingRoutes, NonFiniteLoss, TrainingSequence
from rl.chunked_loss import loss_in_chunks
from rl.loss import policy_loss
from rl.metrics import combine, mini_batch_metrics
from rl.mismatch import mismatch_sums
from rl.objective import Denominators, Objective
from rl.replay import ReplayedRows
from rl.sampling_trainer import SamplingTrainer, row_logprobs
from training.offload import Offloaded
from training.passes import Balance, Found, Predict, Reading
from training.reference import FrozenAdapters, FrozenCopy, Reference

LOSSES = ("loss/policy", "loss/balance", "loss/mtp")


class PolicyTrainer(SamplingTrainer):
    def __init__(
        self,
        *args,
        objective: Objective,
        temperature: float,
        bias_speed: float = 0.0,
        balance_weight: float = 0.0,
        mtp_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, mtp=mtp_weight > 0, **kwargs)
        self.objective, self.temperature = objective, temperature
        self.bias_speed, self.balance_weight, self.mtp_weight = bias_speed, balance_weight, mtp_weight
        self.reference = self._make_reference() if objective.needs_reference else None
        self.reference_away = Offloaded()
        self.reference_is_policy = True  # until the first step: then its logprobs need no second pass
        self.replay = RoutingReplay(self.model)
        moe_layers = [name for name in self.router_names if not name.startswith("mtp.")]
        self.replayed_layers = [moe_layers.index(name) for name, _ in routers(self.model)]
        self.routing_replay = objective.routing_replay if moe_layers else "off"  # dense models have no routes
        if self.routing_replay != "off":
            self.replay.check()
        self.routing_sums: dict[str, float] = {}  # of `annotate`; logged with the next step

    def _make_reference(self) -> Reference:
        return FrozenCopy(self.policy, self.frozen_copy()) if self.adapters is None else FrozenAdapters(self.policy)

    def offload(self, weights: bool) -> None:
        """See Trainer.offload."""
        if self.optimizer.config.offload == "all" and self.reference is not None:
            self.reference_away.take(self.reference.state_dict().values())
        super().offload(weights)

    def refresh_reference(self) -> None:
        """pi_ref <- pi_theta."""
        if self.reference is not None:
            self.weights_away.fetch()
            self.reference_away.fetch()
            self.reference.refresh()
            self.reference_is_policy = True

    @torch.no_grad()
    def annotate(self, sequences: Sequence[TrainingSequence]) -> list[TrainingSequence]:
        """The same sequences with old logprobs (current weights) and, when the objective needs them, reference ones.

        Routing replay: `rollout` forces the generator's experts here too, `trainer` adds the experts of this pass.
        Raises MissingRoutes when sequences lack the generator's.
        """
        force = self.routing_replay == "rollout"
        if force:
            self._check_routes(sequences)
        rows, replayed = self._rows(sequences), self._replayed(force)
        reading = partial(row_logprobs, temperature=self.temperature)
        olds = self.read(rows, reading, around=replayed.around)
        refs: list[Any] = [None] * len(rows)
        if self.reference is not None:
            # It routes by itself: where experts are forced, the same weights are another function.
            shared = self.reference_is_policy and not force
            refs = olds if shared else self._read_reference(rows, reading)
        annotated = list(sequences)
        for row, old, ref in zip(rows, olds, refs, strict=True):
            for index, fields in zip(row.sequence_indices, _by_sequence(row, old, ref), strict=True):
                annotated[index] = replace(annotated[index], **fields)
        self.routing_sums = replayed.sums("own")
        if self.routing_replay != "trainer":
            self.routing_sums |= replayed.sums("used")
            return annotated
        # The experts to be used are those of this pass.
        filled = [row for row in rows if len(row.input_ids)]
        for row, experts in zip(filled, replayed.experts(filled), strict=True):
            for index, of_sequence in zip(row.sequence_indices, row.split_routes(experts), strict=True):
                annotated[index] = replace(annotated[index], routed_experts=of_sequence)
        return annotated

    def _read_reference(self, rows: Sequence[MicroBatch], reading: Reading[MicroBatch, np.ndarray]) -> list[np.ndarray]:
        assert self.reference is not None
        self.reference_away.fetch()
        with self.reference.policy() as policy:
            return self.read(rows, reading, policy=policy)

    def _replayed(self, force: bool) -> ReplayedRows:
        idle = self.routing_replay == "off"
        return ReplayedRows(self.replay, self.replayed_layers, self.ranks, force=force, idle=idle)

    def update(self, mini_batch: Sequence[TrainingSequence], lr: float, max_new_tokens: int) -> dict[str, float]:
        """One optimizer step on the sequences of all ranks, of which `mini_batch` are this one's. `max_new_tokens`: the
        longest completion that could have been sampled.

        Raises NonFiniteLoss, with the weights untouched, instead of stepping on garbage.
        """
        self.load.reset()  # old and reference logprobs were routed as well
        lengths = self.ranks.gather([len(sequence.completion_ids) for sequence in mini_batch])
        denominators = Denominators.of([length for share in lengths for length in share], max_new_tokens)
        tokens = sum(self.ranks.gather(sum(len(sequence) for sequence in mini_batch)))
        replayed = self._replayed(force=self.routing_replay != "off")
        balance = Balance(self.balance_weight, tokens) if self.balance_weight > 0 and self.router_names else None
        lesson = partial(self._lesson, denominators=denominators)
        found = self.learn(self._rows(mini_batch), lesson, balance, replayed.around)
        routing, self.routing_sums = [self.routing_sums, replayed.sums("used")], {}
        sums = combine(self.ranks.gather(combine([*found, *routing])))
        metrics = {name: sums[name] for name in LOSSES if name in sums}
        metrics["policy/entropy"] = sums["policy/entropy"] / denominators.tokens
        metrics |= mini_batch_metrics(sums)
        self._step(lr, metrics)
        self.reference_is_policy = False
        return metrics | self.finish_step(self.bias_speed)

    def _lesson(self, row: MicroBatch, predict: Predict, denominators: Denominators) -> tuple[torch.Tensor, Found]:
        """The loss of a row, and its share of the losses, of the entropy and of what metrics are made of."""
        loss, entropy, mtp_nll, sums = self._policy_loss(row, predict, denominators)
        found = {"loss/policy": loss.item(), "policy/entropy": entropy.item()}
        if mtp_nll is not None:
            mtp_nll = mtp_nll / denominators.tokens
            loss = loss + self.mtp_weight * mtp_nll
            found["loss/mtp"] = mtp_nll.item()
        return loss, found | (combine([sums]) if len(row.input_ids) else {})

    def _policy_loss(
        self, row: MicroBatch, predict: Predict, denominators: Denominators
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]:
        """(loss, summed entropy, summed loss of the MTP module, sums for metrics) of a row."""
        assert row.old_logprobs is not None and row.sampling_logprobs is not None  # annotated, and sampled by us
        old_T, sampling_T = self._tensor(row.old_logprobs), self._tensor(row.sampling_logprobs)
        ref_T = None if row.ref_logprobs is None else self._tensor(row.ref_logprobs)
        advantages_N, sequence_T = self._tensor(row.advantages), self._tensor(row.sequence_of_token)
        given = old_T, ref_T, sampling_T, advantages_N, sequence_T, self.objective, denominators

        # The gradient of a sum over tokens is made while each chunk's logits are there; what is logged is computed
        # again from the values.
        in_chunks = loss_in_chunks(*given) if self.objective.made_in_chunks else None
        predictions = predict(self.temperature, "alone" if self.train_mtp else "off", in_chunks)
        logprobs_T, entropies_T = predictions.logprobs_C, predictions.entropies_C
        assert logprobs_T is not None and entropies_T is not None
        loss, sums = policy_loss(logprobs_T, *given, entropies_T)
        loss = loss if predictions.loss is None else predictions.loss
        return loss, entropies_T.sum(), predictions.mtp_nll, sums | mismatch_sums(old_T, sampling_T)

    def _step(self, lr: float, metrics: dict[str, float]) -> None:
        """Step on the gradients, unless the loss or their norm is not finite."""
        loss, bad_tokens = metrics["loss/policy"], metrics.get("loss/nonfinite_tokens", 0)
        try:
            if not math.isfinite(loss) or bad_tokens > 0:
                raise FloatingPointError(f"the loss is {loss} with {bad_tokens:.0f} bad tokens")
            metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        except FloatingPointError as error:
            self.optimizer.zero_grad()
            raise NonFiniteLoss(str(error)) from None

    def _state(self) -> dict[str, torch.Tensor]:
        state = super()._state()
        if self.reference is not None:
            self.reference_away.fetch()
            state |= {f"reference.{name}": tensor for name, tensor in self.reference.state_dict().items()}
        return state

    def load_state(self, folder: str) -> None:
        super().load_state(folder)
        self.reference_is_policy = False

    def _check_routes(self, sequences: Sequence[TrainingSequence]) -> None:
        missing = sum(self.ranks.gather(sum(sequence.routed_experts is None for sequence in sequences)))
        if missing:
            raise MissingRoutes(
                f"{missing} of {sum(self.ranks.gather(len(sequences)))} completions came without routed experts, which "
                "routing_replay 'rollout' forces in training; sample with a generator that returns them, or set it to "
                "'trainer' or 'off'"
            )


def _by_sequence(row: MicroBatch, old: np.ndarray, ref: np.ndarray | None) -> Iterator[dict[str, np.ndarray]]:
    """Old and, if there are any, reference logprobs of each sequence of a row."""
    names = ("old_logprobs", "ref_logprobs") if ref is not None else ("old_logprobs",)
    for values in zip(*(row.split(values) for values in (old, ref) if values is not None), strict=True):
        yield dict(zip(names, values, strict=True))
