"""Drawing tokens: temperature, top-k, top-p, and the logprob of what was drawn in the distribution drawn from."""

import hashlib

import numpy as np
import torch


def truncate(logits_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits with everything outside the top-k / nucleus at -inf. The most probable token always stays.

    top_k: 0 keeps all. top_p in (0, 1]: the smallest set of most probable tokens whose probability reaches top_p.
    """
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


def draw(logits_BV, uniforms_B, temperature: float, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B] and their logprobs float32 [B], by inverse CDF: one uniform number in [0, 1) per token.

    temperature 0 takes the most probable token; its logprob is 0, that of a distribution with one outcome.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        ids = logits_BV.argmax(dim=-1)
        return ids, torch.zeros(len(ids), dtype=torch.float32, device=logits_BV.device)
    logprobs = torch.log_softmax(truncate(logits_BV / temperature, top_k, top_p), dim=-1)
    cdf = torch.cumsum(logprobs.double().exp(), dim=-1)
    ids = torch.searchsorted(cdf, uniforms_B.double()[:, None] * cdf[:, -1:], right=True)
    # Rounding may leave the draw past the last token, or on one of probability zero next to it.
    last = (logprobs > float("-inf")).long().cumsum(-1).argmax(dim=-1, keepdim=True)
    ids = torch.minimum(ids, last)
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1)


def uniforms(seed: int, key: str, sample: int, count: int) -> np.ndarray:
    """`count` uniform numbers that depend on (seed, key, sample) alone: not on batch, replica or order. float32."""
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(bits).random(count, dtype=np.float32)
