"""The driver that tests/test_cluster_nodes.py runs on a cluster of several nodes; prints what it saw as JSON.

python cluster_program.py SHARED HIDDEN: two folders, of which the second is another one on one of the nodes.
"""

import json
import sys
import time
from pathlib import Path

import ray

from cluster.actors import PhaseTimeout, count_nodes, kill, spawn, start_ray, wait
from cluster.config import ClusterConfig
from cluster.placement import reserved
from cluster.running import StageStopped, running
from cluster.shared_folder import unseen
from pipeline.placement import bundles
from rl.config import GRPOConfig


class Worker:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def sleep_far_away(self):
        time.sleep(600)


def grpo(ranks: int, replicas: int, workers: int) -> GRPOConfig:
    settings = {
        "rewards": [{"use": "rewards.accuracy:Accuracy"}],
        "trainer": {"mesh": {"data": ranks}},
        "generator": {"replicas": replicas},
        "reward_workers": {"workers": workers},
    }
    return GRPOConfig.model_validate(settings)


def placed(stage: Path) -> dict:
    """Nodes of the actors of each role in bundles of their own, and the report on one that hangs elsewhere."""
    settings = ClusterConfig(placement="disaggregated", cpus_per_trainer=2, placement_deadline_s=30)
    asked = list(bundles(grpo(ranks=2, replicas=1, workers=2), settings, gpus=False))
    stage.mkdir()
    with running(stage, settings, dict) as here, reserved(here, asked):
        actors = {f"trainer {i}": spawn(Worker, role="trainer", place=i) for i in range(2)}
        actors |= {"generator": spawn(Worker, role="generator")}
        actors |= {f"reward {i}": spawn(Worker, role="reward") for i in range(2)}
        nodes = wait([actor.node.remote() for actor in actors.values()], phase="placing", deadline_s=60)
        kill(actors["generator"])
        again = spawn(Worker, role="generator")  # in the bundle that has become free
        nodes.append(wait(again.node.remote(), phase="placing again", deadline_s=60))
        try:
            wait(actors["trainer 0"].sleep_far_away.remote(), phase="sleeping", deadline_s=1)
        except PhaseTimeout:
            (report,) = (json.loads(path.read_text()) for path in (stage / "stalls").glob("*.json"))
    return {"nodes": dict(zip([*actors, "generator again"], nodes, strict=True)), "report": report}


def refused() -> str:
    """What is said where the cluster has too little."""
    settings = ClusterConfig(placement="disaggregated", cpus_per_trainer=64, placement_deadline_s=1)
    try:
        with running(Path(), settings, dict) as here, reserved(here, list(bundles(grpo(2, 1, 1), settings, gpus=True))):
            return ""
    except StageStopped as error:
        return str(error)


if __name__ == "__main__":
    shared, hidden = map(Path, sys.argv[1:])
    start_ray()
    while count_nodes() < 3:  # the test's own deadline ends this
        time.sleep(0.2)
    unseen_here = {
        "shared": unseen(shared),
        "hidden": unseen(hidden),
        "input": unseen(shared, [Path("/no/such/model")]),
    }
    print(json.dumps(placed(shared / "zero") | {"refused": refused(), "unseen": unseen_here}))
