"""The routed experts of an MoE layer on rows sorted by expert, with the matrix products left to whoever is asked.

Registered with transformers as `r1_grouped`. An experts module that has an attribute `grouped_mlp` computes its rows by
it (fp8.convert puts one there); all others run transformers' own grouped product.
"""

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "r1_grouped"


def experts_forward(self: Any, hidden_TD: torch.Tensor, experts_TK: torch.Tensor, gates_TK: torch.Tensor):
    """[T, D]: for each token the sum over its K experts of gate * expert(hidden). experts_TK int64 in [0, E)."""
    if getattr(self, "grouped_mlp", None) is None:
        return grouped_mm_experts_forward(self, hidden_TD, experts_TK, gates_TK)
    top_k = experts_TK.shape[1]
    order = torch.argsort(experts_TK.flatten(), stable=True)
    counts_E = torch.bincount(experts_TK.flatten(), minlength=self.num_experts)
    sorted_SD = self.grouped_mlp(hidden_TD[order // top_k], counts_E, self.gate_up_proj, self.down_proj)
    weighted_SD = sorted_SD * gates_TK.flatten()[order, None]
    in_order = torch.empty_like(order)
    in_order[order] = torch.arange(len(order), device=order.device)
    # A sum over K, not index_add: deterministic on GPUs, and float32 inside whatever the dtype.
    return weighted_SD[in_order].view(-1, top_k, hidden_TD.shape[1]).sum(dim=1).to(hidden_TD.dtype)


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
