"""The state of a trainer on disk, by torch.distributed.checkpoint: each rank writes the pieces that it holds, and any
number of ranks reads those that it needs."""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from data.durable import full_disk
from training.process_group import deadline

# A single process is told that it is one, and every save that tensors will be gathered in another version.
warnings.filterwarnings("ignore", module=r"torch\.distributed.*")


class StateWriter:
    """Writes a state while training goes on: from a copy in CPU memory, in a thread. All ranks make and use one."""

    def __init__(self) -> None:
        # The thread's collectives need a group of their own, or they would mix with those of training.
        self._group: Any = dist.new_group(timeout=deadline(), backend="gloo") if dist.is_initialized() else None
        self._written: Future | None = None
        self._folder, self._bytes = Path(), 0  # of what was begun

    def begin(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Returns when the copy is made. All ranks give the same names and a `folder` that all of them see."""
        self.finish()
        self._folder, self._bytes = folder, sum(_local_bytes(tensor) for tensor in tensors.values())
        written = async_save(dict(tensors), checkpoint_id=folder, process_group=self._group)
        assert isinstance(written, Future)
        self._written = written

    def writes(self) -> bool:
        """Whether this rank is still at it."""
        return self._written is not None and not self._written.done()

    def finish(self) -> None:
        """Wait until the state is on disk, if one was begun. Raises OSError, once, when it could not be written."""
        written, self._written = self._written, None
        try:
            if written is not None:
                written.result()
        except CheckpointException as error:
            faults = {f"rank {rank}: {type(fault).__name__}: {fault}" for rank, (fault, _) in error.failures.items()}
            sentence = f"{self._lack_of_room()}the state could not be written: {'; '.join(sorted(faults))}"
            raise OSError(sentence) from error

    def _lack_of_room(self) -> str:
        """torch names a full disk in riddles."""
        full = full_disk(self._folder.parent, needed=self._bytes)  # with what of this state is there already
        size = f"a checkpoint takes {self._bytes / 1e6:.1f} MB and more"
        return full and f"{full}, and {size}; make room, and the same command goes on from the one before. "


def _local_bytes(tensor: torch.Tensor) -> int:
    """What this rank holds of it."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def load_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy into `tensors`, sharded in any way. Raises RuntimeError or CheckpointException when a name is not there."""
    with torch.no_grad():
        load(dict(tensors), checkpoint_id=folder)


def stored_names(folder: Path) -> set[str]:
    """Raises ValueError for a folder that this module has not written."""
    if not (folder / ".metadata").exists():
        raise ValueError(
            f"{folder} holds no state that this version reads (it has no .metadata); remove {folder.parent} to start "
            "the stage again"
        )
    return set(FileSystemReader(folder).read_metadata().state_dict_metadata)
