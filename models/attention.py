"""Attention that asks a layout where its tokens stand: packed rows here, running completions in rollouts.kv_cache.

Everything but attention works token by token, so a micro-batch is one flat row [1, T] without padding. For attention
the sequences are laid out as [S, L] blocks of similar length, attended causally, and put back. Padding stands at the
end of a block row, where causality hides it. Registered with transformers as `r1_layout`, so that one model object can
train and sample. Masks are not heeded: models.architectures says which models need none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer

from models import v4_attention

NAME = "r1_layout"
_LONG = 512  # tokens of a sequence, above which scores [L, L] are a matter of memory; shorter ones stay bit for bit
_BUCKET_STEP = 1.25  # sequences in one block differ in length by at most this factor: at most 20 % padding


class Layout(Protocol):
    """Knows which keys each query of a model call may see."""

    def attend(self, module: Any, query, key, value, scaling: float) -> torch.Tensor:
        """query [B, H, T, Dqk], key [B, Hkv, T, Dqk], value [B, Hkv, T, Dv] of the new tokens -> [B, T, H, Dv]."""
        ...

    def attend_whole(self, module: Any, tokens: v4_attention.Tokens) -> torch.Tensor:
        """The attention layer `module` of DeepSeek-V4 over the new tokens -> [B, T, D]."""
        ...


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
            first = sizes[blocks[-1][0]] if blocks else 0
            if sizes[index] > _BUCKET_STEP * first or first <= _LONG < sizes[index]:
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

    def attend(self, module: Any, query, key, value, scaling: float) -> torch.Tensor:
        heads_first = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [T, H, D]
        outputs = []
        for gather in self.gathers:
            q, k, v = (tensor[gather].transpose(1, 2) for tensor in heads_first)  # [S, H, L, D]
            outputs.append(attend_causally(q, k, v, scaling).transpose(1, 2).flatten(0, 1))  # [S * L, H, Dv]
        return torch.cat(outputs)[self.restore].unsqueeze(0)

    def attend_whole(self, module: Any, tokens: v4_attention.Tokens) -> torch.Tensor:
        outputs = [v4_attention.attend(module, tokens.at(0, gather)).flatten(0, 1) for gather in self.gathers]
        return torch.cat(outputs)[self.restore].unsqueeze(0)


def attend_causally(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """[S, H, N, Dqk], [S, Hkv, L, Dqk], [S, Hkv, L, Dv] -> [S, H, N, Dv]. The N queries are of the last of L tokens."""
    width, wider = v.shape[-1], q.shape[-1] - v.shape[-1]
    count, seen = q.shape[2], k.shape[2]
    if q.device.type == "cpu" and wider > 0 and seen > _LONG:
        # MLA: torch's kernel for CPUs that makes no [L, L] wants values as wide as keys.
        v = F.pad(v, (0, wider))
    mask: Any = None if count == seen else causal_lower_right(count, seen)
    settings: dict[str, Any] = {"is_causal": mask is None, "scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
    return F.scaled_dot_product_attention(q, k, v, mask, **settings)[..., :width]


def layout_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, layout=None, **others):
    """transformers' attention interface; `layout` is passed through the model call. Dropout is not supported.

    Raises ValueError without a layout, with dropout, or for attention to something else than all earlier tokens.
    """
    if layout is None or dropout:
        raise ValueError(f"attention '{NAME}' needs layout=... in the model call, and no dropout (got {dropout})")
    # A window as wide as the context is none; models.architectures has looked at its width.
    if given := [name for name in ("softcap", "s_aux") if others.get(name) is not None]:
        raise ValueError(f"attention '{NAME}' does not heed {given[0]}, which {type(module).__name__} relies on")
    if (index := others.get("indices")) is not None:  # of an indexer that is awake (models.indexer)
        return layout.attend_indexed(module, query, key, value, scaling, index), None
    return layout.attend(module, query, key, value, scaling), None


def attend_to_all(model: nn.Module) -> None:
    """Put the indexers of DeepSeek-V3.2 to rest: they choose every token while there are at most index_topk."""
    for module in model.modules():
        if isinstance(module, DeepseekV32Indexer):
            module.forward = _choose_nothing  # pyright: ignore[reportAttributeAccessIssue]


def _choose_nothing(*args, **kwargs):
    return None


def no_mask(*args, **kwargs) -> torch.Tensor:
    return torch.empty(1, 1, 0, 0)  # DeepSeek-V3.2 takes a view of it; nobody reads it


AttentionInterface.register(NAME, layout_attention)
AttentionMaskInterface.register(NAME, no_mask)
