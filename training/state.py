"""The state of a trainer on disk, by torch.distributed.checkpoint: each rank writes the pieces that it holds, and any
number of ranks reads those that it needs."""

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def save_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """All ranks call it with the same names and a `folder` that all of them see."""
    with _quiet():
        save(dict(tensors), checkpoint_id=folder)


def load_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy into `tensors`, sharded in any way. Raises RuntimeError or CheckpointException when a name is not there."""
    with _quiet(), torch.no_grad():
        load(dict(tensors), checkpoint_id=folder)


def stored_names(folder: Path) -> set[str]:
    """Raises ValueError for a folder that this module has not written."""
    if not (folder / ".metadata").exists():
        raise ValueError(
            f"{folder} holds no state that this version reads (it has no .metadata); remove {folder.parent} to start "
            "the stage again"
        )
    return set(FileSystemReader(folder).read_metadata().state_dict_metadata)


@contextmanager
def _quiet():
    with warnings.catch_warnings():
        # A single process is told that it is one, and every save that tensors will be gathered in another version.
        warnings.filterwarnings("ignore", module=r"torch\.distributed.*")
        yield
