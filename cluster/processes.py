"""What the actors of a run are doing on this node: their stacks, memory and processors.

An actor leaves a card when it starts, in Ray's own folder on its node, and a file into which faulthandler writes the
stacks of all its threads when it gets SIGUSR2. That works while the process hangs in C code, and takes neither its GIL
nor py-spy nor a privilege. py-spy, where it is installed and permitted, shows the Python processes below an actor.
"""

import faulthandler
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

_SIGNAL = signal.SIGUSR2  # SIGUSR1 is used by others, vLLM among them
_WATCHED_S = 0.5  # within which processor time is counted, and a signalled process writes its stacks
_PY_SPY_S, _NVIDIA_SMI_S, _NODE_STATS_S = 5.0, 5.0, 3.0  # at most, each in all
_CHILDREN = 8  # of one actor that are described; a code judge may have dozens
_MIB, _GIB = 2**20, 2**30

_stacks: Any = None  # the open file of this process, for faulthandler


def register(name: str, actor: str) -> None:
    """To be called by an actor as it starts. An actor that cannot leave a card works all the same, unseen."""
    global _stacks
    with suppress(OSError, RuntimeError, ValueError):
        folder = job_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _stacks = (folder / f"{os.getpid()}.stacks").open("w")
        faulthandler.register(_SIGNAL, file=_stacks, all_threads=True, chain=False)
        node = ray.get_runtime_context().get_node_id()
        card = {"name": name, "actor": actor, "node": node, "pid": os.getpid(), "started": time.time()}
        temporary = folder / f".{os.getpid()}"
        temporary.write_text(json.dumps(card))
        temporary.rename(folder / f"{os.getpid()}.json")


def job_folder() -> Path:
    """For what the actors of this job write on this node: below Ray's session, which Ray removes with the cluster."""
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name() / "r1" / context.get_job_id()


def look(stacks: bool, run_folder: str) -> dict[str, Any]:
    """The job's actors on this node and the node itself. Bounded by some ten seconds, unless a file system hangs.

    stacks: with the stacks of every process, processor use and disks; else memory alone, which is cheap.
    Sizes are in MiB, `busy` in processors (1.0 is one core), times in seconds since the epoch.
    """
    import psutil

    found = list(_actors(psutil))
    on_gpus = _gpu_memory()
    family = _families([process for _, process in found])
    if not stacks:
        return _node(psutil) | {"actors": [card | memory(family[process.pid], on_gpus) for card, process in found]}
    asked = {process.pid: _ask_for_stacks(process.pid) for _, process in found}
    busy = _busy([member for members in family.values() for member in members])
    actors, until = [], time.monotonic() + _PY_SPY_S
    for card, process in found:
        stack = _answer(asked[process.pid]) or _py_spy(process.pid, until)
        below = [_described(child, busy, until) for child in family[process.pid][1 : 1 + _CHILDREN]]
        sizes = memory(family[process.pid], on_gpus)
        actors.append(card | _state(process, busy) | sizes | {"stack": stack, "children": below})
    disks = {name: _disk(folder) for name, folder in _folders(run_folder).items()}
    return _node(psutil) | {"disks": disks, "object_store": _own_object_store(), "actors": actors}


def memory(family: Sequence[Any], on_gpus: Mapping[int, float]) -> dict[str, Any]:
    """Memory of a process and those below it: resident, and proportional (a page that n processes share counts as
    1/n in each), which adds up over processes."""
    rss = pss = gpu = 0.0
    for member in family:
        with suppress(Exception):  # it has ended, or is not ours to read
            rss += member.memory_info().rss / _MIB
            pss += _proportional(member) / _MIB
            gpu += on_gpus.get(member.pid, 0.0)
    return {"rss_mib": round(rss, 1), "pss_mib": round(pss, 1), "gpu_mib": round(gpu, 1)}


def _proportional(process: Any) -> float:
    """Bytes; the kernel adds them up (smaps_rollup), which takes some 25 ms per GiB."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return process.memory_info().rss


def own_stacks() -> dict[str, list[str]]:
    """Of this process: thread name -> frames, the most recent first, as faulthandler writes them."""
    import threading

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): list(_frames(frame))
        for ident, frame in sys._current_frames().items()  # pyright: ignore[reportPrivateUsage]
    }


def _frames(frame: Any) -> Iterator[str]:
    while frame is not None:
        yield f'File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}'
        frame = frame.f_back


def _actors(psutil: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Card and process of every actor that lives here."""
    here = ray.get_runtime_context().get_node_id()
    folder = job_folder()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        with suppress(OSError, ValueError, psutil.Error):
            card = json.loads(path.read_text())
            process = psutil.Process(card["pid"])
            if card["node"] == here and process.create_time() <= card["started"]:  # else the number is another's now
                yield card, process


def _ask_for_stacks(pid: int) -> tuple[Path, int] | None:
    """Where its stacks will be, and after how many bytes. None where the signal would end the process."""
    path = job_folder() / f"{pid}.stacks"
    with suppress(OSError):
        if _heeds(pid):
            size = path.stat().st_size
            os.kill(pid, _SIGNAL)
            return path, size
    return None


def _heeds(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # not Linux: the card says that it has registered
        return True
    caught = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (_SIGNAL - 1) & 1)


def _answer(asked: tuple[Path, int] | None) -> list[str]:
    if asked is None:
        return []
    path, before = asked
    with path.open("rb") as file:
        file.seek(before)
        return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _py_spy(pid: int, until: float) -> list[str]:
    """Stacks by py-spy; [] where it is missing, forbidden, or not done at `until` (monotonic seconds)."""
    program = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    left = until - time.monotonic()
    if program is None or left <= 0:
        return []
    with suppress(OSError, subprocess.SubprocessError):
        command = [program, "dump", "--nonblocking", "--pid", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return []


def _families(processes: Sequence[Any]) -> dict[int, list[Any]]:
    """Process id -> the process and all below it. One walk over the system's processes for all of them."""
    import psutil

    below: dict[int, list[Any]] = {}
    for process in psutil.process_iter(["ppid"]):
        below.setdefault(process.info["ppid"], []).append(process)
    families = {process.pid: [process] for process in processes}
    for family in families.values():
        for member in family:  # grows while it is walked
            family += below.get(member.pid, [])
    return families


def _busy(processes: Sequence[Any]) -> dict[int, float]:
    """Processors that each process uses, measured over half a second."""
    before, since = {p.pid: _processor_time(p) for p in processes}, time.monotonic()
    time.sleep(_WATCHED_S)
    passed = time.monotonic() - since
    return {p.pid: round(max(0.0, _processor_time(p) - before[p.pid]) / passed, 2) for p in processes}


def _processor_time(process: Any) -> float:
    with suppress(Exception):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _state(process: Any, busy: Mapping[int, float]) -> dict[str, Any]:
    state = "gone"
    with suppress(Exception):
        state = process.status()  # running, sleeping, disk-sleep, stopped, zombie
    return {"state": state, "busy": busy.get(process.pid, 0.0)}


def _described(child: Any, busy: Mapping[int, float], until: float) -> dict[str, Any]:
    command = ""
    with suppress(Exception):
        command = " ".join(child.cmdline())[:200]
    stack = _py_spy(child.pid, until) if "python" in command or "VLLM" in command else []
    return {"pid": child.pid, "command": command, **_state(child, busy), "stack": stack}


def _node(psutil: Any) -> dict[str, Any]:
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit, used = _control_group()
    if limit and limit < total:
        total, free = limit, min(free, limit - used)
    node = ray.get_runtime_context().get_node_id()
    sizes = {"memory_mib": round(total / _MIB), "memory_free_mib": round(free / _MIB)}
    return {"node": node, "host": socket.gethostname(), **sizes}


def _control_group() -> tuple[int, int]:
    """(limit, use) in bytes of the container that this is, (0, 0) where there is none."""
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        return int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
    return 0, 0


def _folders(run_folder: str) -> dict[str, str]:
    return {"run": run_folder, "ray": ray.get_runtime_context().get_temp_dir()}


def _disk(folder: str) -> dict[str, Any]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return {"path": folder, "error": str(error)}
    return {"path": folder, "free_gib": round(usage.free / _GIB, 2), "total_gib": round(usage.total / _GIB, 2)}


def _own_object_store() -> dict[str, float]:
    here = ray.get_runtime_context().get_node_id()
    return object_store(next(node for node in ray.nodes() if node["NodeID"] == here))


def object_store(node: Mapping[str, Any]) -> dict[str, float]:
    """Sizes in MiB, {} where this version of Ray does not tell: there is no public way to ask. `node`: as in
    ray.nodes()."""
    with suppress(Exception):
        from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

        from ray._private.grpc_utils import init_grpc_channel  # isort: skip

        channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        request = getattr(node_manager_pb2, "GetNodeStatsRequest")(include_memory_info=False)  # noqa: B009, it has no types
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        told = stub.GetNodeStats(request, timeout=_NODE_STATS_S).store_stats
        sizes = (told.object_store_bytes_used, told.object_store_bytes_avail, told.spilled_bytes_total)
        names = ("used_mib", "size_mib", "spilled_mib")
        return {name: round(size / _MIB, 1) for name, size in zip(names, sizes, strict=True)}
    return {}


def _gpu_memory() -> dict[int, float]:
    """Process id -> MiB it has on GPUs, as nvidia-smi tells; {} where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    used: dict[int, float] = {}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
        for line in done.stdout.splitlines():
            with suppress(ValueError):
                pid, mib = line.split(",")
                used[int(pid)] = used.get(int(pid), 0.0) + float(mib)
    return used
