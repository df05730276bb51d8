"""Thousands of mixed jobs, one in ten hostile: no wrong verdict, and nothing that grows.

    python benchmarks/sandbox_soak.py --jobs 10000 --workers 2

Prints memory, descriptors and files every tenth of the way and a last line of JSON; exit code 1 on any failure.
"""

import argparse
import glob
import json
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from conditions import conditions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rewards.sandbox.judge import CallTest, StdioTest, Test, UnitTest, judge
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox

LIMITS = Limits(cpu_s=1.0, wall_s=5.0, memory_mb=128, space_mb=16, stdout_kb=64)
SUM = StdioTest("3 4\n", "7\n")

# (program, test, verdicts that are right)
HONEST: list[tuple[str, Test, str]] = [
    ("print(sum(map(int, input().split())))", SUM, "AC"),
    ("import collections, heapq, math, re\nprint(sum(map(int, input().split())))", SUM, "AC"),
    ("a, b = map(int, input().split())\nprint(a * b)", SUM, "WA"),
    ("print(input()[9])", SUM, "RE"),
    ("print((", SUM, "CE"),
    ("open('x', 'w').write('7'); print(open('x').read())", SUM, "AC"),
    ("def f(n): return list(range(n))", CallTest("f", (3,), [0, 1, 2]), "AC"),
    ("def f(n): return n", CallTest("f", (3,), [0, 1, 2]), "WA"),
    ("def f(n): return n * n", UnitTest("for n in range(5): assert f(n) == n * n"), "AC"),
    ("def f(n): return n + n", UnitTest("for n in range(5): assert f(n) == n * n"), "WA"),
    ("print(sum(range(200000)) * 0 + sum(map(int, input().split())))", SUM, "AC"),
]
HOSTILE: list[tuple[str, Test, str]] = [
    ("import os\nwhile True: os.fork()", SUM, "RE"),
    ("while True: print('x' * 1000)", SUM, "OLE"),
    ("x = []\nwhile True: x.append(bytearray(1 << 20))", SUM, "MLE"),
    ("import os\nos.kill(os.getpid(), 9)", SUM, "RE"),
    ("import os\nos._exit(0)", SUM, "WA"),
    ("for n in range(2000): open(str(n), 'w').close()", SUM, "RE"),
    ("import os\nfor _ in range(40): os.mkdir('d'); os.chdir('d')\nprint(7)", SUM, "AC"),
    ("import socket\nsocket.socket()", SUM, "RE"),
    ("print(open('/etc/passwd').read())", SUM, "RE"),
    (
        "import threading as t, time\nwhile 1: t.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        SUM,
        "RE MLE",
    ),
    ("class E:\n def __eq__(s, o): return True\ndef f(n): return E()", UnitTest("assert f(1) == 1"), "WA"),
    ("import sys\ndef f(n): sys.exit(0)", UnitTest("assert f(1) == 1"), "WA"),
    ("def f(n): raise StopIteration", UnitTest("assert all(map(lambda n: f(n) == n, [1, 2]))"), "WA"),
    ("def f(n): raise StopIteration", UnitTest("for a, b in zip(map(f, [1, 2]), [1, 2]): assert a == b"), "WA"),
    ("import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return list(map(f, [x]))\nf(1)", SUM, "RE"),
    ("while True: pass", SUM, "TLE"),
]


def resources(box_processes: list[psutil.Process]) -> dict[str, float]:
    own = psutil.Process()
    return {
        "rss_mb": own.memory_info().rss / 2**20,
        "jails_rss_mb": sum(process.memory_info().rss for process in box_processes if process.is_running()) / 2**20,
        "descriptors": own.num_fds(),
        "processes": len(own.children(recursive=True)),
        "files": len(glob.glob(f"/tmp/r1-sandbox-{os.getpid()}-*/*")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tier", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the last line and the samples")
    options = parser.parse_args()
    chance, head = random.Random(options.seed), conditions()
    jobs = [chance.choice(HOSTILE if chance.random() < 0.1 else HONEST) for _ in range(options.jobs)]
    wrong: list[tuple[str, str, str]] = []
    verdicts: Counter[str] = Counter()

    def run(job: tuple[str, Test, str]) -> None:
        source, test, right = job
        judgement = judge(box, Program("python", source), [test], limits=LIMITS)
        verdicts[judgement.verdict.value] += 1
        if judgement.verdict.value not in right.split():
            wrong.append((source, judgement.verdict.value, judgement.tests[0].detail))

    started, samples = time.perf_counter(), []
    with Sandbox(options.tier, options.workers) as box, ThreadPoolExecutor(options.workers) as threads:
        part = max(1, len(jobs) // 10)
        for begin in range(0, len(jobs), part):
            list(threads.map(run, jobs[begin : begin + part]))
            samples.append(resources(psutil.Process().children(recursive=True)))
            print(f"{begin + part:6d} jobs", {name: round(value, 1) for name, value in samples[-1].items()}, flush=True)
        tier = box.tier
    left = len(psutil.Process().children(recursive=True)), len(glob.glob(f"/tmp/r1-sandbox-{os.getpid()}-*"))
    early, late = samples[len(samples) // 3], samples[-1]
    grown = [name for name in ("descriptors", "processes") if late[name] > early[name]]
    grown += [name for name in ("rss_mb", "jails_rss_mb") if late[name] > 1.1 * early[name] + 4]
    summary = {
        "tier": tier,
        "uid": os.geteuid(),
        "jobs": len(jobs),
        "per_s": round(len(jobs) / (time.perf_counter() - started), 1),
        "verdicts": verdicts,
        "wrong": len(wrong),
        "grown": grown,
        "left_processes_and_folders": left,
    }
    for source, verdict, detail in wrong[:20]:
        print("WRONG", verdict, detail, repr(source))
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps({**head, **summary, "samples": samples}, indent=1) + "\n")
    return 1 if wrong or grown or any(left) else 0


if __name__ == "__main__":
    sys.exit(main())
