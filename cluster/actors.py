"""Ray processes with names, deadlines and phases. Every wait on another process goes through `wait`."""

import os
from collections.abc import Mapping
from typing import Any

# Read by Ray when it is imported or started; whoever sets them otherwise has their way.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors share the GPUs: none hides them
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster started here is private
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves training on a shared machine

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError


class PhaseTimeout(Exception):
    """A phase did not end within its deadline."""


class ActorDied(Exception):
    """A process of the run was killed or crashed while a phase waited for it."""

    key: Any = None  # which one, where the call that raised it was given keys


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), else start a private one on this machine."""
    if not ray.is_initialized():
        # No working_dir upload: the packages are installed, or the job submission has brought them.
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            ignore_reinit_error=True,
            _temp_dir=os.environ.get("R1_RAY_TMP"),
        )


def stop_ray() -> None:
    if ray.is_initialized():
        ray.shutdown()


def spawn(cls: type, *args: Any, threads: int = 1, gpus: float = 0, **kwargs: Any) -> Any:
    """Start `cls(*args, **kwargs)` as a Ray actor whose numeric libraries use `threads` threads.

    CPUs are not reserved: phases take turns on the same cores (colocated placement), so reservations would deadlock.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {
        **limits,
        "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: colocated processes share the cores
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic GEMMs on CUDA
    }
    options = {"num_cpus": 0, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
    return ray.remote(cls).options(**options).remote(*args, **kwargs)


def wait(refs: Any, *, phase: str, deadline_s: float) -> Any:
    """The values of one ref or a list of refs. Raises PhaseTimeout or ActorDied, naming the phase; errors raised inside
    an actor come back as themselves."""
    try:
        return ray.get(refs, timeout=deadline_s)
    except GetTimeoutError:
        raise PhaseTimeout(f"{phase}: no answer within {deadline_s:.0f} s") from None
    except RayActorError as error:
        raise ActorDied(f"{phase}: a worker process died ({_reason(error)})") from None
    except RayTaskError as error:
        raise error.cause from error


def _reason(error: RayActorError) -> str:
    """First and last line of Ray's account: what happened, and the exception behind it when there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"


def share(value: Any) -> Any:
    """Put a value where every actor can read it without a copy per call."""
    return ray.put(value)


def kill(actor: Any) -> None:
    ray.kill(actor, no_restart=True)


def next_item(streams: Mapping[Any, Any], *, phase: str, deadline_s: float) -> tuple[Any, Any]:
    """(key, item) of the first of several streaming calls that has an item; (key, None) when a stream has ended.

    Raises ActorDied (with `key`) or PhaseTimeout as `wait` does; errors raised inside the actor come back as
    themselves.
    """
    keys = {id(stream): key for key, stream in streams.items()}
    ready, _ = ray.wait(list(streams.values()), num_returns=1, timeout=deadline_s)
    if not ready:
        raise PhaseTimeout(f"{phase}: no answer within {deadline_s:.0f} s")
    key = keys[id(ready[0])]
    try:
        return key, wait(next(streams[key]), phase=phase, deadline_s=deadline_s)
    except StopIteration:
        return key, None
    except ActorDied as error:
        error.key = key
        raise
