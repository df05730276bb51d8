"""Keys and values of running completions (and their experts), and the attention that reads and writes them.

The cache works underneath transformers' models, not through their `past_key_values`: a model is called on the new
tokens alone, and its attention (models.attention) finds the rest here. For MLA this keeps the expanded keys and values,
where transformers would expand the whole latent cache again for every token.

DeepSeek-V4 is the exception: each slot has a cache of transformers' own, and its attention runs slot by slot.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from models.attention import PackedLayout
from models.v4_attention import Tokens, attend


class KVCache:
    """[slots, heads, length, width] per layer, allocated at the first write (models differ in head widths)."""

    def __init__(self, slots: int, length: int):
        self.slots, self.length = slots, length
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.own: dict[int, DynamicCache] = {}  # slot: transformers' cache of it, for DeepSeek-V4 alone
        self.experts: torch.Tensor | None = None  # [slots, length, L, K], of the tokens read; only where asked for

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's buffers; `key` and `value` [*, H, *, D] give heads, widths, dtype and device."""
        if index not in self.keys:
            shape = (self.slots, key.shape[1], self.length)
            self.keys[index] = key.new_zeros(*shape, key.shape[-1])
            self.values[index] = value.new_zeros(*shape, value.shape[-1])
        return self.keys[index], self.values[index]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows `source` onto rows `target` (int64, disjoint), in every layer."""
        for buffers in (self.keys, self.values):
            for buffer in buffers.values():
                buffer[target] = buffer[source]
        if self.own:
            self.own |= {to: self.own[at] for at, to in zip(source.tolist(), target.tolist(), strict=True)}
        if self.experts is not None:
            self.experts[target] = self.experts[source]


@dataclass(slots=True)
class Prefill:
    """A layout (models.attention): a packed row of prompts; prompt p is written to every slot of `slots[p]`."""

    cache: KVCache
    packing: PackedLayout
    bounds: list[tuple[int, int]]  # per prompt: first and one-past-last token in the row
    slots: list[torch.Tensor]  # per prompt: int64 slots that continue it

    def attend(self, module, query, key, value, scaling):
        keys, values = self.cache.layer(module.layer_idx, key, value)
        for (start, end), slots in zip(self.bounds, self.slots, strict=True):
            keys[slots, :, : end - start] = key[0, :, start:end]
            values[slots, :, : end - start] = value[0, :, start:end]
        return self.packing.attend(module, query, key, value, scaling)

    def attend_whole(self, module: Any, tokens: Tokens):
        layer, outputs = module.layer_idx, []
        for (start, end), slots in zip(self.bounds, self.slots, strict=True):
            if layer == 0:
                self.cache.own |= {slot: DynamicCache(config=module.config) for slot in slots.tolist()}
            first, *others = (self.cache.own[slot] for slot in slots.tolist())
            outputs.append(attend(module, tokens.at(slice(None), slice(start, end)), first)[0])
            for other in others:
                other.layers[layer] = deepcopy(first.layers[layer])
        return torch.cat(outputs)[None]

    def store(self, buffer, values_T) -> None:
        """One value per token of the row, into `buffer` [slots, length, ...]."""
        for (start, end), slots in zip(self.bounds, self.slots, strict=True):
            buffer[slots, : end - start] = values_T[start:end]


@dataclass(slots=True)
class Decode:
    """A layout: one new token for each of the first B slots, at `positions` [B]."""

    cache: KVCache
    positions: torch.Tensor  # int64 [B]
    mask: torch.Tensor  # bool [B, 1, 1, L], True where a key must not be read
    rows: torch.Tensor  # int64 [B] = arange(B)

    @classmethod
    def at(cls, cache: KVCache, positions: torch.Tensor) -> "Decode":
        length = int(positions.max()) + 1
        mask = torch.arange(length, device=positions.device)[None, :] > positions[:, None]
        return cls(cache, positions, mask[:, None, None, :], torch.arange(len(positions), device=positions.device))

    def attend(self, module, query, key, value, scaling):
        keys, values = self.cache.layer(module.layer_idx, key, value)
        keys[self.rows, :, self.positions] = key[:, :, 0]
        values[self.rows, :, self.positions] = value[:, :, 0]
        batch, length = len(self.rows), self.mask.shape[-1]
        # Query heads that share a key head become rows of one product; scaling the query spares a pass over the keys.
        grouped = (query * scaling).view(batch, key.shape[1], -1, query.shape[-1])
        scores = torch.matmul(grouped, keys[:batch, :, :length].transpose(2, 3))
        weights = torch.softmax(scores.masked_fill(self.mask, float("-inf")), dim=-1)
        out = torch.matmul(weights, values[:batch, :, :length]).view(batch, query.shape[1], 1, -1)
        return out.transpose(1, 2)

    def attend_whole(self, module: Any, tokens: Tokens):
        slots = range(len(self.rows))
        return torch.cat([attend(module, tokens.at(slice(s, s + 1), slice(None)), self.cache.own[s]) for s in slots])

    def store(self, buffer, values_B) -> None:
        """One value per new token, into `buffer` [slots, length, ...]."""
        buffer[self.rows, self.positions] = values_B
