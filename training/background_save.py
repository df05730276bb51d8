"""Checkpoints that are written while training goes on; one at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.checkpoint import CheckpointStore
from training.group import TrainerGroup

Wait = Callable[[Any, str], Any]  # (reference, phase) -> its value, or an error that names the phase


class BackgroundSave:
    """The driver's side. Training waits for a copy of the state only. Then each rank writes its copy, and a thread here
    checks and renames what they have written: from then on the checkpoint counts. A run that is cut off before goes on
    from the one before."""

    def __init__(self, trainer: TrainerGroup, store: CheckpointStore, wait: Wait):
        self.trainer, self.store, self.wait = trainer, store, wait
        self.step: int | None = None  # of the checkpoint that is being made
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._commit: Future[Path] | None = None  # once the ranks have written

    def begin(self, step: int, beside: Callable[[Path], None] = lambda _: None) -> None:
        """`beside` writes what the driver itself must keep. Waits for the save before, if that is not done yet."""
        self.finish()
        folder = self.store.begin(step)
        beside(folder)
        self.wait(self.trainer.begin_save.remote(str(folder)), "copying the state for a checkpoint")
        self.step = step

    def poll(self) -> None:
        """To be called every now and then: does what can be done without waiting. Raises what went wrong."""
        if self.step is None:
            return
        if self._commit is None and not self.wait(self.trainer.is_saving.remote(), "asking after a checkpoint"):
            self._start_commit(self.step)
        if self._commit is not None and self._commit.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the save that was begun, if any. Raises what went wrong."""
        if self.step is None:
            return
        commit = self._commit or self._start_commit(self.step)
        self.step = self._commit = None
        commit.result()

    def _start_commit(self, step: int) -> Future[Path]:
        self.wait(self.trainer.finish_save.remote(), "saving a checkpoint")
        self._commit = self._thread.submit(self.store.commit, step)
        return self._commit
