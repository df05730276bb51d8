"""Curves go to services while a stage runs; a service that fails stops nothing."""

import json
import sqlite3
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import RecipeError
from tests.recorded_run import append
from viewing.sinks import Sender, follow
from viewing.tensorboard import EVENTS
from viewing.tracking import tracking

ROWS = [{"step": step, "reward/mean": step / 8, "note": "text"} for step in range(1, 6)]


class Service:
    """Takes rows when it is up."""

    def __init__(self):
        self.rows, self.up, self.finished = [], True, False

    def log(self, step, values):
        if not self.up:
            raise ConnectionError("down")
        self.rows.append((step, values["reward/mean"]))

    def finish(self):
        self.finished = True


def test_what_a_service_missed_is_sent_when_it_is_back(tmp_path, caplog):
    service, pauses = Service(), []
    sender = Sender(tmp_path, "wandb", lambda identity: service)
    append(tmp_path / "metrics.jsonl", *ROWS[:2])

    def wait(seconds):
        pauses.append(seconds)
        service.up = len(pauses) not in (1, 2)  # down for two tries
        append(tmp_path / "metrics.jsonl", *ROWS[len(pauses) + 1 : len(pauses) + 2])
        return len(pauses) == 4

    follow(sender, wait)
    assert service.rows == [(step, step / 8) for step in range(1, 6)] and service.finished
    assert pauses == [2, 30, 60, 2] and caplog.text.count("down") == 2


def test_a_resumed_stage_sends_no_step_twice(tmp_path):
    service, asked = Service(), []
    for last in (4, 5):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)  # cut back, and the steps taken again
        append(tmp_path / "metrics.jsonl", *ROWS[:last])
        Sender(tmp_path, "wandb", lambda identity: asked.append(identity) or service).send()
    assert [step for step, _ in service.rows] == [1, 2, 3, 4, 5] and asked[0] == asked[1]


def test_a_package_that_is_not_there_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr("viewing.tracking.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="tracking: trackio is not installed; pip install"):
        load(Path("recipes/tiny/pipeline.yaml"), ["tracking=[trackio]"])
    with pytest.raises(RecipeError, match="tracking"):
        load(Path("recipes/tiny/pipeline.yaml"), ["tracking=[tensorbord]"])


def test_a_stage_goes_on_when_its_sink_dies(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("viewing.sinks").sinks.PACKAGES, "nothing", "nothing")
    with tracking(tmp_path, "demo", ["nothing"]):
        append(tmp_path / "metrics.jsonl", *ROWS)
    assert "nothing has not got everything" in caplog.text and (tmp_path / EVENTS).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("sink", ["wandb", "mlflow", "trackio"])
def test_curves_arrive(tmp_path, monkeypatch, sink):
    pytest.importorskip(sink)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = tmp_path / "demo" / "zero"
    (stage).mkdir(parents=True)
    for rows in (ROWS[:3], ROWS[3:]):  # two attempts at the stage
        with tracking(stage, "demo", [sink]):
            append(stage / "metrics.jsonl", *rows)
    memory = json.loads((stage / f".tracking_{sink}.json").read_text())
    said = (stage / f".tracking_{sink}.log").read_text()
    assert memory["step"] == 5, said
    assert READERS[sink](tmp_path, memory["id"]) == [(step, step / 8) for step in range(1, 6)], said


def read_wandb(folder, identity):
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    found = []
    for file in sorted((folder / "demo" / "zero" / ".wandb").rglob(f"run-{identity}.wandb")):
        data, at = file.read_bytes(), 7  # a log of LevelDB: header, then checksum, length, type and record
        while at + 7 < len(data):
            length = int.from_bytes(data[at + 4 : at + 6], "little")
            record = Record()
            record.ParseFromString(data[at + 7 : at + 7 + length])
            at += 7 + length
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "reward/mean" in items:
                found.append((int(items["step"]), float(items["reward/mean"])))
    return found


def read_mlflow(folder, identity):
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_tracking_uri((folder / "demo" / ".mlruns").as_uri())
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "r1"]
    (run,) = client.search_runs([experiment.experiment_id])
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "reward/mean")]


def read_trackio(folder, identity):
    (file,) = (folder / "trackio").rglob("r1*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
    return [(step, json.loads(metrics)["reward/mean"]) for step, metrics in rows]


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}
