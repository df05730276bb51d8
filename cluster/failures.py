"""What Ray raises, as sentences of ours: which process is gone and where it was, or which store is full."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import dropwhile
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
)

from cluster.processes import object_store
from cluster.stalls import spawned

STORE_FULL = (ObjectStoreFullError, OutOfDiskError)
DIED = (RayActorError, OutOfMemoryError, ObjectLostError)
_KNOWN_S = 30.0  # within which Ray knows whether a silent node has left; by default it takes some 15 s


class PhaseTimeout(Exception):
    """A phase did not end within its deadline."""

    retry = True  # the same command may succeed another time


class ActorDied(Exception):
    """A process of the run was killed or crashed while a phase waited for it, or its node is gone."""

    retry = True
    key: Any = None  # which one, where the call that raised it was given keys


class PeerLost(ActorDied):
    """A process cannot go on because another one, with which it works, is gone."""


class StartFailed(Exception):
    """The constructor of an actor raised: it would raise again, so nothing is gained by starting another one."""


class StoreFull(Exception):
    """Ray's object store and the disk that it spills to are full."""

    retry = True


def death(error: Exception, phase: str) -> ActorDied | StartFailed:
    """The exception that says what one of DIED means."""
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return StartFailed(f"{phase}: a worker process cannot start: {_raised(error)}")
    return ActorDied(f"{phase}: a worker process died ({_account(error)})")


def _account(error: Exception) -> str:
    """Who died, where, and why as far as that is known."""
    if isinstance(error, OutOfMemoryError):
        return f"Ray ended it, since the memory {_full_memory(error)}; let the stage need less, or give it more nodes"
    actor = _actor_of(error)
    node = _last_node(actor, wait_s=_KNOWN_S if isinstance(error, ActorUnavailableError) else 0)
    who = spawned.get(actor, "an actor") + (f" on {node_name(node)}" if node else "")
    if node and not node["Alive"]:
        return f"{who}, which has left the cluster: {node['DeathReasonMessage'].rstrip('.') or 'Ray does not say why'}"
    if isinstance(error, ObjectLostError):
        return f"{who}, and what it had answered is lost with it" if actor in spawned else "a shared object is lost"
    return f"{who}: {_reason(error)}"


def _full_memory(error: OutOfMemoryError) -> str:
    """Ray's account is a page long, and its first line has where and how full."""
    said = (str(error).splitlines() or [""])[0]
    found = re.search(r"\(IP: (.+), ID: (\w{8})\w*\) was (.+ limit)", said)
    return f"of node {found[1]} ({found[2]}) is nearly full: {found[3]}" if found else f"is nearly full: {said}"


def _actor_of(error: Exception) -> str:
    if isinstance(error, ObjectLostError):
        return ray.ObjectRef(bytes.fromhex(error.object_ref_hex)).task_id().actor_id().hex()
    return getattr(error, "actor_id", None) or ""


def _last_node(actor: str, wait_s: float) -> Mapping[str, Any]:
    """The node on which an actor is or was, {} where Ray does not tell.

    wait_s: at most, until Ray knows that the actor is dead. A process that is only silent may be started again at once,
    but on a node that has left unnoticed nothing starts.
    """
    end = time.monotonic() + wait_s
    while True:
        state, node = _state_of(actor)
        if state != "ALIVE" or not node.get("Alive") or time.monotonic() >= end:
            return node
        time.sleep(0.2)


def _state_of(actor: str) -> tuple[str, Mapping[str, Any]]:
    with suppress(Exception):  # there is no public way to ask that needs no dashboard
        from ray._private import state

        facts = state.actors(actor)
        return facts["State"], next(n for n in ray.nodes() if n["NodeID"] == facts["Address"]["NodeID"])
    return "", {}


def node_name(node: Mapping[str, Any]) -> str:
    """`node`: as in ray.nodes()."""
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def store_full(error: Exception, phase: str = "") -> StoreFull:
    """The exception that says what one of STORE_FULL means."""
    disk = ", and so is the disk that it spills to" if isinstance(error, OutOfDiskError) else ""
    full = f"Ray's object store is full{disk}{_fullest(ray.nodes())}"
    return StoreFull(
        f"{phase}{': ' if phase else ''}{full}; free the disk of Ray's temporary folder (/tmp/ray, or where R1_RAY_TMP "
        "or ray start --temp-dir lead; Ray leaves its last 5 % empty), give the store more memory (ray start "
        "--object-store-memory; /dev/shm of a pod), or put less into it (a smaller generator.sync.bucket_mib, another "
        "generator.sync.transport)"
    )


def _fullest(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Ray does not say which store it was."""
    stores = [(object_store(node), node) for node in nodes if node["Alive"]]
    known = [(store["used_mib"] / store["size_mib"], store, node) for store, node in stores if store.get("size_mib")]
    if not known:
        return ""
    _, store, node = max(known, key=lambda found: found[0])
    return f" (the fullest is on {node_name(node)}: {store['used_mib']:.0f} of {store['size_mib']:.0f} MiB)"


def _raised(error: RayActorError) -> str:
    """The exception at the end of the traceback that Ray hands on as text, in one line."""
    lines = str(error).splitlines()
    last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
    said = dropwhile(lambda line: line.startswith(" "), lines[last_frame + 1 :])  # after the frame's source line
    return " ".join(" ".join(said).split())


def _reason(error: Exception) -> str:
    """First and last line of Ray's account: what happened, and why when it is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"
