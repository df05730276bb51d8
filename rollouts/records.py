"""Records of sampling: what a generator takes and what it returns. Plain data, no tensors."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from data.problems import Problem

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw completions. The logprobs returned are of the distribution after all of these are applied."""

    max_new_tokens: int  # tokens
    temperature: float = 1.0  # 0 means greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 means all
    group_size: int = 1  # completions per prompt
    seed: int = 0  # completion g of request r depends on (seed, r.key, g) alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to sample from. `key` makes its random numbers independent of batch, replica and order."""

    key: str
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    token_ids: np.ndarray  # [T] int32, ends with EOS when finish_reason is "stop"
    sampling_logprobs: np.ndarray  # [T] float32
    policy_version: int  # optimizer steps taken by the weights that sampled it
    finish_reason: FinishReason
    text: str  # decoded without special tokens, after the <think> that the prompt may have opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All completions of one prompt."""

    key: str
    prompt_ids: list[int]
    completions: list[Completion]
    problem: Problem | None = field(default=None)
