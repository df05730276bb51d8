"""One trainer rank: a policy, its optimizer, packed forward passes, and its state on disk."""

import collections
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from data.chat import Template, render_prompt
from fp8.config import Fp8Config
from fp8.convert import LayerPrecision, convert
from models.checkpoint import (
    hub_pieces,
    load_model,
    load_mtp_module,
    load_tokenizer,
    resolve_device,
    save_model,
    stored_weights,
    write_description,
    write_sharded,
)
from models.mtp import mtp_state_dict
from models.recompute import Recompute, set_recompute
from models.routing import LoadCounter, SequenceBalance
from training.config import OptimizerConfig, check_sharded
from training.logprobs import LossOf
from training.mesh import ONE_RANK, MeshConfig
from training.optimizer import Optimizer
from training.parallel import Precision, Ranks, shard, whole
from training.policy import PackedRow, Policy, Predictions, RowTensors, SampledRow, WithMTP, uncounted
from training.state import StateWriter, load_tensors, stored_names

Row = TypeVar("Row", bound=PackedRow)
DEFAULT_FP8 = Fp8Config()
AUDIT = "precision.json"


class Trainer:
    """The policy on one rank. Subclasses add the loss of their stage; all methods run in a Ray actor.

    With several ranks every method is a collective: all ranks call it, in the same order, each with its own share of
    the rows, and what it returns is about all of them.
    """

    def __init__(
        self,
        checkpoint: str,
        optimizer: OptimizerConfig,
        *,
        mtp: bool = False,
        drop_mtp: bool = False,
        device: str = "auto",
        mesh: MeshConfig = ONE_RANK,
        recompute: Recompute = "none",
        precision: Precision = "float32",
        fp8: Fp8Config = DEFAULT_FP8,
    ):
        check_sharded(optimizer, mesh)
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 a debugging aid that costs a tenth of a step
        self.device = resolve_device(device)
        self.ranks = Ranks.of(mesh, self.device, precision)
        self.checkpoint = checkpoint
        self.fp8 = fp8 if precision == "fp8" else None
        self.audit: list[LayerPrecision] = []  # what every layer computes in, where some compute in FP8
        self.tokenizer = load_tokenizer(checkpoint)
        self.model = self._load_model()
        mesh.check_model(self.model.config)
        self.mtp = None if drop_mtp else load_mtp_module(checkpoint, self.model.config)
        if self.mtp is not None:
            self.mtp.requires_grad_(mtp)
        self.train_mtp = mtp and self.mtp is not None
        self.policy = self._shard(self._make_policy()).train()
        set_recompute(self.policy, recompute)
        self.optimizer = Optimizer(self.policy.named_parameters(), optimizer)
        self.load = LoadCounter(self.model, self.mtp)
        self.balance = SequenceBalance(self.model, self.mtp)
        self.state_writer = StateWriter()

    def _load_model(self) -> PreTrainedModel:
        return load_model(self.checkpoint)

    def _make_policy(self) -> Policy:
        return Policy(self.model, self.mtp)

    def _shard(self, policy: Policy) -> Policy:
        if self.fp8 is not None:
            self.audit = convert(policy, self.fp8, device=self.device, keep_blocks=self.ranks.data is None)
        shard(policy, self.ranks)  # moves a layer at a time to the device
        return policy.to(self.device) if self.ranks.data is None else policy

    def frozen_copy(self) -> Policy:
        """The model of the checkpoint that training started from, sharded as the policy is, without gradient."""
        return self._shard(Policy(self._load_model().requires_grad_(False)))

    def even(self, rows: Sequence[Row], empty: Row) -> list[Row]:
        """The rows of this rank, and empty ones until it runs as many passes as the others."""
        passes = max(self.ranks.gather(len(rows)))
        return [*rows, *[empty] * (passes - len(rows))]

    # --- forward ---

    def completion_logprobs(
        self, row: SampledRow, temperature: float = 1.0, policy: Policy | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs and entropies [C] of the predicted tokens of a row, over its support when it has one.

        `policy`: another one than that being trained, e.g. the reference.
        """
        predictions = self.predict(row, temperature, policy=policy)
        assert predictions.logprobs_C is not None and predictions.entropies_C is not None
        return predictions.logprobs_C, predictions.entropies_C

    def next_token_losses(self, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Summed cross-entropy (nats) of the predicted tokens, and of the tokens after them by the MTP module."""
        predictions = self.predict(row, None, mtp="joint" if self.train_mtp else "off")
        assert predictions.loss is not None
        return predictions.loss, predictions.mtp_nll

    def predict(
        self,
        row: PackedRow,
        temperature: float | None,
        mtp: WithMTP = "off",
        loss_of: LossOf | None = None,
        policy: Policy | None = None,
    ) -> Predictions:
        """See training.policy.Policy.forward."""
        policy, arguments = policy or self.policy, (RowTensors.of(row, self.device), temperature, mtp, loss_of)
        if len(row.input_ids):
            return policy(*arguments)
        with uncounted(policy):  # the token that stands for an empty row is no load of its experts
            return policy(*arguments)

    def render_prompts(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], template: Template
    ) -> list[list[int] | None]:
        """Token ids of prompts; None for one that fills the model's context. Raises PromptError."""
        room = getattr(self.model.config, "max_position_embeddings", math.inf)
        rendered = [render_prompt(self.tokenizer, messages, template) for messages in conversations]
        return [ids if len(ids) < room else None for ids in rendered]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    # --- weights and state ---

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, weight) of the policy: where they are, not to be written to. Sharded ones are put together
        one at a time, and only rank 0 is given them; the others must ask as well."""
        for name, tensor in stored_weights(self.model):
            in_one_piece = whole(tensor)
            if self.ranks.rank == 0:
                yield from hub_pieces(name, in_one_piece)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint name -> shape of everything in `weights`, in one piece."""
        shapes = ((name, torch.empty(tensor.shape, device="meta")) for name, tensor in stored_weights(self.model))
        return {name: tuple(piece.shape) for shape in shapes for name, piece in hub_pieces(*shape)}

    def save_checkpoint(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint. Sharded weights are written as they are put together, a bounded file at a time.

        Beside one that was trained in FP8, precision.json says what each layer computed in.
        """
        if self.audit and self.ranks.rank == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            lines = ",\n ".join(json.dumps(asdict(line)) for line in self.audit)
            (Path(folder) / AUDIT).write_text(f"[{lines}]\n")
        if self.ranks.data is None:
            return save_model(Path(folder), self.model, self.tokenizer, self.mtp, getattr(torch, dtype))
        tensors = itertools.chain(self.weights(), self._mtp_weights())
        if self.ranks.rank == 0:
            write_sharded(Path(folder), tensors, getattr(torch, dtype))
            write_description(Path(folder), self.model, self.tokenizer, self.mtp, getattr(torch, dtype))
        else:
            collections.deque(tensors, maxlen=0)
        self.ranks.barrier()

    def _mtp_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.mtp is not None:
            tensors = mtp_state_dict(self.model, self.mtp, whole)
            yield from tensors.items() if self.ranks.rank == 0 else ()

    def _state(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs to go on bit for bit, by name: the tensors themselves."""
        return {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}

    def save_average(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint of the average of the weights, if one is kept (optimizer.ema_decay)."""
        if self.optimizer.average is not None:
            with self.optimizer.average.in_place_of_weights():
                self.save_checkpoint(folder, dtype)

    def offload(self) -> None:
        """Leave the device to others for a while, as far as optimizer.offload says."""
        self.optimizer.offload()

    def begin_save(self, folder: str) -> None:
        """Copy the state, and write the copy to `folder` while training goes on."""
        self.state_writer.begin(Path(folder), self._state() | self.optimizer.state())

    def is_saving(self) -> bool:
        return any(self.ranks.gather(self.state_writer.writes()))

    def finish_save(self) -> None:
        """Wait until what was begun is on disk. Raises OSError when it could not be written."""
        self.state_writer.finish()
        self.ranks.barrier()

    def load_state(self, folder: str) -> None:
        """What any number of ranks has saved."""
        load_tensors(Path(folder), self._state() | self.optimizer.state(stored_names(Path(folder))))
        self.optimizer.loaded()
