"""Attention over packed rows: many sequences in one row of tokens, none of them seeing another.

Everything but attention works token by token, so a micro-batch is one flat row [1, T] without padding. For attention
the sequences are laid out as [S, L] blocks of similar length, attended causally, and put back. Padding stands at the
end of a block row, where causality hides it. Registered with transformers as `r1_packed`: any of its models can use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "r1_packed"
_BUCKET_STEP = 1.25  # sequences in one block differ in length by at most this factor: at most 20 % padding


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the tokens of a packed row go in attention blocks.

    gathers: per block an int64 tensor [S, L] of token indices (padding repeats the last token of its sequence);
    restore: int64 [T], position of each token in the concatenation of the flattened blocks.
    """

    gathers: list[torch.Tensor]
    restore: torch.Tensor

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "PackedLayout":
        """`lengths`: tokens of each sequence, in row order; all >= 1."""
        sizes = torch.tensor(list(lengths), dtype=torch.int64)
        starts = torch.cumsum(sizes, 0) - sizes
        order = torch.argsort(sizes, stable=True)
        blocks: list[list[int]] = []
        for index in order.tolist():
            if not blocks or sizes[index] > _BUCKET_STEP * sizes[blocks[-1][0]]:
                blocks.append([])
            blocks[-1].append(index)
        gathers, restore, base = [], torch.empty(int(sizes.sum()), dtype=torch.int64), 0
        for block in blocks:
            size, start = sizes[block][:, None], starts[block][:, None]
            column = torch.arange(int(size.max()))[None, :]
            gather = start + torch.minimum(column, size - 1)
            real = column < size
            slots = base + torch.arange(gather.numel()).view_as(gather)
            restore[gather[real]] = slots[real]
            gathers.append(gather.to(device))
            base += gather.numel()
        return cls(gathers=gathers, restore=restore.to(device))


def packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, packing=None, **_):
    """transformers' attention interface: query [1, H, T, Dqk], key [1, Hkv, T, Dqk], value [1, Hkv, T, Dv].

    Returns ([1, T, H, Dv], None). Raises ValueError when the model call passed no `packing`.
    """
    if packing is None:
        raise ValueError(f"attention '{NAME}' needs packing=PackedLayout in the model call")
    heads_first = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [T, H, D]
    outputs = []
    for gather in packing.gathers:
        q, k, v = (tensor[gather].transpose(1, 2) for tensor in heads_first)  # [S, H, L, D]
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # [S * L, H, Dv]
    return torch.cat(outputs)[packing.restore].unsqueeze(0), None


def _no_mask(*args, **kwargs):
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
