"""Token logprobs and entropy from hidden states and the head's weight, in chunks: the [T, V] logits are never whole."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: 64 MiB in float32


def _chunk(hidden_TD, weight_VD, targets_T, temperature: float):
    logits_TV = F.linear(hidden_TD, weight_VD).float() / temperature
    log_normaliser_T = torch.logsumexp(logits_TV, dim=-1)
    logprobs_T = logits_TV.gather(1, targets_T[:, None]).squeeze(1) - log_normaliser_T
    with torch.no_grad():
        entropy_T = log_normaliser_T - (torch.softmax(logits_TV, dim=-1) * logits_TV).sum(-1)
    return logprobs_T, entropy_T


def token_logprobs(hidden_TD, weight_VD, targets_T, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and entropy (nats, no gradient) of softmax(hidden @ weight.T / temperature), both float32 [T].

    hidden_TD: float [T, D]; weight_VD: float [V, D]; targets_T: int64 [T]; temperature > 0.
    """
    size = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
    parts = []
    for start in range(0, hidden_TD.shape[0], size):
        piece = (hidden_TD[start : start + size], weight_VD, targets_T[start : start + size], temperature)
        recompute = torch.is_grad_enabled() and hidden_TD.shape[0] > size  # one chunk fits anyway
        parts.append(checkpoint(_chunk, *piece, use_reentrant=False) if recompute else _chunk(*piece))
    if not parts:
        return hidden_TD.new_zeros(0), hidden_TD.new_zeros(0)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
