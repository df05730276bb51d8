"""Which decoder layers each rank of a pipeline holds, and the policy that is left of the whole one there.

2P chunks for P ranks, laid out as a V: rank i holds chunk i and chunk 2P - 1 - i. So rank 0 has the first chunk and the
last, embedding and head, and what borrows both: the MTP module, and a head that is the embedding.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from models.attention import no_mask
from models.mtp import MTPModule
from training.context import ContextGroup
from training.logprobs import HeadLoss, LossOf
from training.policy import Policy, Predictions, RowTensors, WithMTP


def cut(layers: int, ranks: int) -> list[range]:
    """The layers of each of the 2 * ranks chunks. Those that are left over go to the chunks after the first, which has
    the embedding; the last, which has the head, gets one last of all. Raises ValueError for too few layers."""
    size, over = divmod(layers, 2 * ranks)
    if size == 0:
        raise ValueError(f"{layers} layers cannot be cut into {2 * ranks} chunks")
    sizes = [size + (1 <= chunk <= over) for chunk in range(2 * ranks)]
    ends = [sum(sizes[: chunk + 1]) for chunk in range(2 * ranks)]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def rank_of_chunk(chunk: int, ranks: int) -> int:
    return min(chunk, 2 * ranks - 1 - chunk)


def rank_of_weight(name: str, layers: int, ranks: int) -> int:
    """Of a model's own weight, by its name: model.layers.3.mlp.gate.weight is where chunk of layer 3 is."""
    before, _, after = name.partition("layers.")
    if not after or before != "model.":
        return 0
    layer = int(after.partition(".")[0])
    return next(rank_of_chunk(i, ranks) for i, chunk in enumerate(cut(layers, ranks)) if layer in chunk)


class Elsewhere(nn.Module):
    """Stands for a module that another rank holds, so that the names of all others stay as they are."""


class PolicyPart(Policy):
    """The two chunks of one rank; with them, on rank 0, embedding, head and MTP module."""

    def __init__(
        self,
        model: PreTrainedModel,
        mtp: MTPModule | None,
        rank: int,
        ranks: int,
        context: ContextGroup | None = None,
    ):
        super().__init__(model, mtp if rank == 0 else None, context)
        chunks = cut(len(model.model.layers), ranks)
        self.chunks = {chunk: chunks[chunk] for chunk in (rank, 2 * ranks - 1 - rank)}
        self.last = 2 * ranks - 1
        self.width = model.config.hidden_size
        held = {layer for chunk in self.chunks.values() for layer in chunk}
        for layer in range(len(model.model.layers)):
            if layer not in held:
                model.model.layers[layer] = Elsewhere()
        if rank > 0:
            model.model.embed_tokens, model.model.norm, model.lm_head = Elsewhere(), Elsewhere(), Elsewhere()

    def blocks(self) -> Iterator[nn.Module]:
        for chunk in self.chunks.values():
            yield from (self.model.model.layers[layer] for layer in chunk)
        if self.mtp is not None:
            yield self.mtp.block

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        row: RowTensors,
        chunk: int,
        hidden: torch.Tensor | None,
        temperature: float | None = 1.0,
        mtp: WithMTP = "off",
        loss_of: LossOf | None = None,
        head_loss: HeadLoss | None = None,
    ) -> torch.Tensor | Predictions:
        """The hidden states [1, N, D] of this rank's tokens after a chunk, given those before it (none before the
        first); after the last chunk what Policy.forward returns."""
        base = self.model.model
        layout, (ids, positions) = self.share(row, row.input_ids, row.position_ids)
        states: torch.Tensor = base.embed_tokens(ids) if hidden is None else hidden
        rotary = base.rotary_emb(states, positions)
        for layer in self.chunks[chunk]:
            states = base.layers[layer](
                states,
                attention_mask=no_mask(),
                position_embeddings=rotary,
                position_ids=positions,
                layout=layout,
            )
        if chunk < self.last:
            return states
        return self.predictions(row, self.whole(layout, base.norm(states), row), temperature, mtp, loss_of, head_loss)
