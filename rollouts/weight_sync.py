"""Weights on their way from the trainer to the engines: bounded buckets, three formats on the wire, versions.

A bucket is one flat buffer with a table of contents, so a policy of any size crosses in pieces of known size: the
trainer packs the next one while the replicas read this one. Names are those of the checkpoint, experts one by one.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fp8.quantize import SCALE_SUFFIX, dequantize_blocks, quantize_blocks

WireFormat = Literal["float32", "bfloat16", "fp8"]
_ALIGNMENT = 64  # bytes: every tensor of a buffer starts at a multiple
# What FP8 touches, as in the released DeepSeek-V3: linear layers of attention and feed-forward; never embeddings, head,
# router, norms, nor the projection of the MTP layer.
_QUANTISED = (
    "q_proj", "q_a_proj", "q_b_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
    "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
_SELECTION_BIAS = "e_score_correction_bias"  # float32 everywhere: a rounded one would choose other experts


class WrongWeights(RuntimeError):
    """A generator was asked to sample from a policy version that it does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tensors in one buffer: tensor i has dtypes[i] (torch's name) and shapes[i], and begins at byte offsets[i]."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    data: np.ndarray  # uint8 [bytes]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, tensor), FP8 blocks multiplied out to float32; the others are views, not to be written."""
        stored = dict(self.stored())
        for name, tensor in stored.items():
            if not name.endswith(SCALE_SUFFIX):
                scale = stored.get(name + SCALE_SUFFIX)
                yield name, tensor if scale is None else dequantize_blocks(tensor, scale)

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) as they crossed the wire, scales included."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            buffer = torch.from_numpy(self.data)
        for name, dtype, shape, start in zip(self.names, self.dtypes, self.shapes, self.offsets, strict=True):
            of = getattr(torch, dtype)
            yield name, buffer[start : start + of.itemsize * int(np.prod(shape))].view(of).view(shape)

    def checksums(self) -> dict[str, str]:
        """Of the bytes of every tensor, so that both ends can say which one differs."""
        return {name: checksum(tensor) for name, tensor in self.stored()}


def checksum(tensor: torch.Tensor) -> str:
    """16 hex digits of a hash over the bytes of a CPU tensor."""
    raw = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def on_wire(name: str, tensor: torch.Tensor, wire: WireFormat) -> list[tuple[str, torch.Tensor]]:
    """What is sent for one tensor: itself, rounded, or FP8 with block scales. With fp8 the rest goes as bfloat16."""
    if not tensor.is_floating_point():
        return [(name, tensor)]
    if wire == "float32" or name.endswith(_SELECTION_BIAS):
        return [(name, tensor.float())]
    layer, _, kind = name.rpartition(".")
    if wire == "fp8" and tensor.ndim == 2 and kind == "weight" and layer.rpartition(".")[2] in _QUANTISED:
        quantised, scale = quantize_blocks(tensor)
        return [(name, quantised), (name + SCALE_SUFFIX, scale)]
    return [(name, tensor.bfloat16())]


def pack_weights(tensors: Iterable[tuple[str, torch.Tensor]], limit_bytes: int, wire: WireFormat) -> Iterator[Bucket]:
    """Buckets of at most `limit_bytes` each, except that a tensor is never split, nor is FP8 from its scales.

    One bucket is held at a time; the caller's tensors are not changed.
    """
    waiting: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        pieces = on_wire(name, tensor.detach().cpu(), wire)
        needed = sum(_padded(piece) for _, piece in pieces)
        if waiting and size + needed > limit_bytes:
            yield _bucket(waiting)
            waiting, size = [], 0
        waiting += pieces
        size += needed
    if waiting:
        yield _bucket(waiting)


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _bucket(pieces: list[tuple[str, torch.Tensor]]) -> Bucket:
    ends = np.cumsum([_padded(tensor) for _, tensor in pieces])
    offsets = (0, *ends[:-1].tolist())
    data = torch.zeros(int(ends[-1]), dtype=torch.uint8)
    for (_, tensor), start in zip(pieces, offsets, strict=True):
        data[start : start + tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
    return Bucket(
        names=tuple(name for name, _ in pieces),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in pieces),
        shapes=tuple(tuple(tensor.shape) for _, tensor in pieces),
        offsets=offsets,
        data=data.numpy(),
    )


class WeightReceiver:
    """The receiving end that both engines share. Subclasses say what they need and take the tensors in.

    While an update is under way `policy_version` is None and nothing can be sampled.
    """

    policy_version: int | None

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name -> shape of every tensor without which an update is not whole."""
        raise NotImplementedError

    def _take(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Put tensors of `weight_shapes` in their places."""
        raise NotImplementedError

    def _start_update(self) -> None:
        """Before the first tensor."""

    def _finish_update(self, version: int) -> None:
        """After the last one."""

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes`: of all tensors that will come. Raises KeyError or ValueError, with nothing changed, when one that
        the model needs is not among them or has another shape; others (MTP) are ignored."""
        needed = self.weight_shapes()
        if missing := sorted(needed.keys() - shapes.keys()):
            raise KeyError(f"weights lack {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
        for name, shape in needed.items():
            if tuple(shapes[name]) != tuple(shape):
                raise ValueError(f"weight {name} has shape {tuple(shapes[name])}, the model {tuple(shape)}")
        self.policy_version = None
        self._start_update()
        self._missing = set(needed)

    def update(self, bucket: Bucket, checksums: bool = False) -> dict[str, str]:
        """Take one bucket in; returns the checksums of what arrived when they are asked for."""
        self._take_known(bucket.tensors())
        return bucket.checksums() if checksums else {}

    def held_checksums(self) -> dict[str, str] | None:
        """Checksums of the weights as they are held, by checkpoint name; None when the engine keeps another form."""
        return None

    def finish_update(self, version: int) -> None:
        """From here on the policy is `version`. Raises KeyError when a tensor has not come: then there is no policy."""
        if self._missing:
            raise KeyError(f"weight {min(self._missing)} was announced and did not come")
        self._finish_update(version)
        self.policy_version = version

    def load_weights(self, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]], version: int) -> None:
        """Replace all weights by tensors or arrays under checkpoint names. All or nothing."""
        tensors = {name: torch.as_tensor(tensor) for name, tensor in dict(tensors).items()}
        self.begin_update({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        self._take_known(tensors.items())
        self.finish_update(version)

    def load_files(self, folder: str, version: int) -> None:
        """Replace all weights by those of the safetensors files in `folder`, a file at a time."""
        self.begin_update(stored_shapes(folder))
        for file in _files(folder):
            self._take_known(_tensors(file))
        self.finish_update(version)

    def _take_known(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        known = self.weight_shapes()
        self._take((self._came(name), tensor) for name, tensor in tensors if name in known)

    def _came(self, name: str) -> str:
        self._missing.discard(name)
        return name


def check_version(held: int | None, wanted: int | None) -> int:
    """The version held. Raises WrongWeights when an update is under way, or when it is not the one `wanted`, if any."""
    if held is None:
        raise WrongWeights("this generator's weights are incomplete: an update began and did not end")
    if wanted is not None and wanted != held:
        raise WrongWeights(f"this generator holds policy version {held}, but {wanted} was asked for")
    return held


# --- files -------------------------------------------------------------------------------------------------------


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


def stored_tensors(folder: Path | str) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors, one at a time, with FP8 blocks multiplied out. A tensor and its scales must be in one file."""
    for file in _files(folder):
        yield from _tensors(file)


def _tensors(file: Any) -> Iterator[tuple[str, torch.Tensor]]:
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
