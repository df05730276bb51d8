import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.checkpoint import CheckpointStore
from training.run_log import RunLog, read_log


def _write(text: str):
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "weights.bin").write_text(text)
        (folder / "sub" / "rng.json").write_text("{}")

    return write


def test_latest_is_the_newest_and_older_ones_are_pruned(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for step in (1, 2, 10):
        store.save(step, _write(str(step)))
    step, folder = store.latest()
    assert step == 10
    assert (folder / "weights.bin").read_text() == "10"
    assert sorted(p.name for p in store.folder.iterdir()) == ["step_00000002", "step_00000010"]


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, _write("old"))
    store.save(1, _write("new"))
    assert (store.latest()[1] / "weights.bin").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "no checksums", "bad checksums"])
def test_a_torn_checkpoint_is_reported_set_aside_and_the_one_before_used(tmp_path, caplog, damage):
    store = CheckpointStore(tmp_path)
    store.save(1, _write("first"))
    newest = store.save(2, _write("second"))
    weights, checksums = newest / "weights.bin", newest / "checksums.json"
    match damage:
        case "cut":
            weights.write_text("sec")
        case "flip":
            weights.write_text("sEcond")
        case "remove":
            weights.unlink()
        case "no checksums":
            checksums.unlink()
        case "bad checksums":
            checksums.write_text('{"weights')
    with caplog.at_level(logging.WARNING):
        step, folder = store.latest()
    assert (step, (folder / "weights.bin").read_text()) == (1, "first")
    assert "checkpoint step_00000002 is damaged (" in caplog.text
    assert caplog.messages[0].endswith("; using step_00000001")
    assert (tmp_path / "step_00000002.damaged").is_dir()
    assert not newest.exists()


def test_only_damaged_checkpoints_mean_starting_over(tmp_path, caplog):
    store = CheckpointStore(tmp_path)
    (store.save(1, _write("x")) / "weights.bin").write_text("y")
    assert store.latest() is None
    assert "starting from the beginning" in caplog.text


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_leftovers(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, _write("first"))

    def fails(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(2, fails)
    assert store.latest()[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_a_kill_between_the_renames_of_a_replacement_keeps_the_old_one(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, _write("old")).rename(tmp_path / ".step_00000001.replaced.tmp")
    assert (store.latest()[1] / "weights.bin").read_text() == "old"


def test_an_empty_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        CheckpointStore(tmp_path).save(1, lambda folder: None)


def _logged(folder: Path, steps: int) -> CheckpointStore:
    """A store with a checkpoint of every step, and the logs of them."""
    log = RunLog(folder)
    store = CheckpointStore(folder / "checkpoints", log=log)
    for step in range(1, steps + 1):
        log.log(step, {"loss/value": 1 / step})
        log.samples([{"step": step, "completion": f"{step}"}])
        store.save(step, _write(str(step)))
    return store


def test_logs_are_on_disk_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    fsync, synced = os.fsync, []

    def note(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, (tmp_path / "checkpoints" / "step_00000001").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    _logged(tmp_path, 1)
    assert {("metrics.jsonl", False), ("samples.jsonl", False), (tmp_path.name, False)} <= set(synced)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "cut in a line", "zeros"])
def test_a_checkpoint_ahead_of_its_logs_is_reported_set_aside_and_the_one_before_used(tmp_path, caplog, name, damage):
    _logged(tmp_path, 3)
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    last = {"cut": b"", "cut in a line": lines[2][:-3], "zeros": bytes(len(lines[2]) - 1) + b"\n"}[damage]
    (tmp_path / name).write_bytes(b"".join(lines[:2]) + last)
    log = RunLog(tmp_path)
    with caplog.at_level(logging.WARNING):
        step, _ = CheckpointStore(tmp_path / "checkpoints", log=log).latest()
    assert step == 2
    assert caplog.messages == [f"checkpoint step_00000003 is damaged ({name} ends before it); using step_00000002"]
    log.truncate_after(step)
    assert [row["step"] for row in read_log(tmp_path / name)] == [1, 2]
    assert CheckpointStore(tmp_path / "checkpoints", log=log).latest()[0] == 2


def test_lines_after_a_checkpoint_and_checkpoints_that_say_nothing_of_logs_are_no_fault(tmp_path):
    store = _logged(tmp_path, 2)
    store.log.log(3, {"loss/value": 0.0})
    assert store.latest()[0] == 2
    CheckpointStore(store.folder).save(3, _write("without a log"))
    (tmp_path / "metrics.jsonl").unlink()
    assert store.latest()[0] == 3


def test_kill_while_saving_always_leaves_a_whole_checkpoint(tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from training.checkpoint import CheckpointStore
store, step = CheckpointStore(Path({str(tmp_path)!r})), 0
while True:
    step += 1
    store.save(step, lambda folder: [(folder / f"part_{{i}}").write_text(str(step) * 5000) for i in range(5)] and None)
    print(step, flush=True)
"""
    for delay_steps in (1, 3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
            for _ in range(delay_steps):
                seen = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        step, folder = CheckpointStore(tmp_path).latest()
        assert step >= seen
        assert (folder / "part_4").read_text() == str(step) * 5000
        assert not list(tmp_path.glob("*.damaged"))


def test_a_writer_that_outlived_its_run_is_not_in_the_way(tmp_path):
    """It belongs to a trainer that is about to die, and goes on filling the folder that its driver began."""
    orphaned = CheckpointStore(tmp_path).begin(2)
    store = CheckpointStore(tmp_path)
    folder = store.begin(2)
    orphaned.mkdir(exist_ok=True)
    (orphaned / "weights.bin").write_text("of the run that was killed")
    (folder / "weights.bin").write_text("of this run")
    assert (store.commit(2) / "weights.bin").read_text() == "of this run"
