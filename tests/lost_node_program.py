"""The driver of a test in test_cluster_nodes.py: it ends a node of its own cluster and prints, as JSON, what is said of
a call that was under way there, and of an answer that nobody had fetched.

python lost_node_program.py FOLDER
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from cluster.actors import ActorDied, spawn, start_ray, wait
from cluster.config import ClusterConfig
from cluster.placement import RoleBundles, reserved
from cluster.running import running


class Worker:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def large(self) -> np.ndarray:
        return np.zeros(1_000_000)

    def work(self) -> None:
        time.sleep(600)


def end_node(node: str) -> None:
    (raylet,) = [p for p in psutil.process_iter(["name", "cmdline"]) if is_raylet(p, node)]
    raylet.kill()


def is_raylet(process: psutil.Process, node: str) -> bool:
    return process.info["name"] == "raylet" and node in " ".join(process.info["cmdline"] or ())


def said_of(ref: Any) -> str:
    try:
        return f"no error, but {wait(ref, phase='asking', deadline_s=60)}"
    except ActorDied as error:
        return str(error)


def main(folder: str) -> dict[str, str]:
    start_ray()
    settings = ClusterConfig(placement="disaggregated", placement_deadline_s=30)
    bundle = RoleBundles(role="trainer", count=1, bundle={"CPU": 4.0}, strategy="PACK")  # the driver's node has 1
    with running(Path(folder), settings, dict) as here, reserved(here, [bundle]):
        worker = spawn(Worker, role="trainer", place=0)
        node = wait(worker.node.remote(), phase="asking", deadline_s=60)
        answered = worker.large.remote()
        ray.wait([answered], timeout=60, fetch_local=False)
        under_way = worker.work.remote()
        end_node(node)
        return {"answered": said_of(answered), "under way": said_of(under_way)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
