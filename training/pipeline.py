"""Passes through a pipeline of ranks in the order of DualPipeV (DeepSeek's DualPipe, arXiv:2412.19437, section 3.2.1,
folded so that rank 0 has both ends).

torch makes the plan: which chunk of layers computes which row when, and what is sent in between (ScheduleDualPipeV).
This file carries it out. torch's own runtime does not fit: it has no forward-only run for a V, receives into buffers of
one shape that it holds for all rows of a step, and wants first and last chunk to share nothing, while the MTP module
and tied heads borrow the embedding.

All ranks of a pipeline know the rows, hence the shape of whatever arrives: rows keep their own lengths. A rank keeps
the activations of at most 2P + 1 passes of a row through a chunk. What FSDP2 has gathered stays gathered, and gradients
are added up where they are, until the plan is done.

The plan's BACKWARD_INPUT computes the weights' gradients as well, and its BACKWARD_WEIGHT nothing: docs/decisions.md.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV

from models.routing import SequenceBalance
from training.layers import PolicyPart, rank_of_chunk
from training.logprobs import HeadLoss, LossOf
from training.parallel import Ranks
from training.passes import (
    Answer,
    Around,
    Balance,
    Found,
    Lesson,
    Predict,
    Reading,
    Row,
    TensorsOf,
    counted,
    lengths,
    nothing_around,
)
from training.policy import PackedRow, Policy, Predictions, WithMTP

# What the head is used for: (row, predict) -> (loss, if there is one, and what is wanted of the row).
AtHead = Callable[[Any, Predict], tuple[Tensor | None, Any]]


class Pipeline:
    """training.passes.Passes for a rank with two chunks of the layers. Ranks that share rows get the same answers."""

    def __init__(self, ranks: Ranks, device: torch.device, tensors: TensorsOf, balance: SequenceBalance):
        assert ranks.pipeline is not None
        self.ranks, self.device, self.tensors, self.balance = ranks, device, tensors, balance
        self.group, self.rank = ranks.pipeline.get_group(), ranks.pipeline.get_local_rank()
        self.size = ranks.pipeline.size()
        self.least = 2 * self.size  # rows: one for every chunk
        self.plan = lru_cache(self._plan)

    def learn(
        self,
        policy: Policy,
        rows: Sequence[Row],
        lesson: Lesson[Row],
        balance: Balance | None = None,
        around: Around[Row] = nothing_around,
    ) -> list[Found]:
        """See Passes.learn. `lesson` is asked by the rank with the head alone, `around` is opened for every chunk of a
        row, once for its forward and once for its backward pass."""
        run = _Run(self, cast(PolicyPart, policy), rows, lesson, balance, around, backward=True)
        with self._together(policy):
            run.carry_out(self.plan(len(rows)))
        return self._share(run)

    @torch.no_grad()
    def read(
        self, policy: Policy, rows: Sequence[Row], reading: Reading[Row, Answer], around: Around[Row] = nothing_around
    ) -> list[Answer]:
        def at_head(row: Row, predict: Predict) -> tuple[None, Answer]:
            return None, reading(row, predict)

        run = _Run(self, cast(PolicyPart, policy), rows, at_head, None, around, backward=False)
        run.carry_out(self.plan(len(rows)))
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return self._share(run)

    def _share(self, run: "_Run") -> list[Any]:
        """What the head found in each row, and the imbalance of all ranks' routers."""
        shares = self.ranks.along_pipeline((run.found, run.imbalance))
        found, _ = shares[0]
        if run.balance is not None:
            for row in found:
                found[row]["loss/balance"] = sum(imbalance.get(row, 0.0) for _, imbalance in shares)
        return [found[row] for row in range(len(found))]

    @contextmanager
    def _together(self, policy: nn.Module) -> Iterator[None]:
        """At the end, and not before, gradients are summed over the ranks with the same chunks."""
        if isinstance(policy, FSDPModule):
            policy.set_is_last_backward(False)
            policy.set_reshard_after_backward(False)
            policy.set_requires_gradient_sync(False)
        yield
        self._stage(0, policy).perform_reduce_grad(1)  # sets these right again

    def _stage(self, chunk: int, module: nn.Module) -> PipelineStage:
        return PipelineStage(module, chunk, 2 * self.size, self.device, group=self.group)

    def _plan(self, rows: int) -> list["Step"]:
        """What this rank does in a step of so many rows."""
        stages = [self._stage(chunk, nn.Module()) for chunk in (self.rank, 2 * self.size - 1 - self.rank)]
        actions = ScheduleDualPipeV(stages, rows, scale_grads=False).pipeline_order_with_comms[self.rank]  # pyright: ignore[reportArgumentType]
        steps = [step for action in actions for step in action.sub_actions or (action,)]
        return [
            Step(step.computation_type.name, step.stage_index, step.microbatch_index)
            for step in steps
            if step.microbatch_index is not None  # the others gather and release weights
        ]

    # --- what is sent ---

    def send(self, tensor: Tensor, chunk: int) -> "Message":
        tensor = tensor.detach().contiguous()
        return Message(tensor, dist.isend(tensor, group=self.group, group_dst=rank_of_chunk(chunk, self.size)))

    def receive(self, tensor: Tensor, chunk: int) -> "Message":
        return Message(tensor, dist.irecv(tensor, group=self.group, group_src=rank_of_chunk(chunk, self.size)))


class Step(NamedTuple):
    """One action of the plan."""

    kind: str  # FORWARD, FULL_BACKWARD, SEND_F and so on: a method of _Run
    chunk: int
    row: int


class Message(NamedTuple):
    """A tensor on its way, which must be kept until it is there."""

    tensor: Tensor
    work: Any

    def wait(self) -> Tensor:
        self.work.wait()
        return self.tensor


class _Run:
    """The rows of a step on their way through this rank's chunks. Keys are (chunk, row)."""

    def __init__(
        self,
        pipeline: Pipeline,
        policy: PolicyPart,
        rows: Sequence[PackedRow],
        at_head: AtHead,
        balance: Balance | None,
        around: Around[Any],
        backward: bool,
    ):
        self.pipeline, self.policy, self.rows, self.at_head = pipeline, policy, rows, at_head
        self.balance, self.around, self.backward = balance, around, backward
        self.found: dict[int, Any] = {}  # row: what the head found
        self.imbalance: dict[int, float] = {}  # row: that of the routers here
        self.kept: dict[tuple[int, int], tuple[Tensor | None, list[Tensor]]] = {}  # input and outputs, until backward
        self.states: dict[tuple[int, int], Tensor | Message] = {}  # before a chunk
        self.gradients: dict[tuple[int, int], Tensor | Message] = {}  # of the states after a chunk
        self.sent: list[Message] = []

    def carry_out(self, plan: Sequence[Step]) -> None:
        does = {"FORWARD": self._forward, "SEND_F": self._send_states, "RECV_F": self._receive_states}
        if self.backward:
            does |= {"FULL_BACKWARD": self._backward, "BACKWARD_INPUT": self._backward}
            does |= {"SEND_B": self._send_gradients, "RECV_B": self._receive_gradients}
        for step in plan:
            if step.kind in does:
                does[step.kind](step.chunk, step.row)
        for message in self.sent:
            message.wait()

    # --- a chunk ---

    def _forward(self, chunk: int, index: int) -> None:
        row, before = self.rows[index], self._arrived(self.states, chunk, index)
        before = None if before is None else before.detach().requires_grad_(self.backward)
        with self.around(row), self.pipeline.balance.watch(lengths(row), self.balance is not None) as imbalances:
            after = self._compute(chunk, index, before)
        outputs = [] if after is None else [after]
        if self.balance is not None and imbalances:
            imbalance = torch.stack(imbalances).sum() / self.balance.tokens
            outputs.append(self.balance.weight * imbalance)
            self.imbalance[index] = self.imbalance.get(index, 0.0) + imbalance.item()
        if self.backward:
            self.kept[chunk, index] = before, outputs
        if after is not None and chunk < self.policy.last:
            self.states[chunk + 1, index] = after  # to be sent, unless the next chunk is here as well

    def _compute(self, chunk: int, index: int, before: Tensor | None) -> Tensor | None:
        """The states after a chunk; after the last one, the loss."""
        row, tensors = self.rows[index], self.pipeline.tensors

        def predict(
            temperature: float | None,
            mtp: WithMTP = "off",
            loss_of: LossOf | None = None,
            head_loss: HeadLoss | None = None,
        ) -> Predictions:
            with counted(self.policy, row):
                return self.policy(tensors(row), chunk, before, temperature, mtp, loss_of, head_loss)

        if chunk < self.policy.last:
            with counted(self.policy, row):
                return self.policy(tensors(row), chunk, before)
        loss, self.found[index] = self.at_head(row, predict)
        return loss

    def _backward(self, chunk: int, index: int) -> None:
        before, outputs = self.kept.pop((chunk, index))
        gradients: list[Tensor | None] = [None] * len(outputs)
        gradients[0] = self._arrived(self.gradients, chunk, index)
        with self.around(self.rows[index]):
            torch.autograd.backward(outputs, gradients)
        if before is not None:
            assert before.grad is not None
            self.gradients[chunk - 1, index] = before.grad  # to be sent, unless the chunk before is here as well

    # --- between chunks ---

    def _arrived(self, inbox: dict[tuple[int, int], Tensor | Message], chunk: int, index: int) -> Tensor | None:
        found = inbox.pop((chunk, index), None)
        return found.wait() if isinstance(found, Message) else found

    def _send_states(self, chunk: int, index: int) -> None:
        self._send(self.states.pop((chunk + 1, index)), chunk + 1)

    def _send_gradients(self, chunk: int, index: int) -> None:
        self._send(self.gradients.pop((chunk - 1, index)), chunk - 1)

    def _receive_states(self, chunk: int, index: int) -> None:
        self.states[chunk, index] = self.pipeline.receive(self._room(index), chunk - 1)

    def _receive_gradients(self, chunk: int, index: int) -> None:
        self.gradients[chunk, index] = self.pipeline.receive(self._room(index), chunk + 1)

    def _send(self, tensor: Tensor | Message, chunk: int) -> None:
        assert isinstance(tensor, Tensor)
        self.sent = [message for message in self.sent if not message.work.is_completed()]
        self.sent.append(self.pipeline.send(tensor, chunk))

    def _room(self, index: int) -> Tensor:
        """For the states of this rank's tokens of a row, [1, N, D], or their gradient."""
        tokens, context = max(1, len(self.rows[index].input_ids)), self.pipeline.ranks.context
        tokens = tokens if context is None else len(context.here(tokens))
        dtype = torch.bfloat16 if self.pipeline.ranks.rounds else torch.float32
        return torch.empty(1, tokens, self.policy.width, dtype=dtype, device=self.pipeline.device)
