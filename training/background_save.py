"""Checkpoints that are written while training goes on; one at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import CheckpointStore
from training.group import TrainerGroup

Wait = Callable[[Any, str], Any]  # (reference, phase) -> its value, or an error that names the phase


class BackgroundSave:
    """The driver's side. Training waits for a copy of the state only; a checkpoint counts from the first `poll` on that
    finds it written. A run that is cut off before that goes on from the one before."""

    def __init__(self, trainer: TrainerGroup, store: CheckpointStore, wait: Wait):
        self.trainer, self.store, self.wait = trainer, store, wait
        self.step: int | None = None  # of the checkpoint that is being written

    def begin(self, step: int, beside: Callable[[Path], None] = lambda _: None) -> None:
        """`beside` writes what the driver itself must keep. Waits for the save before, if that is not done yet."""
        self.finish()
        folder = self.store.begin(step)
        beside(folder)
        self.wait(self.trainer.begin_save.remote(str(folder)), "copying the state for a checkpoint")
        self.step = step

    def poll(self) -> None:
        if self.step is not None and not self.wait(self.trainer.is_saving.remote(), "asking after a checkpoint"):
            self.finish()

    def finish(self) -> None:
        """Wait for the save that was begun, if any."""
        if self.step is not None:
            self.wait(self.trainer.finish_save.remote(), "saving a checkpoint")
            self.store.commit(self.step)
            self.step = None
