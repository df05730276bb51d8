"""Files that are there whole or not at all, after a kill and after a power cut; sealed ones are checked before use.

A file is written beside its place, synced and renamed. A sealed file has its checksum in <name>.sha256, as `sha256sum
--check` reads it. Guards against torn writes and bit rot, not against malice.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCARCE = 100e6  # bytes; with more than that free it was something else that had no room

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[Path]:
    """A temporary path to write a file at. It takes the place of `path` at the end; an error leaves what is there.

    synced: false for what is made again at once where a power cut tore it, and is sealed, so that this is noticed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    if synced:
        sync(temporary)
    os.replace(temporary, path)
    if synced:
        sync(path.parent)


@contextmanager
def sealing(path: Path, synced: bool = True) -> Iterator[Path]:
    """Like `replacing`, with the checksum that `is_whole` compares."""
    with replacing(path, synced) as temporary:
        yield temporary
        with replacing(_seal(path), synced) as seal:
            seal.write_text(f"{sha256(temporary)}  {path.name}\n")  # first: a kill in between leaves no whole file


def is_whole(path: Path, otherwise: str) -> bool:
    """Whether the file at `path` is there as it was sealed. A damaged one is reported in the log with `otherwise`."""
    if not path.exists():
        return False
    try:
        sealed = _seal(path).read_bytes().split()[:1] == [sha256(path).encode()]
        fault = "" if sealed else "content differs from its checksum"
    except OSError as error:
        fault = f"{_seal(path).name}, {type(error).__name__}"
    if fault:
        logger.warning("%s is damaged (%s); %s", path, fault, otherwise)
    return not fault


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(folder: Path, needed: float = _SCARCE) -> str:
    """ "the disk of runs/a is full: 0.1 MB are free", where no more than `needed` bytes are; else ""."""
    free = shutil.disk_usage(folder).free
    return "" if free > needed else f"the disk of {folder} is full: {free / 1e6:.1f} MB are free"


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
