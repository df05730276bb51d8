"""What an optimizer step does with clipped gradients: AdamW, with moments in float32 or bfloat16, or Muon beside it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from training.config import OptimizerConfig
from training.gradients import by_mesh
from training.parallel import whole

# Weights that Muon leaves to AdamW although they are matrices: their rows are tokens or experts, each on its own
# (Moonlight, arXiv:2502.16982, section 2.2; DeepSeek-V4 too).
_ROWS_APART = ("embed_tokens.", "lm_head.", ".gate.weight")
_MUON_MOMENTUM = 0.95  # Moonlight's and DeepSeek-V4's
_MUON_SCALE = "match_rms_adamw"


def make_algorithms(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Each parameter is in one of them. Matrices decay; norms and biases, which are vectors, do not."""
    muon = [p for name, p in parameters.items() if config.algorithm == "muon" and _is_hidden_matrix(name, p)]
    chosen = set(map(id, muon))
    rest = [p for p in parameters.values() if id(p) not in chosen]
    groups = [
        {"params": group, "weight_decay": config.weight_decay if is_matrix else 0.0}
        for is_matrix in (True, False)
        for group in by_mesh(p for p in rest if (p.ndim > 1) == is_matrix)
    ]
    betas = (config.beta1, config.beta2)
    if config.moments == "bfloat16":
        algorithms: list[torch.optim.Optimizer] = [AdamWHalfMoments(groups, lr=config.lr, betas=betas)]
    else:
        algorithms = [torch.optim.AdamW(groups, lr=config.lr, betas=betas, foreach=True)]
    if muon:
        algorithms.append(
            MuonOfPieces(
                muon,
                lr=config.lr * config.muon_lr_factor,
                weight_decay=config.weight_decay,
                momentum=_MUON_MOMENTUM,
                adjust_lr_fn=_MUON_SCALE,
            )
        )
    return algorithms


def set_lr(algorithm: torch.optim.Optimizer, lr: float, config: OptimizerConfig) -> None:
    factor = config.muon_lr_factor if isinstance(algorithm, torch.optim.Muon) else 1.0
    for group in algorithm.param_groups:
        group["lr"] = lr * factor


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(part in f".{name}" for part in _ROWS_APART)


class AdamWHalfMoments(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101, algorithm 2) whose moments are stored in bfloat16: 4 bytes a parameter instead of 8.

    As DeepSeek-V3 trains (arXiv:2412.19437, section 3.3.2): weights stay float32. Each step computes in float32 and
    rounds the moments to nearest when it stores them, so this step's update is from moments that are not yet rounded.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state |= first_state(self, parameter)
        state["step"] += 1
        (beta1, beta2), lr, steps = group["betas"], group["lr"], float(state["step"])
        mean = state["exp_avg"].float().lerp_(parameter.grad, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        parameter.mul_(1 - lr * group["weight_decay"])
        denominator = square.sqrt_().div_(math.sqrt(1 - beta2**steps)).add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-lr / (1 - beta1**steps))


class MuonOfPieces(torch.optim.Muon):
    """torch's, for matrices of which a rank may hold a piece: momentum is kept in pieces, and each update is put
    together to be orthogonalised, one matrix at a time and on every rank."""

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, grad: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state |= first_state(self, parameter)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"])  # Nesterov's
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(_like(parameter, _muon_step(whole(update), group["lr"])))


def _muon_step(update: Tensor, lr: float) -> Tensor:
    """What torch's Muon adds to a matrix whose update, momentum included, this is."""
    moved = nn.Parameter(torch.zeros_like(update))
    moved.grad = update
    torch.optim.Muon([moved], lr=lr, weight_decay=0, momentum=0, nesterov=False, adjust_lr_fn=_MUON_SCALE).step()
    return moved.detach()


def _like(parameter: Tensor, matrix: Tensor) -> Tensor:
    """A whole matrix, the same on all ranks, in pieces as the parameter is."""
    if not isinstance(parameter, DTensor):
        return matrix
    mesh = parameter.device_mesh
    return DTensor.from_local(matrix, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(
        placements=parameter.placements
    )


def first_state(algorithm: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an algorithm holds of a parameter before its first step: zeros, into which a saved state can be read."""
    if isinstance(algorithm, torch.optim.Muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    dtype = torch.bfloat16 if isinstance(algorithm, AdamWHalfMoments) else parameter.dtype
    return {"step": torch.zeros(())} | {k: torch.zeros_like(parameter, dtype=dtype) for k in ("exp_avg", "exp_avg_sq")}


def moments(algorithm: torch.optim.Optimizer) -> list[Tensor]:
    """All that grows with the parameters; the count of steps does not."""
    return [
        value
        for state in algorithm.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
    ]
