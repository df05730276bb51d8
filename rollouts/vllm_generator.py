"""The generator with vLLM inside: one engine per replica, on CPU in this very process.

Every completion is a request of its own with a seed of its own, so it depends on neither batch nor neighbours; prompts
are shared by the prefix cache where the engine has one.
"""

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig

from cluster.failures import PeerLost
from data.chat import opened_by
from models.checkpoint import resolve_device
from rollouts import vllm_cpu
from rollouts.records import Completion, FinishReason, Group, Request, SamplingParams, Support
from rollouts.requests import OpenGroups, begun_part, check_requests, continued, seed_for, wants_experts
from rollouts.transformers_generator import StopStrings
from rollouts.vllm_engine import PARCELS, open_engine
from rollouts.weight_files import stored_shapes
from rollouts.weight_sync import Parcel, WeightReceiver, check_version

_COLDEST = 0.01  # vLLM raises lower temperatures to this one
# What the generator decides itself, because its contract (rollouts.generator) depends on it.
_SETTLED = {
    "max_num_seqs": "generator.max_slots",
    "data_parallel_size": "generator.replicas",
    "logprobs_mode": "the contract: logprobs of the distribution drawn from",
    "weight_transfer_config": "weight sync",
    "enable_sleep_mode": "generator.sleep",
    "generation_config": "the contract: the checkpoint says where completions end, the recipe all else",
    "override_generation_config": "the contract, as generation_config",
}


class VLLMGenerator(WeightReceiver):
    """A Generator (see rollouts.generator)."""

    def __init__(
        self,
        checkpoint: str,
        *,
        max_slots: int = 256,
        device: str = "auto",
        tensor_parallel: int = 1,
        sleep: bool = False,
        **engine: Any,
    ):
        """`engine`: see rollouts.vllm_engine.open_engine, which raises for it."""
        self.on_cpu = resolve_device(device).type == "cpu"
        self.moe_layers = _moe_layers(AutoConfig.from_pretrained(checkpoint))
        ours = {
            "max_num_seqs": max_slots,
            "enable_sleep_mode": sleep and not self.on_cpu,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "auto",
            "weight_transfer_config": {"backend": PARCELS},
        }
        if not self.on_cpu:  # Model Runner V2 returns both by itself
            ours |= {"enable_return_routed_experts": bool(self.moe_layers), "return_sampling_mask": True}
        parallel = {"device": device, "tensor_parallel": tensor_parallel} | engine
        self.llm: Any = open_engine(checkpoint, ours, key="generator.", settled=_SETTLED, **parallel)
        self.llm.init_weight_transfer_engine({"init_info": {}})
        self.engine: Any = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = self.engine.model_config.max_model_len
        self.here = self.on_cpu and tensor_parallel == 1  # the model is in this process
        self.capture = vllm_cpu.Capture(_runner(self.llm)) if self.here else None
        self.policy_version: int | None = 0
        self._shapes = self._needed(checkpoint)
        self._calls = 0

    def _needed(self, checkpoint: str) -> dict[str, tuple[int, ...]]:
        config = self.engine.model_config.hf_config
        extra = f"model.layers.{config.num_hidden_layers}."  # MTP, which the engine does not sample with
        tied = "lm_head.weight" if config.tie_word_embeddings else ""
        shapes = stored_shapes(checkpoint)
        if not shapes:
            raise ValueError(f"{checkpoint} holds no safetensors, so weight sync would not know what the model needs")
        return {name: shape for name, shape in shapes.items() if not name.startswith(extra) and name != tied}

    # --- sampling ---

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        by_key = {group.key: group for group in self.stream(requests, params)}
        return [by_key[request.key] for request in requests]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """Groups as they finish. Raises ValueError, before any work, for a prompt that leaves no room to answer, and
        WrongWeights when `version` is given and is not the one held."""
        version = check_version(self.policy_version, version)
        check_requests(requests, self.max_length)
        self._check_returns(requests, params)
        self._calls += 1
        stops = StopStrings(params.stop, self.tokenizer) if params.stop else None
        groups = OpenGroups(requests, params.group_size)
        running: dict[str, tuple[int, int]] = {}  # the engine's id -> request, sample
        internal: dict[str, str] = {}
        try:
            for index, sample in groups.to_sample:
                name = f"{self._calls}/{index}/{sample}"
                internal[name] = self._add(name, requests[index], sample, params)
                running[name] = index, sample
            while groups.must_go_on:
                for output in self._step():
                    if output.request_id not in running:
                        continue
                    index, sample = running[output.request_id]
                    begun = begun_part(requests[index], sample)
                    reason = self._ended(output, stops, begun)
                    if reason is None:
                        continue
                    del running[output.request_id]
                    engine_id = internal.pop(output.request_id)
                    if not output.finished:
                        self.engine.abort_request([engine_id], internal=True)
                    said = self._completion(output.outputs[0], reason, requests[index], begun, params, engine_id)
                    group = groups.add(index, sample, said)
                    if group is not None:
                        yield group
            yield from groups.interrupted(self._interrupted(running, internal, requests, params))
        finally:
            if running:  # interrupted, the caller stopped listening, or a step failed
                self.engine.abort_request([internal[name] for name in running], internal=True)
                self._forget(internal.values())

    def _step(self) -> list[Any]:
        """An engine of several processes that has failed in one of them never works again: another one may."""
        try:
            return self.engine.step()
        except Exception as error:
            if self.here:
                raise
            raise PeerLost(f"the engine failed: {type(error).__name__}: {error}") from error

    def _check_returns(self, requests: Sequence[Request], params: SamplingParams) -> None:
        asked = any(wants_experts(request, params) for request in requests) and bool(self.moe_layers)
        if self.on_cpu and not self.here and (asked or (params.return_support and params.truncates)):
            raise ValueError(
                "on CPU an engine of several processes returns neither routed experts nor sampling supports; set "
                "generator.tensor_parallel: 1, or log_routing_groups: 0 where they are only logged"
            )

    def _interrupted(
        self,
        running: Mapping[str, tuple[int, int]],
        internal: Mapping[str, str],
        requests: Sequence[Request],
        params: SamplingParams,
    ) -> dict[tuple[int, int], Completion]:
        """What there is of completions that are still running, where anything is."""
        from vllm.v1.engine import FinishReason as Why

        found = {}
        for name, (index, sample) in running.items():
            state = self.engine.output_processor.request_states[internal[name]]
            said = state.make_request_output([], None, Why.ABORT, None).outputs[0]
            if len(said.token_ids):
                begun = begun_part(requests[index], sample)
                found[index, sample] = self._completion(
                    said, "interrupted", requests[index], begun, params, internal[name]
                )
        return found

    def _ended(self, output: Any, stops: StopStrings | None, begun: Completion | None) -> FinishReason | None:
        """Why a completion ends with the token it has just got, if it does. Stop strings are looked for here, since
        vLLM's own search reads the text in another way."""
        said = output.outputs[0]
        if stops is not None and stops.ended([*(begun.token_ids.tolist() if begun else ()), *said.token_ids]):
            return "stop"
        if output.finished and said.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a completion with {said.finish_reason}")
        return said.finish_reason if output.finished else None

    def _add(self, name: str, request: Request, sample: int, params: SamplingParams) -> str:
        import vllm
        from vllm.sampling_params import RequestOutputKind

        if 0 < params.temperature < _COLDEST:
            raise ValueError(f"vLLM samples at no temperature between 0 and {_COLDEST}, asked for {params.temperature}")
        begun = begun_part(request, sample)
        before = begun.token_ids.tolist() if begun else []
        room = self.max_length - len(request.prompt_ids)
        limit = min(params.max_new_tokens, room)
        settings = vllm.SamplingParams(
            max_tokens=limit - len(before),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=seed_of(seed_for(request, params), request.key, sample, len(before)),
            detokenize=False,
            logprobs=0,
            flat_logprobs=True,
            skip_reading_prefix_cache=wants_experts(request, params),  # experts are noted where they are computed
            # A stop string may end it at any token; otherwise the end is soon enough.
            output_kind=RequestOutputKind.CUMULATIVE if params.stop else RequestOutputKind.FINAL_ONLY,
        )
        engine_id = self.engine.add_request(name, {"prompt_token_ids": [*request.prompt_ids, *before]}, settings)
        if self.capture is not None:
            self.capture.expect(
                engine_id,
                len(request.prompt_ids) + limit,
                experts=wants_experts(request, params),
                support=params.return_support and params.truncates,
            )
        return engine_id

    def _completion(
        self,
        output: Any,
        reason: FinishReason,
        request: Request,
        begun: Completion | None,
        params: SamplingParams,
        engine_id: str,
    ) -> Completion:
        token_ids = np.array(output.token_ids, dtype=np.int32)
        logprobs = np.zeros(len(token_ids), dtype=np.float32)  # greedy: one outcome
        if params.temperature > 0:
            logprobs[:] = [output.logprobs.logprobs[start] for start in output.logprobs.start_indices]
        before = begun.token_ids.tolist() if begun else []
        tokens = len(request.prompt_ids) + len(before) + len(token_ids) - 1
        experts, support = self._captured(engine_id, tokens, output, params)
        if not wants_experts(request, params):
            experts = None
        said = self.tokenizer.decode([*before, *output.token_ids], skip_special_tokens=True)
        rest = Completion(
            token_ids=token_ids,
            sampling_logprobs=logprobs,
            policy_versions=np.full(len(token_ids), self.policy_version or 0, dtype=np.int32),
            finish_reason=reason,
            text=opened_by(self.tokenizer, request.prompt_ids) + said,
            routed_experts=experts,
            support=support,
        )
        return continued(begun, rest)

    def _captured(
        self, engine_id: str, tokens: int, output: Any, params: SamplingParams
    ) -> tuple[np.ndarray | None, Support | None]:
        """Experts of the first `tokens` tokens and sampling supports, from the capture or from vLLM's own output."""
        if self.capture is not None:
            experts, sets = self.capture.take(engine_id, tokens)
        else:  # vLLM counts dense layers too
            routed = output.routed_experts
            experts = None if routed is None else routed[:tokens, self.moe_layers]
            sets = output.sampling_mask and [np.array(ids, np.int32) for ids in output.sampling_mask.token_ids]
        support = None
        sets = sets and sets[: len(output.token_ids)]  # the engine may have been a step ahead
        if sets and params.return_support and params.truncates:
            support = Support(ids=np.concatenate(sets), sizes=np.array([len(ids) for ids in sets], dtype=np.int32))
        return experts, support

    def _forget(self, engine_ids: Iterable[str]) -> None:
        for engine_id in engine_ids:
            if self.capture is not None:
                self.capture.forget(engine_id)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs, float32 [T - 1], of every token of each sequence but its first, at temperature 1."""
        check_version(self.policy_version, None)
        return [
            np.array([row[token].logprob for row, token in zip(rows, ids[1:], strict=True)], np.float32)
            for rows, ids in zip(self._prompt_logprobs(sequences, 0), sequences, strict=True)
        ]

    def top_logprobs(self, sequences: Sequence[Sequence[int]], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each sequence, for every place after its first: the k most likely tokens, int32 [T - 1, k], most likely
        first, and their logprobs, float32, at temperature 1. The engine must have been given max_logprobs of k."""
        found = []
        for rows in self._prompt_logprobs(sequences, k):  # with a token's own logprob too, whatever its rank
            tops = [sorted((said.rank, token, said.logprob) for token, said in row.items())[:k] for row in rows]
            ids = np.array([[token for _, token, _ in top] for top in tops], np.int32).reshape(-1, k)
            found.append((ids, np.array([[said for *_, said in top] for top in tops], np.float32).reshape(-1, k)))
        return found

    def _prompt_logprobs(self, sequences: Sequence[Sequence[int]], k: int) -> list[list[dict[int, Any]]]:
        """Of each sequence, for every place after its first: token -> vLLM's Logprob, of k tokens and the one there."""
        import vllm

        settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, detokenize=False)
        prompts = [{"prompt_token_ids": list(ids)} for ids in sequences]
        return [output.prompt_logprobs[1:] for output in self.llm.generate(prompts, settings, use_tqdm=False)]

    def sleep(self) -> None:
        """Give device memory back (weights wait in host memory). On CPU there is nothing to give."""
        if not self.on_cpu:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if not self.on_cpu:
            self.llm.wake_up(["weights"])

    def wake_cache(self) -> None:
        """After `wake`: only with both is it awake."""
        if not self.on_cpu:
            self.llm.wake_up(["kv_cache"])

    def context(self) -> int:
        """Tokens of prompt and completion together that it takes."""
        return self.max_length

    # --- weights (see rollouts.weight_sync) ---

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def _start_update(self) -> None:
        self.llm.start_weight_update()

    def device_type(self) -> str:
        return "cpu" if self.on_cpu else "cuda"

    def engine_processes(self) -> int:
        return self.engine.vllm_config.parallel_config.world_size

    def _take(self, parcel: Parcel, rank: int) -> None:
        sent = parcel if self.here else pickle.dumps(parcel)  # to processes of vLLM's, which take plain types alone
        info = {"parcel": sent, "first_rank": rank, "known": list(self._shapes)}
        self.llm.update_weights({"update_info": info})

    def _finish_update(self, version: int) -> None:
        self.llm.finish_weight_update(weight_version=str(version))
        if not self.llm.reset_prefix_cache():  # it holds keys and values of the old policy
            raise RuntimeError("vLLM's prefix cache of the old weights cannot be emptied: requests are still running")


def seed_of(seed: int, key: str, sample: int, begun: int = 0) -> int:
    """The seed of one completion that has `begun` tokens already, in [0, 2^63)."""
    part = f"/{begun}" if begun else ""
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _moe_layers(config: Any) -> list[int]:
    """Which layers have experts, by transformers' settings."""
    if not (getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)):
        return []
    dense = {*range(getattr(config, "first_k_dense_replace", 0)), *(getattr(config, "mlp_only_layers", None) or ())}
    return [layer for layer in range(config.num_hidden_layers) if layer not in dense]


def _runner(llm: Any) -> Any:
    [runner] = llm.collective_rpc(lambda worker: worker.model_runner)
    return runner
