"""Roles that share the GPUs of a node: each looks at its own. Ray is told of GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.gpus import show_gpus

PROGRAM = """
import json, os, sys, time
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
import ray
from cluster.actors import kill, spawn, wait
ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
seen = []

def look(**settings):
    actor = spawn("toy_engine_nodes:GpuLooker", **settings)
    seen.append(wait(actor.sees.remote(), phase="looking", deadline_s=120))
    return actor

pair = look(shared_gpus=2)
singles = [look(shared_gpus=1) for _ in range(3)]
kill(singles[1])
time.sleep(3)
kept = [look(shared_gpus=1), look(gpus=1), look(), look(shared_gpus=4)]
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("visible", "counts", "seen"),
    [
        ("4,5,6,7", [1, 1, 1, 1, 1], ["4", "5", "6", "7", "4"]),
        ("4,5,6,7", [2, 1, 2], ["4,5", "6", "6,7"]),
        ("GPU-a,GPU-b,GPU-c", [2, 2], ["GPU-a,GPU-b", "GPU-a,GPU-b"]),  # neighbours alone
        ("4,5", [2], ["4,5"]),
        ("4", [8], ["4"]),
        ("", [1], [""]),
    ],
)
def test_processes_of_a_node_take_its_gpus_in_turn(monkeypatch, tmp_path, visible, counts, seen):
    monkeypatch.setattr("cluster.gpus.job_folder", lambda: tmp_path)
    for count, expected in zip(counts, seen, strict=True):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        show_gpus(count)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.slow
def test_actors_of_one_machine_take_its_gpus_in_turn():
    tests = Path(__file__).parent
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tests}:{tests.parent}", "HOME": str(Path.home())}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tests.parent, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen[:4] == ["0,1", "2", "3", "0"]
    assert seen[4] == "3"  # of one that is dead
    assert seen[5] in ("0", "1", "2", "3")  # its own by Ray's count
    assert seen[6:] == [None, None]  # it has not asked; there are no more
