"""Roles that share the GPUs of a node: each looks at its own. Ray is told of GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.gpus import show_gpus

PROGRAM = """
import json, os, sys
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
import ray
from cluster.actors import spawn, wait
ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
alone = [spawn("toy_engine_nodes:GpuLooker", place=place, shared_gpus=1) for place in range(5)]
pairs = [spawn("toy_engine_nodes:GpuLooker", place=place, shared_gpus=2) for place in range(2)]
others = [spawn("toy_engine_nodes:GpuLooker", gpus=1), spawn("toy_engine_nodes:GpuLooker")]
print(json.dumps(wait([each.sees.remote() for each in alone + pairs + others], phase="looking", deadline_s=120)))
"""


@pytest.mark.parametrize(
    ("visible", "first", "count", "seen"),
    [("4,5,6,7", 1, 1, "5"), ("4,5,6,7", 2, 2, "6,7"), ("4,5", 3, 1, "5"), ("4,5", 0, 2, "4,5"), ("4", 0, 8, "4")],
)
def test_a_part_of_what_was_visible(monkeypatch, visible, first, count, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    show_gpus(first, count)

    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.slow
def test_replicas_of_one_machine_take_its_gpus_in_turn():
    tests = Path(__file__).parent
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tests}:{tests.parent}", "HOME": str(Path.home())}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tests.parent, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen[:5] == ["0", "1", "2", "3", "0"]
    assert seen[5:7] == ["0,1", "2,3"]
    assert seen[7] in ("0", "1", "2", "3") and seen[8] is None  # its own by Ray's count; all of them
