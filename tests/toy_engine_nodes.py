"""Actors for tests/test_rollouts_vllm_nodes.py, without an engine."""

import os
import time
from pathlib import Path

from cluster.placement import Spread
from rollouts import vllm_nodes


class FailingMember:
    def serve(self, arguments, device):
        raise RuntimeError(f"node {arguments['node_rank']} of {arguments['nnodes']} is out of memory")


class LastingMember:
    def serve(self, arguments, device):
        (Path(arguments["folder"]) / f"{arguments['node_rank']}.pid").write_text(str(os.getpid()))
        time.sleep(600)


class Leader:
    def __init__(self, member: str, folder: str, start_s: float):
        vllm_nodes._MEMBER = f"toy_engine_nodes:{member}"
        spread = Spread(nodes=3, places=None, first=0, shared_gpus=0)
        with vllm_nodes.joined(spread, {"model": "none", "folder": folder}, "cpu") as self.arguments:
            time.sleep(start_s)

    def told(self):
        return self.arguments

    def pid(self) -> int:
        return os.getpid()

    def work(self):
        time.sleep(600)


class GpuLooker:
    def sees(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")
