"""The process group of a trainer's ranks. Light to import: a rank forms it before it loads anything else."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_deadline = timedelta(minutes=30)  # of the group that was formed last; torch's own before that


def deadline() -> timedelta:
    """How long a collective may take. Groups made later have torch's, unless they are told."""
    return _deadline


def join(store: Any, rank: int, size: int, device: str, deadline_s: float) -> None:
    """Form the group of `size` ranks that meet at `store`; every collective must end within the deadline.

    device: cpu, cuda, or auto for a GPU where there is one. Numbers on CPUs always travel by gloo.
    """
    global _deadline
    _deadline = timedelta(seconds=deadline_s)
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_deadline)
