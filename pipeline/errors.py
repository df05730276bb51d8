"""What a user is told when a recipe cannot be run: sentences, each with the place and the way to mend it."""

import difflib
import errno
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.running import StageStopped
from data.chat import PromptError
from data.durable import full_disk
from data.schemas import SourceError
from training.stage import StageError


class RecipeError(Exception):
    """Bad input, found before anything starts. `problems` holds one sentence per problem."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Absent(str):
    """A problem that ends when its user puts a file or a model where the recipe looks: no fault of the recipe."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: "; did you mean 'lr'?", or the choices when none is near."""
    known = list(choices)
    lowered = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{lowered[near[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def near_miss(word: str, choices: Iterable[str]) -> str:
    """`did_you_mean` where the choices are too many to list: "" when none is near."""
    hint = did_you_mean(word, choices)
    return "" if hint.startswith("; known") else hint


def unreadable(path: Path, error: OSError) -> str:
    """Why a file that the user has named cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: there is no such file"
    if isinstance(error, IsADirectoryError):
        recipe = path / "pipeline.yaml"
        return f"{path}: this is a folder; name a file in it{f', e.g. {recipe}' if recipe.is_file() else ''}"
    return f"{path}: cannot be read ({error.strerror})"


def printable(text: str) -> str:
    """What a model or a server wrote without control characters, which could drive the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))


@contextmanager
def stage_errors(failure: str, log: Path, again: str) -> Iterator[None]:
    """Whatever goes wrong inside as a StageError: "<failure>: <why>", and `again` where another try may help.

    A fault of the code or of a process is a sentence too; its traceback is kept in `log`.
    """
    try:
        yield
    except Exception as error:
        # `cluster.actors` marks its errors with `retry`, as StageError does; a ValueError comes again every time.
        retry = getattr(error, "retry", isinstance(error, OSError | MemoryError))
        raise StageError(f"{failure}: {_said(error, log)}{again if retry else ''}", retry=retry) from error


def _said(error: Exception, log: Path) -> str:
    if isinstance(error, StageError | StageStopped | SourceError | PromptError):
        return str(error)
    if said := _no_room(error, log.parent):
        return said
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        log.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:  # the error itself may be that nothing can be written
        return said
    return f"{said} (traceback in {log})"


@contextmanager
def disk_errors(folder: Path, again: str) -> Iterator[None]:
    """That the disk of a folder is full as a StageError that says so: errors of writes name no file."""
    try:
        yield
    except OSError as error:
        if said := _no_room(error, folder):
            raise StageError(f"{said}{again}", retry=True) from error
        raise


def _no_room(error: Exception, folder: Path) -> str:
    full = full_disk(folder) if isinstance(error, OSError) and error.errno == errno.ENOSPC else ""
    return full and f"{full}; make room"
