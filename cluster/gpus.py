"""Which GPUs a process looks at that shares those of its node with others."""

import os

import ray


def show_gpus(first: int, count: int) -> None:
    """Let this process see `count` of its node's GPUs, from number `first` on, beginning again after the last one.

    To be called before CUDA starts. Changes nothing on a node without GPUs, or with no more than `count`.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [name for name in listed.split(",") if name] if listed is not None else [str(i) for i in range(_gpus())]
    if len(there) > count:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(there[(first + i) % len(there)] for i in range(count))


def _gpus() -> int:
    here = ray.get_runtime_context().get_node_id()
    return next(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["NodeID"] == here)
