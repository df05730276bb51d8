"""The embedded generator: continuous batching over transformers' causal LMs.

Sequences run in slots. A free slot takes the next completion; prompts are prefilled once per group in a packed row,
then every step extends all running completions by one token. Slots in use are always the first ones: when a completion
ends, the last one moves into its place, so a step never computes a row that nobody reads.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from data.chat import opened_by
from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer, resolve_device
from models.routing_replay import RoutingReplay
from models.weight_names import hub_views
from rollouts.buckets import Named, checksum
from rollouts.kv_cache import Decode, KVCache, Prefill
from rollouts.records import Completion, FinishReason, Group, Request, SamplingParams, Support
from rollouts.requests import OpenGroups, begun_part, check_requests, continued, seed_for, wants_experts
from rollouts.sampling import draw, uniforms
from rollouts.weight_sync import Parcel, WeightReceiver, check_version

# Admit new prompts when this share of the slots is free: a prefill for one slot would stall all the others.
_ADMIT_SHARE = 0.25


@dataclass(slots=True)
class _Running:
    """One completion that occupies a slot."""

    request: int
    sample: int
    uniforms: torch.Tensor  # float32 [max_new_tokens]
    limit: int  # new tokens it may have
    begun: Completion | None  # what an earlier call has sampled of it
    token_ids: list[int]  # with those of `begun`
    logprobs: list[float] = field(default_factory=list)  # of what this call has sampled, as all that follows
    experts: np.ndarray | None = None  # [tokens read, L, K], once it has ended
    support_ids: array = field(default_factory=lambda: array("i"))
    support_sizes: array = field(default_factory=lambda: array("i"))  # stays empty when no support is asked for

    def support(self) -> Support | None:
        ids, sizes = np.array(self.support_ids, dtype=np.int32), np.array(self.support_sizes, dtype=np.int32)
        return Support(ids=ids, sizes=sizes) if len(sizes) else None


class StopStrings:
    """Whether the last token of a completion completes one of `strings` in its decoded text."""

    def __init__(self, strings: Sequence[str], tokenizer: Any):
        self.strings, self.tokenizer = strings, tokenizer
        self.special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        # Every token of the text brings a byte or more. One more token, since some decoders strip the first one.
        self.tail = 1 + max(len(string.encode()) for string in strings)

    def ended(self, token_ids: Sequence[int]) -> bool:
        tail = list(islice((token for token in reversed(token_ids) if token not in self.special), self.tail))
        text = self.tokenizer.decode(tail[::-1])
        return any(string in text for string in self.strings)


class ModelSampler:
    """Samples from a model object that it shares with its owner: weights are read where they are, never copied."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, max_slots: int):
        self.model, self.tokenizer, self.max_slots = model, tokenizer, max_slots
        self.device = model.device
        self.max_length = model.config.max_position_embeddings
        eos = model.generation_config.eos_token_id if model.generation_config else None
        listed = [] if eos is None else [eos] if isinstance(eos, int) else eos
        self.eos_ids = frozenset([*listed, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])
        self.policy_version: int | None = 0

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        by_key = {group.key: group for group in self.stream(requests, params)}
        return [by_key[request.key] for request in requests]

    @torch.inference_mode()
    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """Groups as they finish. Raises ValueError, before any work, for a prompt that leaves no room to answer, and
        WrongWeights when `version` is given and is not the one held."""
        check_version(self.policy_version, version)
        check_requests(requests, self.max_length)
        groups = OpenGroups(requests, params.group_size)
        waiting = deque(groups.to_sample)
        batch = _Batch(self, requests, params)
        while groups.must_go_on:
            free = batch.slots - len(batch.running)
            if waiting and (free >= _ADMIT_SHARE * batch.slots or not batch.running):
                batch.admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
            else:
                batch.step()
            for running, reason in batch.take_finished():
                completion = self._completion(running, reason, requests[running.request].prompt_ids)
                group = groups.add(running.request, running.sample, completion)
                if group is not None:
                    yield group
        left = {(running.request, running.sample): running for running in batch.interrupt()}
        prompt_of = {place: requests[place[0]].prompt_ids for place in left}
        yield from groups.interrupted(
            {place: self._completion(running, "interrupted", prompt_of[place]) for place, running in left.items()}
        )

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs, float32 [T - 1], of every token of each sequence but its first, at temperature 1."""
        check_version(self.policy_version, None)
        return [self._score(torch.tensor(list(ids), device=self.device)) for ids in sequences]

    def _score(self, ids: torch.Tensor) -> np.ndarray:
        layout = PackedLayout.from_lengths([len(ids)], self.device)
        positions = torch.arange(len(ids), device=self.device)
        output = self.model.model(input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=layout)
        logprobs = torch.log_softmax(self.model.lm_head(output.last_hidden_state[0, :-1]).float(), dim=-1)
        return logprobs.gather(1, ids[1:, None])[:, 0].cpu().numpy()

    def _completion(self, running: _Running, reason: FinishReason, prompt_ids: Sequence[int]) -> Completion:
        said = self.tokenizer.decode(running.token_ids, skip_special_tokens=True)
        new = running.token_ids[len(running.begun.token_ids) if running.begun else 0 :]
        version = check_version(self.policy_version, None)
        rest = Completion(
            token_ids=np.array(new, dtype=np.int32),
            sampling_logprobs=np.array(running.logprobs, dtype=np.float32),
            policy_versions=np.full(len(new), version, dtype=np.int32),
            finish_reason=reason,
            text=opened_by(self.tokenizer, prompt_ids) + said,
            routed_experts=running.experts,
            support=running.support(),
        )
        return continued(running.begun, rest)


class TransformersGenerator(ModelSampler, WeightReceiver):
    """A Generator (see rollouts.generator) with its own copy of the policy."""

    def __init__(self, checkpoint: str, *, max_slots: int = 256, dtype: str = "float32", device: str = "auto"):
        model = load_model(checkpoint, dtype=getattr(torch, dtype), device=resolve_device(device)).eval()
        super().__init__(model, load_tokenizer(checkpoint), max_slots)

    def device_type(self) -> str:
        return self.device.type

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(view.shape) for name, view in hub_views(self.model).items()}

    def _take(self, parcel: Parcel, rank: int) -> None:
        with parcel.open(rank, self.device) as tensors:
            self._copy(tensors)

    @torch.no_grad()
    def _copy(self, tensors: Iterable[Named]) -> None:
        views = hub_views(self.model)
        for name, tensor in tensors:
            if name in views:
                views[name].copy_(tensor)

    def held_checksums(self) -> dict[str, str] | None:
        return {name: checksum(view) for name, view in hub_views(self.model).items()}

    def context(self) -> int:
        """Tokens of prompt and completion together that it takes."""
        return self.max_length


class _Batch:
    """The slots of one `stream` call."""

    def __init__(self, sampler: ModelSampler, requests: Sequence[Request], params: SamplingParams):
        self.model, self.device = sampler.model, sampler.device
        self.eos_ids, self.max_length = sampler.eos_ids, sampler.max_length
        self.requests, self.params = requests, params
        self.stop = StopStrings(params.stop, sampler.tokenizer) if params.stop else None
        self.slots = min(sampler.max_slots, max(1, len(requests) * params.group_size))
        longest = max((len(r.prompt_ids) for r in requests), default=0) + params.max_new_tokens
        self.cache = KVCache(self.slots, min(longest, self.max_length))
        self.replay = RoutingReplay(self.model)
        self.noted = [bool(self.replay.layers) and wants_experts(request, params) for request in requests]
        if any(self.noted):
            shape = (self.slots, self.cache.length, self.replay.layers, self.replay.top_k)
            self.cache.experts = torch.zeros(shape, dtype=self.replay.dtype, device=self.device)
        self.running: list[_Running] = []  # running[i] sits in slot i
        self.positions = torch.zeros(self.slots, dtype=torch.int64)  # of the last token in each slot
        self.finished: list[tuple[_Running, FinishReason]] = []

    def admit(self, chosen: list[tuple[int, int]]) -> None:
        """Prefill the prompts of `chosen` (request, sample), and draw their first tokens. Completions that were begun
        before are read with their prompt, each in a row of its own."""
        first = len(self.running)
        slots_of: dict[tuple[int, int | None], list[int]] = {}
        for offset, (request, sample) in enumerate(chosen):
            running = self._start(request, sample)
            slots_of.setdefault((request, sample if running.begun else None), []).append(first + offset)
            self.running.append(running)
        prompts = [
            [*self.requests[request].prompt_ids, *self.running[slots[0]].token_ids]
            for (request, _), slots in slots_of.items()
        ]
        lengths = [len(prompt) for prompt in prompts]
        ends = np.cumsum(lengths)
        prefill = Prefill(
            cache=self.cache,
            packing=PackedLayout.from_lengths(lengths, self.device),
            bounds=list(zip((ends - lengths).tolist(), ends.tolist(), strict=True)),
            slots=[torch.tensor(slots, device=self.device) for slots in slots_of.values()],
        )
        ids = torch.tensor(np.concatenate(prompts), dtype=torch.int64, device=self.device)
        positions = torch.tensor(np.concatenate([np.arange(n) for n in lengths]), device=self.device)
        hidden = self._forward(ids[None], positions[None], prefill)[0]
        row_of_slot = np.empty(len(chosen), dtype=np.int64)
        for row, slots in enumerate(slots_of.values()):
            row_of_slot[np.array(slots) - first] = row
        last = torch.tensor(ends - 1, device=self.device)[torch.from_numpy(row_of_slot)]
        self.positions[first : first + len(chosen)] = torch.tensor(lengths)[row_of_slot] - 1
        self._draw(self.model.lm_head(hidden[last]), first)

    def _start(self, request: int, sample: int) -> _Running:
        prompt = self.requests[request]
        limit = min(self.params.max_new_tokens, self.max_length - len(prompt.prompt_ids))
        noise = torch.from_numpy(uniforms(seed_for(prompt, self.params), prompt.key, sample, limit))
        begun = begun_part(prompt, sample)
        return _Running(request, sample, noise, limit, begun, begun.token_ids.tolist() if begun else [])

    def step(self) -> None:
        """One more token for every running completion."""
        count = len(self.running)
        ids = torch.tensor([r.token_ids[-1] for r in self.running], device=self.device)
        positions = self.positions[:count].to(self.device)
        hidden = self._forward(ids[:, None], positions[:, None], Decode.at(self.cache, positions))
        self._draw(self.model.lm_head(hidden[:, 0]), 0)

    def _forward(self, ids, positions, layout: Prefill | Decode):
        noted = any(self.noted[running.request] for running in self.running)
        with self.replay.watch() if noted else nullcontext() as routes:
            output = self.model.model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
        if routes is not None and self.cache.experts is not None:
            layout.store(self.cache.experts, routes.experts())
        return output.last_hidden_state

    def _draw(self, logits, first: int) -> None:
        """Append a token to running[first:], then clear the slots of those that ended."""
        drawn = self.running[first:]
        noise = torch.stack([r.uniforms[len(r.token_ids)] for r in drawn]).to(self.device)
        ids, logprobs, kept = draw(logits, noise, self.params)
        if self.params.return_support and kept is not None:
            _add_support(drawn, kept)
        self.positions[first : first + len(drawn)] += 1
        ended: list[int] = []
        for slot, (running, token, logprob) in enumerate(
            zip(drawn, ids.tolist(), logprobs.tolist(), strict=True), first
        ):
            running.token_ids.append(token)
            running.logprobs.append(logprob)
            reason = self._reason_to_end(running)
            if reason:
                ended.append(slot)
                self._keep_experts(slot)
                self.finished.append((running, reason))
        self._compact(ended)

    def _keep_experts(self, slot: int) -> None:
        running = self.running[slot]
        if self.noted[running.request] and self.cache.experts is not None:  # the last token is never read
            running.experts = self.replay.compact(self.cache.experts[slot, : self.positions[slot]])

    def _reason_to_end(self, running: _Running) -> FinishReason | None:
        if running.token_ids[-1] in self.eos_ids or (self.stop and self.stop.ended(running.token_ids)):
            return "stop"
        return "length" if len(running.token_ids) == running.limit else None

    def _compact(self, ended: list[int]) -> None:
        """Fill the gaps with the last running completions, so that slots in use stay the first ones."""
        if not ended:
            return
        gone = set(ended)
        remaining = len(self.running) - len(ended)
        holes = [slot for slot in ended if slot < remaining]
        movers = [slot for slot in range(remaining, len(self.running)) if slot not in gone]
        if holes:
            source, target = torch.tensor(movers), torch.tensor(holes)
            self.cache.move(source.to(self.device), target.to(self.device))
            self.positions[target] = self.positions[source]
            for hole, mover in zip(holes, movers, strict=True):
                self.running[hole] = self.running[mover]
        del self.running[remaining:]

    def take_finished(self) -> list[tuple[_Running, FinishReason]]:
        finished, self.finished = self.finished, []
        return finished

    def interrupt(self) -> list[_Running]:
        """What is still running."""
        for slot in range(len(self.running)):
            self._keep_experts(slot)
        return self.running


def _add_support(drawn: Sequence[_Running], kept_BV: torch.Tensor) -> None:
    """Append to each of `drawn` the tokens that its next one was drawn from."""
    ids = kept_BV.nonzero()[:, 1].to(torch.int32).cpu().numpy()
    sizes = kept_BV.sum(dim=-1).tolist()
    for running, size, end in zip(drawn, sizes, np.cumsum(sizes), strict=True):
        running.support_ids.frombytes(ids[end - size : end].tobytes())
        running.support_sizes.append(size)
