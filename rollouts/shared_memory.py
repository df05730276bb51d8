"""Weights in memory that trainer and replicas map at the same time; what travels is a handle.

On CPU a bucket lies in an anonymous file of the trainer (memfd), which replicas open through the trainer's process: it
has no name that could be left behind, and is gone when nobody maps it any more, also after a crash. On a GPU it is a
CUDA IPC handle. The CUDA branches have not been run yet.
"""

import mmap
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import torch

from rollouts.buckets import Bucket, Entry, Named, WireFormat, pack_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBucket:
    """A Parcel (see rollouts.weight_sync): a handle of one bucket. Valid while its Shared is open."""

    entries: tuple[Entry, ...]
    nbytes: int
    process: int  # the trainer's
    descriptor: int | None = None  # of the file there; None: it is on a GPU
    device: str = "cpu"  # or the GPU's UUID
    exports: tuple[bytes, ...] = ()  # CUDA IPC handles, one per reader: each has a reference count of its own

    def names(self) -> list[str]:
        return Bucket(self.entries, torch.empty(0)).names()

    @contextmanager
    def open(self, rank: int, device: torch.device) -> Iterator[Iterator[Named]]:
        yield Bucket(self.entries, self._map() if self.descriptor is not None else self._import(rank, device)).tensors()

    def _map(self) -> torch.Tensor:
        with open(f"/proc/{self.process}/fd/{self.descriptor}", "rb") as file:
            mapped = mmap.mmap(file.fileno(), self.nbytes, mmap.MAP_PRIVATE)  # writes would not reach the trainer
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def _import(self, rank: int, device: torch.device) -> torch.Tensor:
        own = device_uuid(device)
        if own != self.device:
            raise ValueError(
                f"sync.transport shared_memory: the trainer's weights are on GPU {self.device}, this generator "
                f"works on {own}; colocate them, or take transport collective"
            )
        imported: torch.Tensor = pickle.loads(self.exports[rank - 1])
        own_copy = imported.clone()  # an engine may keep it; the trainer gets its own back
        torch.cuda.synchronize(device)
        return own_copy


class Shared:
    """The trainer's end: makes buckets and keeps each until the second one after it is asked for."""

    def __init__(self, readers: int):
        self.readers = readers
        self._held: list[tuple[int | None, torch.Tensor]] = []

    def buckets(
        self, tensors: Iterable[Named], limit_bytes: int, wire: WireFormat, checksums: bool, device: torch.device
    ) -> Iterator[SharedBucket]:
        """As rollouts.buckets.pack_weights, in memory on `device`."""
        for bucket in pack_weights(
            tensors, limit_bytes, wire, checksums=checksums, allocate=lambda nbytes: self._allocate(nbytes, device)
        ):
            yield self._handle(bucket)

    def _allocate(self, nbytes: int, device: torch.device) -> torch.Tensor:
        while len(self._held) >= 2:
            self._free()
        if device.type == "cuda":
            self._held.append((None, torch.zeros(nbytes, dtype=torch.uint8, device=device)))
        else:
            descriptor = os.memfd_create("r1-weights")
            os.ftruncate(descriptor, nbytes)
            buffer = torch.frombuffer(mmap.mmap(descriptor, nbytes), dtype=torch.uint8)
            self._held.append((descriptor, buffer))
        return self._held[-1][1]

    def _handle(self, bucket: Bucket) -> SharedBucket:
        """Of the bucket allocated last."""
        descriptor, buffer = self._held[-1]
        exports, device = (), "cpu"
        if descriptor is None:
            torch.cuda.synchronize(buffer.device)
            exports = tuple(bytes(ForkingPickler.dumps(buffer)) for _ in range(self.readers))
            device = device_uuid(buffer.device)
        return SharedBucket(
            entries=bucket.entries,
            nbytes=buffer.nbytes,
            process=os.getpid(),
            descriptor=descriptor,
            device=device,
            exports=exports,
        )

    def close(self) -> None:
        while self._held:
            self._free()

    def _free(self) -> None:
        descriptor, _ = self._held.pop(0)
        if descriptor is not None:
            os.close(descriptor)  # the memory goes with the last mapping


def device_uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
