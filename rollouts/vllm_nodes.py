"""One engine over several nodes, by vLLM's multi-node multiprocessing executor.

The generator is on the first node, with the engine's scheduler; on each of the others an `EngineMember` runs the
engine's processes of that node. Neither side of vLLM notices that the other one is gone, since collectives wait. So the
generator watches its members and ends when one does; whoever started the members ends them with the generator.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import ray

from cluster.actors import wait
from models.checkpoint import resolve_device
from rollouts import vllm_cpu

logger = logging.getLogger(__name__)
_A_YEAR_S = 3e7
_SIGNAL = signal.SIGURG  # ignored by default; SIGUSR1 is vLLM's and SIGUSR2 that of cluster.processes


class MemberLost(RuntimeError):
    """An engine cannot start, since its processes on another node did not."""


class EngineMember:
    """A further node of an engine."""

    def serve(self, arguments: Mapping[str, Any], device: str) -> NoReturn:
        """Run the engine's processes of this node until one of them ends, which is always an error.

        arguments: the engine's, and which node this is (see `joined`).
        """
        prepare_environment(resolve_device(device).type == "cpu", arguments)
        from rollouts.vllm_weights import register

        register()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        config = EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS, headless=True)  # as vllm.LLM's
        executor = MultiprocExecutor(config, monitor_workers=False)
        executor.start_worker_monitor(inline=True)  # returns when one has ended
        raise RuntimeError("a process of the engine ended")


@contextmanager
def joined(members: Sequence[Any], arguments: Mapping[str, Any], device: str) -> Iterator[dict[str, Any]]:
    """Yields the arguments for the engine of this process, to be built inside, which then has the processes of
    `members` too (handles of EngineMember, one for each further node).

    Raises MemberLost when a member ends before the engine is built. One that ends later takes this process along.
    To be called in the main thread.
    """
    if not members:
        yield dict(arguments)
        return
    nodes, address = len(members) + 1, ray.util.get_node_ip_address()
    meeting = {"nnodes": nodes, "master_addr": address, "master_port": _free_port()}
    ranked = [{**arguments, **meeting, "node_rank": rank} for rank in range(nodes)]
    serving = [member.serve.remote(theirs, device) for member, theirs in zip(members, ranked[1:], strict=True)]
    watch = _Watch(serving)
    before = signal.signal(_SIGNAL, watch.raise_in_main_thread)
    try:
        yield ranked[0]
        watch.started = True
    finally:
        signal.signal(_SIGNAL, before)


class _Watch:
    """Waits for the end of any member in a thread of its own."""

    def __init__(self, serving: Sequence[Any]):
        self.serving, self.started, self.reason = list(serving), False, ""
        threading.Thread(target=self._wait, daemon=True, name="engine members").start()

    def _wait(self) -> None:
        try:
            wait(self.serving, phase="the engine's other nodes", deadline_s=_A_YEAR_S)
        except Exception as error:
            self.reason = str(error)
        if self.started:
            logger.error("%s", self.reason)
            os._exit(1)  # the engine waits for that node, at a place where nothing reaches it
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def raise_in_main_thread(self, *_: Any) -> NoReturn:
        raise MemberLost(f"an engine cannot start without its processes on another node: {self.reason}")


def prepare_environment(on_cpu: bool, engine_args: Mapping[str, Any]) -> None:
    """What must be in the environment before vLLM is imported."""
    if on_cpu:
        needed = vllm_cpu.environment()
        if "kv_cache_memory_bytes" in engine_args:
            needed.pop("VLLM_CPU_KVCACHE_SPACE")  # which would win
        os.environ.update(needed | os.environ | {name: needed[name] for name in vllm_cpu.FORCED})
    if ray.is_initialized():  # the address by which Ray's nodes reach each other, of several that a node may have
        os.environ.setdefault("VLLM_HOST_IP", ray.util.get_node_ip_address())


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
