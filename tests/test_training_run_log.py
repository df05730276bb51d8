import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.run_log import RunLog, read_log


def test_rows_come_back_as_logged(tmp_path):
    log = RunLog(tmp_path)
    log.log(1, {"reward/mean": 0.5, "loss/value": np.float32(0.25), "rollout/count": np.int64(3)})
    log.log_timing(1, {"time/sample_s": 1.5})
    log.samples([{"step": 1, "completion": "你好\n"}])
    assert read_log(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.5, "loss/value": 0.25, "rollout/count": 3}
    ]
    assert read_log(tmp_path / "timings.jsonl") == [{"step": 1, "time/sample_s": 1.5}]
    assert read_log(tmp_path / "samples.jsonl") == [{"step": 1, "completion": "你好\n"}]
    assert read_log(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_null_and_the_line_is_standard_json(tmp_path, value):
    RunLog(tmp_path).log(1, {"loss/value": value, "nested": {"list": [value]}})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {"step": 1, "loss/value": None, "nested": {"list": [None]}}


def test_a_value_that_is_not_data_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="object"):
        RunLog(tmp_path).log(1, {"x": object()})
    with pytest.raises(ValueError, match="step"):
        RunLog(tmp_path).samples([{"completion": "x"}])


def _take_steps(log: RunLog, steps: range) -> None:
    for step in steps:
        log.log(step, {"loss/value": 1 / step})
        log.samples([{"step": step, "completion": f"{step}{i}"} for i in range(2)])


@given(total=st.integers(1, 8), data=st.data())
def test_a_resumed_log_equals_an_undisturbed_one(tmp_path_factory, total, data):
    saved = data.draw(st.integers(0, total), label="step of the checkpoint")
    reached = data.draw(st.integers(saved, total), label="step reached before the kill")
    torn = data.draw(st.binary(max_size=20).filter(lambda b: b"\n" not in b), label="half-written line")
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    _take_steps(RunLog(whole), range(1, total + 1))
    _take_steps(RunLog(resumed), range(1, reached + 1))
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (resumed / name).open("ab") as file:
            file.write(torn)
    log = RunLog(resumed)
    log.truncate_after(saved)
    _take_steps(log, range(saved + 1, total + 1))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_half_written_last_line_is_left_out_when_reading(tmp_path):
    log = RunLog(tmp_path)
    log.log(1, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [1]


def test_sizes_are_of_the_whole_lines_up_to_a_step(tmp_path):
    log = RunLog(tmp_path)
    assert log.sizes(1) == {"metrics.jsonl": 0, "samples.jsonl": 0}
    _take_steps(log, range(1, 4))
    sizes = [log.sizes(step) for step in range(4)]
    log.truncate_after(2)
    assert sizes[2] == {name: (tmp_path / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl")}
    assert 0 == sizes[0]["metrics.jsonl"] < sizes[1]["metrics.jsonl"] < sizes[2]["metrics.jsonl"]
    assert sizes[2]["metrics.jsonl"] < sizes[3]["metrics.jsonl"]


def test_lone_surrogates_of_a_model_do_not_break_the_log(tmp_path):
    RunLog(tmp_path).samples([{"step": 1, "completion": "\ud800"}])
    assert len(read_log(tmp_path / "samples.jsonl")) == 1
