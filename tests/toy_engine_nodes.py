"""Actors for tests/test_rollouts_vllm_nodes.py, without an engine."""

import os
import time

from rollouts.vllm_nodes import joined


class FailingMember:
    def serve(self, arguments, device):
        raise RuntimeError(f"node {arguments['node_rank']} of {arguments['nnodes']} is out of memory")


class LastingMember:
    def serve(self, arguments, device):
        time.sleep(600)


class Leader:
    def __init__(self, members, start_s: float):
        with joined(members, {"model": "none"}, "cpu") as self.arguments:
            time.sleep(start_s)

    def told(self):
        return self.arguments

    def work(self):
        time.sleep(600)


class GpuLooker:
    def sees(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")
