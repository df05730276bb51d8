"""Weights in safetensors files, as they cross the wire or as a checkpoint holds them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fp8.quantize import SCALE_SUFFIX, dequantize_blocks
from rollouts.buckets import Bucket, Named


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A Parcel (see rollouts.weight_sync): all safetensors files of a folder."""

    folder: str

    def names(self) -> Iterable[str]:
        return stored_shapes(self.folder)

    @contextmanager
    def open(self, rank: int, device: torch.device) -> Iterator[Iterator[Named]]:
        yield stored_tensors(self.folder)


def write_buckets(folder: Path, buckets: Iterable[Bucket]) -> None:
    """One safetensors file per bucket, as they crossed the wire. Files of an earlier version are removed first."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for number, bucket in enumerate(buckets):
        save_file(dict(bucket.stored()), folder / f"bucket_{number:05d}.safetensors", metadata={"format": "pt"})


def stored_shapes(folder: Path | str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of all safetensors files in `folder`, from their headers."""
    names = ((file, name) for file in _files(folder) for name in file.keys())  # noqa: SIM118  (not a mapping)
    return {name: tuple(file.get_slice(name).get_shape()) for file, name in names if not name.endswith(SCALE_SUFFIX)}


def stored_tensors(folder: Path | str) -> Iterator[Named]:
    """All tensors, one at a time, with FP8 blocks multiplied out. A tensor and its scales must be in one file."""
    for file in _files(folder):
        names = set(file.keys())
        for name in sorted(names):
            if name.endswith(SCALE_SUFFIX):
                continue
            scaled = name + SCALE_SUFFIX in names
            tensor = file.get_tensor(name)
            yield name, dequantize_blocks(tensor, file.get_tensor(name + SCALE_SUFFIX)) if scaled else tensor


def _files(folder: Path | str) -> Iterator[Any]:
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield file
