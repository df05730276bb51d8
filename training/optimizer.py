"""An optimizer over named parameters: state by name in safetensors, clipping, a guard against non-finite steps."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from training.algorithms import make_algorithms, moments, set_lr
from training.config import OptimizerConfig
from training.ema import WeightAverage

_AVERAGE = "average"


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

    def step(self, lr: float) -> float:
        """Clip, step, zero the gradients. Returns the gradient norm before clipping.

        Raises FloatingPointError, with the weights untouched, when the norm is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at optimizer step {self.steps}")
        self.fetch()
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
        """Moments to CPU memory, when the settings say so. `step` brings them back."""
        if self.config.offload == "moments":
            for algorithm in self.algorithms:
                for state, key, value in moments(algorithm):
                    state[key] = value.to("cpu")

    def fetch(self) -> None:
        """Moments to where their parameters are."""
        for parameter in self.parameters.values():
            state = self.state_of(parameter)
            for key, value in state.items():
                if key != "step":  # AdamW counts its steps on the CPU
                    state[key] = value.to(parameter.device)

    # --- on disk ---

    def save(self, file: Path) -> None:
        tensors = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            for key, value in self.state_of(parameter).items():
                tensors[f"{name}/{key}"] = value.detach().clone()
        if self.average is not None:
            tensors |= {f"{name}/{_AVERAGE}": value.clone() for name, value in self.average.tensors().items()}
        save_file(tensors, file)

    def load(self, file: Path) -> None:
        """Raises ValueError when the file is of other settings."""
        tensors = load_file(file)
        self.steps = int(tensors.pop("steps"))
        averages = {n.rpartition("/")[0]: tensors.pop(n) for n in list(tensors) if n.endswith(f"/{_AVERAGE}")}
        if bool(averages) != (self.average is not None):
            raise ValueError(f"{file} was written with another optimizer.ema_decay: keep it for the whole stage")
        if self.average is not None:
            for name, average in self.average.tensors().items():
                average.copy_(averages[name])
        for name, tensor in tensors.items():
            owner, _, key = name.rpartition("/")
            parameter = self.parameters[owner]
            self._owner[id(parameter)].state[parameter][key] = tensor
        self.fetch()
