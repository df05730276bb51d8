"""The GRPO trainer rank: old and reference logprobs, then one optimizer step per mini-batch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.routing_replay import Routes, RoutingReplay
from rl.batch import MicroBatch, MissingRoutes, NonFiniteLoss, TrainingSequence, pack
from rl.loss import policy_loss, token_weights
from rl.metrics import combine, mini_batch_metrics
from rl.mismatch import mismatch_sums, routing_sums
from rl.objective import Denominators, Objective
from rollouts.records import Group, Request, SamplingParams
from rollouts.transformers_generator import ModelSampler
from rollouts.weight_sender import WeightSender
from training.trainer import Trainer

REFERENCE = "reference.safetensors"


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
        self.sampler = ModelSampler(self.model, self.tokenizer, max_slots)
        self.objective, self.temperature = objective, temperature
        self.row_tokens = row_tokens
        self.bias_speed, self.balance_weight, self.mtp_weight = bias_speed, balance_weight, mtp_weight
        self.reference: nn.Module | None = None
        if objective.needs_reference:
            self.reference = deepcopy(self.model).requires_grad_(False)
        self.reference_is_policy = True  # until the first step: then its logprobs need no second pass
        self.replay = RoutingReplay(self.model)
        self.routing_replay = objective.routing_replay if self.replay.layers else "off"  # dense models have no routes
        if self.routing_replay != "off":
            self.replay.check()
        self.routing_sums: list[dict[str, int]] = []  # of `annotate`; logged with the next step

    def refresh_reference(self) -> None:
        """pi_ref <- pi_theta."""
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())
            self.reference_is_policy = True

    def set_version(self, version: int) -> None:
        """Stamp what `stream` samples from now on."""
        self.sampler.policy_version = version

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """Groups as they finish, from the weights as they are (see rollouts.generator)."""
        self.model.eval()
        try:
            yield from self.sampler.stream(requests, params, version)
        finally:
            self.model.train()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs of every token but the first, at temperature 1, to compare with the generators'."""
        self.model.eval()
        try:
            return self.sampler.score(sequences)
        finally:
            self.model.train()

    @torch.no_grad()
    def annotate(self, sequences: Sequence[TrainingSequence]) -> list[TrainingSequence]:
        """The same sequences with old logprobs (current weights) and, when the objective needs them, reference ones.

        Routing replay: `rollout` forces the generator's experts here too, `trainer` adds the experts of this pass.
        Raises MissingRoutes when sequences lack the generator's.
        """
        force = self.routing_replay == "rollout"
        if force:
            _check_routes(sequences)
        annotated, self.routing_sums = list(sequences), []
        for row, routes in self._routed(pack(sequences, self.row_tokens), force):
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

    def _routed(self, rows: Iterable[MicroBatch], force: bool) -> Iterator[tuple[MicroBatch, Routes]]:
        """Each row, and the experts of the pass that the caller makes over it. With `force` that pass follows the
        row's experts, until the next row is asked for: backward included."""
        for row in rows:
            idle = self.routing_replay == "off" and row.routed_experts is None
            with nullcontext(Routes()) if idle else self.replay.watch(row.routed_experts, force=force) as routes:
                yield row, routes

    def _reference_logprobs(self, row: MicroBatch):
        return self.completion_logprobs(row, self.temperature, model=self.reference)[0].cpu().numpy()

    def update(self, mini_batch: Sequence[TrainingSequence], lr: float, max_new_tokens: int) -> dict[str, float]:
        """One optimizer step. `max_new_tokens`: the longest completion that could have been sampled.

        Raises NonFiniteLoss, with the weights untouched, instead of stepping on garbage.
        """
        self.load.reset()  # old and reference logprobs were routed as well
        lengths = [len(sequence.completion_ids) for sequence in mini_batch]
        denominators = Denominators.of(lengths, max_new_tokens)
        parts, self.routing_sums = self.routing_sums, []
        losses, entropy, imbalances, mtp_losses = 0.0, 0.0, 0.0, 0.0
        tokens = sum(len(sequence) for sequence in mini_batch)
        for row, routes in self._routed(pack(mini_batch, self.row_tokens), force=self.routing_replay != "off"):
            with self.balance.watch(np.diff(row.cu_seqlens).tolist(), self.balance_weight > 0) as balance:
                hidden, packing = self.hidden_states(row)
                loss, sums, entropy_T = self._policy_loss(hidden, row, denominators)
                mtp_nll = self.mtp_nll(hidden, row, packing, alone=True) if self.train_mtp else None
            losses += loss.item()
            if balance:
                imbalance = torch.stack(balance).sum() / tokens
                loss = loss + self.balance_weight * imbalance
                imbalances += imbalance.item()
            if mtp_nll is not None:
                loss = loss + self.mtp_weight * mtp_nll / denominators.tokens
                mtp_losses += mtp_nll.item() / denominators.tokens
            loss.backward()
            entropy += entropy_T.sum().item()
            parts += [sums, routing_sums(routes, "used")]
        metrics = {"loss/policy": losses, "policy/entropy": entropy / denominators.tokens}
        metrics |= mini_batch_metrics(combine(parts))
        if not torch.isfinite(torch.tensor(losses)) or metrics.get("loss/nonfinite_tokens", 0) > 0:
            self.optimizer.zero_grad()
            raise NonFiniteLoss(f"the loss is {losses} with {metrics.get('loss/nonfinite_tokens', 0):.0f} bad tokens")
        try:
            metrics["optimizer/grad_norm"] = self.optimizer.step(lr)
        except FloatingPointError as error:
            self.optimizer.zero_grad()
            raise NonFiniteLoss(str(error)) from None
        self.reference_is_policy = False
        if self.load.counts:
            metrics |= self.load.metrics() | {"moe/bias_speed": self.bias_speed}
            self.load.update_bias(self.bias_speed)
        if self.balance_weight > 0:
            metrics["loss/balance"] = imbalances
        if self.train_mtp:
            metrics["loss/mtp"] = mtp_losses
        return metrics

    def _policy_loss(
        self, hidden: torch.Tensor, row: MicroBatch, denominators: Denominators
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """(loss, sums for metrics, entropies [C]) of a row, from its hidden states [1, T, D]."""
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

        mismatch = mismatch_sums(old_T, sampling_T)

        if not self.objective.sums_over_tokens:
            policy_T, entropy_T = self.logprobs_from(hidden, row, self.temperature)
            loss, sums = loss_of(policy_T, slice(None))
            return loss, sums | mismatch, entropy_T
        # Its gradient is made while each chunk's logits are there; what is logged is computed again from the values.
        loss, policy_T, entropy_T = self.token_loss_from(
            hidden, row, lambda policy_C, part: loss_of(policy_C, part)[0], self.temperature
        )
        return loss, loss_of(policy_T, slice(None))[1] | mismatch, entropy_T

    def save_state(self, folder: str) -> None:
        super().save_state(folder)
        if self.reference is not None:
            state = {name: t.contiguous().clone() for name, t in self.reference.state_dict().items()}
            save_file(state, Path(folder) / REFERENCE)

    def load_state(self, folder: str) -> None:
        super().load_state(folder)
        if self.reference is not None:
            self.reference.load_state_dict(load_file(Path(folder) / REFERENCE))
            self.reference_is_policy = False


def _check_routes(sequences: Sequence[TrainingSequence]) -> None:
    if missing := sum(sequence.routed_experts is None for sequence in sequences):
        raise MissingRoutes(
            f"{missing} of {len(sequences)} completions came without routed experts, which routing_replay 'rollout' "
            "forces in training; sample with a generator that returns them, or set it to 'trainer' or 'off'"
        )
