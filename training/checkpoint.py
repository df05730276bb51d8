"""Checkpoints of a stage that is running: whole or not there, checked before they are trusted.

A checkpoint is written into a hidden folder, hashed, synced and renamed, so a kill at any moment leaves the previous
one untouched. What is inside is the stage's business, but for the sizes of its logs: a checkpoint ahead of them is not
used, since the lines in between would never be written. Guards against torn writes and bit rot, not against malice.
"""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from data.durable import sha256, sync
from training.run_log import RunLog

AVERAGE = "average"  # folder beside a checkpoint: the average of the weights, with optimizer.ema_decay
CHECKSUMS = "checksums.json"
LOG_SIZES = "log_sizes.json"  # bytes of each log up to the checkpoint's step
_NAME = re.compile(r"step_(\d{8,})")

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in one folder, named step_00000010 after the optimizer steps taken.

    `log`: of the same stage. It is on disk before a checkpoint is, and reaches as far as one that is used.
    """

    def __init__(self, folder: Path, keep: int = 2, log: RunLog | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep, self.log = folder, keep, log
        self._begun: Path | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """`begin`, let `write` fill the folder, `commit`."""
        write(self.begin(step))
        return self.commit(step)

    def begin(self, step: int) -> Path:
        """A folder to fill; it is no checkpoint before `commit`. The log must be complete up to `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_leftovers()
        # A name of its own: the processes of a run that was killed may still write into the folder that it began.
        self._begun = temporary = self.folder / f".step_{step:08d}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir()
        if self.log is not None:
            self.log.sync()
            (temporary / LOG_SIZES).write_text(json.dumps(self.log.sizes(step)), encoding="utf-8")
        return temporary

    def commit(self, step: int) -> Path:
        """Make what is in the folder that was begun the newest checkpoint and drop all but `keep`.

        A checkpoint of the same step is replaced.
        """
        temporary, final = self._begun, self.folder / f"step_{step:08d}"
        assert temporary is not None, "commit without begin"
        files = _files(temporary)
        if all(path.name == LOG_SIZES for path in files):
            raise ValueError(f"the checkpoint of step {step} is empty: nothing was written to {temporary}")
        checksums = {path.relative_to(temporary).as_posix(): sha256(path) for path in files}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=2), encoding="utf-8")
        for path in [temporary / CHECKSUMS, *files, *{path.parent for path in files}, temporary]:
            sync(path)
        if final.exists():
            final.rename(self.folder / f".{final.name}.replaced.tmp")
        temporary.rename(final)
        sync(self.folder)
        for _, path in self._found()[self.keep :]:
            shutil.rmtree(path)
        self._drop_leftovers()
        return final

    def latest(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint whose files and logs are whole; None when there is none.

        Damaged ones are renamed to <name>.damaged and reported in the log.
        """
        if not self.folder.exists():
            return None
        self._restore_replaced()
        self._drop_leftovers()
        damaged: list[str] = []
        usable = None
        for step, path in self._found():
            fault = _fault(path) or self._log_fault(step, path)
            if fault is None:
                usable = (step, path)
                break
            damaged.append(f"checkpoint {path.name} is damaged ({fault})")
            _move_aside(path)
        instead = f"using {usable[1].name}" if usable else "starting from the beginning"
        for sentence in damaged:
            logger.warning("%s; %s", sentence, instead)
        return usable

    def newest_before(self, step: int) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint of fewer steps. Only reads: also while a stage is running."""
        return next(((taken, path) for taken, path in self._found() if taken < step and _fault(path) is None), None)

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint, by its name alone: whether it is whole, `latest` looks."""
        return next((step for step, _ in self._found()), None)

    def _log_fault(self, step: int, checkpoint: Path) -> str | None:
        """Which log lost lines that the checkpoint counts on; None when all are there or it says nothing of them."""
        path = checkpoint / LOG_SIZES
        if self.log is None or not path.exists():
            return None
        now = self.log.sizes(step)
        short = [name for name, size in json.loads(path.read_bytes()).items() if now[name] < size]
        return f"{', '.join(short)} ends before it" if short else None

    def _found(self) -> list[tuple[int, Path]]:
        """(step, folder) of every checkpoint, newest first."""
        if not self.folder.exists():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir() if path.is_dir())
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)

    def _drop_leftovers(self) -> None:
        for path in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(path, ignore_errors=True)  # what somebody still writes to goes the next time

    def _restore_replaced(self) -> None:
        """A kill between the two renames of a replacement leaves the old checkpoint under its temporary name."""
        for path in self.folder.glob(".step_*.replaced.tmp"):
            original = self.folder / path.name.removeprefix(".").removesuffix(".replaced.tmp")
            if not original.exists():
                path.rename(original)


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: "model.safetensors, missing"; None when every file is as written."""
    try:
        checksums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in checksums.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name}, missing"
            if sha256(path) != expected:
                return f"{name}, content differs from its checksum"
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS}, {type(error).__name__}"
    return None


def _move_aside(path: Path) -> None:
    target = path.with_name(f"{path.name}.damaged")
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
