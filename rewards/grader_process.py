"""Killable graders: formulas are compared in child processes with a hard deadline.

Sympy can hang inside one C call (`9^{9^9}`), where neither signals nor threads can stop it, so each check runs in a
process that is killed when its time is over and replaced. Plain pipes and JSON: works from any thread and inside Ray
actors, and nothing that comes back is ever unpickled. Not a sandbox: the child only ever parses formulas.
"""

import json
import os
import queue
import selectors
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_DEADLINE_S = 120.0  # importing sympy takes seconds on a busy machine; not counted against a check
NOT_STARTED = "grader did not start"  # how such an error begins: then neither side has been looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Exactly one of `equal` and `error` is set, unless a side is not a formula: then `unparsed` names it."""

    equal: bool | None = None
    unparsed: str | None = None  # "gold" or "answer"
    error: str | None = None  # "deadline", "crashed", "out of memory", ...: there was no comparison


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
        self.deadline_s = deadline_s
        self._good_golds: set[str] = set()
        self._children = [_Child(deadline_s, memory_mb) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # last in, first out: few checks keep to one warm child
        for child in self._children:
            self._idle.put(child)
        self._closed = False
        self._finalizer = weakref.finalize(self, _kill_all, self._children)

    def check(self, gold: str, answer: str) -> CheckResult:
        """Compare two formulas. Waits for an idle child; every failure is a result, none is an exception."""
        if self._closed:
            raise RuntimeError("GraderPool is closed; make a new one.")
        child = self._idle.get()
        try:
            return CheckResult(**child.ask({"gold": gold, "answer": answer}))
        finally:
            self._idle.put(child)

    def reads(self, gold: str) -> bool:
        """Whether `gold` is found equal to itself; then a comparison that failed did so because of the answer.

        Only a yes is remembered: a no may be a grader that is dead for the moment.
        """
        if gold not in self._good_golds and not self._closed and self.check(gold, gold).equal:
            self._good_golds.add(gold)
        return gold in self._good_golds

    def close(self) -> None:
        """End every child. Checks under way in other threads return an error."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """One `rewards.math_worker` process: started when needed, killed when late."""

    def __init__(self, deadline_s: float, memory_mb: int):
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()

    def ask(self, request: dict[str, str]) -> dict[str, Any]:
        if self.owner != os.getpid():  # after a fork the pipes are shared with the original: leave its process alone
            self.process, self.owner = None, os.getpid()
        if self.process is None or self.process.poll() is not None:
            self.kill()
            self.process = self._spawn()
            started = _read_line(self.process, START_DEADLINE_S)
            if "error" in started:
                self.kill()
                return {"error": f"{NOT_STARTED}: {started['error']}"}
        reply = self._exchange(self.process, request)
        if "error" in reply:
            self.kill()
        return reply

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
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

    def _exchange(self, process: subprocess.Popen[bytes], request: dict[str, str]) -> dict[str, Any]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError):  # the child died, or another thread closed the pool
            return {"error": "crashed"}
        return _read_line(process, self.deadline_s)


def _read_line(process: subprocess.Popen[bytes], deadline_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    end = time.monotonic() + deadline_s
    line = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return {"error": "deadline"}
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    return {"error": "crashed"}
                line += chunk
        return json.loads(line)
    except (OSError, ValueError):  # closed by another thread, or half a line from a dying child
        return {"error": "crashed"}


def _kill_all(children: list[_Child]) -> None:
    for child in children:
        if child.owner == os.getpid():
            child.kill()
