"""Conversations and documents to packed rows: which tokens are inputs, which are targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.packing import best_fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Token ids of one sample and which of them are trained on. The first token is never a target."""

    token_ids: np.ndarray  # [T] int64
    loss_mask: np.ndarray  # [T] bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A packed row (training.policy.PackedRow)."""

    input_ids: np.ndarray  # [T] int64
    position_ids: np.ndarray  # [T] int64
    cu_seqlens: np.ndarray  # [S + 1] int32
    predicting_positions: np.ndarray  # [C] int64
    target_ids: np.ndarray  # [C] int64


_NONE = np.zeros(0, dtype=np.int64)
EMPTY = Row(
    input_ids=_NONE,
    position_ids=_NONE,
    cu_seqlens=np.zeros(1, dtype=np.int32),
    predicting_positions=_NONE,
    target_ids=_NONE,
)


def pack_examples(examples: Sequence[Example], capacity: int) -> list[Row]:
    """Rows of at most `capacity` tokens; a longer example is a row of its own."""
    return [
        row_of([examples[i] for i in members]) for members in best_fit([len(e.token_ids) for e in examples], capacity)
    ]


def row_of(examples: Sequence[Example]) -> Row:
    """All of them in one row, in their order."""
    lengths = [len(e.token_ids) for e in examples]
    ids = np.concatenate([e.token_ids for e in examples]).astype(np.int64)
    mask = np.concatenate([np.concatenate([[False], e.loss_mask[1:]]) for e in examples])
    targets = np.flatnonzero(mask)
    return Row(
        input_ids=ids,
        position_ids=np.concatenate([np.arange(n) for n in lengths]).astype(np.int64),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        predicting_positions=targets - 1,
        target_ids=ids[targets],
    )
