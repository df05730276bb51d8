"""One trainer rank: a policy, its optimizer, packed forward passes, and its state on disk."""

import collections
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from data.chat import Template, render_prompt
from data.durable import write_text
from fp8.config import AUDIT, Fp8Config
from fp8.convert import LayerPrecision, convert, weight_blocks
from fp8.rounding import Rounding, rounding_metrics
from models.architectures import check_rounding
from models.checkpoint import (
    load_model,
    load_mtp_module,
    load_tokenizer,
    resolve_device,
    save_model,
    write_description,
    write_sharded,
)
from models.mtp import MTPModule, mtp_weights
from models.recompute import Recompute, set_recompute
from models.routing import LoadCounter, SequenceBalance, is_selection_bias, load_metrics, routers
from models.weight_names import hub_pieces, is_fused, stored_weights
from training.config import LoRAConfig, OptimizerConfig
from training.layers import PolicyPart, rank_of_weight
from training.logprobs import LossOf
from training.lora import ADAPTER, Adapters, is_adapter
from training.mesh import ONE_RANK, MeshConfig
from training.offload import Offloaded
from training.optimizer import Optimizer
from training.parallel import Precision, Ranks, shard, whole
from training.passes import Answer, Around, Balance, Found, Lesson, Passes, Reading, Row, nothing_around
from training.pipeline import Pipeline
from training.policy import PackedRow, Policy, Predictions, RowTensors, WithMTP
from training.state import StateWriter, load_tensors, stored_names

DEFAULT_FP8 = Fp8Config()


class Trainer:
    """The policy on one rank. Subclasses add the loss of their stage; all methods run in a Ray actor.

    With several ranks every method is a collective: all ranks call it, in the same order, each with its own share of
    the rows, and what it returns is about all of them.
    """

    indexed = False  # whether indexers are trained (models.indexer)

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
        lora: LoRAConfig | None = None,
        seed: int = 0,  # of the first values of adapters
    ):
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 a debugging aid that costs a tenth of a step
        self.device = resolve_device(device)
        self.ranks = Ranks.of(mesh, self.device, precision)
        self.checkpoint = checkpoint
        self.late = self.ranks.in_pieces and lora is None  # weights are read a layer at a time; adapters need them all
        self.fp8 = fp8 if precision == "fp8" else None
        self.audit: list[LayerPrecision] = []  # what every layer computes in, where some compute in FP8
        self.tokenizer = load_tokenizer(checkpoint)
        self.model = self._load_model()
        mesh.check_model(self.model.config)
        if self.ranks.rounds:
            check_rounding(self.model.config)
        elsewhere = self.ranks.pipeline is not None and self.ranks.pipeline.get_local_rank() > 0  # rank 0 has it
        mtp_module = None if drop_mtp else load_mtp_module(checkpoint, self.model.config, on_meta=elsewhere)
        self.train_mtp = mtp and mtp_module is not None and lora is None
        if mtp_module is not None:
            mtp_module.requires_grad_(self.train_mtp)
        self.outline = {name: weight.to("meta") for name, weight in stored_weights(self.model)}  # of the whole model
        self.has_biases = any(map(is_selection_bias, self.outline))
        self.router_names = [name for name, _ in routers(self.model, mtp_module)]  # likewise
        self.adapters = None if lora is None else Adapters(self.model, lora, seed)
        self.policy = self._shard(self._held_here(self.model, mtp_module)).train()
        self.mtp = self.policy.mtp
        set_recompute(self.policy, recompute)
        self.optimizer = Optimizer(self.policy.named_parameters(), optimizer)
        self.load = LoadCounter(self.model, self.mtp)
        balance = SequenceBalance(self.model, self.mtp, spread=self.ranks.context)
        passes = Passes if self.ranks.pipeline is None else partial(Pipeline, self.ranks, self.device)
        self.passes: Passes | Pipeline = passes(self._row, balance)
        self.state_writer = StateWriter()
        self.weights_away = Offloaded()

    def _load_model(self) -> PreTrainedModel:
        return load_model(self.checkpoint, indexed=self.indexed, late=self.late)

    def _held_here(self, model: PreTrainedModel, mtp: MTPModule | None = None) -> Policy:
        """The layers of this rank; the others are taken out of `model`."""
        if (pipeline := self.ranks.pipeline) is None:
            return Policy(model, mtp, self.ranks.context)
        return PolicyPart(model, mtp, pipeline.get_local_rank(), pipeline.size(), self.ranks.context)

    def _shard(self, policy: Policy) -> Policy:
        if self.fp8 is not None:
            audit = convert(
                policy,
                self.fp8,
                device=self.device,
                keep_blocks=self.ranks.shards is None,
                rounded=self.ranks.rounds,
            )
            self.audit = self.audit or audit  # the policy's comes first, and copies have no more
        shard(policy, self.ranks)  # moves a layer at a time to the device
        return policy.to(self.device) if self.ranks.shards is None else policy

    def frozen_copy(self) -> Policy:
        """The model of the checkpoint that training started from, sharded as the policy is, without gradient."""
        return self._shard(self._held_here(self._load_model().requires_grad_(False)))

    def even(self, rows: Sequence[Row], empty: Row) -> list[Row]:
        """The rows of this rank, and empty ones until it runs as many passes as the others, and as a pipeline needs."""
        passes = max(self.passes.least, *self.ranks.gather(len(rows)))
        return [*rows, *[empty] * (passes - len(rows))]

    # --- passes over the rows of all ranks ---

    def learn(
        self,
        rows: Sequence[Row],
        lesson: Lesson[Row],
        balance: Balance | None = None,
        around: Around[Row] = nothing_around,
    ) -> list[Found]:
        """Add the gradients of the losses that `lesson` makes of this rank's rows, as many as the other ranks have (see
        `even`). Returns what it found in each; ranks of one pipeline, which share their rows, get the same.

        balance: add the sequence-wise balance loss, and loss/balance to what was found.
        around: opened around the computation of a row, forward and backward.
        """
        self.weights_away.fetch()
        self.watch_rounding()
        return self.passes.learn(self.policy, rows, lesson, balance, around)

    def read(
        self,
        rows: Sequence[Row],
        reading: Reading[Row, Answer],
        policy: Policy | None = None,
        around: Around[Row] = nothing_around,
    ) -> list[Answer]:
        """What `reading` finds in each row, without gradient; otherwise as `learn`.

        policy: another one than that being trained, e.g. the reference.
        """
        self.weights_away.fetch()
        return self.passes.read(policy or self.policy, rows, reading, around)

    def finish_step(self, bias_speed: float) -> dict[str, float]:
        """After a step of the optimizer: metrics of the load of all experts, whose selection biases then move by it,
        and of what FP8 has rounded away, where that was watched."""
        return self._move_biases(bias_speed) | self._rounding()

    def _move_biases(self, speed: float) -> dict[str, float]:
        if not self.router_names:
            return {}
        if self.ranks.shards is not None:
            self.load.sum_over_ranks(self.ranks.shards.get_group())
        loads = [load for part in self.ranks.along_pipeline(self.load.loads()) for load in part.items()]
        self.load.update_bias(speed)
        moved = {"moe/bias_speed": speed} if self.has_biases else {}
        return load_metrics(dict(loads)) | moved

    def watch_rounding(self) -> None:
        """Until `finish_step`, if that is to tell what FP8 rounds away in this step (fp8.log_rounding_every)."""
        every = self.fp8.log_rounding_every if self.fp8 is not None else 0
        if every and (self.optimizer.steps + 1) % every == 0:
            for blocks in weight_blocks(self.policy).values():
                blocks.rounding = {}

    def _rounding(self) -> dict[str, float]:
        if self.fp8 is None or not self.fp8.log_rounding_every:
            return {}
        here: dict[tuple[str, str], Rounding] = {}
        for layer, blocks in weight_blocks(self.policy).items():
            noted, blocks.rounding = blocks.rounding or {}, None
            here |= {(kind, layer): Rounding(*sums_4.tolist()) for kind, sums_4 in noted.items()}
        return rounding_metrics(self.ranks.everywhere(here))

    # --- one row, where all layers are here ---

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
        """See training.policy.Policy.forward. Raises ValueError in a pipeline, which takes the rows of a step alone."""
        if not isinstance(self.passes, Passes):
            raise ValueError("a single row does not go through a pipeline: use Trainer.learn or Trainer.read")
        self.weights_away.fetch()
        return self.passes.predict(policy or self.policy, row)(temperature, mtp, loss_of)

    def _row(self, row: PackedRow) -> RowTensors:
        return RowTensors.of(row, self.device)

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
        """(checkpoint name, weight) of the policy: where they are, not to be written to. Sharded ones are put together,
        and adapters merged into theirs, one at a time (of split experts, those of one rank at a time), and only rank 0
        is given them; the others must ask as well."""
        self.weights_away.fetch()
        held = dict(stored_weights(self.model))
        if self.adapters is not None:
            held = self.adapters.at_rest(held)
        for name, like in self.outline.items():
            for first, piece in self._put_together(name, held.get(name), like):
                if self.ranks.rank == 0 and piece is not None:
                    yield from hub_pieces(name, piece, first)

    def _put_together(
        self, name: str, weight: torch.Tensor | None, like: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        """(first row, rows) on rank 0. weight: what this rank holds; like: the whole on the meta device."""
        shares = self._shares(name)
        if shares > 1:
            like = like[: len(like) // shares]
        pieces = itertools.repeat(None, shares) if weight is None else self._pieces(name, weight)
        for number, piece in enumerate(pieces):
            if self.ranks.pipeline is not None:
                source = rank_of_weight(name, self.model.config.num_hidden_layers, self.ranks.pipeline.size())
                piece = self.ranks.bring(piece, like, source)
            yield number * (len(like) if shares > 1 else 0), piece

    def _shares(self, name: str) -> int:
        """How many pieces a weight is put together in."""
        return self.ranks.expert.size() if self.ranks.expert is not None and is_fused(name) else 1

    def _pieces(self, name: str, weight: torch.Tensor) -> Iterator[torch.Tensor]:
        if self._shares(name) > 1:
            return self.ranks.expert_shares(weight)
        return iter([whole(weight) if self.adapters is None else self.adapters.merged(name, whole(weight))])

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint name -> shape of everything in `weights`, in one piece."""
        return {name: tuple(piece.shape) for weight in self.outline.items() for name, piece in hub_pieces(*weight)}

    def save_checkpoint(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint. Sharded weights are written as they are put together, a bounded file at a time.

        Beside one that was trained in FP8, precision.json says what each layer computed in; beside one that adapters
        are merged into, these lie in the folder `adapter`.
        """
        self.weights_away.fetch()
        self.write_audit(folder)
        if self.adapters is not None:
            self.adapters.save(Path(folder) / ADAPTER, leads=self.ranks.rank == 0)
        elif not self.ranks.in_pieces:
            return save_model(Path(folder), self.model, self.tokenizer, self.mtp, getattr(torch, dtype))
        tensors = itertools.chain(self.weights(), self._mtp_weights())
        if self.ranks.rank == 0:
            write_sharded(Path(folder), tensors, getattr(torch, dtype))
            write_description(Path(folder), self.model, self.tokenizer, self.mtp, getattr(torch, dtype))
        else:
            collections.deque(tensors, maxlen=0)
        self.ranks.barrier()

    def write_audit(self, folder: str) -> None:
        """What each layer computes in, of all ranks' and in the order of the model; nothing where none does in FP8."""
        if self.fp8 is None:
            return
        audit = self._whole_audit()
        if self.ranks.rank == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            lines = ",\n ".join(json.dumps(asdict(line)) for line in audit)
            write_text(Path(folder) / AUDIT, f"[{lines}]\n")

    def _whole_audit(self) -> list[LayerPrecision]:
        lines = [line for part in self.ranks.along_pipeline(self.audit) for line in part]
        places = {f"model.{name.rpartition('.')[0]}": place for place, name in enumerate(self.outline)}
        return sorted(lines, key=lambda line: places.get(line.module, len(places)))

    def _mtp_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The MTP layer's, in the same way; in a pipeline its rank is rank 0."""
        if self.mtp is None:
            return
        for name, weight in mtp_weights(self.model, self.mtp):
            rows = len(weight) // self._shares(name)
            for number, piece in enumerate(self._pieces(name, weight.detach())):
                if self.ranks.rank == 0:
                    yield from hub_pieces(name, piece, number * rows)

    def _state(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs to go on bit for bit, by name: the tensors themselves."""
        self.weights_away.fetch()
        tensors = self.policy.state_dict().items()
        everything = self.adapters is None
        return {f"policy.{name}": tensor for name, tensor in tensors if everything or is_adapter(name)}

    def save_average(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint of the average of the weights, if one is kept (optimizer.ema_decay)."""
        self.weights_away.fetch()
        if self.optimizer.average is not None:
            with self.optimizer.average.in_place_of_weights():
                self.save_checkpoint(folder, dtype)

    def offload(self, weights: bool) -> None:
        """Leave the device to engines, as far as optimizer.offload says: when they wake, all but the weights, which
        they are sent, and after that the weights. Whoever needs one of these brings it back."""
        if self.optimizer.config.offload != "none":
            self.optimizer.offload()
        if self.optimizer.config.offload == "all" and weights:
            self.weights_away.take(self.policy.parameters())
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for itself, no other process can have

    def begin_save(self, folder: str) -> None:
        """Copy the state, and write the copy to `folder` while training goes on."""
        self.state_writer.begin(Path(folder), self._state() | self.optimizer.state())

    def is_saving(self) -> bool:
        here = any(self.ranks.along_context(any(self.ranks.along_pipeline(self.state_writer.writes()))))
        return any(self.ranks.gather(here))

    def finish_save(self) -> None:
        """Wait until what was begun is on disk. Raises OSError when it could not be written."""
        self.state_writer.finish()
        self.ranks.barrier()

    def load_state(self, folder: str) -> None:
        """What any number of ranks has saved."""
        load_tensors(Path(folder), self._state() | self.optimizer.state(stored_names(Path(folder))))
        self.optimizer.loaded()
