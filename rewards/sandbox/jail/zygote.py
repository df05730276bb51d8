"""The warm parent of jobs: builds the jail once, imports what programs import, then forks one job at a time.

It never reads a program, a test or an answer: what it has read, every later job has in its memory. It gets descriptors
and hands them on. Started by `rewards.sandbox.zygote_client`; talks over one socket (packets of JSON and descriptors).
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from typing import Any

from rewards.sandbox.jail import kernel, landlock, mounts, namespaces
from rewards.sandbox.jail.job import run_job, send_listener
from rewards.sandbox.jail.job_folder import JobFolder, empty
from rewards.sandbox.jail.watch import Watch

MAX_MESSAGE = 60_000
_FILES_WITHOUT_MOUNT = 64
_FINITE_PROCESSES = 1 << 20  # of the whole user: there threads are counted by the watch
_SHORTEST_WAIT_S = 0.02  # shortest sleep between two looks at a job's processor time


def main() -> None:
    """Entry point of the process; arguments: the setting as JSON, the descriptor of the socket."""
    setting = json.loads(sys.argv[1])
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    try:
        zygote = Zygote(control, setting)
    except BaseException as error:
        with suppress(OSError):
            control.send(json.dumps({"unavailable": f"{type(error).__name__}: {error}"[:2000]}).encode())
        os._exit(1)
    zygote.serve()


class Zygote:
    """Builds its jail when made. Raises OSError naming the call that failed."""

    def __init__(self, control: socket.socket, setting: dict[str, Any]):
        self.control = control
        self._next: tuple[dict[str, Any], list[int]] | None = None  # a job that came while another ran
        self.in_namespaces = setting["tier"] == "ns"
        self.unsafe = setting["tier"] == "unsafe-none"
        self.own_user = self.in_namespaces or setting["uid"] is not None  # RLIMIT_NPROC then counts the job alone
        # Of the host: for the counts of the tier without namespaces. No job gets it.
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not self.unsafe:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if self.in_namespaces:
            namespaces.enter(setting["shown"], setting["uid"])
            self.folder = JobFolder(mounts.JOB_FOLDER, mounted=True)
            self.input = mounts.mount_input()
        else:
            if setting["uid"] is not None:
                namespaces.become(setting["uid"])
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            os.environ["TMPDIR"] = setting["folder"]
            self.folder = JobFolder(setting["folder"], mounted=False)
        sys.path[:] = [path for path in sys.path if path != setting["root"]] + setting["package_paths"]
        for module in setting["preload"]:
            importlib.import_module(module)
        self.rulesets = {} if self.unsafe else self._make_rulesets(setting)
        base_bytes = _address_space(self.proc)
        if self.in_namespaces:
            os.close(self.proc)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        gc.collect()
        gc.freeze()
        self._send({"ready": True, "base_bytes": base_bytes})

    def serve(self) -> None:
        """Run jobs until the other side closes the socket."""
        while True:
            message, descriptors = self._next or self._receive()
            self._next = None
            if message is None:
                self._leave()
            if message and "run" in message:
                self._run(message["run"], descriptors)

    def _make_rulesets(self, setting: dict[str, Any]) -> dict[str, int]:
        if landlock.version() == 0:
            if not self.in_namespaces:
                raise OSError("Landlock is not available in this kernel")
            return {}
        shown = [*setting["shown"], *setting["package_paths"]]
        devices = dict.fromkeys(("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"), landlock.DEVICE)
        # A rule holds for what is mounted below its folder, too, so it outlives the mounts of single jobs.
        own = {"/box" if self.in_namespaces else self.folder.path: landlock.WRITE}
        return {
            "read": landlock.make_ruleset({**dict.fromkeys(shown, landlock.READ), **devices, **own}),
            "execute": landlock.make_ruleset({**dict.fromkeys(shown, landlock.READ_AND_RUN), **devices, **own}),
        }

    def _run(self, request: dict[str, Any], descriptors: list[int]) -> None:
        named = dict(zip(request["descriptors"], descriptors, strict=True))
        self._fit_limits(request)
        watch = None
        try:
            self.folder.prepare(request["space_bytes"], request["files"])
            if self.in_namespaces:
                _copy(named["stdin"], self.input)
            receiver, sender = (None, None) if self.in_namespaces or self.unsafe else socket.socketpair()
            started = time.monotonic()
            child = os.fork()
            if child == 0:
                self._become_job(request, named, sender)
            for descriptor in named.values():
                os.close(descriptor)
            if receiver is not None and sender is not None:
                sender.close()
                watch = self._receive_listener(receiver, child, request)
        except OSError as error:
            self._send({"done": request["id"], "failed": f"{type(error).__name__}: {error}"})
            return
        self._send(self._supervise(child, started, request, watch), collect=request.get("collect"))

    def _fit_limits(self, request: dict[str, Any]) -> None:
        """The limits that depend on the tier."""
        limits = request["rlimits"]
        limits["NPROC"] = request["threads"] + 2 if self.own_user else _FINITE_PROCESSES
        if not self.in_namespaces and not self.unsafe:  # no mount caps the folder: few files, and small ones
            request["files"] = min(request["files"], _FILES_WITHOUT_MOUNT)
            limits["FSIZE"] = min(limits["FSIZE"], request["space_bytes"] // request["files"])

    def _become_job(self, request: dict[str, Any], named: dict[str, int], sender: socket.socket | None) -> None:
        os.chdir(self.folder.path)
        if self.unsafe:
            request["policy"] = None
        kind = "execute" if request["mode"] in ("binary", "command") else "read"
        hand_over = None if sender is None else lambda listener: send_listener(sender, listener)
        run_job(request, named, self.rulesets.get(kind, -1), hand_over)

    def _receive_listener(self, receiver: socket.socket, child: int, request: dict[str, Any]) -> Watch | None:
        with receiver:
            _, listeners, _, _ = socket.recv_fds(receiver, 1, 1)
        if not listeners:  # the job failed before its filters; its status pipe says why
            return None
        return Watch(listeners[0], child, files=request["files"], threads=request["threads"], proc=self.proc)

    def _supervise(self, child: int, started: float, request: dict[str, Any], watch: Watch | None) -> dict[str, Any]:
        """Wait for the end of the job, or bring it about: processor time, wall time, or asked by the other side."""
        killed = None
        process = os.pidfd_open(child)
        poll = select.poll()
        for descriptor in (process, self.control.fileno(), *([watch.listener] if watch else [])):
            poll.register(descriptor, select.POLLIN)
        deadline = started + request["wall_s"]
        while True:
            left = min(deadline - time.monotonic(), _processor_time_left(child, request["cpu_s"]))
            ready = dict(poll.poll(1000 * max(_SHORTEST_WAIT_S, left)))
            if process in ready:
                break
            if watch and watch.listener in ready:
                if ready[watch.listener] & select.POLLIN:
                    watch.answer()
                else:
                    poll.unregister(watch.listener)
            if self.control.fileno() in ready and self._asked_to_kill(request["id"]):
                killed = killed or "asked"
            elif time.monotonic() >= deadline:
                killed = killed or "wall"
            elif _processor_time_left(child, request["cpu_s"]) <= 0:
                killed = killed or "cpu"
            if killed:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
        if watch:
            os.close(watch.listener)
        wall_s = time.monotonic() - started
        return {"done": request["id"], "killed": killed, "wall_s": wall_s, **self._reap(child)}

    def _reap(self, child: int) -> dict[str, Any]:
        """Collect the job and whatever it left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # jobs cannot leave their group: setsid and setpgid are refused
        _, status, usage = os.wait4(child, 0)
        if self.in_namespaces:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all but ourselves: this namespace holds one job at a time
        cpu_s, peak_kb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss
        with suppress(ChildProcessError):
            while True:
                _, _, other = os.wait4(-1, 0)
                cpu_s += other.ru_utime + other.ru_stime
                peak_kb = max(peak_kb, other.ru_maxrss)
        return {"status": status, "cpu_s": cpu_s, "peak_kb": peak_kb}

    def _asked_to_kill(self, job: int) -> bool:
        message, descriptors = self._receive()
        if message is not None and "run" in message:  # the other side has given the running job up
            self._next = message, descriptors
            return True
        return message is None or message.get("kill") == job  # a late request may mean the job before

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 8)
        return (json.loads(data) if data else None), descriptors

    def _send(self, message: dict[str, Any], collect: str | None = None) -> None:
        data = json.dumps(message).encode()
        collected = self._open_result(collect) if collect else None
        try:
            if collected is None:
                self.control.send(data)
            else:
                socket.send_fds(self.control, [data], [collected])
        except OSError:
            self._leave()
        finally:
            if collected is not None:
                os.close(collected)

    def _leave(self) -> None:
        """The other side is gone, perhaps killed: leave nothing behind."""
        if not self.in_namespaces:
            with suppress(OSError):
                empty(self.folder.path)
                os.rmdir(self.folder.path)
        os._exit(0)

    def _open_result(self, name: str) -> int | None:
        """The file a compiler left, never through a link, as a descriptor of a copy that nobody can change."""
        try:
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.folder.descriptor())
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                return None
            copy = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            while chunk := os.read(source, 1 << 20):
                os.write(copy, chunk)
            return copy
        finally:
            os.close(source)


def _copy(source: int, target: int) -> None:
    """Make the target file the same as the source. The kernel copies: nothing of it is in our memory."""
    os.ftruncate(target, 0)
    os.lseek(target, 0, os.SEEK_SET)
    done, size = 0, os.fstat(source).st_size
    while done < size:
        done += os.sendfile(target, source, done, size - done)


def _processor_time_left(process: int, limit_s: float) -> float:
    """Seconds until this process can have used up its limit, were all processors to work for it."""
    try:
        used = time.clock_gettime((~process << 3) | 2)  # CPUCLOCK_SCHED of another process
    except OSError:
        return limit_s
    left = limit_s - used
    return left / (os.cpu_count() or 1) if left > 0 else left


def _address_space(proc: int) -> int:
    """Bytes of address space of this process."""
    with open(os.open("self/statm", os.O_RDONLY, dir_fd=proc)) as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
