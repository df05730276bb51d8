"""AdamW over named parameters: state by name in safetensors, gradient clipping, a guard against non-finite steps."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from training.config import OptimizerConfig


class Optimizer:
    """One AdamW step at a time; matrices decay, norms and biases do not."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig):
        self.config = config
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), foreach=True)
        self.steps = 0

    def step(self, lr: float) -> float:
        """Clip, step, zero the gradients. Returns the gradient norm before clipping.

        Raises FloatingPointError, with the weights untouched, when the norm is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at optimizer step {self.steps}")
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.zero_grad()
        self.steps += 1
        return float(norm)

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def save(self, file: Path) -> None:
        tensors = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.detach().clone()
        save_file(tensors, file)

    def load(self, file: Path) -> None:
        tensors = load_file(file)
        self.steps = int(tensors.pop("steps"))
        for name, tensor in tensors.items():
            owner, _, key = name.rpartition("/")
            parameter = self.parameters[owner]
            # AdamW counts its steps on the CPU; the moments live with the weights.
            self.adamw.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
