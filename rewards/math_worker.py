"""The child process of `rewards.grader_process`: decides whether two answers are equal, one JSON line at a time.

    stdin   {"id": n, "gold": str, "answer": str}
    stdout  {"ready": pid} from every new worker, then per request
            {"at": "gold" | "answer"}, as often as the side changes that time is spent on, and once
            {"equal": bool} | {"unparsed": "gold" | "answer"} | {"error": str}; all with the "id" of the request

Two processes: this one imports sympy, forks a worker and waits; the worker answers. A worker that was killed is
replaced within milliseconds, since the imports are done. It is not a sandbox for programs: it parses formulas.

Not guaranteed: where a library swallows the MemoryError of an enormous intermediate, the reply is "not equal" instead
of an error. It is never "equal" for that reason.

Run as: python -m rewards.math_worker MEMORY_MB CPU_SECONDS_PER_CHECK
"""

import ctypes
import json
import logging
import math
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from rewards.math_compare import Report, UnreadableError, equal_formulas
from rewards.math_same import same_answer

# Proofs of readiness that also warm sympy's caches, so that the first deadline measures grading, not importing.
WARM_UP = (("\\frac{1}{2}", "\\sqrt{4}-\\frac{3}{2}"), ("x^2-1", "(x-1)(x+1)"), ("x>2", "(2,\\infty)"))
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def compare(gold: str, answer: str, report: Report = lambda side: None) -> dict[str, Any]:
    """Whether `answer` equals `gold`, both normalised. `report` as in `equal_formulas`."""
    try:
        return {"equal": same_answer(gold, answer, partial(equal_formulas, report=report))}
    except UnreadableError as error:
        return {"unparsed": error.side}


def limit_memory(megabytes: int) -> None:
    """Cap the address space. Platforms that refuse (macOS) keep the deadline as their only limit."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ValueError, OSError):
        logging.getLogger(__name__).warning("no memory limit: this platform refuses RLIMIT_AS")


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after `seconds` more of processor time.

    The parent's deadline normally comes first. This one is for the case that the parent is gone.
    """
    soft = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(requests: TextIO, replies: TextIO, cpu_seconds: float) -> bool:
    """Answer until stdin closes, and return True; False after running out of memory, which may damage caches."""
    for line in requests:
        limit_cpu(cpu_seconds)
        request = json.loads(line)
        number = request["id"]
        try:
            reply = compare(
                request["gold"],
                request["answer"],
                lambda side, number=number: send(replies, {"id": number, "at": side}),
            )
        except MemoryError:
            reply = {"error": "out of memory"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__} while comparing"}
        send(replies, {"id": number, **reply})
        if reply.get("error") == "out of memory":
            return False
    return True


def send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def supervise(replies: TextIO, cpu_seconds: float) -> None:
    """Keep one forked worker alive until it ends by itself, which it does when stdin closes."""
    status = 1
    while status != 0:
        worker = os.fork()
        if worker == 0:
            os._exit(0 if work(replies, cpu_seconds) else 1)
        _, status = os.waitpid(worker, 0)


def work(replies: TextIO, cpu_seconds: float) -> bool:
    """The life of a worker: True when it is not to be replaced, because nobody asks or listens any more."""
    end_with_parent()
    try:
        send(replies, {"ready": os.getpid()})
        with open(0, encoding="utf-8", closefd=False) as requests:
            return serve(requests, replies, cpu_seconds)
    except OSError:
        return True


def main() -> None:
    memory_mb, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    # Libraries may print; the pipe to the parent is for replies only.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    limit_memory(memory_mb)
    try:
        failed = [pair for pair in WARM_UP if compare(*pair) != {"equal": True}]
    except Exception as error:
        send(replies, {"error": f"grader cannot start: {type(error).__name__}: {error}"})
        return
    if failed:
        send(replies, {"error": f"grader failed its self-test: {failed[0]}"})
        return
    supervise(replies, cpu_seconds)


if __name__ == "__main__":
    main()
