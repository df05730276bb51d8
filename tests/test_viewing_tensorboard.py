"""Event files as TensorBoard's own reader finds them."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded_run import append
from viewing.event_file import EventFile, _masked_crc, _records
from viewing.tensorboard import EVENTS, TensorBoard


def curves(folder):
    """Tag -> [(step, value)], by TensorBoard."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    found = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def cut_back(log, step):
    """As `RunLog.truncate_after` does: a new file in the place of the old one."""
    kept = log.read_text().splitlines(keepends=True)[:step]
    log.with_name("new").write_text("".join(kept))
    os.replace(log.with_name("new"), log)


def rows(first, last, offset=0.0):
    return [
        {"step": step, "reward/mean": step / 8 + offset, "note": "text", "gone": None} for step in range(first, last)
    ]


@pytest.mark.parametrize("new_process", [False, True])
def test_a_resumed_stage_has_the_curves_of_an_undisturbed_one(tmp_path, new_process):
    for name in ("undisturbed", "resumed"):
        append(tmp_path / name / "metrics.jsonl", *rows(1, 21))
        append(tmp_path / name / "timings.jsonl", {"step": 4, "time/sample_s": 1.5})
    TensorBoard(tmp_path / "undisturbed").catch_up()
    stage = tmp_path / "resumed"
    board = TensorBoard(stage)
    board.catch_up()
    cut_back(stage / "metrics.jsonl", 12)
    board = TensorBoard(stage) if new_process else board
    board.catch_up()
    append(stage / "metrics.jsonl", *rows(13, 21))
    board.catch_up()
    board.catch_up()
    expected = [(step, step / 8) for step in range(1, 21)]
    assert curves(stage) == curves(tmp_path / "undisturbed") == {"reward/mean": expected}
    assert curves(stage / "timings") == {"time/sample_s": [(4, 1.5)]}


def test_a_torn_record_is_removed_before_the_next(tmp_path):
    append(tmp_path / "metrics.jsonl", *rows(1, 3))
    TensorBoard(tmp_path).catch_up()
    file = tmp_path / EVENTS
    file.write_bytes(file.read_bytes()[:-5])
    append(tmp_path / "metrics.jsonl", *rows(3, 4))
    TensorBoard(tmp_path).catch_up()
    assert curves(tmp_path) == {"reward/mean": [(1, 0.125), (2, 0.25), (3, 0.375)]}


def test_a_stage_without_logs_gets_no_files(tmp_path):
    TensorBoard(tmp_path).catch_up()
    assert not list(tmp_path.iterdir())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2**40), st.floats(width=32, allow_nan=False))))
def test_the_last_step_is_read_back(tmp_path_factory, scalars):
    path = tmp_path_factory.mktemp("events") / EVENTS
    file = EventFile(path)
    for step, value in scalars:
        file.scalars(step, {"x": value, "y": 1e300}, 0.0)
    assert EventFile(path).last_step == file.last_step == max([step for step, _ in scalars], default=-1)
    assert len(list(_records(path))) == 1 + len(scalars)


def test_checksums_are_those_of_the_standard():
    # RFC 3720, B.4: CRC-32C of 32 bytes of zeros is 0x8a9136aa; masked as TFRecord does
    rotated = (0x8A9136AA >> 15 | 0x8A9136AA << 17) & 0xFFFFFFFF
    assert int.from_bytes(_masked_crc(bytes(32)), "little") == (rotated + 0xA282EAD8) & 0xFFFFFFFF
