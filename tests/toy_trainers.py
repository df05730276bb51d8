"""A trainer without a model, for tests of what surrounds it."""

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist


class Toy:
    def __init__(self, checkpoint: str, *, device: str, mesh: Any, **settings: Any):
        if checkpoint == "missing":
            raise ValueError(f"no checkpoint at {checkpoint}")
        if checkpoint == f"kills {dist.get_rank()}":
            os.kill(os.getpid(), signal.SIGKILL)
        self.mesh = mesh

    def total(self, value: float) -> float:
        """Over all ranks."""
        number = torch.tensor(float(value))
        dist.all_reduce(number)
        return number.item()

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)

    def process(self) -> int:
        return os.getpid()

    def fail(self, rank: int) -> float:
        """`rank` raises, while the others wait for it in a collective."""
        if dist.get_rank() == rank:
            raise KeyError("a tensor")
        return self.total(1)

    def die(self, rank: int) -> float:
        if dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.total(1)

    def totals(self, number: float, dying: int = -1) -> tuple[float, bool]:
        """Two answers, which take all ranks."""
        if dist.get_rank() == dying:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.total(number), dist.get_rank() == 0
