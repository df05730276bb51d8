"""Where curves can be sent besides TensorBoard: Weights & Biases, MLflow, trackio. Each by its own package.

This module runs as a process of its own beside a stage (`viewing.tracking` starts it), so that neither a service that
is down nor its client can stop, slow or end a run. The log is the queue: what could not be sent waits in
metrics.jsonl. A step that a resumed stage takes again is not sent again: it is the same.
"""

import json
import logging
import os
import secrets
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from viewing.follow import Follower
from viewing.log_columns import is_number
from viewing.runs import METRICS, description, read_json

NOTES = ".tracking_"  # how the names of a sink's files in a stage's folder begin
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}  # sink -> what it imports
_EVERY_S = 2.0
_RETRY_S = 30.0  # after a failure; doubled each time up to _LONGEST_RETRY_S
_LONGEST_RETRY_S = 900.0

logger = logging.getLogger("tracking")


class Sink(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


def memory_file(stage: Path, sink: str) -> Path:
    """Holds {"id", "step"}: the sink's run, and the last step that it has."""
    return stage / f"{NOTES}{sink}.json"


class Sender:
    """Takes the rows of a stage to one sink, from where it got to."""

    def __init__(self, stage: Path, name: str, connect: Callable[[str], Sink]) -> None:
        """connect: makes the sink, given the id of its run; called when there is something to send."""
        self._file, self._connect = memory_file(stage, name), connect
        self._follower = Follower(stage / METRICS)
        self._sink: Sink | None = None
        self._waiting: deque[dict[str, Any]] = deque()  # rows of one read
        self._memory = {"id": secrets.token_hex(8), "step": -1} | read_json(self._file)
        self._done = self._memory["step"]  # of the attempts before this one

    def send(self) -> None:
        """Everything that is new. Raises whatever the sink raises; the rows from there on are sent the next time."""
        while self._waiting or self._read():
            if self._sink is None:
                self._sink = self._connect(self._memory["id"])
            row = self._waiting[0]
            values = {name: value for name, value in row.items() if name != "step" and is_number(value)}
            if row["step"] > self._done and values:
                self._sink.log(row["step"], values)
                self._memory["step"] = max(self._memory["step"], row["step"])
            self._waiting.popleft()
            if not self._waiting:
                self._remember()

    def finish(self) -> None:
        if self._sink is not None:
            self._sink.finish()

    def _read(self) -> bool:
        rows, restarted = self._follower.new_rows()
        self._waiting.extend(rows)
        if restarted:
            self._done = self._memory["step"]
        return bool(rows)

    def _remember(self) -> None:
        self._file.write_text(json.dumps(self._memory), encoding="utf-8")


def follow(sender: Sender, wait: Callable[[float], bool]) -> None:
    """Send until `wait` says that the stage has ended, then once more. A failure is logged, and tried again later."""
    retry, ended = _RETRY_S, False
    while not ended:
        try:
            sender.send()
            retry, pause = _RETRY_S, _EVERY_S
        except Exception as error:  # whatever a service and its client may do
            logger.warning("not sent, the next try is in %.0f s: %s: %s", retry, type(error).__name__, error)
            pause, retry = retry, min(2 * retry, _LONGEST_RETRY_S)
        ended = wait(pause)
    sender.send()
    sender.finish()


def _wandb(stage: Path, run: str, identity: str) -> Sink:
    import wandb  # pyright: ignore[reportMissingImports]

    class Wandb:
        def __init__(self) -> None:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "r1"), group=run, name=f"{run}/{stage.name}", id=identity,
                resume="allow", dir=str(_place(stage, ".wandb")), config=description(stage).get("config"),
            )  # fmt: skip
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")  # W&B's own counter takes no step twice

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self._run.log({"step": step, **values})

        def finish(self) -> None:
            self._run.finish()

    return Wandb()


def _mlflow(stage: Path, run: str, identity: str) -> Sink:
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(_place(stage.parent, ".mlruns").as_uri())
    client = mlflow.MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "r1")
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    same = client.search_runs([experiment], f"tags.r1_id = '{identity}'")
    if same:
        run_id = same[0].info.run_id
    else:
        run_id = client.create_run(experiment, run_name=f"{run}/{stage.name}", tags={"r1_id": identity}).info.run_id

    class MLflow:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            now = int(1000 * time.time())
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            for first in range(0, len(metrics), 1000):  # of one call
                client.log_batch(run_id, metrics[first : first + 1000])

        def finish(self) -> None:
            client.set_terminated(run_id)

    return MLflow()


def _trackio(stage: Path, run: str, identity: str) -> Sink:
    import trackio  # pyright: ignore[reportMissingImports]

    class Trackio:
        def __init__(self) -> None:
            project = os.environ.get("TRACKIO_PROJECT", "r1")
            trackio.init(
                project,
                name=f"{run}/{stage.name}/{identity[:4]}",
                resume="allow",
                config=description(stage).get("config"),
            )

        def log(self, step: int, values: Mapping[str, float]) -> None:
            trackio.log(dict(values), step=step)

        def finish(self) -> None:
            trackio.finish()

    return Trackio()


SINKS: dict[str, Callable[[Path, str, str], Sink]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _place(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def _ended(seconds: float) -> bool:
    """Wait; whether the stage has ended, which closes this process's standard input."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


def main(sink: str, folder: str, run: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    stage = Path(folder)
    follow(Sender(stage, sink, lambda identity: SINKS[sink](stage, run, identity)), _ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
