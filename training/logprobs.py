"""Token logprobs and entropy from hidden states and the head's weight, in chunks: the [T, V] logits are never whole."""

import itertools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: 64 MiB in float32

# Ids int64 [S] of one set after the other, and their sizes int64 [T] (see rollouts.records.Support).
SupportTensors = tuple[torch.Tensor, torch.Tensor]


def _chunk(hidden_TD, weight_VD, targets_T, temperature: float, support: SupportTensors | None = None):
    logits_TV = F.linear(hidden_TD, weight_VD).float() / temperature
    if support is not None:
        ids_S, sizes_T = support
        outside_TV = torch.ones_like(logits_TV, dtype=torch.bool)
        outside_TV[_rows(sizes_T), ids_S] = False
        # Finite, so that probability 0 times it is 0 in the entropy.
        logits_TV.masked_fill_(outside_TV, torch.finfo(logits_TV.dtype).min)
    log_normaliser_T = torch.logsumexp(logits_TV, dim=-1)
    logprobs_T = logits_TV.gather(1, targets_T[:, None]).squeeze(1) - log_normaliser_T
    with torch.no_grad():
        entropy_T = log_normaliser_T - (torch.softmax(logits_TV, dim=-1) * logits_TV).sum(-1)
    return logprobs_T, entropy_T


def token_logprobs(
    hidden_TD, weight_VD, targets_T, temperature: float = 1.0, support: SupportTensors | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and entropy (nats, no gradient) of softmax(hidden @ weight.T / temperature), both float32 [T].

    hidden_TD: float [T, D]; weight_VD: float [V, D]; targets_T: int64 [T]; temperature > 0.
    support: the tokens that each target was drawn from; the softmax is then over these alone (DeepSeek-V3.2, section
    3.1: keep sampling mask). Raises ValueError when sizes do not add up or a target is not in its own set.
    """
    size = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
    supports = itertools.repeat(None) if support is None else _cut(*support, targets_T, size)
    parts = []
    for start, part in zip(range(0, hidden_TD.shape[0], size), supports, strict=False):
        piece = (hidden_TD[start : start + size], weight_VD, targets_T[start : start + size], temperature, part)
        recompute = torch.is_grad_enabled() and hidden_TD.shape[0] > size  # one chunk fits anyway
        parts.append(checkpoint(_chunk, *piece, use_reentrant=False) if recompute else _chunk(*piece))
    if not parts:
        return hidden_TD.new_zeros(0), hidden_TD.new_zeros(0)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _cut(ids_S, sizes_T, targets_T, size: int) -> list[SupportTensors]:
    """The support of every `size` tokens."""
    if len(sizes_T) != len(targets_T) or int(sizes_T.sum()) != len(ids_S):
        raise ValueError(f"support: {len(sizes_T)} sets of {len(ids_S)} ids in all do not fit {len(targets_T)} tokens")
    rows_S = _rows(sizes_T)
    inside_T = torch.zeros_like(targets_T, dtype=torch.bool)
    inside_T[rows_S[ids_S == targets_T[rows_S]]] = True
    if not inside_T.all():
        raise ValueError(
            f"support: {int((~inside_T).sum())} of {len(targets_T)} tokens are not in the set they were drawn from"
        )
    sizes = sizes_T.split(size)
    return list(zip(ids_S.split([int(part.sum()) for part in sizes]), sizes, strict=True))


def _rows(sizes_T: torch.Tensor) -> torch.Tensor:
    """For each id of a support, the token that it belongs to, int64 [S]."""
    return torch.arange(len(sizes_T), device=sizes_T.device).repeat_interleave(sizes_T)
