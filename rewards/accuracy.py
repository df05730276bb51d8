"""Accuracy reward: is the final answer right? Dispatches on `Problem.checker`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, Field

from data.chat import parse_completion
from data.problems import UNCHECKED, Problem
from rewards.calling import as_score
from rewards.checkers import CHECKERS, WHOLE_ANSWER
from rewards.grader_process import GraderPool
from rewards.math_answer import extract_answer, grade_math
from rewards.reward import Score


class AccuracyOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the accuracy reward."""

    deadline_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds one symbolic comparison may take before its process is killed; honest answers take "
        "milliseconds, and 5 leaves room for a busy machine.",
    )
    grader_processes: int = Field(
        default=1,
        ge=1,
        description="Processes for symbolic comparisons per reward worker; most answers are plain numbers and never "
        "need one.",
    )
    memory_mb: int = Field(
        default=1024, ge=256, description="MiB of address space per grader process; sympy alone takes about 100."
    )


class Accuracy:
    """1.0 for a right final answer, 0.0 for a wrong or missing one.

    `instruction` and `ifeval` earn the share of checks passed.
    """

    name = "accuracy"
    judges = frozenset({"answer"})  # what an audit attacks
    Options = AccuracyOptions

    def __init__(self, options: AccuracyOptions | None = None):
        self.options = options or AccuracyOptions()
        self._pool = GraderPool(self.options.grader_processes, self.options.deadline_s, self.options.memory_mb)

    def __call__(self, problem: Problem, completion: str) -> Score:
        if problem.checker in WHOLE_ANSWER:
            parsed = parse_completion(completion)
            return CHECKERS[problem.checker](problem, parsed.final if parsed.answer is None else parsed.answer)
        if problem.checker == UNCHECKED:
            return Score.error(
                f"Problem {problem.id} has nothing that a rule can check; leave its domain out, except_domains: "
                f"[{problem.domain}]."
            )
        if problem.checker != "math" and problem.checker not in CHECKERS:
            known = ", ".join(("math", *CHECKERS))
            return Score.error(f"Problem {problem.id} has checker {problem.checker!r}; known are {known}.")
        answer = extract_answer(completion)
        if answer.text is None:
            return Score.failed(detail=answer.problem)
        if problem.checker == "math":
            return grade_math(problem.ground_truth, answer.text, self._pool, problem.question)
        return CHECKERS[problem.checker](problem, answer.text)

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Like calling it on each pair, with as many comparisons at once as there are grader processes."""
        if self.options.grader_processes == 1:
            return [self._judge(problem, completion) for problem, completion in zip(problems, completions, strict=True)]
        if len(problems) != len(completions):
            raise ValueError(f"score_batch got {len(problems)} problems and {len(completions)} completions.")
        with ThreadPoolExecutor(self.options.grader_processes) as threads:
            return list(threads.map(self._judge, problems, completions))

    def _judge(self, problem: Problem, completion: str) -> Score:
        """A completion that breaks the grader is an error of its own, not of its whole batch."""
        try:
            return self(problem, completion)
        except Exception as error:
            return as_score(error)

    def close(self) -> None:
        """End the grader processes."""
        self._pool.close()
