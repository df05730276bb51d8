"""One engine over several nodes, by vLLM's multi-node multiprocessing executor.

The actor with the engine's scheduler is on the first node; on each of the others it starts an `EngineMember`, which
runs the engine's processes of that node. Neither side of vLLM notices that the other one is gone, since collectives
wait. So the actor watches its members and ends when one does; and Ray ends an actor with the one that has started it.
"""

import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import ray

from cluster.actors import ActorDied, kill, spawn, wait
from cluster.placement import Spread
from models.checkpoint import resolve_device
from rollouts import vllm_cpu

logger = logging.getLogger(__name__)
_MEMBER = "rollouts.vllm_nodes:EngineMember"
_A_YEAR_S, _GRACE_S = 3e7, 30.0
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
def joined(spread: Spread | None, arguments: Mapping[str, Any], device: str) -> Iterator[dict[str, Any]]:
    """Yields the arguments for the engine of this actor, to be built inside, which then has processes on all nodes.

    Raises MemberLost when another node's processes fail before the engine is built. If they are lost, or fail later,
    this process ends. To be called in the main thread.
    """
    if spread is None or spread.nodes == 1:
        yield dict(arguments)
        return
    meeting = {"nnodes": spread.nodes, "master_addr": ray.util.get_node_ip_address(), "master_port": _free_port()}
    ranked = [{**arguments, **meeting, "node_rank": rank} for rank in range(spread.nodes)]
    members = [
        spawn(
            _MEMBER,
            threads=spread.threads,
            places=spread.places,
            place=spread.first + rank,
            shared_gpus=spread.shared_gpus,
        )
        for rank in range(1, spread.nodes)
    ]
    watch = _Watch([member.serve.remote(theirs, device) for member, theirs in zip(members, ranked[1:], strict=True)])
    try:
        with watch.starting():
            yield ranked[0]
    except BaseException:
        for member in members:
            kill(member)
        raise


def end_process(reason: str) -> NoReturn:
    """End this actor and all processes of its engine, which may be waiting at places where nothing reaches them."""
    import psutil

    logger.error("%s", reason)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


class _Watch:
    """Waits for the end of any member, in a thread of its own from `starting` on."""

    def __init__(self, serving: Sequence[Any]):
        self.serving, self.reason = list(serving), ""
        self.started = self.failed = False

    @contextmanager
    def starting(self) -> Iterator[None]:
        """A member that raises inside, makes MemberLost be raised here."""
        before = signal.signal(_SIGNAL, self._raise_in_main_thread)
        threading.Thread(target=self._wait, daemon=True, name="engine members").start()
        try:
            yield
            self.started = True
        except BaseException:
            self.failed = True
            raise
        finally:
            signal.signal(_SIGNAL, before)

    def _wait(self) -> None:
        try:
            wait(self.serving, phase="the engine's other nodes", deadline_s=_A_YEAR_S)
        except ActorDied as error:
            if not self.failed:
                end_process(str(error))  # whoever waits for the engine starts another
            return
        except Exception as error:
            self.reason = str(error)
        if not self.started:
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            time.sleep(_GRACE_S)
        if not self.failed:
            end_process(self.reason)

    def _raise_in_main_thread(self, *_: Any) -> NoReturn:
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
    """Below those that systems give to connections by themselves, since the engine takes it seconds later."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("", port)):
            return port
    raise RuntimeError("no port is free between 20000 and 32000, for the processes of an engine to meet at")
