"""DeepSeek-V4's attention: transformers' own modules, called on what a layout (models.attention) cuts out of a row.

V4 attends to a window of keys, to keys that are compressed from several tokens, and to a sink. Keys and values alone do
not say what is compressed next, so the layout is given the whole attention layer and its inputs. Everything else in V4
(hyper-connections, experts, norms) works token by token, in packed rows as in others. Padding stands at the end of a
sequence, where nothing before it looks: neither the window nor a compressed key, which is seen once it is complete.

The mathematics is transformers' eager code: exact, but neither fast nor sparing. A gradient reaches all weights but the
indexers', which only choose keys.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Attention, eager_attention_forward

NAME = "r1_v4"


class Tokens(NamedTuple):
    """What an attention layer is given: B sequences of T tokens."""

    hidden_BTD: Tensor
    rotary: dict[str, tuple[Tensor, Tensor]]  # cos and sin [B, T, R] of each kind
    position_BT: Tensor  # int64

    def at(self, rows: Any, columns: Any) -> "Tokens":
        """Indexed along the first two axes, of which two must be left."""
        rotary = {kind: (cos[rows, columns], sin[rows, columns]) for kind, (cos, sin) in self.rotary.items()}
        return Tokens(self.hidden_BTD[rows, columns], rotary, self.position_BT[rows, columns])


def attend(module: Any, tokens: Tokens, cache: Cache | None = None) -> Tensor:
    """[B, T, D]: each of B sequences by itself, after what `cache` holds of it, which then holds these tokens too."""
    kept = cache.layers[module.layer_idx].keys if cache is not None else None
    seen = 0 if kept is None else kept.shape[-2]
    query_T1 = torch.arange(seen, seen + tokens.hidden_BTD.shape[1], device=tokens.hidden_BTD.device)[:, None]
    key_K = torch.arange(seen + len(query_T1), device=query_T1.device)
    hidden_TK = (key_K > query_T1) | (key_K <= query_T1 - module.sliding_window)
    mask_TK = tokens.hidden_BTD.new_zeros(hidden_TK.shape).masked_fill(hidden_TK, float("-inf"))
    mask_B1TK = mask_TK.expand(len(tokens.hidden_BTD), 1, -1, -1)
    return DeepseekV4Attention.forward(module, *tokens, mask_B1TK, past_key_values=cache)[0]


def use_layouts(model: nn.Module) -> None:
    """Let every attention layer of V4 in `model` ask the `layout` of the model call."""
    for module in model.modules():
        if isinstance(module, DeepseekV4Attention):
            module.forward = partial(_ask, module)  # pyright: ignore[reportAttributeAccessIssue]


def _ask(module: Any, hidden_states, position_embeddings, position_ids, *args, layout=None, **others):
    if layout is None or (module.training and module.attention_dropout):
        raise ValueError(f"attention '{NAME}' needs layout=... in the model call, and no dropout")
    output_BTD = layout.attend_whole(module, Tokens(hidden_states, position_embeddings, position_ids))
    return output_BTD if module.compressor is None else output_BTD + _nothing(module.compressor), None


def _nothing(compressor: nn.Module) -> Tensor:
    """0, with gradient 0 for all weights: ranks must reduce the same gradients, also where no sequence is long enough
    to be compressed. Indexers have none anywhere."""
    weights = (weight for name, weight in compressor.named_parameters() if not name.startswith("indexer."))
    return 0.0 * torch.stack([weight.flatten()[0] for weight in weights]).sum()


AttentionInterface.register(NAME, eager_attention_forward)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # `attend` makes its own
