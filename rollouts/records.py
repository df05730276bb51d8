"""Records of sampling: what a generator takes and what it returns. Plain data, no tensors."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length", "interrupted"]  # interrupted: to be continued, see Request.begun


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw completions. The logprobs returned are of the distribution after all of these are applied."""

    max_new_tokens: int  # tokens
    temperature: float = 1.0  # 0 means greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 means all
    min_p: float = 0.0  # drops tokens less likely than min_p times the most likely one; 0 means none
    stop: tuple[str, ...] = ()  # a completion also ends with the token that completes one of these in its text
    group_size: int = 1  # completions per prompt
    seed: int = 0  # completion g of request r depends on (seed, r.key, g) alone, unless r has a seed
    return_routed_experts: bool = False  # fill Completion.routed_experts
    return_support: bool = False  # fill Completion.support

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Which tokens could have been drawn, for each token of a completion: what top-k, top-p and min-p left."""

    ids: np.ndarray  # [sum(sizes)] int32: the token ids of one set after the other
    sizes: np.ndarray  # [T] int32, at least 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    token_ids: np.ndarray  # [T] int32, ends with EOS or a stop string's last token when finish_reason is "stop"
    sampling_logprobs: np.ndarray  # [T] float32
    policy_versions: np.ndarray  # [T] int32: optimizer steps taken by the weights that sampled each token
    finish_reason: FinishReason
    text: str  # decoded without special tokens, after the <think> that the prompt may have opened
    # The experts that every token was sent to, [P + T - 1, L, K] for P prompt tokens, L MoE layers and K experts per
    # token: all tokens but the last, which the model never read. uint8, or uint16 beyond 256 experts.
    routed_experts: np.ndarray | None = None
    support: Support | None = None  # None also when nothing was truncated (see SamplingParams.truncates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to sample from. `key` makes its random numbers independent of batch, replica and order."""

    key: str
    prompt_ids: list[int]
    expected_tokens: float = 0.0  # of one completion, as far as is known; long ones are begun first
    return_routed_experts: bool = False  # fill Completion.routed_experts of this one, whatever SamplingParams says
    seed: int | None = None  # in place of SamplingParams.seed
    optional: bool = False  # sampled while there is room beside others; interrupted when their groups are whole
    begun: tuple[Completion, ...] = ()  # [G] of an earlier call; interrupted ones are continued, the others kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All completions of one prompt."""

    key: str
    prompt_ids: list[int]
    completions: list[Completion]
