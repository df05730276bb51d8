"""Code reward: does the program pass its hidden tests? Runs in the sandbox; one process and its jails per worker."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import BaseModel, Field

from data.chat import parse_completion
from data.problems import Problem
from rewards.code_answer import extract_program
from rewards.reward import Score
from rewards.sandbox.checkers import Checker, Custom, Exact, Floats, Tokens
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
    "setup", "entry_points"}, ...], "checker": "tokens" | "exact" | {"floats": 1e-6} | {"custom": source}, "cpu_s": 2,
    "memory_mb": 256}; at least one test of any kind.
    """

    name = "code"
    Options = CodeOptions

    def __init__(self, options: CodeOptions | None = None):
        """Raises SandboxUnavailable at once when nothing here can hold a program."""
        self.options = options = options or CodeOptions()
        self._box = _open_box(options)

    def __call__(self, problem: Problem, completion: str) -> Score:
        if problem.checker != "code":
            return Score.error(f"Problem {problem.id} has checker {problem.checker!r}; the code reward knows code.")
        try:
            truth = json.loads(problem.ground_truth)
            tests, checker, limits = read_tests(truth), _read_checker(truth), self._limits(truth)
            language = truth.get("language", "python")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return Score.error(f"The tests of problem {problem.id} cannot be read: {type(error).__name__}: {error}")
        source = extract_program(parse_completion(completion).final, language)
        if source is None:
            return Score.failed(detail=f"no block of {language} code")
        try:
            # All tests must run to pay by their share; otherwise the first failure decides.
            judgement = judge(self._box, Program(language, source), tests, checker, limits, self.options.all_or_nothing)
        except SandboxError as error:
            return Score.error(str(error))
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
            return Score.error(f"{type(error).__name__}: {error}")

    def _limits(self, truth: dict[str, Any]) -> Limits:
        return Limits(
            cpu_s=float(truth.get("cpu_s", self.options.cpu_s)),
            memory_mb=int(truth.get("memory_mb", self.options.memory_mb)),
        )

    def _score(self, judgement: Judgement) -> Score:
        value = judgement.value(self.options.all_or_nothing)
        worst = next((test for test in judgement.tests if test.verdict is not Verdict.AC), judgement.tests[-1])
        detail = f"{judgement.verdict}: {judgement.passed} of {judgement.total} tests"
        detail += f"; {worst.detail}" if worst.detail else ""
        if value is None:
            return Score.error(next(test.detail for test in judgement.tests if test.verdict is Verdict.IE))
        return Score.passed(value, detail) if judgement.verdict is Verdict.AC else Score.failed(value, detail)


def _open_box(options: CodeOptions) -> Box:
    languages = tuple(options.languages)
    if options.url:
        token = os.environ.get("R1_SANDBOX_TOKEN")
        return RemoteSandbox(Service(url=options.url, protocol=options.protocol, token=token), languages)
    return Sandbox(options.tier, options.workers, languages, tuple(options.warm))


def read_tests(truth: dict[str, Any]) -> list[Test]:
    """The tests of a problem. Raises ValueError, TypeError or KeyError for anything but the layout of `Code`."""
    known = {"language", "stdio", "calls", "unit_tests", "checker", "cpu_s", "memory_mb"}
    if unknown := set(truth) - known:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    tests: list[Test] = [StdioTest(str(test["input"]), str(test["output"])) for test in truth.get("stdio", [])]
    for test in truth.get("calls", []):
        rest = {key: test[key] for key in ("kwargs", "tolerance") if key in test}
        tests.append(CallTest(test["function"], tuple(test["args"]), test["expected"], **rest))
    for test in truth.get("unit_tests", []):
        tests.append(UnitTest(test["source"], test.get("setup", ""), tuple(test.get("entry_points", ()))))
    if not tests:
        raise ValueError("there are none")
    return tests


def _read_checker(truth: dict[str, Any]) -> Checker:
    match truth.get("checker", "tokens"):
        case "tokens":
            return Tokens()
        case "exact":
            return Exact()
        case {"floats": float(tolerance)}:
            return Floats(tolerance, tolerance)
        case {"custom": str(source)}:
            return Custom(source)
        case other:
            raise ValueError(f"checker {other!r} is not tokens, exact, floats or custom")
