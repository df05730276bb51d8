"""What goes on beside a stage that trains: its curves to TensorBoard, and to the services that the recipe names.

Nothing here may stop a stage: what fails is a warning, once.
"""

import logging
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

from viewing.reference_curves import CurveWatch, Reference
from viewing.sinks import NOTES, PACKAGES
from viewing.tensorboard import TensorBoard

_EVERY_S = 2.0
_FINISH_S = 60.0  # which a service has at the end of a stage to take what it lacks

logger = logging.getLogger(__name__)


def missing_packages(sinks: Collection[str]) -> list[str]:
    """One sentence for each chosen sink that cannot be used here."""
    return [
        f"tracking: {sink} is not installed; pip install 'r1-pipeline[{sink}]', or leave it out"
        for sink in sinks
        if (found := find_spec(PACKAGES[sink])) is None or found.origin is None  # a folder ./wandb is no package
    ]


@contextmanager
def tracking(stage: Path, run: str, sinks: Collection[str] = (), reference: Reference | None = None) -> Iterator[None]:
    """Follow the logs of a stage until the block is left. Leaving its expected curves (`reference`) is a warning."""
    with ExitStack() as stack:
        stack.enter_context(_repeated(TensorBoard(stage).catch_up, "TensorBoard's files"))
        if reference is not None:
            stack.enter_context(_repeated(CurveWatch(stage, reference).catch_up, "warnings of unexpected curves"))
        for sink in sinks:
            stack.enter_context(_sent(stage, run, sink))
        yield


@contextmanager
def _repeated(work: Callable[[], None], what: str) -> Iterator[None]:
    """Do it every two seconds in a thread, and once at the end. The first error ends it with a warning."""
    ended = Event()

    def loop() -> None:
        try:
            while not ended.wait(_EVERY_S):
                work()
            work()
        except Exception as error:  # a full disk, a log that somebody has changed
            logger.warning("%s are not kept up to date any more: %s: %s", what, type(error).__name__, error)

    thread = Thread(target=loop, name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _sent(stage: Path, run: str, sink: str) -> Iterator[None]:
    """A process that sends the curves to one service. It ends with this one, whatever happens."""
    log = stage / f"{NOTES}{sink}.log"
    command = [sys.executable, "-P", "-m", "viewing.sinks", sink, str(stage), run]
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:  # a full disk, no process left: no reason to stop a stage
        logger.warning("%s gets no curves of %s: %s", sink, stage, error)
        yield
        return
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the word that the stage has ended
        try:
            code = process.wait(_FINISH_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        if code != 0:
            lacks = "did not take everything in time" if code is None else "has not got everything"
            logger.warning("%s %s; what was said is in %s, and the curves are in %s", sink, lacks, log, stage)
