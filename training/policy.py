"""The policy as one module: all that a trainer computes with weights happens inside its `forward`.

The head multiplies in `training.logprobs`, the MTP module borrows embedding and head: were these calls made from
outside, FSDP2's hooks would not see them, and they would find shards in place of weights (see training.parallel).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from models.attention import Layout, PackedLayout
from models.mtp import MTPModule, mtp_hidden
from models.routing import routers
from training.context import ContextGroup, ContextPart, SharedGradient
from training.head_chunks import SupportTensors
from training.logprobs import HeadLoss, LossOf, summed_nll, token_logprobs, token_loss

WithMTP = Literal["off", "joint", "alone"]


class PackedRow(Protocol):
    """Several sequences in one row of T tokens, of which C are predicted (see rl.batch.MicroBatch). T may be 0."""

    @property
    def input_ids(self) -> np.ndarray: ...  # [T] int64
    @property
    def position_ids(self) -> np.ndarray: ...  # [T] int64, from 0 in every sequence
    @property
    def cu_seqlens(self) -> np.ndarray: ...  # [S + 1] int32
    @property
    def predicting_positions(self) -> np.ndarray: ...  # [C] int64: the state there predicts target_ids[j]
    @property
    def target_ids(self) -> np.ndarray: ...  # [C] int64


@dataclass(frozen=True, slots=True)
class RowTensors:
    """A packed row on the policy's device. An empty one holds a single token that predicts nothing, so that its pass
    runs through every layer, and through every collective, as those of other ranks do."""

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    layout: PackedLayout
    ends: torch.Tensor  # [S] int64, the last position of each sequence
    predicting: torch.Tensor  # [C] int64
    targets: torch.Tensor  # [C] int64
    support: SupportTensors | None

    @classmethod
    def of(cls, row: PackedRow, device: torch.device) -> "RowTensors":
        def tensor(array: Any) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        lengths = np.diff(row.cu_seqlens).tolist()
        ids, positions = row.input_ids, row.position_ids
        if not lengths:
            lengths, ids, positions = [1], np.zeros(1, np.int64), np.zeros(1, np.int64)
        ids_S, sizes_C = getattr(row, "support_ids", None), getattr(row, "support_sizes", None)
        return cls(
            input_ids=tensor(ids)[None],
            position_ids=tensor(positions)[None],
            layout=PackedLayout.from_lengths(lengths, device),
            ends=torch.tensor(lengths, device=device).cumsum(0) - 1,
            predicting=tensor(row.predicting_positions),
            targets=tensor(row.target_ids),
            support=None if ids_S is None or sizes_C is None else (tensor(ids_S), tensor(sizes_C)),
        )


class Predictions(NamedTuple):
    """What a pass says of a row's targets; None: not asked for. A tuple, because FSDP2 looks for its tensors there."""

    logprobs_C: torch.Tensor | None = None  # float32
    entropies_C: torch.Tensor | None = None  # float32, nats; with gradient where logprobs have one
    loss: torch.Tensor | None = None  # the sum of -logprobs (nats), or that of `loss_of`, or `head_loss`
    mtp_nll: torch.Tensor | None = None  # the same of the MTP module, of each target that it predicts as well


class Policy(nn.Module):
    """A causal LM and, where there is one, its MTP module."""

    def __init__(self, model: PreTrainedModel, mtp: MTPModule | None = None, context: ContextGroup | None = None):
        super().__init__()
        self.model, self.mtp, self.context = model, mtp, context

    def blocks(self) -> Iterator[nn.Module]:
        """The decoder layers in order, then that of the MTP module."""
        yield from self.model.model.layers
        if self.mtp is not None:
            yield self.mtp.block

    def forward(
        self,
        row: RowTensors,
        temperature: float | None = 1.0,
        mtp: WithMTP = "off",
        loss_of: LossOf | None = None,
        head_loss: HeadLoss | None = None,
    ) -> Predictions:
        """Logprobs and entropies of the row's targets at `temperature` and over the row's support.

        temperature None: their summed loss alone, at 1 and over all tokens, as the MTP module's always is.
        mtp "alone": the MTP module learns, and the main model, whose head and embedding it shares, does not.
        loss_of: see training.logprobs.token_loss; the gradient then comes by the loss, not by the logprobs.
        head_loss: made of hidden states and head in place of all this, where the targets are not all that counts.
        """
        return self.predictions(row, self.hidden_states(row), temperature, mtp, loss_of, head_loss)

    def predictions(
        self,
        row: RowTensors,
        hidden: torch.Tensor,
        temperature: float | None,
        mtp: WithMTP,
        loss_of: LossOf | None,
        head_loss: HeadLoss | None,
    ) -> Predictions:
        """What `forward` returns, from the final hidden states, [1, T, D]."""
        deeper = None if mtp == "off" or self.mtp is None else self._mtp_nll(row, hidden, alone=mtp == "alone")
        predicting = hidden[0, row.predicting], self._head(), row.targets
        if head_loss is not None:
            return Predictions(loss=head_loss(*predicting[:2]), mtp_nll=deeper)
        if temperature is None:
            return Predictions(loss=summed_nll(*predicting), mtp_nll=deeper)
        if loss_of is None:
            return Predictions(*token_logprobs(*predicting, temperature, row.support), mtp_nll=deeper)
        loss, logprobs, entropies = token_loss(*predicting, loss_of, temperature, row.support)
        return Predictions(logprobs, entropies, loss, deeper)

    def _head(self) -> torch.Tensor:
        head = self.model.lm_head.weight
        return head if self.context is None else SharedGradient.apply(head, self.context.size)

    def hidden_states(self, row: RowTensors) -> torch.Tensor:
        """The final hidden states, [1, T, D]; with context parallel from the tokens of all ranks."""
        layout, (ids, positions) = self.share(row, row.input_ids, row.position_ids)
        states = self.model.model(
            input_ids=ids, position_ids=positions, use_cache=False, layout=layout
        ).last_hidden_state
        return self.whole(layout, states, row)

    def share(self, row: RowTensors, *of_row: torch.Tensor) -> tuple[Layout, list[torch.Tensor]]:
        """[1, T, ...] of a row -> [1, N, ...] of the tokens that this rank has, and their layout."""
        if self.context is None:
            return row.layout, list(of_row)
        lengths = torch.diff(row.ends, prepend=row.ends.new_tensor([-1])).tolist()
        part = self.context.part(lengths, row.ends.device)
        return part, [part.share(tensor) for tensor in of_row]

    def whole(self, layout: Layout, states: torch.Tensor, row: RowTensors) -> torch.Tensor:
        """States [1, N, D] of this rank's tokens -> [1, T, D] of the row."""
        return layout.whole(states)[:, : row.input_ids.shape[1]] if isinstance(layout, ContextPart) else states

    def _mtp_nll(self, row: RowTensors, hidden: torch.Tensor, alone: bool) -> torch.Tensor:
        """The token two ahead of position i is a target when i + 1 predicts one in the same sequence."""
        assert self.mtp is not None
        next_ids = torch.roll(row.input_ids, -1, dims=1)
        layout, (ids, positions, states) = self.share(row, next_ids, row.position_ids, hidden)
        deeper = self.whole(layout, mtp_hidden(self.model, self.mtp, ids, states, positions, layout, alone), row)
        is_end = torch.zeros(row.input_ids.shape[1], dtype=torch.bool, device=hidden.device)
        is_end[row.ends] = True
        two_ahead = row.predicting - 1
        keep = (two_ahead >= 0) & ~is_end[two_ahead.clamp(min=0)]
        head = self._head().detach() if alone else self._head()
        return summed_nll(deeper[0, two_ahead[keep]], head, row.targets[keep])


@contextmanager
def uncounted(policy: Policy) -> Iterator[None]:
    """Within, routers do not count the load of their experts, while all else is as in training: ranks that recompute
    must do so alike, since layers hold collectives."""
    found = [router for _, router in routers(policy.model, policy.mtp) if router.training]
    for router in found:
        router.training = False
    try:
        yield
    finally:
        for router in found:
            router.training = True


@contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """Within, nothing is counted or recomputed."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
