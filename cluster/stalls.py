"""A report on whom a late phase waits for, and what all processes of the run are doing, for `r1 doctor RUN`.

Written when a deadline of `cluster.actors` has passed, into the folder of the stage that runs. It never takes longer
than _BOUND_S and never raises: the error of the phase is what counts.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import processes
from cluster.running import STALLS, RunningStage, current

_BOUND_S = 20.0
_QUIET_S = 60.0  # within which the same phase gets no second report
_MOST = 50  # reports in one folder
_SILENT = "no stacks: it does not answer the signal, and py-spy is missing or sees nothing"


spawned: dict[str, str] = {}  # actor id -> class, of the actors that this process has started
_written: dict[tuple[Path, str], tuple[float, Path | None]] = {}  # folder and phase -> when, and the report


def report_stall(refs: Sequence[Any], phase: str, deadline_s: float) -> str:
    """Write a report on the calls `refs`, which are late. The end of a sentence that names it, "" outside a stage."""
    stage, now = current(), time.monotonic()
    if stage is None:
        return ""
    at, path = _written.get((stage.folder, phase), (now - _QUIET_S, None))
    if now - at >= _QUIET_S:
        try:
            path = _write(stage.folder / STALLS, _collected(stage, refs, phase, deadline_s))
        except Exception as error:  # whatever it is: the phase's own error is what must be said
            return f"; no report on the processes could be written ({type(error).__name__}: {error})"
        _written[stage.folder, phase] = (now, path)
    run = stage.folder.parent
    return f"; what every process was doing is in {path}, and r1 doctor {run} explains it" if path else ""


def _collected(stage: RunningStage, refs: Sequence[Any], phase: str, deadline_s: float) -> dict[str, Any]:
    now = datetime.now(UTC)
    report: dict[str, Any] = {
        "phase": phase,
        "deadline_s": deadline_s,
        "since": datetime.fromtimestamp(now.timestamp() - deadline_s, UTC).isoformat(timespec="seconds"),
        "written": now.isoformat(timespec="seconds"),
        "waits_for": [_called(ref) for ref in refs],
        "last_event": stage.last_event(),
        "last_lines": {name: _last_line(stage.folder / name) for name in ("metrics.jsonl", "timings.jsonl")},
        "driver": {"pid": os.getpid(), "stacks": processes.own_stacks()},
        "nodes": [],
        "missing": [],
    }
    # In a thread, because a file system or Ray itself may be what hangs. What it has found by then is written.
    nodes: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    looking = threading.Thread(
        target=_look_everywhere, args=(nodes, faults, str(stage.folder)), name="stall report", daemon=True
    )
    looking.start()
    looking.join(_BOUND_S)
    if looking.is_alive():
        faults.append(f"looking at the nodes took longer than {_BOUND_S:.0f} s")
    return report | {"nodes": list(nodes.values()), "missing": list(faults)}


def _called(ref: Any) -> dict[str, str]:
    """The actor that a call went to."""
    actor = getattr(ref, "_generator_ref", ref).task_id().actor_id().hex()
    return {"actor": actor, "name": spawned.get(actor, "an actor")}


def _look_everywhere(nodes: dict[str, dict[str, Any]], faults: list[str], folder: str) -> None:
    for node, answer in look_at_nodes(True, folder, _BOUND_S - 2):
        if isinstance(answer, str):
            faults.append(f"node {node}: {answer}")
        else:
            nodes[node] = answer


def look_at_nodes(stacks: bool, folder: str, deadline_s: float) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(node id, what `processes.look` says there, or why it says nothing) for all nodes of the cluster, this one
    first: it is looked at from here, the others by a task each."""
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in ray.nodes() if node["NodeID"] != here}
    tasks = {_on_node(node).remote(stacks, folder): node for node, facts in others.items() if facts["Alive"]}
    yield here, processes.look(stacks, folder)
    yield from ((node, "it has left the cluster") for node, facts in others.items() if not facts["Alive"])
    end = time.monotonic() + deadline_s
    while tasks:
        done, _ = ray.wait(list(tasks), timeout=max(0.0, end - time.monotonic()))
        if not done:
            break
        node = tasks.pop(done[0])
        try:
            yield node, ray.get(done[0])
        except Exception as error:
            yield node, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    yield from ((node, f"no answer within {deadline_s:.0f} s") for node in tasks.values())


def _on_node(node: str) -> Any:
    """`processes.look` as a task there; it takes no resources, so it also starts where all are taken."""
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(processes.look).options(num_cpus=0, scheduling_strategy=there, max_retries=0)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return file.read().decode(errors="replace").rstrip("\n").rpartition("\n")[2]
    except OSError:
        return ""


def _write(folder: Path, report: dict[str, Any]) -> Path | None:
    folder.mkdir(exist_ok=True)
    if sum(1 for _ in folder.glob("*.json")) >= _MOST:
        return None
    path = folder / f"{report['written'].replace(':', '').partition('+')[0]}-{time.time_ns() % 1000:03d}.json"
    path.with_suffix(".txt").write_text(readable(report), encoding="utf-8")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    temporary.rename(path)
    return path.with_suffix(".txt")


def readable(report: dict[str, Any]) -> str:
    """The report as text, the processes that are waited for first."""
    waited = {call["actor"] for call in report["waits_for"]}
    seen = {actor["actor"] for node in report["nodes"] for actor in node["actors"]}
    lines = [f"{report['phase']}: no answer within {report['deadline_s']:.0f} s", f"since      {report['since']}"]
    lines += [
        f"waits for  {call['name']} ({call['actor'][:12]})"
        + ("" if call["actor"] in seen else ", which has no process: it is gone, or was never started")
        for call in report["waits_for"]
    ]
    lines += [f"last event {json.dumps(report['last_event'])}"]
    lines += [f"last of {name}: {line}" for name, line in report["last_lines"].items() if line]
    lines += [f"NOT SEEN: {fault}" for fault in report["missing"]]
    for node in report["nodes"]:
        lines += ["", f"node {node['host']} ({node['node'][:12]})"]
        lines += [f"  memory {node['memory_free_mib']:,} MiB free of {node['memory_mib']:,}"]
        lines += [f"  disk {name}: {_facts(disk)}" for name, disk in node.get("disks", {}).items()]
        lines += [f"  object store: {_facts(node['object_store'])}"] if node.get("object_store") else []
        for actor in sorted(node["actors"], key=lambda actor: actor["actor"] not in waited):
            lines += _readable_actor(actor, actor["actor"] in waited)
    lines += ["", f"the driver, process {report['driver']['pid']}"]
    for thread, stack in report["driver"]["stacks"].items():
        lines += [f"  thread {thread}", *(f"    {frame}" for frame in stack)]
    return "\n".join(lines) + "\n"


def _readable_actor(actor: dict[str, Any], waited: bool) -> list[str]:
    facts = {key: actor[key] for key in ("state", "busy", "rss_mib", "pss_mib", "gpu_mib")}
    mark = "  <- waited for" if waited else ""
    lines = ["", f"  {actor['name']}, process {actor['pid']}: {_facts(facts)}{mark}"]
    lines += [f"    {frame}" for frame in actor["stack"] or [_SILENT]]
    for child in actor["children"]:
        lines += [f"    below it: {child['pid']} {child['state']}, busy {child['busy']}: {child['command']}"]
        lines += [f"      {frame}" for frame in child["stack"]]
    return lines


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
