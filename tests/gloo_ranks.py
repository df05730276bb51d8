"""A few processes that wait for work, and form process groups of any size for it. Starting them costs more than what
they do, so tests share them."""

import importlib
import multiprocessing
import os
import pickle
import tempfile
import traceback
from typing import Any

DEADLINE_S = 300.0


class GlooRanks:
    def __init__(self, count: int):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        self.ends, self.processes = [], []
        self.known: dict[tuple[str, ...], Any] = {}
        for _ in range(count):
            here, there = context.Pipe()
            self.ends.append(here)
            self.processes.append(context.Process(target=_serve, args=(there,), daemon=True))
            self.processes[-1].start()

    def run(self, size: int, job: str, *args: Any) -> list[Any]:
        """What `job` ("module:function") returns on each of `size` ranks. Raises AssertionError with the traceback of
        one where any raised."""
        with tempfile.TemporaryDirectory() as folder:
            for rank, end in enumerate(self.ends[:size]):
                end.send((job, rank, size, f"{folder}/store", args))
            answers = []
            for end in self.ends[:size]:
                assert end.poll(DEADLINE_S), f"{job}: no answer"
                answers.append(pickle.loads(end.recv_bytes()))
        for fault, _ in answers:
            assert fault is None, fault
        return [value for _, value in answers]

    def alone(self, job: str, *args: Any) -> Any:
        """What `job` returns in a single process; computed once."""
        key = (job, *map(str, args))
        if key not in self.known:
            (self.known[key],) = self.run(1, job, *args)
        return self.known[key]

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.join()


def _serve(end: Any) -> None:
    import torch
    import torch.distributed as dist

    from training.process_group import join

    torch.set_num_threads(1)
    while True:
        job, rank, size, store, args = end.recv()
        module, _, name = job.partition(":")
        try:
            if size > 1:
                join(dist.FileStore(store, size), rank, size, "cpu", DEADLINE_S)
            answer = None, getattr(importlib.import_module(module), name)(*args)
        except BaseException:
            answer = traceback.format_exc(), None
        if dist.is_initialized():
            dist.destroy_process_group()
        end.send_bytes(pickle.dumps(answer))  # plain copies of tensors, no memory shared
