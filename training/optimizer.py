"""AdamW over named parameters: state by name, gradient clipping, a guard against non-finite steps."""

from collections.abc import Container, Iterable

import torch
from torch import nn

from training.config import OptimizerConfig
from training.gradients import by_mesh, clip_gradients

OPTIMIZER = "optimizer."  # begins the names of its state


class Optimizer:
    """One AdamW step at a time; matrices decay, norms and biases do not."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig):
        self.config = config
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        groups = [
            {"params": group, "weight_decay": config.weight_decay if is_matrix else 0.0}
            for is_matrix in (True, False)
            for group in by_mesh(p for p in self.parameters.values() if (p.ndim > 1) == is_matrix)
        ]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), foreach=True)
        self.steps = 0
        self._steps = torch.tensor(0)  # the same, where it is saved and loaded

    def step(self, lr: float) -> float:
        """Clip, step, zero the gradients. Returns the gradient norm before clipping.

        Raises FloatingPointError, with the weights untouched, when the norm is not finite.
        """
        norm = clip_gradients(self.parameters.values(), self.config.clip_norm)
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

    def state(self, stored: Container[str] | None = None) -> dict[str, torch.Tensor]:
        """Steps and moments by name, the tensors themselves. `stored`: names to be loaded, for which there is room
        afterwards; call `loaded` when they are."""
        if stored is not None and any(f"{OPTIMIZER}{name}/step" in stored for name in self.parameters):
            self._make_room()
        tensors = {f"{OPTIMIZER}steps": self._steps.fill_(self.steps)}
        for name, parameter in self.parameters.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
        return tensors

    def loaded(self) -> None:
        self.steps = int(self._steps)

    def _make_room(self) -> None:
        """The state that AdamW makes in its first step, of zeros."""
        for parameter in self.parameters.values():
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.adamw.state[parameter] = {"step": torch.zeros(()), **moments}
