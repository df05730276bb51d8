"""The receiving end of weight sync, shared by both engines: what is not whole is never sampled from.

Weights come in parcels: a bucket, a bucket in shared memory, a broadcast of all of them, a folder of files. A parcel is
a small thing that travels between processes; the tensors are where it says.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rollouts.buckets import Named
from rollouts.weight_files import StoredWeights, stored_shapes


class WrongWeights(RuntimeError):
    """A generator was asked to sample from a policy version that it does not hold."""


class Parcel(Protocol):
    def names(self) -> Iterable[str]:
        """Of its tensors; asked after they were read."""
        ...

    def open(self, rank: int, device: torch.device) -> AbstractContextManager[Iterator[Named]]:
        """The tensors. An engine may keep them until the update ends, and must not write to them.

        rank: of the process that reads, among all that do, from 1; device: the one that it computes on.
        """
        ...


class WeightReceiver:
    """Subclasses say what they need and take the tensors in.

    While an update is under way `policy_version` is None and nothing can be sampled.
    """

    policy_version: int | None

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name -> shape of every tensor without which an update is not whole."""
        raise NotImplementedError

    def _take(self, parcel: Parcel, rank: int) -> None:
        """Put those tensors of `parcel` that are in `weight_shapes` in their places."""
        raise NotImplementedError

    def _start_update(self) -> None:
        """Before the first tensor."""

    def _finish_update(self, version: int) -> None:
        """After the last one."""

    def device_type(self) -> str:
        """cpu or cuda."""
        raise NotImplementedError

    def engine_processes(self) -> int:
        """How many read a parcel, each for itself: those that hold parts of the model."""
        return 1

    def host(self) -> str:
        """Equal for processes that can map one another's memory."""
        return host_id(self.device_type())

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

    def update(self, parcel: Parcel, rank: int = 1) -> None:
        """Take one parcel in. `rank`: of this engine's first process among all that read (see Parcel)."""
        self._take(parcel, rank)
        self._missing.difference_update(parcel.names())

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
        given = Given({name: torch.as_tensor(tensor) for name, tensor in dict(tensors).items()})
        self.begin_update({name: tuple(tensor.shape) for name, tensor in given.tensors.items()})
        self.update(given)
        self.finish_update(version)

    def load_files(self, folder: Path | str, version: int) -> None:
        """Replace all weights by those of the safetensors files in `folder`, a tensor at a time."""
        self.begin_update(stored_shapes(folder))
        self.update(StoredWeights(str(folder)))
        self.finish_update(version)


@dataclass(frozen=True, slots=True)
class Given:
    """A Parcel of tensors in this process."""

    tensors: Mapping[str, torch.Tensor]

    def names(self) -> Iterable[str]:
        return self.tensors

    @contextmanager
    def open(self, rank: int, device: torch.device) -> Iterator[Iterator[Named]]:
        yield iter(self.tensors.items())


def check_version(held: int | None, wanted: int | None) -> int:
    """The version held. Raises WrongWeights when an update is under way, or when it is not the one `wanted`, if any."""
    if held is None:
        raise WrongWeights("this generator's weights are incomplete: an update began and did not end")
    if wanted is not None and wanted != held:
        raise WrongWeights(f"this generator holds policy version {held}, but {wanted} was asked for")
    return held


def host_id(device_type: str) -> str:
    """Of the running kernel and the process namespace: equal for processes that see one another by process id. For
    device type cuda with the first GPU that the process sees."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if device_type == "cuda" else ""
    return f"{boot.read_text().strip() if boot.exists() else os.uname().nodename}/{_namespace()}/{gpu}"


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
