"""Drawing tokens: temperature, min-p, top-k, top-p, and the logprob of what was drawn in the distribution drawn from.

Each acts on what the one before it left, in this order, which is vLLM's (vllm/v1/sample/sampler.py). Cumulative
probabilities are sums of integers: those of floats have no deterministic kernel on CUDA, which trainers insist on.
"""

import hashlib

import numpy as np
import torch

from rollouts.records import SamplingParams

_ONE = float(1 << 52)  # probability 1 as an integer; sums over any vocabulary stay far below 2^63


def truncate(logits_BV: torch.Tensor, top_k: int, top_p: float, min_p: float = 0.0) -> torch.Tensor:
    """Logits (divided by the temperature) with everything that is cut off at -inf. The most probable token stays.

    min_p in [0, 1]: drops what is less probable than min_p times the most probable token. Then top_k: 0 keeps all.
    Then top_p in (0, 1]: the smallest set of most probable tokens whose share of what is left reaches top_p.
    """
    if min_p > 0:
        probabilities = torch.softmax(logits_BV, dim=-1)
        least = min_p * probabilities.amax(dim=-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(probabilities < least, float("-inf"))
    if 0 < top_k < logits_BV.shape[-1]:
        kth = torch.topk(logits_BV, top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, float("-inf"))
    if top_p < 1.0:
        ordered, index = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
        shares = _integers(torch.softmax(ordered, dim=-1))
        before = torch.cumsum(shares, dim=-1) - shares
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before >= max(1, round(top_p * _ONE)))
        logits_BV = logits_BV.masked_fill(drop, float("-inf"))
    return logits_BV


def draw(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Token ids int64 [B] and their logprobs float32 [B], by inverse CDF: one uniform number in [0, 1) per token.

    Third, bool [B, V]: which tokens could have been drawn; None when nothing was truncated. Temperature 0 takes the
    most probable token; its logprob is 0, that of a distribution with one outcome.
    """
    logits_BV = logits_BV.float()
    if params.temperature == 0:
        ids = logits_BV.argmax(dim=-1)
        return ids, torch.zeros(len(ids), dtype=torch.float32, device=logits_BV.device), None
    cut = truncate(logits_BV / params.temperature, params.top_k, params.top_p, params.min_p)
    logprobs = torch.log_softmax(cut, dim=-1)
    kept = logprobs != float("-inf")  # a NaN is kept, to be found by who reads the logprobs
    cdf = torch.cumsum(_integers(logprobs.double().exp()), dim=-1)
    drawn = (uniforms_B.double()[:, None] * cdf[:, -1:]).long()  # below the last entry, so on a token that has a share
    ids = torch.searchsorted(cdf, drawn, right=True)
    ids = ids.clamp(max=logprobs.shape[-1] - 1)  # all NaN: any token will do
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1), kept if params.truncates else None


def _integers(probabilities: torch.Tensor) -> torch.Tensor:
    """int64 multiples of 2^-52; NaN becomes 0."""
    return (probabilities.double().nan_to_num(0.0) * _ONE).round().long()


def uniforms(seed: int, key: str, sample: int, count: int) -> np.ndarray:
    """`count` uniform numbers that depend on (seed, key, sample) alone: not on batch, replica or order. float32."""
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(bits).random(count, dtype=np.float32)
