"""`r1 push` and `r1 pull`: finished artifacts between a run folder and an fsspec URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifact import ArtifactError
from training.stage import StageError

_URL = "fsspec URL, e.g. s3://bucket/run, gs://bucket/run, file:///mnt/run"


def push_run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, e.g. runs/tiny")],
    url: Annotated[str, typer.Argument(help=_URL)],
) -> None:
    """Copy the finished artifacts of a run to a store, hashed on the way; those that are there are skipped."""
    from pipeline.mirror import push

    with _told():
        _say("copied", push(folder, url), url)


def pull_run(
    url: Annotated[str, typer.Argument(help=_URL)],
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder to fill; made when missing")],
) -> None:
    """Copy artifacts of a store into a run folder, hashed on the way; r1 run then goes on from them."""
    from pipeline.mirror import pull

    with _told():
        _say("copied", pull(url, folder), str(folder))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        raise StageError(str(error)) from error


def _say(done: str, names: list[str], where: str) -> None:
    print(f"{done} {', '.join(names)} to {where}" if names else f"nothing to copy: {where} has everything")
