"""Killable graders: formulas are compared in child processes with a hard deadline.

Sympy can hang inside one C call (`9^{9^9}`), where neither signals nor threads can stop it, so each check runs in a
process that is killed when its time is over and replaced. Plain pipes and JSON: works from any thread and inside Ray
actors, and nothing that comes back is ever unpickled. Not a sandbox: the child only ever parses formulas.
"""

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_DEADLINE_S = 120.0  # importing sympy takes seconds on a busy machine; not counted against a check


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Exactly one of `equal` and `error` is set, unless `unparsed` names a side: an answer that is no formula, or a
    gold answer without a value."""

    equal: bool | None = None
    unparsed: str | None = None  # "gold" or "answer"
    error: str | None = None  # "deadline", "crashed", "out of memory", ...: there was no comparison
    at: str | None = None  # with an error: the side it is to blame on, "gold" or "answer"; None when on neither


class GraderPool:
    """Up to `workers` checks at once, each in its own process. Safe to share between threads.

    Processes start at the first check and live until `close()`, the end of the `with` block or of the interpreter. A
    killed parent closes their stdin, which ends them; one that is busy then ends by its processor-time limit.

    Args:
        workers: child processes, each about 80 MB.
        deadline_s: seconds of wall-clock time one check may take before its process is killed.
        memory_mb: MiB of address space per child (RLIMIT_AS).
    """

    def __init__(self, workers: int = 1, deadline_s: float = 5.0, memory_mb: int = 1024):
        if workers < 1 or deadline_s <= 0 or memory_mb < 256:
            raise ValueError(
                f"GraderPool needs workers >= 1, deadline_s > 0 and memory_mb >= 256 (sympy alone takes about 100), "
                f"got workers={workers}, deadline_s={deadline_s}, memory_mb={memory_mb}."
            )
        self.deadline_s, self.memory_mb, self.workers = deadline_s, memory_mb, workers
        self._closed = False
        self._make_children()

    def _make_children(self) -> None:
        self._owner = os.getpid()
        children = [_Child(self.deadline_s, self.memory_mb) for _ in range(self.workers)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # last in, first out: few checks keep to one warm child
        for child in children:
            self._idle.put(child)
        self._finalizer = weakref.finalize(self, _kill_all, children)

    def check(self, gold: str, answer: str) -> CheckResult:
        """Compare two formulas. Waits for an idle child; every failure is a result, none is an exception."""
        if self._closed:
            raise RuntimeError("GraderPool is closed; make a new one.")
        if self._owner != os.getpid():
            self._finalizer.detach()
            self._make_children()  # after a fork: the children, and the ones in use by other threads, are the parent's
        idle = self._idle
        child = idle.get()
        try:
            return child.ask(gold, answer)
        finally:
            idle.put(child)

    def close(self) -> None:
        """End every child. Checks under way in other threads return an error."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """One `rewards.math_worker` process and the worker it forked: started when needed, the worker killed when late."""

    def __init__(self, deadline_s: float, memory_mb: int):
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb
        self.process: subprocess.Popen[bytes] | None = None
        self.worker = 0  # process id; 0 until it is ready
        self.requests = 0
        self.at = "answer"  # the side that time is being spent on
        self.pending = b""  # half a line
        self.owner = os.getpid()

    def ask(self, gold: str, answer: str) -> CheckResult:
        if self.process is not None and self.process.poll() is not None:
            self.kill()
        if self.process is None:
            self.process, self.worker = self._spawn(), 0
        if not self.worker and (fault := self._await_worker(self.process)):
            self.kill()
            return CheckResult(error=f"grader did not start: {fault}")
        end = time.monotonic() + self.deadline_s
        try:
            result = self._exchange(self.process, gold, answer, end)
            if result.error == "crashed":  # by its own fault or by chance? Once more shows.
                result = self._exchange(self.process, gold, answer, end)
            return result
        except _LateError:
            with suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGKILL)
            self.worker = 0
            return CheckResult(error="deadline", at=self.at)
        except (OSError, ValueError, EOFError):  # the process died, or another thread closed the pool
            self.kill()
            return CheckResult(error="crashed", at=None)

    def kill(self) -> None:
        process, self.process, self.worker, self.pending = self.process, None, 0, b""
        if process is None:
            return
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # the worker too
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[1])  # so that the child finds `rewards` wherever we were started
        search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            # -P keeps the working directory, which may hold anything, out of the child's import path.
            [sys.executable, "-P", "-m", "rewards.math_worker", str(self.memory_mb), str(self.deadline_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search_path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the pool
        )

    def _await_worker(self, process: subprocess.Popen[bytes]) -> str:
        """Why no worker got ready, or an empty string."""
        end = time.monotonic() + START_DEADLINE_S
        try:
            while True:
                line = self._read_line(process, end)
                if "id" in line:  # a last word of the worker before
                    continue
                self.worker = line.get("ready", 0)
                return line.get("error", "")
        except _LateError:
            return "deadline"
        except (OSError, ValueError, EOFError):
            return "crashed"

    def _exchange(self, process: subprocess.Popen[bytes], gold: str, answer: str, end: float) -> CheckResult:
        assert process.stdin is not None
        self.requests += 1
        request = {"id": self.requests, "gold": gold, "answer": answer}
        self.at, gold_started, gold_seconds = "answer", time.monotonic(), 0.0
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        while True:
            line = self._read_line(process, end)
            if "ready" in line:  # another worker: the one that was asked is gone
                self.worker = line["ready"]
                return CheckResult(error="crashed", at=self.at)
            if line.get("id") != request["id"]:
                continue
            if "at" in line:
                now = time.monotonic()
                gold_seconds += now - gold_started if self.at == "gold" else 0.0
                self.at, gold_started = line["at"], now
                if gold_seconds > self.deadline_s / 2:
                    self.at = "gold"  # what is left would be no fair time for the answer
                continue
            if line.get("error") == "out of memory":  # then the worker ends itself
                self.worker = 0
            at = self.at if "error" in line else None
            return CheckResult(equal=line.get("equal"), unparsed=line.get("unparsed"), error=line.get("error"), at=at)

    def _read_line(self, process: subprocess.Popen[bytes], end: float) -> dict[str, Any]:
        """One reply. Raises _LateError, or EOFError and others when the process is gone."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise _LateError
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    raise EOFError
                self.pending += chunk
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)


class _LateError(Exception):
    """The deadline has passed."""


def _kill_all(children: list[_Child]) -> None:
    for child in children:
        if child.owner == os.getpid():
            child.kill()
