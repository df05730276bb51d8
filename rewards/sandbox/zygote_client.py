"""Our side of one zygote: start it, give it jobs, end it. Waits with poll only: no signals, works in any thread."""

import json
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.sandbox import interpreter, users
from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.jail.job_folder import empty
from rewards.sandbox.running_job import Job, RunningJob

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = "import sys; sys.path[0] = {root!r}; from rewards.sandbox.jail.zygote import main; main()"
_START_DEADLINE_S = 120.0  # warm imports take seconds on a busy machine
_GRACE_S = 60.0  # after a job's wall limit the zygote must have answered

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # jobs forked from one zygote share it anyway; fixed, runs repeat
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # each further one, made by a thread, reserves 64 MiB of the address space
    "OPENSSL_CONF": "/dev/null",  # node ends where it may not read the real one
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a zygote."""

    tier: str  # ns, landlock or unsafe-none
    warm: tuple[str, ...] = ()  # packages to import before the first job
    shown: tuple[str, ...] = ()  # more paths to show read-only: tool chains
    environment: dict[str, str] = field(default_factory=dict)


class Zygote:
    """One warm process; one job at a time. Raises SandboxUnavailable when it cannot build its jail."""

    def __init__(self, launch: Launch):
        self.jobs = 0
        self.owner = os.getpid()
        self._folder: str | None = None
        self._uid = users.take_user()
        try:
            self._start(launch)
        except OSError as error:
            self.close()
            raise SandboxUnavailable(f"the zygote could not be started: {error}") from None
        except BaseException:
            self.close()
            raise

    def begin(self, job: Job, on_claim: Callable[[str], None] | None = None) -> RunningJob:
        """Start a job. `on_claim` gets each line that a job claims."""
        self.jobs += 1
        return RunningJob(self.control, self.jobs, job, self.base_bytes, on_claim)

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it from another thread: who is using it sees it die. That one must still `close` it."""
        control = getattr(self, "control", None)
        if control is not None and self.owner == os.getpid():  # a fork must not end the original's
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the zygote and its job, and remove its folder."""
        process, self.process = getattr(self, "process", None), None
        control = getattr(self, "control", None)
        if control is not None:
            control.close()
        if self.owner != os.getpid():  # after a fork the process belongs to the original
            return
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # it leaves by itself when the socket closes
            process.kill()
            process.wait()
        if self._folder is not None:
            with suppress(OSError):  # the zygote has removed it, unless it was killed
                empty(self._folder)
                os.rmdir(self._folder)
        users.give_back(self._uid)
        self._uid = None

    def _start(self, launch: Launch) -> None:
        setting = self._setting(launch)
        python = setting.pop("executable")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [python, "-s", "-S", "-B", "-c", _BOOT.format(root=_ROOT), json.dumps(setting), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**ENVIRONMENT, **launch.environment},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for us
            )
        answer = self._first_message()
        if not answer.get("ready"):
            raise SandboxUnavailable(answer.get("unavailable", "the zygote died at its start"))
        self.base_bytes = int(answer["base_bytes"])

    def _setting(self, launch: Launch) -> dict[str, Any]:
        # In namespaces the tree is built as root, who reaches every interpreter.
        python = interpreter.choose_interpreter(self._uid if launch.tier == "landlock" else None)
        search, shown = interpreter.package_paths(launch.warm)
        submodules = [name for package in launch.warm for name in interpreter.SUBMODULES.get(package, ())]
        if launch.tier != "ns":
            self._folder = tempfile.mkdtemp(
                prefix=f"r1-sandbox-{os.getpid()}-", dir="/tmp" if os.access("/tmp", os.W_OK) else None
            )
            if self._uid is not None:
                os.chown(self._folder, self._uid, self._uid)
        return {
            "executable": python.executable,
            "tier": launch.tier,
            "uid": self._uid,
            "root": _ROOT,
            "shown": [*python.library, *interpreter.LIBRARIES, *shown, *launch.shown],
            "package_paths": search,
            "preload": [*interpreter.STANDARD_MODULES, *launch.warm, *submodules],
            "folder": self._folder,
        }

    def _first_message(self) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(1000 * _START_DEADLINE_S):
            return {"unavailable": f"the zygote was not ready within {_START_DEADLINE_S:.0f} s"}
        data = self.control.recv(65536)
        return json.loads(data) if data else {}


def drive(jobs: Sequence[RunningJob], stop: Callable[[], bool] = lambda: False) -> None:
    """Serve the pipes of jobs until all have ended; when `stop()` turns true, the rest is killed.

    A zygote that does not answer in time counts as dead, and so does one whose socket closes. Left by an exception, the
    jobs are dropped: their zygotes must not be used again.
    """
    try:
        _drive(jobs, stop)
    except BaseException:
        for job in jobs:
            job.drop()
        raise


def _drive(jobs: Sequence[RunningJob], stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + max(job.wall_s for job in jobs) + _GRACE_S
    while running := [job for job in jobs if not job.done]:
        poll = select.poll()
        owners: dict[int, RunningJob] = {}
        for job in running:
            for descriptor, events in job.waits():
                poll.register(descriptor, events)
                owners[descriptor] = job
        for descriptor, _ in poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            if not owners[descriptor].done:
                owners[descriptor].serve(descriptor)
        if time.monotonic() >= deadline:
            for job in running:
                job.abandon("the zygote did not answer in time")
        if stop():
            for job in running:
                job.kill()
