"""The GRPO trainer rank: old and reference logprobs, then one optimizer step per mini-batch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.routing_replay import Routes, RoutingReplay
from rl.batch import MicroBatch, MissingRoutes, NonFiniteLoss, TrainingSequence, empty_row, pack
from rl.loss import policy_loss, token_weights
from rl.metrics import combine, mini_batch_metrics
from rl.mismatch import mismatch_sums, routing_sums
from rl.objective import Denominators, Objective
from rollouts.records import Group, Request, SamplingParams
from rollouts.transformers_generator import ModelSampler
from rollouts.weight_sender import WeightSender
from training.policy import Policy, evaluating
from training.stage import StageError
from training.trainer import Trainer


class PolicyTrainer(Trainer, WeightSender):
    def __init__(
        self,
        *args,
        objective: Objective,
        temperature: float,
        row_tokens: int,
        max_slots: int = 256,
        bias_speed: float = 0.0,
        balance_weight: float = 0.0,
        mtp_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, mtp=mtp_weight > 0, **kwargs)
        self.leads = self.ranks.rank == 0
        # Sampling needs the weights in one piece.
        self.sampler = ModelSampler(self.model, self.tokenizer, max_slots) if self.ranks.data is None else None
        self.objective, self.temperature = objective, temperature
        self.row_tokens = row_tokens
        self.bias_speed, self.balance_weight, self.mtp_weight = bias_speed, balance_weight, mtp_weight
        self.reference: Policy | None = None
        if objective.needs_reference:
            self.reference = self.frozen_copy()
        self.reference_is_policy = True  # until the first step: then its logprobs need no second pass
        self.replay = RoutingReplay(self.model)
        self.routing_replay = objective.routing_replay if self.replay.layers else "off"  # dense models have no routes
        if self.routing_replay != "off":
            self.replay.check()
        self.routing_sums: list[dict[str, int]] = []  # of `annotate`; logged with the next step

    def refresh_reference(self) -> None:
        """pi_ref <- pi_theta."""
        if self.reference is not None:
            self.reference.model.load_state_dict(self.model.state_dict())
            self.reference_is_policy = True

    def set_version(self, version: int) -> None:
        """Stamp what `stream` samples from now on."""
        if self.sampler is None:
            raise StageError(
                "sample_in_trainer samples with whole weights, and precision fp8 on a GPU shards them (the rest is "
                "bfloat16); set sample_in_trainer: false"
            )
        self.sampler.policy_version = version

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """Groups as they finish, from the weights as they are (see rollouts.generator)."""
        assert self.sampler is not None
        self.model.eval()
        try:
            yield from self.sampler.stream(requests, params, version)
        finally:
            self.model.train()

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs, float32 [T - 1], of every token of each sequence but its first, at temperature 1, to compare with
        the generators'. All ranks score the same sequences, of two tokens at least."""
        ids = [np.array(sequence) for sequence in sequences]
        texts = [TrainingSequence(prompt_ids=s[:1], completion_ids=s[1:], advantage=0.0) for s in ids]
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(ids)
        with evaluating(self.policy):
            for row in pack(texts, self.row_tokens):
                found = row.split(self.completion_logprobs(row)[0].cpu().numpy())
                for index, logprobs in zip(row.sequence_indices, found, strict=True):
                    scores[index] = logprobs
        return scores

    @torch.no_grad()
    def annotate(self, sequences: Sequence[TrainingSequence]) -> list[TrainingSequence]:
        """The same sequences with old logprobs (current weights) and, when the objective needs them, reference ones.

        Routing replay: `rollout` forces the generator's experts here too, `trainer` adds the experts of this pass.
        Raises MissingRoutes when sequences lack the generator's.
        """
        force = self.routing_replay == "rollout"
        if force:
            self._check_routes(sequences)
        annotated, self.routing_sums = list(sequences), []
        for row, routes in self._routed(self._rows(sequences), force):
            old = row.split(self.completion_logprobs(row, self.temperature)[0].cpu().numpy())
            ref = [None] * len(old)
            if self.reference is not None:
                # It routes by itself: where experts are forced, the same weights are another function.
                shared = self.reference_is_policy and not force
                ref = old if shared else row.split(self._reference_logprobs(row))
            for index, old_logprobs, ref_logprobs in zip(row.sequence_indices, old, ref, strict=True):
                annotated[index] = replace(annotated[index], old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)
            self.routing_sums.append(routing_sums(routes, "own"))
            if self.routing_replay != "trainer":  # there the experts to be used are those of this pass
                self.routing_sums.append(routing_sums(routes, "used"))
            else:
                experts = row.split_routes(self.replay.compact(routes.experts()))
                for index, routed_experts in zip(row.sequence_indices, experts, strict=True):
                    annotated[index] = replace(annotated[index], routed_experts=routed_experts)
        return annotated

    def _rows(self, sequences: Sequence[TrainingSequence]) -> list[MicroBatch]:
        """This rank's sequences in as many rows as the other ranks have."""
        return self.even(pack(sequences, self.row_tokens), empty_row())

    def _routed(self, rows: Iterable[MicroBatch], force: bool) -> Iterator[tuple[MicroBatch, Routes]]:
        """Each row, and the experts of the pass that the caller makes over it. With `force` that pass follows the
        row's experts, until the next row is asked for: backward included."""
        for row in rows:
            idle = self.routing_replay == "off" and row.routed_experts is None
            with nullcontext(Routes()) if idle else self.replay.watch(row.routed_experts, force=force) as routes:
                yield row, routes

    def _reference_logprobs(self, row: MicroBatch):
        return self.completion_logprobs(row, self.temperature, policy=self.reference)[0].cpu().numpy()

    def update(self, mini_batch: Sequence[TrainingSequence], lr: float, max_new_tokens: int) -> dict[str, float]:
        """One optimizer step on the sequences of all ranks, of which `mini_batch` are this one's. `max_new_tokens`: the
        longest completion that could have been sampled.

        Raises NonFiniteLoss, with the weights untouched, instead of stepping on garbage.
        """
        self.load.reset()  # old and reference logprobs were routed as well
        lengths = self.ranks.gather([len(sequence.completion_ids) for sequence in mini_batch])
        denominators = Denominators.of([length for share in lengths for length in share], max_new_tokens)
        tokens = sum(self.ranks.gather(sum(len(sequence) for sequence in mini_batch)))
        parts, self.routing_sums = self.routing_sums, []
        sums: dict[str, float] = {"loss/policy": 0.0, "policy/entropy": 0.0}
        sums |= {"loss/balance": 0.0} if self.balance_weight > 0 and self.load.counts else {}
        sums |= {"loss/mtp": 0.0} if self.train_mtp else {}
        for row, routes in self._routed(self._rows(mini_batch), force=self.routing_replay != "off"):
            for name, value in self._backward(row, denominators, tokens, parts).items():
                sums[name] += value
            if len(row.input_ids):
                parts.append(routing_sums(routes, "used"))
        metrics = self.ranks.add_up(sums)
        metrics["policy/entropy"] /= denominators.tokens
        metrics |= mini_batch_metrics(combine(self.ranks.gather(combine(parts))))
        self._step(lr, metrics)
        self.reference_is_policy = False
        if self.load.counts:
            self.load.sum_over_ranks()
            metrics |= self.load.metrics() | {"moe/bias_speed": self.bias_speed}
            self.load.update_bias(self.bias_speed)
        return metrics

    def _backward(self, row: MicroBatch, denominators: Denominators, tokens: int, parts: list[Any]) -> dict[str, float]:
        """Add a row's gradient. Returns its share of the losses, and the sum of its entropies; `parts` gets what
        metrics are made of. tokens: of all sequences of the mini-batch."""
        with self.balance.watch(np.diff(row.cu_seqlens).tolist(), self.balance_weight > 0) as imbalances:
            loss, entropy, mtp_nll, of_row = self._policy_loss(row, denominators)
        found = {"loss/policy": loss.item(), "policy/entropy": entropy.item()}
        if imbalances:
            imbalance = torch.stack(imbalances).sum() / tokens
            loss = loss + self.balance_weight * imbalance
            found["loss/balance"] = imbalance.item()
        if mtp_nll is not None:
            mtp_nll = mtp_nll / denominators.tokens
            loss = loss + self.mtp_weight * mtp_nll
            found["loss/mtp"] = mtp_nll.item()
        loss.backward()
        if len(row.input_ids):
            parts.append(of_row)
        return found

    def _policy_loss(
        self, row: MicroBatch, denominators: Denominators
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]:
        """(loss, summed entropy, summed loss of the MTP module, sums for metrics) of a row."""
        assert row.old_logprobs is not None and row.sampling_logprobs is not None  # annotated, and sampled by us
        old_T, sampling_T = self._tensor(row.old_logprobs), self._tensor(row.sampling_logprobs)
        ref_T = None if row.ref_logprobs is None else self._tensor(row.ref_logprobs)
        advantages_N, sequence_T = self._tensor(row.advantages), self._tensor(row.sequence_of_token)
        weight_T = token_weights(sequence_T, len(advantages_N), self.objective, denominators)

        def loss_of(policy_C: torch.Tensor, part: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            ref_C = None if ref_T is None else ref_T[part]
            return policy_loss(
                policy_C, old_T[part], ref_C, sampling_T[part], advantages_N, sequence_T[part], self.objective,
                denominators, weight_T[part],
            )  # fmt: skip

        # The gradient of a sum over tokens is made while each chunk's logits are there; what is logged is computed
        # again from the values.
        in_chunks = (lambda policy_C, part: loss_of(policy_C, part)[0]) if self.objective.sums_over_tokens else None
        predictions = self.predict(row, self.temperature, "alone" if self.train_mtp else "off", in_chunks)
        assert predictions.logprobs_C is not None and predictions.entropies_C is not None
        loss, sums = loss_of(predictions.logprobs_C, slice(None))
        loss = loss if predictions.loss is None else predictions.loss
        return loss, predictions.entropies_C.sum(), predictions.mtp_nll, sums | mismatch_sums(old_T, sampling_T)

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
