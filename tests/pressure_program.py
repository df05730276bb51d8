"""A GRPO stage with Ray's smallest object store, which is filled when the stage has come to step 2.

python pressure_program.py HOW CONFIG POLICY OUTPUT. HOW: `spillable`, objects that Ray may move to its disk; `in use`,
objects that a process reads, so that their memory stays taken; `nothing`, for a run to compare with.
Prints as JSON how the stage ended, and what the store was like when it was filled and in the end.
"""

import json
import sys
from pathlib import Path

import numpy as np
import ray

from cluster.actors import kill, spawn, wait
from cluster.processes import object_store
from rl.config import GRPOConfig
from rl.train import run
from training.stage import StageContext

STORE, OBJECT, OBJECTS = 78_700_000, 5_000_000, 15  # Ray takes no less than 75 MiB
MIB = 1 << 20


class Hog:
    def hold(self, in_use: bool) -> None:
        self.refs = [ray.put(np.ones(OBJECT, np.uint8)) for _ in range(OBJECTS)]
        self.read = ray.get(self.refs) if in_use else []


def store() -> dict[str, float]:
    return object_store(ray.nodes()[0])


def main(how: str, config: str, policy: str, output: str) -> dict:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=STORE)
    hog, filled = spawn(Hog), []

    def report(event):
        if event["step"] == 2 and how != "nothing" and not filled:
            wait(hog.hold.remote(how == "in use"), phase="filling the object store", deadline_s=60)
            filled.append(store())

    context = StageContext(name="rl", inputs={"policy": Path(policy)}, output=Path(output), seed=5, report=report)
    said = ""
    try:
        run(GRPOConfig.model_validate_json(config), context)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    ended = store()
    kill(hog)
    return {"said": said, "filled": filled, "ended": ended}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
