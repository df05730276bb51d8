"""Passes of a policy over the rows of a step, one after the other; training.pipeline runs them through several ranks.

What a stage wants of a row is a function that is handed `predict`: so it need not know where the head is, nor when the
row gets there. A lesson makes a loss, whose gradient is added to the weights'; a reading only looks.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from models.routing import SequenceBalance
from training.logprobs import HeadLoss, LossOf
from training.policy import PackedRow, Policy, Predictions, RowTensors, WithMTP, uncounted

Row = TypeVar("Row", bound=PackedRow)
Answer = TypeVar("Answer")
TensorsOf = Callable[[PackedRow], RowTensors]
Found = dict[str, float]  # sums over a row, by name


class Predict(Protocol):
    """What the policy says of the row at hand; see training.policy.Policy.forward. To be called once."""

    def __call__(
        self,
        temperature: float | None,
        mtp: WithMTP = "off",
        loss_of: LossOf | None = None,
        head_loss: HeadLoss | None = None,
    ) -> Predictions: ...


Lesson = Callable[[Row, Predict], tuple[torch.Tensor, Found]]  # -> its share of the loss, a scalar, and what to log
Reading = Callable[[Row, Predict], Answer]  # -> anything that can be pickled
Around = Callable[[Row], AbstractContextManager[Any]]  # open while a row is computed, forward and backward


class Balance(NamedTuple):
    """The sequence-wise balance loss of a step: `weight` times its mean over the `tokens` of all rows of all ranks."""

    weight: float
    tokens: int


def nothing_around(row: PackedRow) -> AbstractContextManager[Any]:
    return nullcontext()


class Passes:
    """For a rank with all layers."""

    least = 0  # rows in a step

    def __init__(self, tensors: TensorsOf, balance: SequenceBalance):
        self.tensors, self.balance = tensors, balance

    def learn(
        self,
        policy: Policy,
        rows: Sequence[Row],
        lesson: Lesson[Row],
        balance: Balance | None = None,
        around: Around[Row] = nothing_around,
    ) -> list[Found]:
        """Add the gradients of each row's loss. Returns what the lessons found, with `balance` also loss/balance."""
        return [self._learn(policy, row, lesson, balance, around) for row in rows]

    def _learn(self, policy: Policy, row: Row, lesson: Lesson[Row], balance: Balance | None, around: Around[Row]):
        with around(row):
            with self.balance.watch(lengths(row), balance is not None) as imbalances:
                loss, found = lesson(row, self.predict(policy, row))
            if balance is not None:
                found = found | {"loss/balance": 0.0}
            if balance is not None and imbalances:
                imbalance = torch.stack(imbalances).sum() / balance.tokens
                loss = loss + balance.weight * imbalance
                found["loss/balance"] = imbalance.item()
            loss.backward()
        return found

    @torch.no_grad()
    def read(
        self, policy: Policy, rows: Sequence[Row], reading: Reading[Row, Answer], around: Around[Row] = nothing_around
    ) -> list[Answer]:
        answers = []
        for row in rows:
            with around(row):
                answers.append(reading(row, self.predict(policy, row)))
        return answers

    def predict(self, policy: Policy, row: PackedRow) -> Predict:
        """For one row."""

        def predict(
            temperature: float | None,
            mtp: WithMTP = "off",
            loss_of: LossOf | None = None,
            head_loss: HeadLoss | None = None,
        ) -> Predictions:
            with counted(policy, row):
                return policy(self.tensors(row), temperature, mtp, loss_of, head_loss)

        return predict


def total(found: Iterable[Found]) -> Found:
    """Sums over rows."""
    sums: Found = {}
    for row in found:
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def lengths(row: PackedRow) -> list[int]:
    """Tokens of each sequence of a row."""
    return np.diff(row.cu_seqlens).tolist()


def counted(policy: Policy, row: PackedRow) -> AbstractContextManager[None]:
    """For a pass: the token that stands for an empty row is no load of its experts."""
    return nullcontext() if len(row.input_ids) else uncounted(policy)
