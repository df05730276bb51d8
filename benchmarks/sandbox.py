"""What isolation costs: the warm pool against a bare `python -I -S`, bwrap and a guard-only runner, in turns.

    python benchmarks/sandbox.py --rounds 5 --executions 40

Contestants alternate within each round, so that the load of a shared machine falls on all alike; medians over rounds.
Processor time counts everything an execution starts, and this process's own share. bwrap does not reap what it runs, so
its processor time is missing; compare its executions per second.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from conditions import conditions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rewards.sandbox.pool import Program, Sandbox

PLAIN = "print(sum(map(int, input().split())))"
IMPORTS = "import collections, heapq, itertools, math, random, re, json\n" + PLAIN
NUMPY = "import numpy\nprint(int(numpy.arange(5).sum()) * 0 + sum(map(int, input().split())))"
STDIN, STDOUT = b"3 4\n", b"7\n"
_BWRAP = "--unshare-all --die-with-parent --ro-bind / / --tmpfs /tmp --dev /dev --clearenv"


def bare(source: str, *flags: str) -> bytes:
    return subprocess.run([sys.executable, *flags, "-c", source], input=STDIN, capture_output=True).stdout


def in_bwrap(source: str, *flags: str) -> bytes:
    command = ["bwrap", *_BWRAP.split(), sys.executable, *flags, "-c", source]
    return subprocess.run(command, input=STDIN, capture_output=True).stdout


def guard_only(source: str) -> bytes:
    """As HumanEval's runner: fork, patch a few functions of os, exec in the same interpreter. No isolation."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_guarded, args=(source, sender))
    process.start()
    output = receiver.recv() if receiver.poll(10) else b""
    process.join()
    return output


def _guarded(source: str, sender) -> None:
    import contextlib
    import io

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        chdir = os.chdir
        for name in ("kill", "system", "fork", "setuid", "fchdir", "chroot", "chown"):
            setattr(os, name, None)
        output = io.StringIO()
        sys.stdin = io.StringIO(STDIN.decode())
        with contextlib.redirect_stdout(output):
            exec(source, {})
        chdir("/")
        sender.send(output.getvalue().encode())


def processor_s() -> float:
    """Of this process, its living descendants and everything they have reaped."""
    own = psutil.Process()
    processes = [own, *own.children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def measure(execute: Callable[[], bytes], executions: int, workers: int) -> tuple[float, float]:
    """(processor ms per execution, executions per second)."""
    used, started = processor_s(), time.perf_counter()
    if workers == 1:
        outputs = [execute() for _ in range(executions)]
    else:
        with ThreadPoolExecutor(workers) as threads:
            outputs = list(threads.map(lambda _: execute(), range(executions)))
    wall = time.perf_counter() - started
    assert all(output == STDOUT for output in outputs), f"wrong output: {set(outputs)}"
    return 1000 * (processor_s() - used) / executions, executions / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--executions", type=int, default=40, help="per contestant and round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    head, workers = conditions("numpy"), len(os.sched_getaffinity(0))
    with Sandbox(workers=workers) as box, Sandbox(workers=workers, warm=("numpy",)) as warm:

        def jailed(sandbox: Sandbox, source: str) -> Callable[[], bytes]:
            return lambda: sandbox.run(Program("python", source), STDIN).stdout

        contestants: dict[str, tuple[Callable[[], bytes], int]] = {
            "bare python -I -S": (lambda: bare(PLAIN, "-I", "-S"), 1),
            f"sandbox, tier {box.tier}": (jailed(box, PLAIN), 1),
            "guard only (fork and exec)": (lambda: guard_only(PLAIN), 1),
            "bare, imports": (lambda: bare(IMPORTS, "-I", "-S"), 1),
            "sandbox, imports": (jailed(box, IMPORTS), 1),
            "bare, numpy": (lambda: bare(NUMPY, "-I"), 1),
            "sandbox, numpy warm": (jailed(warm, NUMPY), 1),
            f"bare python -I -S, {workers} at once": (lambda: bare(PLAIN, "-I", "-S"), workers),
            f"sandbox, {workers} at once": (jailed(box, PLAIN), workers),
            f"bare, numpy, {workers} at once": (lambda: bare(NUMPY, "-I"), workers),
            f"sandbox, numpy warm, {workers} at once": (jailed(warm, NUMPY), workers),
        }
        if shutil.which("bwrap"):
            contestants["bwrap + python -I -S"] = (lambda: in_bwrap(PLAIN, "-I", "-S"), 1)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, (execute, at_once) in contestants.items():
                count = max(4, options.executions // 8) if name.startswith("bare, numpy") else options.executions
                figures[name].append(measure(execute, count, at_once))
    table = {
        name: {"cpu_ms": spread(row[0] for row in rows), "per_s": spread(row[1] for row in rows)}
        for name, rows in figures.items()
    }
    for name, row in table.items():
        print(f"{name:40s} {row['cpu_ms']['median']:8.2f} ms CPU {row['per_s']['median']:9.1f} /s")
    if options.json:
        record = {**head, "rounds": options.rounds, "executions": options.executions, "results": table}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def spread(values: Iterable[float]) -> dict[str, float]:
    found = sorted(values)
    return {"min": found[0], "median": statistics.median(found), "max": found[-1]}


if __name__ == "__main__":
    main()
