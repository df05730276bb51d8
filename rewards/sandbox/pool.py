"""A pool of warm jails. `Sandbox` runs programs in it; safe to share between threads, holds no thread itself."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rewards.sandbox.errors import SandboxError, SandboxUnavailable
from rewards.sandbox.languages import find_language, shown_paths, tool_path
from rewards.sandbox.limits import COMPILE_LIMITS, Limits
from rewards.sandbox.result import RunResult, Verdict
from rewards.sandbox.running_job import Job, RunningJob, sealed
from rewards.sandbox.tiers import UNSAFE, choose_tier
from rewards.sandbox.zygote_client import Launch, Zygote, drive

JOBS_PER_ZYGOTE = 2000  # then a fresh one, against slow growth
_ATTEMPTS = 3
_CLOSED = "The sandbox is closed; make a new one."
_STARVED = 0.2  # share of the processor limit below which a wall-time kill may be the machine's load


@dataclass(frozen=True, slots=True)
class Program:
    """What a model wrote."""

    language: str
    source: str


class Compiled:
    """A program ready to run many times. Close it, or use it in a `with` block."""

    def __init__(self, program: Program, payload: int, failure: RunResult | None = None):
        self.program, self.payload, self.failure = program, payload, failure

    def close(self) -> None:
        if self.payload >= 0:
            os.close(self.payload)
            self.payload = -1

    def __enter__(self) -> "Compiled":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Slot:
    """Two zygotes, made when first needed: programs of the model run in one, code of the tests in the other.

    So that nothing a test knows was ever in a process whose forks run a model's program.
    """

    def __init__(self, launch: Launch):
        self._launch = launch
        self._zygotes: dict[bool, Zygote] = {}
        self._stopped = False

    def zygote(self, trusted: bool = False) -> Zygote:
        """Raises SandboxUnavailable when none can be made, SandboxError after `stop`."""
        zygote = self._zygotes.get(trusted)
        if zygote is not None and (not zygote.alive or zygote.jobs >= JOBS_PER_ZYGOTE):
            self.discard(trusted)
            zygote = None
        if zygote is None:
            zygote = self._zygotes[trusted] = Zygote(self._launch)
        if self._stopped:
            self.discard(trusted)
            raise SandboxError(_CLOSED)
        return zygote

    def stop(self) -> None:
        """End what runs in it and start nothing more. For other threads than the one that uses it, which closes it."""
        self._stopped = True
        for zygote in list(self._zygotes.values()):
            zygote.stop()

    def discard(self, trusted: bool = False) -> None:
        zygote = self._zygotes.pop(trusted, None)
        if zygote is not None:
            zygote.close()

    @contextmanager
    def borrow(self, *trusted: bool) -> Iterator[None]:
        """Left by an exception, a zygote may still hold a job: those used are not used again."""
        try:
            yield
        except BaseException:
            for each in trusted:
                self.discard(each)
            raise

    def close(self) -> None:
        for trusted in list(self._zygotes):
            self.discard(trusted)


class Sandbox:
    """Runs programs in jails that leave nothing behind.

    Args:
        tier: "auto" takes the strongest that contains the probe's attacks; "ns", "landlock" ask for one;
            "unsafe-none" has no walls at all.
        workers: jobs at once; None is the number of processors.
        languages: names in the table of languages.
        warm: Python packages to import once, before all jobs.

    Raises SandboxUnavailable, naming what is missing, when no tier works.
    """

    def __init__(
        self,
        tier: str = "auto",
        workers: int | None = None,
        languages: tuple[str, ...] = ("python",),
        warm: tuple[str, ...] = (),
    ):
        for name in languages:
            find_language(name)
        self.languages = languages
        self.tier = choose_tier(tier)
        if workers is not None and workers < 1:
            raise ValueError(f"workers: {workers} programs at once; take at least 1.")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._launch = Launch(tier=self.tier, warm=warm, shown=shown_paths(languages))
        self._slots: list[Slot] = []
        self._closed = False
        self._make_slots()
        self._finalizer = weakref.finalize(self, _close_all, self._slots)
        with self.slot() as slot:
            slot.zygote()  # fails here and not in the middle of a training run

    def run(self, program: Program, stdin: bytes = b"", limits: Limits | None = None) -> RunResult:
        """Compile if needed and run once. Failures are results, never exceptions."""
        with self.compile(program, limits) as compiled:
            return self.execute(compiled, stdin, limits)

    def compile(self, program: Program, limits: Limits | None = None) -> Compiled:
        """Make a program ready; when that fails, `failure` of the outcome says why."""
        limits = limits or Limits()
        if program.language not in self.languages:
            raise SandboxError(f"This sandbox was made for {', '.join(self.languages)}, not for {program.language}.")
        source = _as_bytes(program.source)
        if len(source) > limits.source_kb << 10:
            detail = f"the source has {len(source) >> 10} KiB, {limits.source_kb} are allowed"
            return Compiled(program, -1, RunResult(failure=Verdict.CE, detail=detail))
        try:
            payload = sealed(source)
        except OSError as error:
            return Compiled(program, -1, _internal_error(error))
        language = find_language(program.language)
        if not language.compile:
            return Compiled(program, payload)
        try:
            job = Job(
                mode="command",
                payload=payload,
                limits=COMPILE_LIMITS,
                argv=[tool_path(language) or language.tool, *language.compile],
                source_name=language.source_name,
                collect="program",
                processes=True,
            )
            result, collected = self._run_job(job)
        finally:
            os.close(payload)
        if result.failure is None and collected is not None:
            return Compiled(program, _read_only(collected))
        if collected is not None:
            os.close(collected)
        if result.failure is Verdict.IE:
            return Compiled(program, -1, result)
        detail = result.stderr.decode(errors="replace")[-1000:] or result.detail
        return Compiled(program, -1, RunResult(failure=Verdict.CE, detail=detail, stderr=result.stderr))

    def execute(self, compiled: Compiled, stdin: bytes = b"", limits: Limits | None = None) -> RunResult:
        """Run a compiled program as a script."""
        limits = limits or Limits()
        if compiled.failure is not None:
            return compiled.failure
        if len(stdin) > limits.stdin_mb << 20:
            raise SandboxError(f"stdin has {len(stdin) >> 20} MiB, {limits.stdin_mb} are allowed.")
        language = find_language(compiled.program.language)
        job = Job(
            mode="script" if not language.tool else ("binary" if language.compile else "command"),
            payload=compiled.payload,
            limits=limits,
            stdin=stdin,
            argv=["program"] if language.compile else [tool_path(language) or language.tool, *language.run],
            source_name=language.source_name,
            memory=language.memory,
            runtime_mb=language.runtime_mb,
        )
        return self._run_job(job)[0]

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """One slot for as long as the block lasts; waits for an idle one."""
        if self._owner != os.getpid():  # the slots, and who waits for them, belong to the original of this fork
            self._make_slots()
        changed = self._changed
        with changed:
            changed.wait_for(lambda: self._idle or self._closed)
            if self._closed:
                raise SandboxError(_CLOSED)
            slot = self._idle.pop()  # last in, first out: few jobs keep to one warm zygote
        try:
            yield slot
        finally:
            with changed:
                if self._closed:
                    slot.close()
                self._idle.append(slot)
                changed.notify()
        if self._closed:
            raise SandboxError(_CLOSED)

    def _make_slots(self) -> None:
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._slots[:] = [Slot(self._launch) for _ in range(self.workers)]
        self._idle = list(self._slots)

    def _run_job(self, job: Job) -> tuple[RunResult, int | None]:
        with self.slot() as slot:
            result, collected = attempt(lambda: run_once(slot, job))
            if _starved(result, job.limits):  # the load of the machine, or a sleeper: see which
                if collected is not None:
                    os.close(collected)
                result, collected = attempt(lambda: run_once(slot, job))
            return result, collected

    def close(self) -> None:
        """End all processes. Runs of other threads end with SandboxError."""
        if self._owner != os.getpid():
            self._make_slots()
        with self._changed:
            self._closed = True
            for slot in self._slots:
                slot.stop()
            for slot in self._idle:
                slot.close()
            self._changed.notify_all()
        self._finalizer.detach()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_once(
    slot: Slot,
    job: Job,
    calls: Sequence[str] = (),
    on_claim: Callable[[str], None] | None = None,
    trusted: bool = False,
) -> RunningJob:
    """One job in one of the slot's zygotes. `calls`: all that a module job gets."""
    with slot.borrow(trusted):
        running = slot.zygote(trusted).begin(job, on_claim)
        for line in calls:
            running.call(line)
        running.end_calls()
        drive([running])
    if running.broke_zygote:
        slot.discard(trusted)
    return running


def attempt(run: Callable[[], RunningJob]) -> tuple[RunResult, int | None]:
    """The result and the collected file. Run again, up to three times in all, while the jail fails or dies.

    A program that kills its zygote every time ends with RE, not with an internal error.
    """
    result = _internal_error(None)
    for _ in range(_ATTEMPTS):
        try:
            finished = run()
        except (SandboxUnavailable, OSError) as error:  # e.g. no process or descriptor could be made this moment
            result = _internal_error(error)
            continue
        result = finished.result
        if result.failure is not Verdict.IE and not finished.lost:
            return result, finished.collected
    return result, None


def _as_bytes(source: str) -> bytes:
    """Bytes that are no UTF-8 stand in a string as Python puts file names there; other halves of characters stay."""
    try:
        return source.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return source.encode(errors="surrogatepass")


def _internal_error(error: Exception | None) -> RunResult:
    return RunResult(failure=Verdict.IE, detail=f"the jail could not be used: {error}")


def _starved(result: RunResult, limits: Limits) -> bool:
    slept = result.failure is Verdict.TLE and result.cpu_s < _STARVED * limits.cpu_s
    return slept and os.getloadavg()[0] > len(os.sched_getaffinity(0))


def _read_only(descriptor: int) -> int:
    """The kernel runs no file that somebody could still write."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


def _close_all(slots: list[Slot]) -> None:
    for slot in slots:
        slot.close()


__all__ = ["UNSAFE", "Compiled", "Program", "Sandbox", "Slot"]
