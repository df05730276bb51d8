"""One job from start to result, as the judge's side sees it: capped pipes, a status pipe, the zygote's account."""

import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rewards.sandbox.jail.job import STARTED, UNCOMPILABLE
from rewards.sandbox.jail.plain import MAX_CHARS
from rewards.sandbox.limits import Limits
from rewards.sandbox.result import RunResult, Verdict

PYTHON_MODES = ("script", "module", "unit-test")
_CHUNK = 1 << 16
_FULL_PIPE = 32  # chunks; more than the kernel lets a pipe hold
_MAX_CLAIM = MAX_CHARS + 4096
_MAX_CLAIMS = 64 << 20  # bytes of a whole job
_OUT_OF_MEMORY = (
    b"MemoryError",
    b"std::bad_alloc",
    b"heap out of memory",
    b"JavaScript heap",
    b"Array buffer allocation failed",
    b"Cannot allocate memory",
)
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run. `payload`: the program, as a sealed descriptor of the caller."""

    mode: str  # script, module, unit-test, binary or command
    payload: int
    limits: Limits
    stdin: bytes = b""
    argv: list[str] = field(default_factory=list)
    source_name: str = ""  # of a command: the file to make of the payload
    collect: str | None = None  # of a command: the file to bring back
    memory: str = "address-space"  # or "data": for runtimes that reserve far more than they use
    runtime_mb: int = 0  # of memory, on top of the limit
    processes: bool = False


class RunningJob:
    """Made by `Zygote.begin`, served by `drive`. After `done`: `result`, and for commands `collected`."""

    def __init__(
        self,
        control: socket.socket,
        number: int,
        job: Job,
        base_bytes: int,
        on_claim: Callable[[str], None] | None,
    ):
        self.limits = job.limits
        self.wall_s = job.limits.wall
        self.done = False
        self.lost: str | None = None  # why there is no account: the zygote died
        self.collected: int | None = None
        self._control, self._number, self._on_claim = control, number, on_claim
        self._report: dict[str, Any] = {}
        self._output, self._errors, self._claims, self._status = bytearray(), bytearray(), bytearray(), bytearray()
        self._calls = bytearray()
        self._claimed = self._unanswered = 0  # bytes; calls
        self._module = job.mode == "module"
        self._talks_unasked = False  # a module job claimed something that no call had asked for
        self._too_much = self._asked = self._no_more_calls = False
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._calls_pipe: int | None = None
        theirs = {"payload": job.payload}
        try:
            self._begin(job, base_bytes, theirs)
        except BaseException:
            self.drop()
            raise
        finally:
            for name, descriptor in theirs.items():
                if name != "payload":
                    os.close(descriptor)

    def _begin(self, job: Job, base_bytes: int, theirs: dict[str, int]) -> None:
        """Send the job to the zygote, with the descriptors it gets: `theirs`, filled here, closed by the caller."""
        theirs["stdin"] = sealed(job.stdin)
        for name, take in (("status", self._take_status), ("stdout", self._take_output), ("stderr", self._take_errors)):
            theirs[name] = self._reader(take)
        if job.mode in ("module", "unit-test"):
            theirs["claims"] = self._reader(self._take_claims)
            theirs["calls"], self._calls_pipe = os.pipe()
            os.set_blocking(self._calls_pipe, False)
        request = {
            "id": self._number,
            "mode": job.mode,
            "argv": job.argv,
            "source_name": job.source_name,
            "collect": job.collect,
            "descriptors": list(theirs),
            "payload_bytes": os.fstat(job.payload).st_size,
            "wall_s": self.wall_s,
            "cpu_s": self.limits.cpu_s,
            "space_bytes": self.limits.space_mb << 20,
            "files": self.limits.files,
            "threads": self.limits.threads,
            "rlimits": _rlimits(job, base_bytes),
            "policy": _policy(job),
        }
        try:
            socket.send_fds(self._control, [json.dumps({"run": request}).encode()], list(theirs.values()))
        except OSError:
            self.abandon("the zygote was gone")

    def call(self, line: str) -> None:
        """Send one call to a module job."""
        self._unanswered += 1
        self._calls += line.encode() + b"\n"

    def end_calls(self) -> None:
        """No more calls: a module job ends when it has answered those sent."""
        self._no_more_calls = True
        if self._calls_pipe is not None and not self._calls:
            os.close(self._calls_pipe)
            self._calls_pipe = None

    def kill(self) -> None:
        if not self._asked and not self.done:
            self._asked = True
            with suppress(OSError):
                self._control.send(json.dumps({"kill": self._number}).encode())

    def waits(self) -> list[tuple[int, int]]:
        """Descriptors and events to poll for."""
        waits = [(self._control.fileno(), select.POLLIN), *((reader, select.POLLIN) for reader in self._readers)]
        if self._calls and self._calls_pipe is not None:
            waits.append((self._calls_pipe, select.POLLOUT))
        return waits

    def serve(self, descriptor: int) -> None:
        """Handle one descriptor that poll found ready."""
        if descriptor == self._control.fileno():
            self._receive_report()
        elif descriptor == self._calls_pipe:
            self._write_calls()
        elif descriptor in self._readers:
            self._read(descriptor)

    def abandon(self, reason: str) -> None:
        """The zygote is lost: the job is over without an account."""
        self.lost = reason
        self._finish()

    def drop(self) -> None:
        """Nobody waits for this job any more: end it, read nothing."""
        self.kill()
        self._close_pipes()

    @property
    def broke_zygote(self) -> bool:
        """Whether the zygote should not be used again: it died, or could not bring the job up."""
        return self.lost is not None or not self.started

    @property
    def started(self) -> bool:
        """Whether the program's own part had begun; from there on a failure is the program's."""
        return self._status.startswith(STARTED)

    @property
    def result(self) -> RunResult:
        report = self._report
        code = os.waitstatus_to_exitcode(report["status"]) if "status" in report else None
        failure, detail = self._classify(code)
        return RunResult(
            failure=failure,
            detail=detail,
            stdout=bytes(self._output),
            stderr=bytes(self._errors),
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            cpu_s=report.get("cpu_s", 0.0),
            wall_s=report.get("wall_s", 0.0),
            peak_mb=report.get("peak_kb", 0) / 1024,
        )

    def _classify(self, code: int | None) -> tuple[Verdict | None, str]:
        """Internal errors are known by the status pipe alone, which the program never has."""
        report, limits = self._report, self.limits
        if not self.started:
            reason = self._status.decode(errors="replace") or report.get("failed") or self.lost or "it never started"
            return Verdict.IE, f"the jail did not come up: {reason}"
        if self.lost or code is None:
            return Verdict.RE, f"the sandbox around it died: {self.lost or report.get('failed')}"
        if self._status[1:].startswith(UNCOMPILABLE):
            return Verdict.CE, self._status[2:].decode(errors="replace")
        if self._talks_unasked:
            return Verdict.RE, "it answered what nobody had asked"
        if self._too_much:
            return Verdict.OLE, f"more than {limits.stdout_kb} KiB of output"
        if report["killed"] in ("cpu", "wall"):
            used = f"{report['cpu_s']:.1f} s of processor, {report['wall_s']:.1f} s of wall time"
            return Verdict.TLE, f"killed after {used}"
        if report["cpu_s"] > limits.cpu_s or code == -signal.SIGXCPU:
            return Verdict.TLE, f"used {report['cpu_s']:.2f} s of processor time, {limits.cpu_s:g} s are allowed"
        if code == 0:
            return None, ""
        if any(mark in self._errors for mark in _OUT_OF_MEMORY):
            return Verdict.MLE, f"out of memory, {limits.memory_mb} MiB are allowed"
        return Verdict.RE, f"signal {-code}" if code < 0 else f"exit code {code}"

    def _reader(self, take: Callable[[bytes], None]) -> int:
        """A pipe whose read end we serve; returns the write end."""
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self._readers[ours] = take
        return theirs

    def _read(self, descriptor: int) -> bool:
        """Take what is there. Whether more may come at once."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._readers[descriptor](data)
        else:
            del self._readers[descriptor]
            os.close(descriptor)
        return bool(data)

    def _take_status(self, data: bytes) -> None:
        self._status += data[: max(0, 2000 - len(self._status))]

    def _take_output(self, data: bytes) -> None:
        room = (self.limits.stdout_kb << 10) - len(self._output)
        self._output += data[:room]
        if len(data) > room:
            self._stop_flood()

    def _take_errors(self, data: bytes) -> None:
        self._errors += data
        del self._errors[: -(self.limits.stderr_kb << 10)]

    def _take_claims(self, data: bytes) -> None:
        if self._on_claim is None or self._too_much:
            return
        self._claimed += len(data)
        first, *others = data.split(b"\n")
        self._claims += first
        for beginning in others:
            if self._module and not self._unanswered:
                self._talks_unasked = True
                return self._stop_flood()
            self._unanswered -= 1
            self._on_claim(self._claims.decode("ascii", errors="replace"))
            self._claims = bytearray(beginning)
        if len(self._claims) > _MAX_CLAIM or (self._module and self._claimed > _MAX_CLAIMS):
            self._stop_flood()

    def _stop_flood(self) -> None:
        self._too_much = True
        self.kill()

    def _write_calls(self) -> None:
        assert self._calls_pipe is not None
        try:
            written = os.write(self._calls_pipe, self._calls[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:  # the job has closed it
            written = len(self._calls)
        del self._calls[:written]
        if self._no_more_calls:
            self.end_calls()

    def _receive_report(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 1)
        except OSError:
            data, descriptors = b"", []
        report = json.loads(data) if data else None
        if report is not None and report.get("done") != self._number:
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if descriptors:
            self.collected = descriptors[0]
        if report is None:
            self.lost = "the zygote died"
        else:
            self._report = report
        self._finish()

    def _finish(self) -> None:
        """All writers are dead: what the pipes hold is all there will be."""
        for reader in list(self._readers):
            for _ in range(_FULL_PIPE):
                if reader not in self._readers or not self._read(reader):
                    break
        self._close_pipes()
        self.done = True

    def _close_pipes(self) -> None:
        while self._readers:
            os.close(self._readers.popitem()[0])
        if self._calls_pipe is not None:
            os.close(self._calls_pipe)
            self._calls_pipe = None


def sealed(data: bytes) -> int:
    """Bytes as a descriptor that others can read but nobody can change."""
    descriptor = os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _rlimits(job: Job, base_bytes: int) -> dict[str, int]:
    limits = job.limits
    memory = (limits.memory_mb + job.runtime_mb) << 20
    if job.mode in PYTHON_MODES:
        memory += base_bytes  # the interpreter and its warm imports are ours
    return {
        "AS" if job.memory == "address-space" else "DATA": memory,
        "CPU": int(limits.cpu_s) + 2,  # a net below the zygote's own watch, which is exact
        "FSIZE": limits.file_mb << 20,
        "NOFILE": limits.open_files,
        # Also the size of each thread's stack, and such runtimes start a handful of threads.
        "STACK": (limits.stack_mb if job.memory == "address-space" else min(limits.stack_mb, 8)) << 20,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
        "RTPRIO": 0,
    }


def _policy(job: Job) -> dict[str, Any]:
    return {
        "processes": job.processes,
        "execute": {"binary": "descriptor", "command": "path"}.get(job.mode, "no"),
        "shared_memory": job.memory == "address-space",
    }
