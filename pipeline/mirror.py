"""Copies of finished artifacts at an fsspec URL (s3://, gs://, file://, ...): `r1 push`, `r1 pull`, `cluster.mirror`.

A run folder must be a path that all nodes see: training reads and writes it as files. What outlives the cluster is
copied. An artifact is there when its manifest is, which goes last; every file is hashed on the way and compared with
the manifest, in both directions. Checkpoints of stages that are not made stay where they are.
"""

import hashlib
import json
import logging
import os
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cluster.running import MEMORY
from data.durable import write_bytes
from pipeline.artifact import (
    MANIFEST,
    PLAN,
    SET_ASIDE,
    ArtifactError,
    Manifest,
    content_hash,
    read_manifest,
    sync_payload,
)
from pipeline.errors import RecipeError
from pipeline.lock import hold
from training.run_log import TIMELINE, TIMINGS

_BESIDE = (PLAN, TIMINGS, TIMELINE, MEMORY)  # go along, are no payload and have no hash
_PIPELINE = "pipeline.json"  # of the run folder: its stages (pipeline.run)
_PIECE = 1 << 22  # bytes


logger = logging.getLogger(__name__)


def push(run: Path, url: str) -> list[str]:
    """Copy every finished artifact of a run folder that is not there yet; the names of those that were copied."""
    store = _Store(url)
    if not (run / _PIPELINE).is_file():
        raise RecipeError(f"{run} is not a run folder: it has no {_PIPELINE}")
    made = (manifest.parent for manifest in sorted(run.glob(f"*/{MANIFEST}")))
    copied = [folder.name for folder in made if not SET_ASIDE.search(folder.name) and push_artifact(folder, url)]
    store.write(_PIPELINE, (run / _PIPELINE).read_bytes())
    return copied


def push_artifact(folder: Path, url: str) -> bool:
    """Copy one finished artifact below `url`; False when it is there already. Raises ArtifactError for damaged ones."""
    store, manifest = _Store(url), read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder} has no {MANIFEST}, so it is not a finished artifact")
    there = store.manifest(folder.name)
    if there is not None and there.content_hash == manifest.content_hash:
        return False
    if there is not None:
        raise ArtifactError(
            f"{store.place(folder.name)} holds another artifact of that name; choose another URL, or remove it there"
        )
    for name, expected in manifest.files.items():
        with (folder / name).open("rb") as source, store.open(f"{folder.name}/{name}", "wb") as target:
            if _copied(source, target) != expected["sha256"]:
                raise ArtifactError(f"{folder / name} is damaged: its content is not what was written")
    for name in _BESIDE:
        if (folder / name).is_file():
            store.write(f"{folder.name}/{name}", (folder / name).read_bytes())
    store.write(f"{folder.name}/{MANIFEST}", (folder / MANIFEST).read_bytes())
    return True


def copy_if_asked(folder: Path, url: str | None) -> None:
    """As `push_artifact`, of a run that goes on: a store that is down is a warning, and `r1 push` makes up for it."""
    if url is not None:
        try:
            push_artifact(folder, url)
        except Exception as error:
            sentence = "%s is made, but not copied to %s (%s: %s); r1 push %s %s tries again"
            logger.warning(sentence, folder, url, type(error).__name__, error, folder.parent, url)


def pull(url: str, run: Path) -> list[str]:
    """Copy every artifact there into a run folder, made when missing; the names of those that were copied.

    What the folder has already is kept when it is the same, and refused when it is not.
    """
    store = _Store(url)
    names = list(store.artifacts())
    if not names:
        raise RecipeError(f"{url} holds no artifacts; r1 push RUN {url} copies some")
    with hold(run):
        copied = [name for name in names if _pull_artifact(store, name, run / name)]
        if (description := store.read(_PIPELINE)) and not (run / _PIPELINE).exists():
            write_bytes(run / _PIPELINE, description)
    return copied


def _pull_artifact(store: "_Store", name: str, folder: Path) -> bool:
    manifest = store.manifest(name)
    if manifest is None:
        return False
    here = read_manifest(folder)
    if here is not None and here.content_hash == manifest.content_hash:
        return False
    if here is not None or folder.exists():
        place = store.place(name)
        raise ArtifactError(f"{folder} exists and is not what {place} holds; move it away, or pull elsewhere")
    coming = folder.with_name(f".{name}.pull")  # takes its place when it is whole
    shutil.rmtree(coming, ignore_errors=True)
    for file, expected in manifest.files.items():
        path = coming / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.open(f"{name}/{file}", "rb") as source, path.open("wb") as target:
            digest = _copied(source, target)
        if digest != expected["sha256"]:
            raise ArtifactError(f"{store.place(f'{name}/{file}')} is damaged: its content is not what was pushed")
    for file in _BESIDE:
        if (data := store.read(f"{name}/{file}")) is not None:
            (coming / file).write_bytes(data)
    sync_payload(coming)
    manifest.write(coming)
    os.replace(coming, folder)
    return True


class _Store:
    """A folder at an fsspec URL."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        try:
            self._files, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is not installed
            raise RecipeError(f"{url} cannot be opened: {error}") from None
        self._url = url.rstrip("/")

    def place(self, name: str) -> str:
        return f"{self._url}/{name}"

    def open(self, name: str, mode: str) -> IO[Any]:
        path = posixpath.join(self._root, name)
        if "w" in mode:
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
        return self._files.open(path, mode)

    def read(self, name: str) -> bytes | None:
        try:
            with self.open(name, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with self.open(name, "wb") as file:
            file.write(data)

    def artifacts(self) -> Iterator[str]:
        """Names of what lies below and has a manifest."""
        try:
            listed = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for path in sorted(listed):
            name = posixpath.basename(path.rstrip("/"))
            if self._files.exists(posixpath.join(self._root, name, MANIFEST)):
                yield name

    def manifest(self, name: str) -> Manifest | None:
        """Raises ArtifactError for one that cannot be read, or that names files outside the artifact."""
        data = self.read(f"{name}/{MANIFEST}")
        if data is None:
            return None
        try:
            known = {field.name for field in fields(Manifest)}
            manifest = Manifest(**{key: value for key, value in json.loads(data).items() if key in known})
            whole = content_hash(manifest.files) == manifest.content_hash
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{self.place(name)}/{MANIFEST} cannot be read ({error})") from None
        outside = [file for file in manifest.files if not _stays_inside(file)]
        if not whole or outside:
            raise ArtifactError(f"{self.place(name)}/{MANIFEST} is damaged: {outside or 'its hashes do not agree'}")
        return manifest


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _copied(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy all of it; the sha256 of what was copied."""
    digest = hashlib.sha256()
    while piece := source.read(_PIECE):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()
