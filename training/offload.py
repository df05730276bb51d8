"""Device memory that a trainer lends to engines: its tensors wait in host memory and stay the same objects."""

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor


class Offloaded:
    """Tensors whose storages are empty while their bytes are in host memory. Until `fetch` nobody may look at them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[UntypedStorage, Tensor]] = []

    @torch.no_grad()
    def take(self, tensors: Iterable[Tensor]) -> None:
        """Sharded ones: the piece that is here. Memory that is mapped from a file stays, and is nobody's to give."""
        for tensor in tensors:
            here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            storage = here.untyped_storage()
            if storage.nbytes() and storage.resizable():
                copy = _bytes(storage).to("cpu", copy=True)  # torch keeps pinned memory, in powers of two
                self._waiting.append((storage, copy))
                storage.resize_(0)

    @torch.no_grad()
    def fetch(self) -> None:
        while self._waiting:
            storage, copy = self._waiting[-1]
            storage.resize_(len(copy))
            _bytes(storage).copy_(copy)
            self._waiting.pop()  # and not before: the device may have no room yet


def _bytes(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
