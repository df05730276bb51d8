"""The Ray cluster of a run, read without joining it: its nodes, and its actors with their names.

Ray's own reader of a cluster's state ends its process when that cluster goes away, so it runs in one of its own.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

_DEADLINE_S = 20
_FRESH_S = 10  # an answer is given again for so long: asking starts a process that imports Ray
_lock = Lock()
_known: dict[str, tuple[float, dict[str, Any]]] = {}  # address -> (when, answer)


def cluster_of(run: Path) -> dict[str, Any]:
    """{"address", "nodes", "actors"} of the cluster of a run, or {"reason"}: one sentence why there is none."""
    address = os.environ.get("RAY_ADDRESS") or _private_cluster(run)
    if not address or address in ("local", "auto"):
        return {
            "reason": "no process of this run has a Ray cluster on this machine just now; RAY_ADDRESS names another one"
        }
    with _lock:
        when, answer = _known.get(address, (0.0, {}))
        if time.monotonic() - when > _FRESH_S or not answer:
            answer = {"address": address, **_asked(address)}
            _known[address] = (time.monotonic(), answer)
    return answer


def _private_cluster(run: Path) -> str | None:
    """Address of the cluster that the process of a run has started for itself, from the processes of this machine."""
    try:
        holder = (run / ".lock").read_text(encoding="utf-8").strip()
        folders = list(Path("/proc").iterdir())
    except OSError:
        return None
    for folder in folders:
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not command[0].endswith("/raylet") or f"\nPPid:\t{holder}\n" not in (folder / "status").read_text():
                continue
        except OSError:  # not a process, or not any more
            continue
        for word in command:
            if word.startswith("--gcs-address="):
                return word.partition("=")[2]
    return None


def _asked(address: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__, address], capture_output=True, timeout=_DEADLINE_S, check=True, text=True
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {"reason": f"the cluster at {address} does not answer"}


def _read(address: str) -> dict[str, Any]:
    """Runs in a process of its own."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    used = state.available_resources_per_node()
    nodes = [
        {
            "node": node["NodeID"][:8],
            "alive": node["Alive"],
            "host": node["NodeManagerHostname"],
            "resources": {k: v for k, v in node["Resources"].items() if not k.startswith("node:")},
            "free": {k: v for k, v in used.get(node["NodeID"], {}).items() if not k.startswith("node:")},
        }
        for node in state.node_table()
    ]
    return {"nodes": nodes, "actors": [_actor(actor) for actor in state.actor_table(None).values()]}


def _actor(actor: dict[str, Any]) -> dict[str, Any]:
    where = actor.get("Address") or {}
    return {
        "name": actor.get("Name") or actor.get("ActorClassName") or "",
        "state": str(actor.get("State", "")),
        "pid": actor.get("Pid"),
        "node": str(where.get("NodeID", ""))[:8],
    }


if __name__ == "__main__":
    print(json.dumps(_read(sys.argv[1])))
