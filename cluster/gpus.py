"""Which GPUs a process looks at that shares those of its node with others."""

import fcntl
import json
import os
from collections import Counter
from pathlib import Path

import ray

from cluster.processes import job_folder

_LOOKING = "gpus"  # in the job's folder on a node: [process id, time of its start, names of its GPUs]


def show_gpus(count: int) -> None:
    """Let this process see `count` of its node's GPUs: neighbours at which the fewest living processes look that have
    called this, the first of several.

    To be called before CUDA starts. Changes nothing on a node with no more GPUs than that.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [name for name in listed.split(",") if name] if listed is not None else [str(i) for i in range(_gpus())]
    if len(there) > count:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_taken(job_folder(), there, count))


def _taken(folder: Path, there: list[str], count: int) -> list[str]:
    import psutil

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOOKING).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        living = [entry for entry in json.loads(file.read() or "[]") if _started(psutil, entry[0]) == entry[1]]
        users = Counter(name for _, _, names in living for name in names)
        starts = range(0, len(there) - count + 1, count)
        start = min(starts, key=lambda start: sum(users[name] for name in there[start : start + count]))
        own = there[start : start + count]
        file.truncate(0)
        file.write(json.dumps([*living, [os.getpid(), _started(psutil, os.getpid()), own]]))
    return own


def _started(psutil, pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _gpus() -> int:
    here = ray.get_runtime_context().get_node_id()
    return next(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["NodeID"] == here)
