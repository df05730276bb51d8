"""A folder of hostile programs against every tier of the sandbox, and against a plain subprocess as negative control.

    python benchmarks/sandbox_cases.py FOLDER --control --json cases.json

Each file is a Python program with a header:

    # mode: stdin              or function: then `solve(3)` is called
    # expect: WA|RE            the verdicts that are right
    # control: skip            optional: too dangerous without walls

Its input is a line of JSON with hints: where decoys on this host are that it may not reach (a canary in a file, a home
folder, shared memory, the environment and behind services; a process to kill; a file to make), and `benign_answer`,
the right answer, for honest programs (AC in `expect`). An honest `solve(n)` returns {"v": [n, n * n, str(n)], "t": (1,
2)}. A program with big_stdin in its name gets 5 MiB of input.

A case is contained when its verdict is right, it neither printed `LEAK:` nor a canary, no decoy was touched, no process
stayed behind and it ended in time. The control runs the same programs as an ordinary user in a folder to throw away,
with resource limits and a timeout, as simple harnesses do: cases that it contains, too, prove nothing. It is for root,
who can give it a user without other processes (--control-uid); what matches --skip is left out of it.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from conditions import conditions
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sandbox_decoys import Decoys

from rewards.sandbox.checkers import Tokens
from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.interpreter import choose_interpreter
from rewards.sandbox.judge import CallTest, judge
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox
from rewards.sandbox.tiers import TIERS

LIMITS = Limits(cpu_s=2.0, wall_s=8.0, memory_mb=256, threads=16, space_mb=32, stdout_kb=64)
SLOW_S = 2 * 8.0 + 4  # a program that hardly ran on a busy machine is run once more
BIG_INPUT = "7 " * (5 << 19)
HONEST_VALUE = {"v": [3, 9, "3"], "t": (1, 2)}
SECRET_VALUE = 7
KINDS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    source: str
    calls: bool  # mode function
    expected: frozenset[str]
    too_dangerous: bool

    @property
    def value(self) -> object:
        return HONEST_VALUE if "AC" in self.expected else SECRET_VALUE

    def stdin(self, hints: dict) -> str:
        return json.dumps(hints) + "\n" + (BIG_INPUT if "big_stdin" in self.name else "")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program got: its verdict, and all it printed."""

    verdict: str
    detail: str
    output: bytes = b""


Run = Callable[[Case, dict], Ran]


def read_case(path: Path, skip: re.Pattern[str]) -> Case:
    source = path.read_bytes().decode(errors="surrogateescape")
    header = dict(re.findall(r"^# (mode|expect|control): (\S+)", source, re.MULTILINE))
    if header.get("mode") not in ("stdin", "function") or "expect" not in header:
        raise SystemExit(f"{path}: its header must say '# mode: stdin' or 'function', and '# expect: VERDICT|VERDICT'.")
    dangerous = header.get("control") == "skip" or bool(skip.search(path.stem))
    expected = frozenset(header["expect"].split("|"))
    return Case(path.stem, source, header["mode"] == "function", expected, dangerous)


def in_sandbox(box: Sandbox) -> Run:
    def run(case: Case, hints: dict) -> Ran:
        program = Program("python", case.source)
        if case.calls:
            test = judge(box, program, [CallTest("solve", (3,), case.value)], limits=LIMITS).tests[0]
            return Ran(test.verdict.value, test.detail)
        result = box.run(program, case.stdin(hints).encode(), LIMITS)
        return Ran(result.failure or compare(result.stdout, hints), result.detail, result.stdout + result.stderr)

    return run


def compare(output: bytes, hints: dict) -> str:
    return "WA" if Tokens()(hints["benign_answer"].encode(), output) else "AC"


def as_plain_subprocess(uid: int) -> Run:
    """What simple harnesses do. Tests of functions are appended to the program; exit code 0 is success."""
    python = choose_interpreter(uid).executable

    def limit() -> None:
        for kind, value in (
            (resource.RLIMIT_AS, (LIMITS.memory_mb + 64) << 20),
            (resource.RLIMIT_CPU, int(LIMITS.cpu_s)),
            (resource.RLIMIT_NPROC, 64),
            (resource.RLIMIT_FSIZE, LIMITS.file_mb << 20),
        ):
            resource.setrlimit(kind, (value, value + (kind == resource.RLIMIT_CPU)))

    def run(case: Case, hints: dict) -> Ran:
        folder = Path(tempfile.mkdtemp(prefix="control-"))
        try:
            test = f"\nassert solve(3) == {case.value!r}\n" if case.calls else ""
            (folder / "main.py").write_bytes((case.source + test).encode(errors="surrogateescape"))
            (folder / "stdin").write_text(case.stdin(hints))
            os.chown(folder, uid, uid)
            return execute(case, hints, folder)
        finally:
            subprocess.run(["rm", "-rf", str(folder)], stderr=subprocess.DEVNULL)  # as root, and however deep

    def execute(case: Case, hints: dict, folder: Path) -> Ran:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(folder / "stdin") as stdin:
            process = subprocess.Popen(
                [python, "main.py"], stdin=stdin, stdout=output, stderr=errors, cwd=folder,
                user=uid, group=uid, extra_groups=[], preexec_fn=limit, start_new_session=True,
            )  # fmt: skip
            started, late = time.monotonic(), False
            try:
                process.wait(LIMITS.wall)
            except subprocess.TimeoutExpired:
                late = True
                process.kill()
                process.wait()
            by_limit = process.returncode == -signal.SIGKILL and time.monotonic() - started >= LIMITS.cpu_s
            said, complaints = (_content(file) for file in (output, errors))
        verdict = _control_verdict(case, process.returncode, late or by_limit, said, complaints, hints)
        return Ran(verdict, f"exit code {process.returncode}", said + complaints)

    return run


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _control_verdict(case: Case, code: int, late: bool, said: bytes, complaints: bytes, hints: dict) -> str:
    if late or code == -signal.SIGXCPU:
        return "TLE"
    if len(said) > LIMITS.stdout_kb << 10:
        return "OLE"
    if code:
        named = {b"MemoryError": "MLE", b"SyntaxError": "CE", b"AssertionError": "WA"}
        return next((verdict for mark, verdict in named.items() if mark in complaints), "RE")
    return "AC" if case.calls else compare(said, hints)


def try_cases(cases: list[Case], run: Run, uid: int | None) -> list[dict]:
    """One row a case: what it got and, where it was not contained, what is wrong. `uid`: whose processes to count."""
    rows = []
    with Decoys(uid) as decoys:
        before = {process.pid for process in processes(uid)}
        for case in cases:
            started = time.perf_counter()
            ran = run(case, decoys.hints)
            seconds = time.perf_counter() - started
            problems = [] if ran.verdict in case.expected else [f"{ran.verdict}, not {'|'.join(sorted(case.expected))}"]
            problems += ["LEAK"] * (b"LEAK:" in ran.output) + ["canary"] * (decoys.canary.encode() in ran.output)
            problems += [f"took {seconds:.0f} s"] * (seconds > SLOW_S)
            problems += decoys.touched()
            time.sleep(0.05)
            left = [each for each in processes(uid) if each.pid not in before | {decoys.victim.pid}]
            if uid is not None:
                problems += [f"{len(left)} processes left"] * bool(left)
                end(left)
            elif len(left) > 1:  # a zygote may have been replaced
                problems.append(f"{len(left)} processes left")
            else:
                before |= {each.pid for each in left}
            rows.append({"case": case.name, "verdict": ran.verdict, "seconds": round(seconds, 2), "problems": problems})
    return rows


def processes(uid: int | None) -> list[psutil.Process]:
    """Our descendants, or all processes of a user."""
    if uid is None:
        return psutil.Process().children(recursive=True)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real == uid:
                found.append(process)
    return found


def end(left: list[psutil.Process]) -> None:
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tier", action="append", help="ns or landlock; repeat [default: all of this machine]")
    parser.add_argument("--only", default="", help="regular expression: names of the cases to run")
    parser.add_argument("--control", action="store_true", help="run the negative control, too")
    parser.add_argument("--control-uid", type=int, default=12345, help="ordinary user without processes")
    parser.add_argument(
        "--skip",
        default="fork_bomb|thread_bomb|cpu_by_many|mmap_lock",
        help="regular expression: names the control leaves out",
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.glob("*.py") if re.search(options.only, path.stem))
    cases = [read_case(path, re.compile(options.skip)) for path in paths]
    limits = [resource.getrlimit(kind) for kind in KINDS]
    results: dict[str, list[dict]] = {}
    for tier in options.tier or TIERS:
        try:
            with Sandbox(tier, workers=1) as box:
                results[tier] = try_cases(cases, in_sandbox(box), None)
        except SandboxUnavailable as reason:
            print(f"tier {tier}: {reason}")
    if options.control:
        if os.geteuid() != 0 or processes(options.control_uid):
            raise SystemExit(f"--control is for root, and user {options.control_uid} may have no processes.")
        harmless = [case for case in cases if not case.too_dangerous]
        results["control"] = try_cases(harmless, as_plain_subprocess(options.control_uid), options.control_uid)
    show(results)
    clean = not processes(None) and limits == [resource.getrlimit(kind) for kind in KINDS]
    print(f"uid {os.geteuid()}; nothing left behind: {clean}")
    if options.json:
        counts = {
            name: {"cases": len(rows), "not_contained": [row["case"] for row in rows if row["problems"]]}
            for name, rows in results.items()
        }
        record = {**conditions(), "uid": os.geteuid(), "clean": clean, "results": counts}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return (
        0 if clean and not any(row["problems"] for tier in results if tier != "control" for row in results[tier]) else 1
    )


def show(results: dict[str, list[dict]]) -> None:
    table = Table("case", *results)
    names = list(dict.fromkeys(row["case"] for rows in results.values() for row in rows))
    by_name = {where: {row["case"]: row for row in rows} for where, rows in results.items()}
    for name in names:
        cells = [by_name[where].get(name) for where in results]
        if any(cell and cell["problems"] for cell in cells):
            table.add_row(name, *("skipped" if not c else "; ".join(c["problems"]) or c["verdict"] for c in cells))
    if table.rows:
        Console().print(table)
    for where, rows in results.items():
        contained = sum(not row["problems"] for row in rows)
        print(f"{where}: {contained} of {len(rows)} contained, {len(rows) - contained} not")


if __name__ == "__main__":
    sys.exit(main())
