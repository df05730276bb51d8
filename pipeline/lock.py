"""One run per run folder: an advisory lock that the operating system drops when its holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import RecipeError

_NAME = ".lock"
_PATIENCE_S = 1.0  # `holder` takes the lock for a moment; a run that starts just then waits for it


@contextmanager
def hold(folder: Path, choose: str = "output=PATH") -> Iterator[None]:
    """Hold the run folder's lock, made when missing. Raises RecipeError naming the process that holds it already.

    choose: how the command at hand is given another folder, for that sentence.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / _NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"the run folder {folder} cannot be written ({error}); choose another with {choose}"
        ) from None
    with opened as file:
        if not _locked(file):
            raise RecipeError(
                f"{folder} is being written by another run, process {_pid(folder) or 'unknown'}; "
                f"wait for it, stop it, or choose another folder with {choose}"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    """Whether the file could be locked, tried for about a second."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)


def holder(folder: Path) -> int | None:
    """Process id of the run that holds the folder's lock; None when nobody does."""
    try:
        with (folder / _NAME).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _pid(folder)
    return None


def _pid(folder: Path) -> int | None:
    text = (folder / _NAME).read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else None
