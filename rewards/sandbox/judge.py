"""Judges a program by its tests: standard input and output, function calls, unit tests."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from rewards.sandbox.checkers import Checker, Custom, Tokens, same_value
from rewards.sandbox.claims import printable, read_answer
from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.jail import plain
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Compiled, Program, Sandbox, Slot, attempt, run_once
from rewards.sandbox.remote import RemoteSandbox, call_remote
from rewards.sandbox.result import Judgement, RunResult, TestResult, Verdict
from rewards.sandbox.running_job import Job, RunningJob, sealed
from rewards.sandbox.zygote_client import drive

_LEAST_OUTPUT_KB = 64


@dataclass(frozen=True, slots=True)
class StdioTest:
    """The program reads `stdin` and must print `expected`."""

    stdin: str
    expected: str


@dataclass(frozen=True, slots=True)
class CallTest:
    """A function of the program must return a value that equals `expected` (see `same_value`); plain values only."""

    function: str  # or "Solution.f": method f of an object made by Solution()
    args: tuple[Any, ...]
    expected: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0  # for expected numbers, absolute and relative


@dataclass(frozen=True, slots=True)
class UnitTest:
    """A test program: asserts, `check(candidate)`, test functions or unittest cases that call the program's functions.

    It runs in a jail without the program and sees its functions as stand-ins.
    """

    source: str
    setup: str = ""  # of the problem: helpers that the test uses
    entry_points: tuple[str, ...] = ()  # names of the program; none: those the test uses and nobody defines


Test = StdioTest | CallTest | UnitTest
Box = Sandbox | RemoteSandbox


def judge(
    box: Box,
    program: Program,
    tests: Sequence[Test],
    checker: Checker | None = None,
    limits: Limits | None = None,
    stop_on_first_failure: bool = False,
) -> Judgement:
    """Compile once, run every test in a fresh process.

    Raises ValueError without tests, SandboxError for a language the sandbox was not made for.
    """
    if not tests:
        raise ValueError("judge: a program without tests cannot be judged.")
    limits = limits or Limits()
    results: list[TestResult] = []
    with box.compile(program, limits) as compiled:
        for test in tests:
            results.append(_run_test(box, compiled, test, checker or Tokens(), limits))
            failed = results[-1].verdict is not Verdict.AC
            if compiled.failure is not None or (failed and stop_on_first_failure):
                break
    return Judgement(tests=tuple(results), total=len(tests))


def _run_test(box: Box, compiled: Compiled, test: Test, checker: Checker, limits: Limits) -> TestResult:
    if compiled.failure is not None:
        return _as_test(compiled.failure)
    if isinstance(test, StdioTest):
        return _run_stdio(box, compiled, test, checker, limits)
    if compiled.program.language != "python":
        return TestResult(verdict=Verdict.IE, detail="calls and unit tests are for Python programs")
    if isinstance(test, CallTest):
        return _run_call(box, compiled, test, limits)
    if not isinstance(box, Sandbox):
        return TestResult(verdict=Verdict.IE, detail="unit tests need the sandbox of this machine: two jails that talk")
    return _run_unit_test(box, compiled, test, limits)


def _run_stdio(box: Box, compiled: Compiled, test: StdioTest, checker: Checker, limits: Limits) -> TestResult:
    try:
        stdin, expected = test.stdin.encode(), test.expected.encode()
    except UnicodeEncodeError as error:
        return TestResult(verdict=Verdict.IE, detail=f"the test is no text: {error}")
    room = max(limits.stdout_kb, 2 * len(expected) // 1024 + _LEAST_OUTPUT_KB)
    result = box.execute(compiled, stdin, replace(limits, stdout_kb=room))
    if result.failure is not None:
        return _as_test(result)
    try:
        output = result.stdout.decode()
    except UnicodeDecodeError:
        return _as_test(result, Verdict.WA, "the output is not UTF-8")
    if isinstance(checker, Custom):
        verdict, detail = _ask_checker(box, checker, test, output)
        return _as_test(result, verdict, detail)
    wrong = checker(expected, result.stdout)
    return _as_test(result, Verdict.WA if wrong else Verdict.AC, wrong)


def _run_call(box: Box, compiled: Compiled, test: CallTest, limits: Limits) -> TestResult:
    try:
        expected = json.loads(plain.encode(test.expected))
        request = call_request(test.function, test.args, test.kwargs)
    except plain.NotPlain as reason:
        return TestResult(verdict=Verdict.IE, detail=f"the test has {reason}")
    if isinstance(box, Sandbox):
        result, answers = call(box, compiled, [request], limits)
        answer = answers[0] if answers else None
    else:
        result, answer = call_remote(box, compiled, request, limits)
    if result.failure is not None:
        return _as_test(result)
    if answer is None:
        return _as_test(result, Verdict.WA, "it ended without an answer")
    if "raised" in answer:
        return _as_test(result, Verdict.RE, f"raised {printable(' '.join(answer['raised']))}")
    if "value" not in answer:
        return _as_test(result, Verdict.RE, f"returned {printable(answer.get('why', 'no plain value'))}")
    right = same_value(expected, answer["value"], test.tolerance)
    return _as_test(result, Verdict.AC if right else Verdict.WA, "" if right else "another value")


def call_request(function: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """One call as a line for the jail. Raises NotPlain, also for more than 8 MiB."""
    request = json.dumps({"call": function, "args": plain.to_json(list(args)), "kwargs": plain.to_json(kwargs)})
    if len(request) > plain.MAX_REQUEST_CHARS:
        raise plain.NotPlain(f"arguments of over {plain.MAX_REQUEST_CHARS} characters")
    return request


def call(
    box: Sandbox, compiled: Compiled, requests: Sequence[str], limits: Limits, trusted: bool = False
) -> tuple[RunResult, list[dict[str, Any] | None]]:
    """Make calls one after the other in a fresh job. The answers, as many as came, are claims; None is unreadable."""
    claims: list[str] = []

    def run() -> RunningJob:
        claims.clear()
        return run_once(slot, _module_job(compiled, limits), requests, claims.append, trusted)

    with box.slot() as slot:
        result, _ = attempt(run)
    return result, [read_answer(claim) for claim in claims]


def _ask_checker(box: Box, checker: Custom, test: StdioTest, output: str) -> tuple[Verdict, str]:
    """The program's output is data here. A checker that cannot judge the expected output is broken, for any program.

    One that can, and then fails on the output of the program, was given something that is no answer.
    """
    if not isinstance(box, Sandbox):
        return Verdict.IE, "checkers of a problem need the sandbox of this machine: expected outputs never leave it"
    try:
        requests = [call_request("check", (test.stdin, test.expected, test.expected), {})]
    except plain.NotPlain as reason:
        return Verdict.IE, f"the checker cannot be asked: the test has {reason}"
    with suppress(plain.NotPlain):  # an output that cannot be put to the checker is refused below
        requests.append(call_request("check", (test.stdin, output, test.expected), {}))
    with box.compile(Program("python", checker.source)) as compiled:
        if compiled.failure is not None:
            return Verdict.IE, f"the checker: {compiled.failure.detail}"
        result, answers = call(box, compiled, requests, Limits(cpu_s=10.0), trusted=True)
    said = [answer.get("value") if answer else None for answer in answers]
    if not said or not isinstance(said[0], bool):
        reason = result.detail or (answers[0] if answers else "it ended without an answer")
        return Verdict.IE, f"the checker did not say True or False of the expected output: {reason}"
    if len(said) < 2 or not isinstance(said[1], bool):
        return Verdict.WA, "the checker fails on the output"
    return (Verdict.AC, "") if said[1] else (Verdict.WA, "the checker refuses the output")


class _UnitTestRun:
    """Two jobs that talk through us: the program in one jail, its test in the other."""

    def __init__(self, slot: Slot, compiled: Compiled, test_payload: int, limits: Limits):
        self.answered = 0
        self.outcome: dict[str, Any] | None = None
        self._first: RunningJob | None = None  # which of the two ended by itself
        self._unreadable = False
        patient = replace(limits, wall_s=limits.wall + 10)
        test_job = Job(mode="unit-test", payload=test_payload, limits=patient)
        with slot.borrow(False, True):
            zygote, of_tests = slot.zygote(), slot.zygote(trusted=True)
            self.program = zygote.begin(_module_job(compiled, limits), self._on_answer)
            try:
                self.test = of_tests.begin(test_job, self._on_call)
            except BaseException:
                self.program.drop()
                raise
            drive([self.program, self.test], stop=self._one_has_ended)
        for running, trusted in ((self.program, False), (self.test, True)):
            if running.lost or running.result.failure is Verdict.IE:
                slot.discard(trusted)

    def _one_has_ended(self) -> bool:
        self._first = self._first or next((job for job in (self.test, self.program) if job.done), None)
        return self._first is not None

    def _on_call(self, line: str) -> None:
        message = json.loads(line)
        if "verdict" in message:
            self.outcome = message
        else:
            self.program.call(line)

    def _on_answer(self, line: str) -> None:
        """Only what was read, checked and written anew goes on to the test."""
        answer = read_answer(line)
        if answer is None:
            self._unreadable = True
            self.program.kill()
            return
        self.answered += 1
        known = ("value", "args", "raised", "object")
        self.test.call(json.dumps({key: value for key, value in answer.items() if key in known}))

    def verdict(self) -> TestResult:
        program, test = self.program.result, self.test.result
        if program.failure is Verdict.IE:
            return _as_test(program)
        if self._unreadable:
            return _as_test(program, Verdict.RE, "its answer cannot be read")
        if self.outcome is None:
            return self._cut_off(program, test)
        detail = printable(str(self.outcome["detail"]))
        if self.outcome["verdict"] == "broken" or not self.answered:
            return _as_test(program, Verdict.IE, f"the test is broken: {detail or 'it never calls the program'}")
        if self.outcome["verdict"] == "failed":
            return _as_test(program, Verdict.WA, detail)
        return _as_test(program, Verdict.AC)

    def _cut_off(self, program: RunResult, test: RunResult) -> TestResult:
        """No word from the test: the program ended under it, or the test itself went over a limit."""
        if self._first is self.program:  # the test may not even have started
            return _as_test(program, program.failure or Verdict.WA, program.detail or "it ended before its test did")
        if self.answered and test.failure is not None:  # on the program's values
            return _as_test(test)
        return _as_test(test, Verdict.IE, f"the test is broken: {test.detail}")


def _run_unit_test(box: Sandbox, compiled: Compiled, test: UnitTest, limits: Limits) -> TestResult:
    spec = {"setup": test.setup, "test": test.source, "entry_points": list(test.entry_points)}
    payload = -1
    try:
        payload = sealed(json.dumps(spec).encode())
        with box.slot() as slot:
            for _ in range(3):
                try:
                    result = _UnitTestRun(slot, compiled, payload, limits).verdict()
                except (SandboxUnavailable, OSError) as error:
                    result = TestResult(verdict=Verdict.IE, detail=f"the jails could not be used: {error}")
                if result.verdict is not Verdict.IE or result.detail.startswith("the test is broken"):
                    break
            return result
    except OSError as error:
        return TestResult(verdict=Verdict.IE, detail=f"the test could not be handed over: {error}")
    finally:
        if payload >= 0:
            os.close(payload)


def _module_job(compiled: Compiled, limits: Limits) -> Job:
    return Job(mode="module", payload=compiled.payload, limits=limits)


def _as_test(result: RunResult, verdict: Verdict | None = None, detail: str = "") -> TestResult:
    verdict = verdict or result.failure or Verdict.AC
    detail = "" if verdict is Verdict.AC else detail or result.detail
    return TestResult(verdict=verdict, detail=detail, cpu_s=result.cpu_s, wall_s=result.wall_s)
