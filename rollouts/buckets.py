"""Weights in buckets: one flat buffer with a table of contents, in one of three formats.

A policy of any size crosses in pieces of known size: the trainer packs the next one while the replicas read this one.
Names are those of the checkpoint, experts one by one. Every tensor has a checksum, which its reader compares.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch

from fp8.convert import is_quantised
from fp8.quantize import SCALE_SUFFIX, dequantize_blocks, quantize_blocks
from models.routing import is_selection_bias

WireFormat = Literal["float32", "bfloat16", "fp8"]
Named = tuple[str, torch.Tensor]  # checkpoint name, tensor
_ALIGNMENT = 64  # bytes: every tensor of a buffer starts at a multiple
_SUMMED_FROM = 1 << 14  # bytes: smaller tensors are hashed whole
_PARTS = 64  # of a larger tensor, each added up


class CorruptWeights(RuntimeError):
    """A tensor arrived otherwise than it was sent."""

    retry = True  # the same command may succeed another time


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a buffer, beginning at byte `start`."""

    name: str
    dtype: str  # torch's name
    shape: tuple[int, ...]
    start: int
    checksum: str | None  # None: not checked

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """A view of `buffer`, uint8 [bytes]."""
        dtype = getattr(torch, self.dtype)
        return buffer[self.start : self.start + dtype.itemsize * prod(self.shape)].view(dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A Parcel (see rollouts.weight_sync): tensors in one buffer, uint8 [bytes], on CPU or GPU.

    Pickled by way of the CPU; what Ray hands out is mapped, not copied.
    """

    entries: tuple[Entry, ...]
    data: torch.Tensor

    def names(self) -> list[str]:
        return [entry.name for entry in self.entries if not entry.name.endswith(SCALE_SUFFIX)]

    @contextmanager
    def open(self, rank: int, device: torch.device) -> Iterator[Iterator[Named]]:
        yield self.tensors()

    def tensors(self) -> Iterator[Named]:
        """What was sent, FP8 blocks multiplied out to float32; the others are views, not to be written. Raises
        CorruptWeights before the first one when any tensor's checksum is another than at the sender."""
        self.check()
        stored = dict(self.stored())
        for name, tensor in stored.items():
            if not name.endswith(SCALE_SUFFIX):
                scale = stored.get(name + SCALE_SUFFIX)
                yield name, tensor if scale is None else dequantize_blocks(tensor, scale)

    def stored(self) -> Iterator[Named]:
        """(name, tensor) as they crossed the wire, scales included."""
        for entry in self.entries:
            yield entry.name, entry.of(self.data)

    def check(self) -> None:
        for entry in self.entries:
            if entry.checksum is not None and checksum(entry.of(self.data)) != entry.checksum:
                raise CorruptWeights(f"weight {entry.name} arrived otherwise than it was sent: its checksum differs")

    def __reduce__(self) -> Any:
        return _from_array, (self.entries, self.data.cpu().numpy())


def _from_array(entries: tuple[Entry, ...], data: np.ndarray) -> Bucket:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Bucket(entries, torch.from_numpy(data))


def checksum(tensor: torch.Tensor) -> str:
    """16 hex digits, alike for equal bytes on any device.

    Of a large tensor the sums, modulo 2^64, of 64 equal parts are hashed: as fast as memory is read, and enough for
    what goes wrong on the way, though not against somebody who means it.
    """
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if raw.numel() < _SUMMED_FROM:
        return _hash(raw)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = raw.numel() // (8 * _PARTS) * (8 * _PARTS)
    sums = raw[:whole].view(torch.int64).view(_PARTS, -1).sum(dim=1)
    return _hash(torch.cat([sums.view(torch.uint8), raw[whole:]]))


def _hash(raw: torch.Tensor) -> str:
    return hashlib.blake2b(raw.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def on_wire(name: str, tensor: torch.Tensor, wire: WireFormat) -> list[Named]:
    """What is sent for one tensor: itself, rounded, or FP8 with block scales. With fp8 the rest goes as bfloat16."""
    if not tensor.is_floating_point():
        return [(name, tensor)]
    if wire == "float32" or is_selection_bias(name):
        return [(name, tensor.float())]
    if wire == "fp8" and tensor.ndim == 2 and is_quantised(name):
        quantised, scale = quantize_blocks(tensor)
        return [(name, quantised), (name + SCALE_SUFFIX, scale)]
    return [(name, tensor.bfloat16())]


def on_cpu(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


def pack_weights(
    tensors: Iterable[Named],
    limit_bytes: int,
    wire: WireFormat,
    *,
    checksums: bool = True,
    allocate: Callable[[int], torch.Tensor] = on_cpu,
) -> Iterator[Bucket]:
    """Buckets of at most `limit_bytes` each, except that a tensor is never split, nor is FP8 from its scales.

    allocate: buffers, uint8 [bytes], for the buckets. One is held at a time; the caller's tensors are not changed.
    """
    waiting: list[Named] = []
    size = 0
    for name, tensor in tensors:
        pieces = on_wire(name, tensor.detach(), wire)
        needed = sum(_padded(piece) for _, piece in pieces)
        if waiting and size + needed > limit_bytes:
            yield _bucket(waiting, checksums, allocate)
            waiting, size = [], 0
        waiting += pieces
        size += needed
    if waiting:
        yield _bucket(waiting, checksums, allocate)


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _bucket(pieces: list[Named], checksums: bool, allocate: Callable[[int], torch.Tensor]) -> Bucket:
    ends = np.cumsum([_padded(tensor) for _, tensor in pieces]).tolist()
    data = allocate(ends[-1])
    entries = []
    for (name, tensor), start in zip(pieces, [0, *ends[:-1]], strict=True):
        data[start : start + tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        entries.append(Entry(name, dtype, shape, start, checksum(tensor) if checksums else None))
    return Bucket(tuple(entries), data)
