"""An optimizer over named parameters: state by name, gradient clipping, a guard against non-finite steps."""

from collections.abc import Container, Iterable

import torch
from torch import nn

from training.algorithms import first_state, make_algorithms, moments, set_lr
from training.config import OptimizerConfig
from training.ema import WeightAverage
from training.gradients import clip_gradients
from training.offload import Offloaded

OPTIMIZER = "optimizer."  # begins the names of its state
AVERAGE = "average."  # and of the average's


class Optimizer:
    """One step at a time, of AdamW or of AdamW and Muon (training.algorithms), and an average of the weights."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig):
        self.config = config
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.algorithms = make_algorithms(self.parameters, config)
        self._owner = {
            id(p): algorithm
            for algorithm in self.algorithms
            for group in algorithm.param_groups
            for p in group["params"]
        }
        self.average = WeightAverage(self.parameters, config.ema_decay) if config.ema_decay > 0 else None
        self.steps = 0
        self._offloaded = Offloaded()
        self._steps = torch.tensor(0)  # the same, where it is saved and loaded

    def step(self, lr: float) -> float:
        """Clip, step, zero the gradients. Returns the gradient norm before clipping.

        Raises FloatingPointError, with the weights untouched, when the norm is not finite.
        """
        norm = clip_gradients(self.parameters.values(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at optimizer step {self.steps}")
        self._offloaded.fetch()
        for algorithm in self.algorithms:
            set_lr(algorithm, lr, self.config)
            algorithm.step()
        self.zero_grad()
        self.steps += 1
        if self.average is not None:
            self.average.update()
        return float(norm)

    def zero_grad(self) -> None:
        for algorithm in self.algorithms:
            algorithm.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Moments and step count of a parameter: the tensors themselves; empty before its first step."""
        return self._owner[id(parameter)].state.get(parameter, {})

    # --- between phases: another process may want the device's memory ---

    def offload(self) -> None:
        """Moments to host memory. `step` brings them back."""
        self._offloaded.take(tensor for algorithm in self.algorithms for tensor in moments(algorithm))

    # --- on disk ---

    def state(self, stored: Container[str] | None = None) -> dict[str, torch.Tensor]:
        """Steps, moments and average by name, the tensors themselves. `stored`: names to be loaded, for which there is
        room afterwards; call `loaded` when they are. Raises ValueError when these are of other settings."""
        if stored is not None and any(f"{AVERAGE}{name}" in stored for name in self.parameters) != bool(self.average):
            raise ValueError("the state was written with another optimizer.ema_decay: keep it for the whole stage")
        self._offloaded.fetch()
        if stored is not None:
            self._make_room(stored)
        tensors = {f"{OPTIMIZER}steps": self._steps.fill_(self.steps)}
        for name, parameter in self.parameters.items():
            for key, value in self.state_of(parameter).items():
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
        if self.average is not None:
            tensors |= {f"{AVERAGE}{name}": average for name, average in self.average.tensors().items()}
        return tensors

    def loaded(self) -> None:
        self.steps = int(self._steps)

    def _make_room(self, stored: Container[str]) -> None:
        """For the parameters that have had a gradient: those of resting modules have no state."""
        for name, parameter in self.parameters.items():
            algorithm = self._owner[id(parameter)]
            first = first_state(algorithm, parameter)
            if all(f"{OPTIMIZER}{name}/{key}" in stored for key in first):
                algorithm.state[parameter] = first
