"""What a report of a stall (cluster.stalls) points to: rules over states, stacks and resources, most certain first.

Every rule is a function of the report that yields causes. A rule that knows less comes later, and what explains a stall
for certain does not hide the rest: a full disk may be why a process hangs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_BUSY = 0.2  # processors above which a process computes
_FULL_SHARE, _FULL_GIB = 0.01, 1.0  # of a disk that is left
_STORE_FULL, _MEMORY_LOW = 0.95, 0.03
_FAULTHANDLER = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
_PY_SPY = re.compile(r"(?P<function>\S+) \((?P<file>.+):(?P<line>\d+)\)$")
_ROOMS = {"rl", "rollouts", "training", "rewards", "models", "distill", "sft", "fp8", "data"}
_ENGINES = {"TransformersGenerator", "VLLMGenerator"}
_DEADLINES = {"RewardWorker": "reward_workers.deadline_s"} | dict.fromkeys(_ENGINES, "generator.deadline_s")


@dataclass(frozen=True, slots=True)
class Cause:
    says: str  # what was seen, and what it means
    do: str  # how to mend it


class Frame(NamedTuple):
    file: str
    line: int
    function: str

    @property
    def room(self) -> str:
        """The package of ours that it lies in, "" outside."""
        return next((part for part in self.file.split("/")[-3:-1] if part in _ROOMS), "")

    def __str__(self) -> str:
        return f"{self.function} ({'/'.join(self.file.split('/')[-2:])}:{self.line})"


def causes(report: Mapping[str, Any]) -> list[Cause]:
    """Likely causes of a stall, most certain first; never empty."""
    found = [cause for rule in _RULES for cause in rule(report)]
    return found or [
        Cause("nothing in the report stands out", "read its .txt: stacks of the process waited for, then of the driver")
    ]


def awaited(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The processes that were waited for, of those that the report saw."""
    actors = {call["actor"] for call in report["waits_for"]}
    return [actor for actor in _all_actors(report) if actor["actor"] in actors]


def _all_actors(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for node in report["nodes"]:
        yield from (actor | {"host": node["host"]} for actor in node["actors"])


def working_thread(stack: Sequence[str]) -> list[Frame] | None:
    """Frames of the thread that carries out a call of the actor, the innermost first; None where it carries out none.

    stack: lines as faulthandler or py-spy write them.
    """
    threads: list[list[Frame]] = [[]]
    for line in stack:
        if match := _FAULTHANDLER.match(line) or _PY_SPY.match(line):
            threads[-1].append(Frame(match["file"], int(match["line"]), match["function"].strip()))
        elif threads[-1]:
            threads.append([])
    for frames in threads:
        if any(f.file.endswith("cluster/actors.py") and f.function in ("call", "iterate", "__init__") for f in frames):
            return frames
    return None


def _name(actor: Mapping[str, Any]) -> str:
    return f"{actor['name']} (process {actor['pid']} on {actor['host']})"


def _where(frames: Sequence[Frame]) -> str:
    """The innermost frame, and the innermost one of ours when that is another."""
    ours = next((frame for frame in frames if frame.room), None)
    return str(frames[0]) if ours in (None, frames[0]) else f"{frames[0]}, called from {ours}"


def _unseen(report: Mapping[str, Any]) -> Iterator[Cause]:
    for fault in report["missing"]:
        yield Cause(f"a part of the cluster does not answer: {fault}", "look at that node, and at the network to it")
    seen = {actor["actor"] for actor in awaited(report)}
    lost = Counter(call["name"] for call in report["waits_for"] if call["actor"] not in seen)
    for name, count in lost.items():
        yield Cause(
            f"{count} {name} that was waited for has no process: it never started, or it has ended",
            "it may wait for cores or GPUs that others hold (`ray status`), or its node is gone",
        )


def _halted(report: Mapping[str, Any]) -> Iterator[Cause]:
    for actor in _all_actors(report):
        if actor["state"] in ("stopped", "tracing-stop"):
            yield Cause(f"{_name(actor)} is stopped by a signal or a debugger", f"kill -CONT {actor['pid']}")
        elif actor["state"] == "disk-sleep":
            yield Cause(
                f"{_name(actor)} waits in the kernel for a disk, a network file system or a driver",
                "look at `dmesg`, and at the file system of the run folder and of the checkpoints",
            )


def _resources(report: Mapping[str, Any]) -> Iterator[Cause]:
    for node in report["nodes"]:
        for disk in node.get("disks", {}).values():
            if "error" in disk:
                yield Cause(f"{node['host']} cannot read {disk['path']}: {disk['error']}", "mount it there")
            elif disk["free_gib"] < min(_FULL_GIB, _FULL_SHARE * disk["total_gib"]):
                left = f"{disk['free_gib']} of {disk['total_gib']} GiB free"
                yield Cause(f"the disk of {disk['path']} on {node['host']} is full: {left}", "free some of it")
        store = node.get("object_store") or {}
        if store and store["used_mib"] > _STORE_FULL * store["size_mib"]:
            yield Cause(
                f"Ray's object store on {node['host']} is full: {store['used_mib']:.0f} of {store['size_mib']:.0f} MiB",
                "start Ray with a larger one (--object-store-memory), or lower generator.sync.bucket_mib and "
                "questions_per_step",
            )
        if node["memory_free_mib"] < _MEMORY_LOW * node["memory_mib"]:
            left = f"{node['memory_free_mib']} of {node['memory_mib']} MiB free"
            yield Cause(
                f"{node['host']} has no memory left ({left}): processes crawl or are about to be killed",
                "lower generator.max_slots and trainer.row_tokens, or set cluster.memory_limit_gib to see which grows",
            )


def _collective(frames: Sequence[Frame]) -> str:
    """The collective in which a thread is, "" where it is in none."""
    inside = [f for f in frames if "torch/distributed/" in f.file and not f.file.endswith("c10d_logger.py")]
    return inside[-1].function if inside else ""


def _collectives(report: Mapping[str, Any]) -> Iterator[Cause]:
    """Ranks of a group that are not all in the same collective: the one that is elsewhere holds up the rest."""
    names = {actor["name"] for actor in awaited(report)}
    groups: dict[str, list[tuple[dict[str, Any], list[Frame] | None]]] = {}
    for actor in _all_actors(report):
        if actor["name"] in names:
            groups.setdefault(actor["name"], []).append((actor, working_thread(actor["stack"])))
    for members in groups.values():
        inside = [(actor, kind) for actor, frames in members if frames and (kind := _collective(frames))]
        outside = [(actor, frames) for actor, frames in members if not (frames and _collective(frames))]
        if not inside:
            continue
        kinds = sorted({kind for _, kind in inside})
        for actor, frames in outside:
            where = f"which is at {_where(frames)}" if frames else "which carries out no call"
            waiting = f"{len(inside)} of {len(members)} processes wait in {' and '.join(kinds)}"
            yield Cause(
                f"{waiting} for {_name(actor)}, {where}",
                "mend what that one does; the others go on by themselves",
            )
        if not outside and len(kinds) > 1:
            yield Cause(
                f"ranks are in different collectives: {', '.join(f'{_name(a)} in {kind}' for a, kind in inside)}",
                "this is a fault of the program: ranks took different branches; the stacks say where",
            )
        elif not outside:
            yield Cause(
                f"all {len(inside)} processes there are wait in {kinds[0]}: one is missing, or the network is stuck",
                "check that all ranks run, and the interfaces (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); "
                "NCCL_DEBUG=INFO says more",
            )


def _each(report: Mapping[str, Any]) -> Iterator[Cause]:
    for actor in awaited(report):
        frames = working_thread(actor["stack"])
        if frames is None:
            known = "carries out no call" if actor["stack"] else "shows no stacks"
            yield Cause(f"{_name(actor)} {known}: the call has not arrived, or its answer is lost", "run it again")
        elif not _collective(frames):
            yield _of_one(actor, frames)


def _of_one(actor: Mapping[str, Any], frames: Sequence[Frame]) -> Cause:
    family = [actor, *actor["children"]]
    busy = sum(member["busy"] for member in family)
    deadline = _DEADLINES.get(actor["name"], "trainer.deadline_s")
    where, computes = _where(frames), f"and computes (it uses {busy:.1f} processors)"
    if busy >= _BUSY:
        return Cause(
            f"{_name(actor)} is at {where} {computes}: it is slow, or in an endless loop",
            f"raise {deadline} if that much work is expected; else look at the frame",
        )
    if actor["name"] == "RewardWorker" or any(frame.room == "rewards" for frame in frames):
        return Cause(
            f"{_name(actor)} hangs at {where}: a grader, a sandboxed program or a judge does not answer",
            "r1 sandbox doctor and r1 reward test say what works here; a reward should have a time limit of its own",
        )
    if actor["name"] in _ENGINES or any(frame.room == "rollouts" for frame in frames):
        return Cause(
            f"{_name(actor)} makes no progress at {where} and uses no processor: its engine hangs",
            "run it again; if it hangs again, try the other engine (generator.engine) or fewer generator.max_slots",
        )
    return Cause(f"{_name(actor)} hangs at {where} and uses no processor", "look at what that frame waits for")


_RULES = (_unseen, _halted, _resources, _collectives, _each)
