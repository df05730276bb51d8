"""One trainer rank: a policy, its optimizer, packed forward passes, and its state on disk."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from data.chat import Template, render_prompt
from models.checkpoint import hub_views, load_model, load_mtp_module, load_tokenizer, resolve_device, save_model
from models.routing import LoadCounter
from training.config import OptimizerConfig
from training.optimizer import Optimizer
from training.policy import PackedRow, Policy, RowTensors, SampledRow


class Trainer:
    """The policy on one device. Subclasses add the loss of their stage; all methods run in a Ray actor."""

    def __init__(self, checkpoint: str, optimizer: OptimizerConfig, *, mtp: bool = False, device: str = "auto"):
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 a debugging aid that costs a tenth of a step
        self.device = resolve_device(device)
        self.model = load_model(checkpoint, device=self.device)
        self.tokenizer = load_tokenizer(checkpoint)
        self.mtp = load_mtp_module(checkpoint, self.model.config)
        if self.mtp is not None:
            self.mtp.to(self.device).requires_grad_(mtp)
        self.train_mtp = mtp and self.mtp is not None
        self.policy = Policy(self.model, self.mtp).train()
        self.optimizer = Optimizer(self.policy.named_parameters(), optimizer)
        self.load = LoadCounter(self.model)

    # --- forward ---

    def completion_logprobs(
        self, row: SampledRow, temperature: float = 1.0, policy: Policy | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs and entropies [C] of the predicted tokens of a row, over its support when it has one.

        `policy`: another one than that being trained, e.g. the reference.
        """
        predictions = (policy or self.policy)(RowTensors.of(row, self.device), temperature)
        return predictions.logprobs_C, predictions.entropies_C

    def next_token_losses(self, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Summed cross-entropy (nats) of the predicted tokens, and of the tokens after them by the MTP module."""
        predictions = self.policy(RowTensors.of(row, self.device), with_mtp=self.train_mtp)
        deeper = predictions.mtp_logprobs
        return -predictions.logprobs_C.sum(), None if deeper is None else -deeper.sum()

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
