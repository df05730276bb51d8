"""Artifacts on disk: a folder with its payload and `manifest.json`, which is written last and atomically.

The content hash covers the relative path and sha256 of every payload file and nothing else, so the same payload has the
same hash on every machine. Working state is not payload: `checkpoints/`, wall-clock logs, the recorded `groups/` (which
may be deleted), and whatever starts with ".".
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.running import MEMORY, STALLS
from data.durable import sha256, sync, write_text
from viewing.tensorboard import EVENTS

MANIFEST = "manifest.json"
PLAN = "plan.json"
ERROR_LOG = ".error.log"  # in a stage's folder: the traceback of what ended it
LOGS = ("timings.jsonl", "timeline.jsonl", MEMORY, STALLS, "groups", EVENTS, "timings")  # of the clock, or to look at
NOT_PAYLOAD = (MANIFEST, PLAN, *LOGS, "checkpoints")
SET_ASIDE = re.compile(r"^[._]|\.old-\d+$")  # folders of a run: hidden ones, and artifacts that were made again
SMALL_FILE = 1 << 20  # bytes; up to here a quick check reads the whole file


class ArtifactError(Exception):
    """An artifact is damaged or its manifest cannot be read. One sentence naming the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    kind: str  # checkpoint | dataset | scores
    stage: str  # name in the pipeline
    stage_kind: str  # grpo, sft, ...
    config: dict[str, Any]  # full resolved config
    parents: dict[str, dict[str, str]]  # role -> {"path", "content_hash"}
    content_hash: str
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256", "size"}
    seed: int
    code_version: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    earlier_versions: list[dict[str, Any]] = field(default_factory=list)  # of attempts before: the two above
    device: str = ""
    wall_time_s: float = 0.0
    created: str = ""  # UTC, ISO 8601
    counts: dict[str, Any] = field(default_factory=dict)  # what the stage left in stats.json

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None when it has none. Raises ArtifactError when it cannot be read."""
    path = folder / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})") from None


class HashCache:
    """sha256 of files, remembered by size and modification time so that big ones are read once."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._changed = path, False
        self._known: dict[str, list[Any]] = {}  # absolute path -> [size, mtime_ns, sha256]
        if path is not None:
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._known = {}  # only a cache: the files are read again

    def sha256(self, path: Path, *, reread: bool = False) -> str:
        """Hex digest of the file; read from disk when it changed since, or when `reread`."""
        stat, key = path.stat(), os.path.abspath(path)
        known = self._known.get(key)
        if not reread and known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return known[2]
        digest = sha256(path)
        self._known[key], self._changed = [stat.st_size, stat.st_mtime_ns, digest], True
        return digest

    def save(self) -> None:
        if self._path is not None and self._changed:
            write_json(self._path, self._known)
            self._changed = False


def payload_files(folder: Path) -> list[Path]:
    """Payload files of an artifact, sorted by relative path."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root).relative_to(folder)
        skipped = NOT_PAYLOAD if here == Path() else ()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        found.extend(here / name for name in files if not name.startswith(".") and name not in skipped)
    return sorted(found, key=lambda path: path.as_posix())


def hash_payload(folder: Path, hashes: HashCache) -> tuple[str, dict[str, dict[str, Any]]]:
    """(content hash, {relative path: {"sha256", "size"}}) of a folder."""
    files = {
        path.as_posix(): {"sha256": hashes.sha256(folder / path), "size": (folder / path).stat().st_size}
        for path in payload_files(folder)
    }
    return content_hash(files), files


def content_hash(files: dict[str, dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def verify(folder: Path) -> None:
    """Read every payload file again and compare. Raises ArtifactError naming the first one that differs."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder} has no {MANIFEST}, so it is not a finished artifact")
    _compare(folder, manifest, HashCache(), reread_below=None)


def verify_quickly(folder: Path, manifest: Manifest, hashes: HashCache) -> None:
    """Compare names, sizes, the content of small files, and of big ones only when size or time moved since hashed."""
    _compare(folder, manifest, hashes, reread_below=SMALL_FILE)


def _compare(folder: Path, manifest: Manifest, hashes: HashCache, reread_below: int | None) -> None:
    present = {path.as_posix() for path in payload_files(folder)}
    for name in sorted(present - manifest.files.keys()):
        raise ArtifactError(f"{folder / name} was added after the artifact was made")
    for name, expected in manifest.files.items():
        path = folder / name
        if name not in present:
            raise ArtifactError(f"{path} is missing")
        size = path.stat().st_size
        if size != expected["size"]:
            raise ArtifactError(f"{path} is damaged: {size} bytes instead of {expected['size']}")
        if hashes.sha256(path, reread=reread_below is None or size <= reread_below) != expected["sha256"]:
            raise ArtifactError(f"{path} is damaged: its content is not what was written")
    if content_hash(manifest.files) != manifest.content_hash:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: its content hash does not fit its files")


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader, or a crash, sees either the old file or the whole new one."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def sync_payload(folder: Path) -> None:
    """Bring the payload to disk before the manifest that vouches for it."""
    for path in [*payload_files(folder), Path()]:
        sync(folder / path)


def next_old_name(folder: Path) -> Path:
    """First free name <folder>.old-N, for an artifact that is made again."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return path
