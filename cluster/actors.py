"""Ray processes with names, deadlines and phases. Every wait on another process goes through `wait`."""

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

# Read by Ray when it is imported or started; whoever sets them otherwise has their way.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors share the GPUs: none hides them
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster started here is private
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that outlives Ray must not start it again
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves training on a shared machine

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cluster.failures import (
    DIED,
    STORE_FULL,
    ActorDied,
    PeerLost,
    PhaseTimeout,
    StartFailed,  # noqa: F401, for those who wait
    StoreFull,  # noqa: F401
    death,
    store_full,
)
from cluster.gauges import watch_memory
from cluster.gpus import show_gpus
from cluster.placement import Places
from cluster.processes import register
from cluster.running import StageStopped, current, places_of
from cluster.stalls import report_stall, spawned

_SLICE_S = 1.0  # of a wait, after which it is asked whether the stage must stop
_OWN_FAULTS = (OSError, ValueError, TypeError)  # of settings, and of the folder that R1_RAY_TMP names
_ECHO_S = 5.0  # within which a death is known after its first consequence


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), else start a private one on this machine.
    Raises StageStopped when it does not come up."""
    if not ray.is_initialized():
        _init_ray(os.environ.get("RAY_ADDRESS", "local"))
    if (stage := current()) is not None:
        watch_memory(stage)


def _init_ray(address: str) -> None:
    try:
        # No working_dir upload: the packages are installed, or the job submission has brought them.
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            ignore_reinit_error=True,
            _temp_dir=os.environ.get("R1_RAY_TMP"),
        )
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
        if address != "local":
            raise StageStopped(
                f"the Ray cluster at {address}, which RAY_ADDRESS names, cannot be joined ({said}); start it, or set "
                "RAY_ADDRESS to one that runs"
            ) from error
        if isinstance(error, _OWN_FAULTS) and not isinstance(error, TimeoutError | ConnectionError):
            raise
        raise StageStopped(
            f"Ray did not start on this machine, most likely since it is too busy or short of memory ({said}); wait "
            "until it has room"
        ) from error


def stop_ray() -> None:
    if ray.is_initialized():
        ray.shutdown()


class _Host:
    """What runs in an actor: an object of the class, which may be named by its import path and is then imported there
    alone."""

    def __init__(self, target: type | str, args: tuple[Any, ...], kwargs: dict[str, Any], shared_gpus: int):
        register(type(self).__name__, ray.get_runtime_context().get_actor_id() or "")
        if shared_gpus:
            show_gpus(shared_gpus)
        self._object = (_imported(target) if isinstance(target, str) else target)(*args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._object, method)(*args, **kwargs)

    def iterate(self, method: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from getattr(self._object, method)(*args, **kwargs)


def _imported(target: str) -> type:
    module, _, name = target.partition(":")
    gc.disable()  # a fifth of the import of torch and transformers is looking for garbage in what stays
    imported = import_module(module)
    gc.freeze()
    gc.enable()
    return getattr(imported, name)


@dataclass(frozen=True, slots=True)
class _Method:
    """`handle.method`, to be called with `remote(...)` as on Ray's own handles."""

    actor: Any
    name: str
    settings: Mapping[str, Any]

    def options(self, **settings: Any) -> "_Method":
        return replace(self, settings={**self.settings, **settings})

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        streaming = self.settings.get("num_returns") == "streaming"
        method = self.actor.iterate if streaming else self.actor.call
        try:
            return method.options(**self.settings).remote(self.name, *args, **kwargs)
        except STORE_FULL as error:  # large arguments go through it
            raise store_full(error, f"calling {self.settings['name']}") from None


class Handle:
    """An actor, whose class the caller may never have imported, so that a driver needs no torch."""

    def __init__(self, actor: Any, name: str):
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> _Method:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self._actor, method, {"name": f"{self._name}.{method}"})


def spawn(
    target: type | str,
    *args: Any,
    threads: int = 1,
    gpus: float = 0,
    restarts: int = 0,
    role: str = "",
    place: int | None = None,
    places: Places | None = None,
    shared_gpus: int = 0,
    **kwargs: Any,
) -> Handle:
    """Start `target(*args, **kwargs)` as a Ray actor whose numeric libraries use `threads` threads.

    target: a class, or "module:Class", which only the actor's process then imports.
    restarts: how often Ray starts it again when its process dies; the calls that were on their way are then made again,
        so only for an actor whose methods depend on their arguments alone.
    role, place: whose bundles, and which of them, where the stage has reserved some (cluster.placement); None: any
        that is free.
    places: the bundles themselves, for a process that runs no stage.
    shared_gpus: how many GPUs it looks at where roles share those of a node (cluster.gpus); 0: at all of them.
    Elsewhere CPUs are not reserved: phases take turns on the same cores, so reservations would deadlock.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {
        **limits,
        "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: colocated processes share the cores
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic GEMMs on CUDA
    }
    options = {"num_cpus": 0, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
    options |= {"max_restarts": restarts, "max_task_retries": restarts}
    places = places or places_of(role)
    if places is not None:
        places.wait_until_there(current())
        options |= places.options(place)
        shared_gpus *= places.role.shown_all_gpus  # else Ray shows it those of its bundle
    name = target.rpartition(":")[2] if isinstance(target, str) else target.__name__
    host = ray.remote(type(name, (_Host,), {}))  # the process shows the name of what it hosts
    actor: Any = host.options(**options).remote(target, args, kwargs, shared_gpus)
    spawned[actor._actor_id.hex()] = name
    return Handle(actor, name)


@dataclass(frozen=True, slots=True)
class Joint:
    """One call that several actors carry out together, and its value: the first actor's, or the list of those of the
    first `listed` ones."""

    refs: Sequence[Any]
    listed: int | None = None


def wait(refs: Any, *, phase: str, deadline_s: float) -> Any:
    """The values of one ref, a list of refs or a Joint. Raises PhaseTimeout, ActorDied, StartFailed or StoreFull,
    naming the phase; errors raised inside a method of an actor come back as themselves. Before PhaseTimeout, in a
    stage, a report is written on what every process is doing, and the sentence names it."""
    if isinstance(refs, Joint):
        return _wait_for_all(refs, phase, deadline_s)
    try:
        return _get(refs, deadline_s)
    except GetTimeoutError:
        raise _late(refs if isinstance(refs, list) else [refs], phase, deadline_s) from None
    except STORE_FULL as error:
        raise store_full(error, phase) from None
    except DIED as error:
        raise death(error, phase) from error
    except RayTaskError as error:
        if isinstance(error.cause, PeerLost):
            raise PeerLost(f"{phase}: {error.cause}") from None
        raise error.cause from error


def _get(refs: Any, deadline_s: float) -> Any:
    """ray.get, which ends early where the stage must stop, or one of several has failed. Raises GetTimeoutError.

    Values are fetched once they are there: a get that is cut short would begin the transfer between nodes again.
    """
    pending = refs if isinstance(refs, list) else [refs]
    for left in _slices(deadline_s):
        done, pending = ray.wait(pending, num_returns=len(pending), timeout=min(_SLICE_S, left), fetch_local=False)
        if not pending:
            return ray.get(refs, timeout=max(_SLICE_S, left))
        ray.get(done, timeout=max(_SLICE_S, left))  # raises what has failed
        if left <= _SLICE_S:
            raise GetTimeoutError
    raise AssertionError("a wait has one slice at least")


def first_ready(refs: list[Any], deadline_s: float) -> tuple[list[Any], list[Any]]:
    """ray.wait for one of them, which ends early where the stage must stop."""
    for left in _slices(deadline_s):
        ready, pending = ray.wait(refs, timeout=min(_SLICE_S, left))
        if ready or left <= _SLICE_S:
            return ready, pending
    raise AssertionError("a wait has one slice at least")


def _slices(deadline_s: float) -> Iterator[float]:
    """The seconds that are left of a wait, asked for after every slice. Raises StageStopped."""
    end = time.monotonic() + deadline_s
    while True:
        stage = current()
        if stage is not None and stage.stop:
            raise StageStopped(stage.stop)
        yield max(0.0, end - time.monotonic())


def _late(refs: Sequence[Any], phase: str, deadline_s: float) -> PhaseTimeout:
    answered, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
    pending = [ref for ref in refs if ref not in answered]
    return PhaseTimeout(f"{phase}: no answer within {deadline_s:.0f} s{report_stall(pending, phase, deadline_s)}")


def _wait_for_all(joint: Joint, phase: str, deadline_s: float) -> Any:
    """As soon as one actor has failed the others wait in vain, so its error ends the wait."""
    pending, end = list(joint.refs), time.monotonic() + deadline_s
    while pending:
        done, pending = first_ready(pending, end - time.monotonic())
        if not done:
            raise _late(pending, phase, deadline_s)
        try:
            wait(done, phase=phase, deadline_s=deadline_s)
        except Exception as error:
            if type(error) is not ActorDied:
                _raise_if_died(pending, phase)
            raise
    values = wait(list(joint.refs), phase=phase, deadline_s=deadline_s)
    return values[0] if joint.listed is None else values[: joint.listed]


def _raise_if_died(refs: Sequence[Any], phase: str) -> None:
    """What an actor raises may only be the echo of another's death, which comes to light a little later."""
    ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=_ECHO_S) if refs else ([], [])
    for ref in ended:
        try:
            wait(ref, phase=phase, deadline_s=_ECHO_S)
        except Exception as error:
            if type(error) is ActorDied:
                raise


def node_address() -> str:
    """Of the machine that runs this process, as other nodes reach it."""
    return ray.util.get_node_ip_address()


def count_gpus() -> int:
    """Of the cluster, all nodes together."""
    return int(ray.cluster_resources().get("GPU", 0))


def gpus_of_nodes() -> list[int]:
    """Of every living node that has any."""
    found = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [gpus for gpus in found if gpus]


def count_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def share(value: Any) -> Any:
    """Put a value where every actor can read it without a copy per call."""
    try:
        return ray.put(value)
    except STORE_FULL as error:
        raise store_full(error) from None


def kill(actor: Any, restart: bool = False) -> None:
    """End its process. `restart`: as if it had died, so that it starts again if it was spawned with `restarts`."""
    ray.kill(actor._actor if isinstance(actor, Handle) else actor, no_restart=not restart)


def next_item(streams: Mapping[Any, Any], *, phase: str, deadline_s: float) -> tuple[Any, Any]:
    """(key, item) of the first of several streaming calls that has an item; (key, None) when a stream has ended.

    Raises ActorDied (with `key`) or PhaseTimeout as `wait` does; errors raised inside the actor come back as
    themselves.
    """
    keys = {id(stream): key for key, stream in streams.items()}
    ready, _ = first_ready(list(streams.values()), deadline_s)
    if not ready:
        raise _late(list(streams.values()), phase, deadline_s)
    key = keys[id(ready[0])]
    try:
        return key, wait(next(streams[key]), phase=phase, deadline_s=deadline_s)
    except StopIteration:
        return key, None
    except ActorDied as error:
        error.key = key
        raise
