"""The exponential moving average of the weights, in CPU memory and beside training (arXiv:2412.19437, section 3.2.3).

A step waits for a copy of the weights only; a thread averages it in while the next step computes. Whoever reads the
average waits for that thread. Where weights are sharded, each rank averages the pieces that it holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Thread

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights after each step, from the first weights on; float32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self._average = {name: self._to_cpu(p, torch.float32) for name, p in parameters.items()}
        self._thread: Thread | None = None
        self._fault: BaseException | None = None

    @staticmethod
    def _to_cpu(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.detach().to("cpu", dtype, copy=True)

    def update(self) -> None:
        """Take the weights as they are now. Waits for the update before."""
        self.join()
        weights = {name: self._to_cpu(_held_here(p), p.dtype) for name, p in self.parameters.items()}
        self._thread = Thread(target=self._take, args=(weights,), name="weight average")
        self._thread.start()

    def _take(self, weights: dict[str, Tensor]) -> None:
        """From plain tensors: a thread must not begin a collective."""
        try:
            for name, average in self._average.items():
                _held_here(average).lerp_(weights[name].float(), 1 - self.decay)
        except BaseException as error:
            self._fault = error

    def join(self) -> None:
        """Wait until every update is in. Raises RuntimeError when one failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            raise RuntimeError(f"the average of the weights could not be updated: {self._fault}") from self._fault

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, float32: the tensors themselves, good until the next update. They are in CPU
        memory and sharded as the parameters are, so that a state saved with them can be read by any other mesh."""
        self.join()
        return self._average

    def in_place_of_weights(self) -> AbstractContextManager[None]:
        """The parameters hold the average while this is open, e.g. to save a checkpoint of it."""
        return holding(self.parameters, self.tensors())


def _held_here(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def holding(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters hold these values, by name, while this is open, and then their own again."""
    own = {name: parameters[name].detach().clone() for name in values}
    try:
        _put(values, parameters)
        yield
    finally:
        _put(own, parameters)


@torch.no_grad()
def _put(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
