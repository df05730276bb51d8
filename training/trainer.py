"""One trainer rank: a policy, its optimizer, packed forward passes, and its state on disk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from data.chat import Template, render_prompt
from fp8.config import Fp8Config
from fp8.convert import Precision, convert
from models.attention import PackedLayout
from models.checkpoint import hub_views, load_model, load_mtp_module, load_tokenizer, resolve_device, save_model
from models.mtp import mtp_hidden
from models.recompute import Recompute, set_recompute
from models.routing import LoadCounter, SequenceBalance
from training.config import OptimizerConfig
from training.head_chunks import SupportTensors
from training.logprobs import LossOf, summed_nll, token_logprobs, token_loss
from training.optimizer import Optimizer


class PackedRow(Protocol):
    """Several sequences in one row of T tokens, of which C are predicted (see rl.batch.MicroBatch)."""

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


class SampledRow(PackedRow, Protocol):
    """A row of sampled tokens, perhaps with the tokens they were drawn from (see rollouts.records.Support)."""

    @property
    def support_ids(self) -> np.ndarray | None: ...  # [sum(support_sizes)] int64
    @property
    def support_sizes(self) -> np.ndarray | None: ...  # [C] int64


class Trainer:
    """The policy on one device. Subclasses add the loss of their stage; all methods run in a Ray actor."""

    def __init__(
        self,
        checkpoint: str,
        optimizer: OptimizerConfig,
        *,
        mtp: bool = False,
        drop_mtp: bool = False,
        device: str = "auto",
        recompute: Recompute = "none",
        fp8: Fp8Config | None = None,
    ):
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 a debugging aid that costs a tenth of a step
        self.device = resolve_device(device)
        self.model = load_model(checkpoint, device=self.device).train()
        self.tokenizer = load_tokenizer(checkpoint)
        self.mtp = None if drop_mtp else load_mtp_module(checkpoint, self.model.config)
        if self.mtp is not None:
            self.mtp.to(self.device).requires_grad_(mtp)
        self.precision = self._convert(fp8) if fp8 else []
        self.train_mtp = mtp and self.mtp is not None
        self.optimizer = Optimizer(self._named_parameters(), optimizer)
        for module in (self.model, self.mtp):
            if module is not None:
                set_recompute(module, recompute)
        self.load = LoadCounter(self.model, self.mtp)
        self.balance = SequenceBalance(self.model, self.mtp)

    def _convert(self, config: Fp8Config) -> list[Precision]:
        """Run the listed layers of policy and MTP module in FP8. Returns what every layer computes in."""
        parts = {"": self.model, "mtp": self.mtp}
        return [
            replace(line, module=".".join(filter(None, (name, line.module))))
            for name, part in parts.items()
            if part is not None
            for line in convert(part, config, keep_blocks=True)
        ]

    def _named_parameters(self):
        yield from self.model.named_parameters()
        if self.mtp is not None:
            yield from ((f"mtp.{name}", p) for name, p in self.mtp.named_parameters())

    # --- forward ---

    def hidden_states(self, row: PackedRow, model: Any = None) -> tuple[torch.Tensor, PackedLayout]:
        """Final hidden states [1, T, D] of a packed row, and the layout that kept its sequences apart.

        `model`: another one than the policy, e.g. the reference.
        """
        packing = PackedLayout.from_lengths(np.diff(row.cu_seqlens).tolist(), self.device)
        output = (model or self.model).model(
            input_ids=self._tensor(row.input_ids)[None],
            position_ids=self._tensor(row.position_ids)[None],
            use_cache=False,
            layout=packing,
        )
        return output.last_hidden_state, packing

    def completion_logprobs(
        self, row: SampledRow, temperature: float = 1.0, model: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs and entropies [C] of the predicted tokens of a row, over its support when it has one."""
        hidden, _ = self.hidden_states(row, model)
        return self.logprobs_from(hidden, row, temperature, model)

    def logprobs_from(
        self, hidden: torch.Tensor, row: SampledRow, temperature: float, model: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`completion_logprobs`, given the row's hidden states [1, T, D]."""
        return token_logprobs(*self._head_inputs(hidden, row, model), temperature, self._support(row))

    def token_loss_from(
        self, hidden: torch.Tensor, row: SampledRow, loss_of: LossOf, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A loss that is a sum over the predicted tokens of a row, with their logprobs and entropies [C]."""
        return token_loss(*self._head_inputs(hidden, row), loss_of, temperature, self._support(row))

    def _head_inputs(
        self, hidden: torch.Tensor, row: PackedRow, model: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What predicts, the head, what is predicted."""
        predicting = hidden[0, self._tensor(row.predicting_positions)]
        return predicting, (model or self.model).lm_head.weight, self._tensor(row.target_ids)

    def _support(self, row: SampledRow) -> SupportTensors | None:
        if row.support_ids is None or row.support_sizes is None:
            return None
        return self._tensor(row.support_ids), self._tensor(row.support_sizes)

    def next_token_losses(self, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Summed cross-entropy (nats) of the predicted tokens, and of the tokens after them by the MTP module."""
        hidden, packing = self.hidden_states(row)
        nll = summed_nll(*self._head_inputs(hidden, row))
        return nll, self.mtp_nll(hidden, row, packing) if self.train_mtp else None

    def mtp_nll(self, hidden: torch.Tensor, row: PackedRow, packing: PackedLayout, alone: bool = False) -> torch.Tensor:
        """Summed cross-entropy (nats) of the MTP module, on the targets that have another one before them.

        alone: the MTP module learns and the main model, whose head and embedding it shares, does not.
        """
        assert self.mtp is not None
        # The token two ahead of position i is a target when i + 1 predicts one in the same sequence.
        ids, position_ids = self._tensor(row.input_ids)[None], self._tensor(row.position_ids)[None]
        deeper = mtp_hidden(self.model, self.mtp, ids, hidden, position_ids, packing, alone)
        is_end = torch.zeros(ids.shape[1], dtype=torch.bool, device=self.device)
        is_end[self._tensor(row.cu_seqlens[1:].astype(np.int64)) - 1] = True
        two_ahead = self._tensor(row.predicting_positions) - 1
        keep = (two_ahead >= 0) & ~is_end[two_ahead.clamp(min=0)]
        head = self.model.lm_head.weight.detach() if alone else self.model.lm_head.weight
        return summed_nll(deeper[0, two_ahead[keep]], head, self._tensor(row.target_ids)[keep])

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

    def weight_views(self) -> dict[str, torch.Tensor]:
        """The policy's weights by checkpoint name, where they are: not to be written to."""
        return hub_views(self.model)

    def save_checkpoint(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint."""
        save_model(Path(folder), self.model, self.tokenizer, self.mtp, getattr(torch, dtype))

    def save_average(self, folder: str, dtype: str = "float32") -> None:
        """A Hugging Face checkpoint of the average of the weights, if one is kept (optimizer.ema_decay)."""
        if self.optimizer.average is not None:
            with self.optimizer.average.in_place_of_weights():
                self.save_checkpoint(folder, dtype)

    def offload(self) -> None:
        """Leave the device to others for a while, as far as optimizer.offload says."""
        self.optimizer.offload()

    def save_state(self, folder: str) -> None:
        """Everything that a resumed run needs to go on bit for bit."""
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.mtp is not None:
            state |= {f"mtp.{name}": t for name, t in self.mtp.state_dict().items()}
        save_file({name: t.contiguous().clone() for name, t in state.items()}, Path(folder) / "state.safetensors")
        self.optimizer.save(Path(folder) / "optimizer.safetensors")

    def load_state(self, folder: str) -> None:
        state = load_file(Path(folder) / "state.safetensors")
        parts = {"model": self.model, "mtp": self.mtp}
        for prefix, module in parts.items():
            if module is not None:
                start = f"{prefix}."
                module.load_state_dict({n.removeprefix(start): t for n, t in state.items() if n.startswith(start)})
        self.optimizer.load(Path(folder) / "optimizer.safetensors")
