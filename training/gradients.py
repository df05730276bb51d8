"""The norm of all gradients, and clipping by it, when every rank holds pieces of them."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale gradients so that their common norm is at most `limit`; returns the norm from before, the same on all
    ranks. torch's own function refuses gradients that lie on different meshes, as those of experts do."""
    parameters = [p for p in parameters if p.grad is not None]
    several = dist.is_initialized() and dist.get_world_size() > 1
    if not several and not any(isinstance(p.grad, DTensor) for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    pieces = [_piece(p.grad) for p in parameters]
    norm = _over_ranks(torch.nn.utils.get_total_norm(pieces))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # torch's formula
    for piece in pieces:
        piece.mul_(scale)
    return norm


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Apart by the mesh they are sharded over: operations on lists of them must not mix meshes."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault(mesh, []).append(parameter)
    return list(groups.values())


def _over_ranks(norm: torch.Tensor) -> torch.Tensor:
    """Of all pieces, from the norm of those held here. Each element of a gradient is in one rank's pieces alone."""
    squares = [torch.empty_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(squares, norm.square())
    return torch.stack(squares).sum().sqrt()  # summed in the same order everywhere


def _piece(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
