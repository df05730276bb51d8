"""Stalls of real processes: the report says who is waited for and where each process hangs, and the doctor says why."""

import ctypes
import json
import os
import re
import time

import pytest

from cluster.actors import Joint, PhaseTimeout, StageStopped, kill, spawn, start_ray, wait
from cluster.config import ClusterConfig
from cluster.gauges import beyond
from cluster.running import MEMORY, current, running
from pipeline.stall_causes import causes

pytestmark = pytest.mark.slow
EVENT = {"step": 3, "phase": "testing"}


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def hang_in_c(self):
        ctypes.PyDLL(None).pause()  # without giving up the GIL

    def hold(self, mib: int):
        self.held = bytearray(os.urandom(1 << 20) * mib)
        time.sleep(600)


class Rank:
    def __init__(self, store: str, rank: int):
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
        self.rank = rank

    def pid(self) -> int:
        return os.getpid()

    def update(self):
        import torch.distributed as dist

        if self.rank == 1:
            self.lost_in_its_own_work()
        dist.barrier()

    def lost_in_its_own_work(self):
        time.sleep(600)


@pytest.fixture(scope="module")
def stalled(ray_session, tmp_path_factory):
    """(the error, the report) of a wait for three processes that hang, each in its way; pids by what they do."""
    stage = tmp_path_factory.mktemp("run") / "zero"
    stage.mkdir()
    (stage / "metrics.jsonl").write_text('{"step": 3, "loss/policy": 0.5}\n')
    actors = {"c": spawn(Worker)} | {f"rank {rank}": spawn(Rank, str(stage / ".store"), rank) for rank in range(2)}
    pids = dict(zip(actors, wait([a.pid.remote() for a in actors.values()], phase="start", deadline_s=90), strict=True))
    calls = [actors["c"].hang_in_c.remote(), *(actors[f"rank {rank}"].update.remote() for rank in range(2))]
    with running(folder=stage, config=ClusterConfig(), last_event=lambda: EVENT):
        started = time.monotonic()
        with pytest.raises(PhaseTimeout) as raised:
            wait(Joint(calls), phase="zero: step 4", deadline_s=1)
        took = time.monotonic() - started
    for actor in actors.values():
        kill(actor)
    (path,) = (stage / "stalls").glob("*.json")
    return str(raised.value), json.loads(path.read_text()), path.with_suffix(".txt"), pids, took


def stack(report: dict, pid: int) -> str:
    (actor,) = [actor for node in report["nodes"] for actor in node["actors"] if actor["pid"] == pid]
    return "\n".join(actor["stack"])


def test_the_sentence_names_the_report_and_the_report_everyone_waited_for(stalled):
    sentence, report, text, pids, took = stalled
    assert sentence.startswith("zero: step 4: no answer within 1 s; what every process was doing is in ")
    assert str(text) in sentence and f"r1 doctor {text.parents[2]} explains it" in sentence
    assert sorted(call["name"] for call in report["waits_for"]) == ["Rank", "Rank", "Worker"]
    assert report["last_event"] == EVENT and "loss/policy" in report["last_lines"]["metrics.jsonl"]
    assert set(pids.values()) <= {actor["pid"] for actor in report["nodes"][0]["actors"]}
    assert took < 25


def test_stacks_come_from_python_and_from_c_that_holds_the_gil(stalled):
    _, report, text, pids, _ = stalled
    assert "hang_in_c" in stack(report, pids["c"])
    assert "barrier" in stack(report, pids["rank 0"]) and "lost_in_its_own_work" in stack(report, pids["rank 1"])
    assert any("_late" in frame for frame in report["driver"]["stacks"]["MainThread"])
    assert "hang_in_c" in text.read_text() and "<- waited for" in text.read_text()


def test_resources_are_in_it(stalled):
    _, report, _, pids, _ = stalled
    (node,) = report["nodes"]
    sizes = {actor["pid"]: actor["pss_mib"] for actor in node["actors"]}
    assert sizes[pids["rank 0"]] > 30 and node["memory_mib"] > node["memory_free_mib"] > 0
    assert node["disks"]["run"]["free_gib"] > 0 and node["object_store"]["size_mib"] > 10


def test_the_doctor_tells_the_rank_that_did_not_come_from_those_that_wait(stalled):
    _, report, _, pids, _ = stalled
    said = [cause.says for cause in causes(report)]
    (late,) = [sentence for sentence in said if "1 of 2 processes wait in barrier" in sentence]
    assert f"Rank (process {pids['rank 1']}" in late and "lost_in_its_own_work" in late
    assert any(re.search(rf"Worker \(process {pids['c']} .* hangs at hang_in_c", sentence) for sentence in said)


def test_an_actor_above_the_limit_stops_the_stage_and_is_named(ray_session, tmp_path):
    config = ClusterConfig(memory_every_s=0.2, memory_limit_gib=0.3)
    with running(folder=tmp_path, config=config, last_event=lambda: EVENT):
        start_ray()
        hungry = spawn(Worker)
        wait(hungry.pid.remote(), phase="start", deadline_s=60)
        with pytest.raises(StageStopped, match=r"Worker \(process \d+ on .*\) holds 0.\d+ GiB, more than cluster.mem"):
            wait(hungry.hold.remote(400), phase="holding", deadline_s=60)
    assert current() is None
    kill(hungry)
    lines = [json.loads(line) for line in (tmp_path / MEMORY).read_text().splitlines()]
    assert lines[-1]["step"] == 3 and lines[-1]["actors"]["Worker"]["largest_pss_mib"] > 300


def test_the_largest_actor_is_compared_with_the_limit():
    actors = [
        {"name": name, "pid": 1, "host": "a", "pss_mib": mib}
        for name, mib in (("Rank", 900.0), ("TransformersGenerator", 2048.0))
    ]
    assert beyond(actors, None) == "" and beyond(actors, 2.0) == ""
    assert "TransformersGenerator (process 1 on a) holds 2.00 GiB, more than cluster.memory_limit_gib 1.9" in beyond(
        actors, 1.9
    )
