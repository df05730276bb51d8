"""Code reward: does the program pass its hidden tests? Runs in the sandbox; one process and its jails per worker."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, Field

from data.chat import parse_completion
from data.code_tests import CodeTests, CustomChecker, FloatsChecker, read_code_tests
from data.problems import Problem
from rewards.calling import as_score
from rewards.code_answer import extract_program
from rewards.reward import Score
from rewards.sandbox.checkers import Checker, Custom, Exact, Floats, Lines, Tokens
from rewards.sandbox.errors import SandboxError
from rewards.sandbox.judge import Box, CallTest, StdioTest, Test, UnitTest, judge
from rewards.sandbox.limits import MAX_CPU_S, MAX_MEMORY_MB, Limits
from rewards.sandbox.pool import Program, Sandbox
from rewards.sandbox.remote import RemoteSandbox, Service
from rewards.sandbox.result import Judgement, Verdict


class CodeOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the code reward."""

    tier: Literal["auto", "ns", "landlock", "unsafe-none"] = Field(
        default="auto",
        description="Walls around programs; auto takes the strongest that holds on this machine, and without any the "
        "stage refuses to start. unsafe-none has no walls and is refused as root.",
    )
    workers: int = Field(
        default=1, ge=1, description="Programs that run at once per reward worker; no more than it has processors."
    )
    languages: list[str] = Field(
        default=["python"], description="Languages that programs may be in; see `r1 sandbox doctor`."
    )
    warm: list[str] = Field(
        default=[],
        description="Python packages imported once and shared by all programs, e.g. numpy, whose import costs "
        "more than most programs.",
    )
    url: str = Field(
        default="",
        description="A service that runs the programs instead, e.g. http://10.0.0.5:8080; its token is read from the "
        "environment (R1_SANDBOX_TOKEN). Empty runs them here.",
    )
    protocol: Literal["sandboxfusion", "piston"] = Field(
        default="sandboxfusion",
        description="What the service at `url` speaks; `r1 sandbox serve` speaks sandboxfusion.",
    )
    all_or_nothing: bool = Field(
        default=True,
        description="1.0 for all tests and 0.0 otherwise, as for R1; false pays the share of tests passed, which pays "
        "for guessing common outputs.",
    )
    cpu_s: float = Field(
        default=5.0, gt=0, le=MAX_CPU_S, description="Seconds of processor time per test, unless a problem sets it."
    )
    memory_mb: int = Field(
        default=512, ge=16, le=MAX_MEMORY_MB, description="MiB of memory per test, where a problem sets none."
    )


class Code:
    """1.0 for a program that passes all tests of its problem, 0.0 otherwise, or the share it passes.

    `Problem.checker` is code and `ground_truth` JSON: {"language": "python", "stdio": [{"input", "output"}, ...],
    "calls": [{"function", "args", "expected", "kwargs", "tolerance"}, ...] (function "Solution.f" is method f of an
    object made by Solution(); tolerance is absolute or relative, for any finite number), "unit_tests": [{"source",
    "setup", "entry_points"}, ...], "checker": "tokens" | "lines" | "exact" | {"floats": 1e-6} | {"custom": source},
    "prelude": source put before the program, "cpu_s": 2, "memory_mb": 256}; at least one test of any kind. It may be
    packed (`data.packed`).
    """

    name = "code"
    checkers = frozenset({"code"})  # what an audit may ask of it
    Options = CodeOptions

    def __init__(self, options: CodeOptions | None = None):
        """Raises SandboxUnavailable at once when nothing here can hold a program."""
        self.options = options = options or CodeOptions()
        self._box = _open_box(options)

    def __call__(self, problem: Problem, completion: str) -> Score:
        if problem.checker != "code":
            return Score.error(f"Problem {problem.id} has checker {problem.checker!r}; the code reward knows code.")
        try:
            truth = read_code_tests(problem.ground_truth)
            tests, limits = _tests_of(truth), self._limits(truth)
        except ValueError as error:
            return Score.error(f"The tests of problem {problem.id} cannot be read: {error}")
        parsed = parse_completion(completion)
        source = extract_program(parsed.final if parsed.answer is None else parsed.answer, truth.language)
        if source is None:
            return Score.failed(detail=f"no block of {truth.language} code")
        program, checker = Program(truth.language, truth.prelude + source), _checker_of(truth)
        try:
            # All tests must run to pay by their share; otherwise the first failure decides.
            judgement = judge(self._box, program, tests, checker, limits, self.options.all_or_nothing)
        except SandboxError as error:
            return Score.error(str(error), retry=True)
        return self._score(judgement)

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Like calling it on each pair, with as many programs at once as there are workers."""
        if len(problems) != len(completions):
            raise ValueError(f"score_batch got {len(problems)} problems and {len(completions)} completions.")
        with ThreadPoolExecutor(self.options.workers) as threads:
            return list(threads.map(self._attempt, problems, completions))

    def close(self) -> None:
        """End the jails."""
        self._box.close()

    def _attempt(self, problem: Problem, completion: str) -> Score:
        try:
            return self(problem, completion)
        except Exception as error:  # one row's failure is not that of the others
            return as_score(error)

    def _limits(self, truth: CodeTests) -> Limits:
        return Limits(
            cpu_s=self.options.cpu_s if truth.cpu_s is None else truth.cpu_s,
            memory_mb=self.options.memory_mb if truth.memory_mb is None else truth.memory_mb,
        )

    def _score(self, judgement: Judgement) -> Score:
        value = judgement.value(self.options.all_or_nothing)
        worst = next((test for test in judgement.tests if test.verdict is not Verdict.AC), judgement.tests[-1])
        detail = f"{judgement.verdict}: {judgement.passed} of {judgement.total} tests"
        detail += f"; {worst.detail}" if worst.detail else ""
        if value is None:
            detail = next(test.detail for test in judgement.tests if test.verdict is Verdict.IE)
            return Score.error(detail, retry=bool(self.options.url))  # a service may be back
        if judgement.verdict is Verdict.AC:
            return Score.passed(value, detail)
        return Score.failed(value, detail, timed_out=any(test.verdict is Verdict.TLE for test in judgement.tests))


def _open_box(options: CodeOptions) -> Box:
    languages = tuple(options.languages)
    if options.url:
        token = os.environ.get("R1_SANDBOX_TOKEN")
        return RemoteSandbox(Service(url=options.url, protocol=options.protocol, token=token), languages)
    return Sandbox(options.tier, options.workers, languages, tuple(options.warm))


def _tests_of(truth: CodeTests) -> list[Test]:
    tests: list[Test] = [StdioTest(test.input, test.output) for test in truth.stdio]
    for call in truth.calls:
        tests.append(CallTest(call.function, tuple(call.args), call.expected, call.kwargs, call.tolerance))
    for unit in truth.unit_tests:
        tests.append(UnitTest(unit.source, unit.setup, tuple(unit.entry_points)))
    return tests


def _checker_of(truth: CodeTests) -> Checker:
    match truth.checker:
        case FloatsChecker(floats=tolerance):
            return Floats(tolerance, tolerance)
        case CustomChecker(custom=source):
            return Custom(source)
        case name:
            return {"exact": Exact(), "lines": Lines(), "tokens": Tokens()}[name]
