"""A model's weights under the names that its checkpoints have, experts one by one, without copying any."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from models import v4_names

_EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def stored_name(model: PreTrainedModel, name: str) -> str | None:
    """The checkpoint name of a tensor of the model's state dict, experts fused; None for an output head that is the
    embedding, which is stored once."""
    if model.config.tie_word_embeddings and name == "lm_head.weight":
        return None
    return v4_names.released_name(name) if model.config.model_type == v4_names.MODEL_TYPE else name


def stored_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's own tensors by `stored_name`."""
    for name, tensor in model.state_dict().items():
        if (stored := stored_name(model, name)) is not None:
            yield stored, tensor


def is_fused(name: str) -> bool:
    """Whether one of `stored_weights` holds all experts of a layer, along its first dimension."""
    return bool(_expert_parts(name))


def hub_pieces(name: str, tensor: torch.Tensor, first: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """One of `stored_weights` as it is stored: fused experts one by one. Views of it.

    first: which expert a tensor of some of them begins with.
    """
    parts, stem = _expert_parts(name), name.rpartition(".")[0]
    if not parts:
        yield name, tensor
        return
    for index, expert in enumerate(tensor, start=first):
        for part, piece in zip(parts, expert.chunk(len(parts)), strict=True):
            yield f"{stem}.{index}.{part}.weight", piece


def _expert_parts(name: str) -> tuple[str, ...]:
    stem, _, leaf = name.rpartition(".")
    return (v4_names.EXPERT_PARTS if stem.endswith(".ffn.experts") else _EXPERT_PARTS).get(leaf, ())


def hub_views(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's own weights under their checkpoint names: writing to one changes the model. Nothing is copied.

    Fused experts appear one by one; a tied output head does not appear.
    """
    return {name: piece for stored in stored_weights(model) for name, piece in hub_pieces(*stored)}
