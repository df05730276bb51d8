"""Multi-token prediction, depth 1 (DeepSeek-V3, arXiv:2412.19437, section 2.2).

h'_i = M [RMSNorm(Emb(t_{i+1})); RMSNorm(h_i)], one transformer block, then the main model's head predicts t_{i+2}.
Embedding and head are the main model's own; the released checkpoints store them again under the extra layer's index.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32DecoderLayer

from models.attention import Layout, attend_to_all, no_mask
from models.weight_names import hub_pieces

_BLOCKS = {"deepseek_v3": DeepseekV3DecoderLayer, "deepseek_v32": DeepseekV32DecoderLayer}


def mtp_layers(config: Any) -> int:
    """How many MTP layers a checkpoint of this config says it has. Classes that know of none keep the released name."""
    return int(getattr(config, "num_mtp_layers", None) or getattr(config, "num_nextn_predict_layers", None) or 0)


def check_mtp(config: Any) -> None:
    """Raises ValueError, in one sentence, for MTP layers that cannot be computed here."""
    layers = mtp_layers(config)
    if layers and config.model_type not in _BLOCKS:
        raise ValueError(
            f"this {config.model_type} checkpoint has MTP layers, which r1 computes for {' and '.join(_BLOCKS)} alone; "
            "set num_nextn_predict_layers to 0 in its config.json to go on without them"
        )
    if layers > 1:
        raise ValueError(
            f"this checkpoint has {layers} MTP layers and r1 trains one, as DeepSeek-V3 has; set "
            "num_nextn_predict_layers to 1 (the first is kept) or 0 in its config.json"
        )


class MTPModule(nn.Module):
    """Parameters of the extra layer, named as in the released checkpoints."""

    def __init__(self, config):
        super().__init__()
        self.enorm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = _BLOCKS[config.model_type](_with_one_more_layer(config), layer_idx=config.num_hidden_layers)
        self.norm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        attend_to_all(self)

    def init_weights(self, std: float, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std, generator=generator)
            elif "norm" in name:
                nn.init.ones_(parameter)

    def forward(self, hidden_TD, next_embedding_TD, position_embeddings, layout: Layout) -> torch.Tensor:
        """Hidden states [1, T, D] from which the shared head predicts the token after the next one."""
        mixed = self.eh_proj(torch.cat([self.enorm(next_embedding_TD), self.hnorm(hidden_TD)], dim=-1))
        block = self.block(mixed, no_mask(), position_embeddings=position_embeddings, layout=layout)
        return self.norm(block)


def _with_one_more_layer(config: Any) -> Any:
    """V3.2's config lists what each layer's feed-forward part is; the MTP layer, one beyond them, has experts."""
    if not getattr(config, "mlp_layer_types", None):
        return config
    longer = deepcopy(config)
    longer.mlp_layer_types = [*config.mlp_layer_types, "sparse"]
    return longer


def mtp_hidden(
    model, mtp: MTPModule, next_ids, hidden, position_ids, layout: Layout, alone: bool = False
) -> torch.Tensor:
    """MTP states [1, T, D] of tokens with these hidden states, each with the id of the one after it; the last two
    positions of every sequence have no target.

    alone: no gradient reaches the main model, neither its hidden states nor its embedding.
    """
    next_embedding = model.model.embed_tokens(next_ids)
    if alone:
        hidden, next_embedding = hidden.detach(), next_embedding.detach()
    rotary = model.model.rotary_emb(hidden, position_ids)
    return mtp(hidden, next_embedding, rotary, layout)


# --- the released layout: model.layers.<num_hidden_layers>.*, experts one by one ---------------------------------


def mtp_state_dict(model, mtp: MTPModule) -> dict[str, torch.Tensor]:
    """Copies of the MTP weights under the names of the released checkpoints."""
    pieces = (piece for weight in mtp_weights(model, mtp) for piece in hub_pieces(*weight))
    return {name: tensor.detach().contiguous().clone() for name, tensor in pieces}


def mtp_weights(model, mtp: MTPModule) -> Iterator[tuple[str, torch.Tensor]]:
    """All that the released checkpoints have of the MTP layer, the embedding and head that it shares with the model
    among it; experts fused, perhaps sharded."""
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    yield f"{prefix}embed_tokens.weight", model.model.embed_tokens.weight
    yield f"{prefix}shared_head.head.weight", model.lm_head.weight
    yield from mtp_stored(model.config, mtp).items()


def mtp_views(config, mtp: MTPModule) -> dict[str, torch.Tensor]:
    """The MTP module's own weights by the names of the released checkpoints: writing to one changes the module."""
    return dict(piece for weight in mtp_stored(config, mtp).items() for piece in hub_pieces(*weight))


def mtp_stored(config, mtp: MTPModule) -> dict[str, torch.Tensor]:
    """The module's own, experts fused, perhaps sharded."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    return {
        f"{prefix}shared_head.norm.weight" if name == "norm.weight" else prefix + name.removeprefix("block."): tensor
        for name, tensor in mtp.state_dict().items()
    }
