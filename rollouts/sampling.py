"""Drawing tokens: temperature, min-p, top-k, top-p, and the logprob of what was drawn in the distribution drawn from.

Each acts on what the one before it left, in this order, which is vLLM's (vllm/v1/sample/sampler.py).
"""

import hashlib

import numpy as np
import torch

from rollouts.records import SamplingParams


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
        probabilities = torch.softmax(ordered, dim=-1)
        before = torch.cumsum(probabilities, dim=-1) - probabilities
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before >= top_p)
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
    cdf = torch.cumsum(logprobs.double().exp(), dim=-1)
    ids = torch.searchsorted(cdf, uniforms_B.double()[:, None] * cdf[:, -1:], right=True)
    # Rounding may leave the draw past the last token, or on one of probability zero next to it.
    last = kept.long().cumsum(-1).argmax(dim=-1, keepdim=True)
    ids = torch.minimum(ids, last)
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1), kept if params.truncates else None


def uniforms(seed: int, key: str, sample: int, count: int) -> np.ndarray:
    """`count` uniform numbers that depend on (seed, key, sample) alone: not on batch, replica or order. float32."""
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(bits).random(count, dtype=np.float32)
