"""How often the maths grader agrees with cases whose verdict is known, and whether it keeps its deadline.

    python benchmarks/math_conformance.py cases.jsonl [more.jsonl ...] [--bar 0.97] [--json result.json]

A case is a JSON object: {"gold": str, "completion": str, "expected": bool, "category"?: str, "question"?: str}. It goes
through `rewards.accuracy.Accuracy` as in training. An error agrees with no expectation. Ends with exit code 1 where
the agreement of a file is below the bar, or where a case hangs or crashes the grader.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conditions import conditions

from data.problems import Problem
from rewards.accuracy import Accuracy, AccuracyOptions
from rewards.reward import Verdict

WARM_UP = {"gold": r"\sqrt{2}", "completion": r"\boxed{2^{1/2}}", "expected": True}
SLACK_S = 1.0  # over the deadline, for killing and starting again on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One case, what the grader said, and how long it took."""

    number: int
    category: str
    gold: str
    completion: str
    expected: bool
    verdict: str
    detail: str
    seconds: float

    @property
    def agrees(self) -> bool:
        return self.verdict == (Verdict.PASS if self.expected else Verdict.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    path: str
    deadline_s: float
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        return sum(outcome.agrees for outcome in self.outcomes) / max(1, len(self.outcomes))

    @property
    def broken(self) -> list[Outcome]:
        """Cases that hung the grader or crashed it."""
        late = self.deadline_s + SLACK_S
        return [outcome for outcome in self.outcomes if outcome.seconds > late or outcome.verdict == "crash"]


def judge(case: dict[str, Any], number: int, accuracy: Accuracy) -> Outcome:
    problem = Problem(
        id=f"case-{number}",
        messages=({"role": "user", "content": case.get("question", "")},),
        ground_truth=case["gold"],
        checker="math",
        domain="math",
        language="en",
    )
    start = time.perf_counter()
    try:
        score = accuracy(problem, case["completion"])
        verdict, detail = str(score.verdict), score.detail
    except Exception as error:
        verdict, detail = "crash", f"{type(error).__name__}: {error}"
    return Outcome(
        number=number,
        category=case.get("category", ""),
        gold=case["gold"],
        completion=case["completion"],
        expected=case["expected"],
        verdict=verdict,
        detail=detail,
        seconds=time.perf_counter() - start,
    )


def run(path: Path, accuracy: Accuracy) -> Report:
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    outcomes = [judge(case, number, accuracy) for number, case in enumerate(cases)]
    return Report(path=path.name, deadline_s=accuracy.options.deadline_s, outcomes=outcomes)


def lines(report: Report) -> Iterator[str]:
    outcomes = report.outcomes
    agreed = sum(outcome.agrees for outcome in outcomes)
    yield f"{report.path}: {agreed} of {len(outcomes)} agree ({100 * report.agreement:.1f} %)"
    for outcome in outcomes:
        if not outcome.agrees:
            wanted = "pass" if outcome.expected else "fail"
            written = outcome.completion if len(outcome.completion) <= 100 else f"...{outcome.completion[-97:]}"
            yield (
                f"  {outcome.number} {outcome.category}: wanted {wanted}, got {outcome.verdict}; "
                f"gold {outcome.gold[:60]!r}, completion {written!r} ({outcome.detail[:100]})"
            )
    errors = sum(outcome.verdict == Verdict.ERROR for outcome in outcomes)
    yield f"  {errors} errors, {len(report.broken)} hangs or crashes"
    if outcomes:
        slowest = max(outcomes, key=lambda outcome: outcome.seconds)
        yield f"  slowest: case {slowest.number}, {slowest.seconds:.2f} s (deadline {report.deadline_s:g} s)"


def summary(report: Report) -> dict[str, Any]:
    """Counts, and which cases disagree; their texts are in the file."""
    return {
        "file": report.path,
        "cases": len(report.outcomes),
        "agreement": report.agreement,
        "disagree": [f"{o.number} {o.category}: {o.verdict}" for o in report.outcomes if not o.agrees],
        "hangs_or_crashes": len(report.broken),
        "slowest_s": max((outcome.seconds for outcome in report.outcomes), default=0.0),
        "deadline_s": report.deadline_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--bar", type=float, default=0.97, help="share of cases of each file that must agree")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds one comparison may take")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    accuracy = Accuracy(AccuracyOptions(deadline_s=arguments.deadline))
    try:
        judge(WARM_UP, 0, accuracy)  # so that no case pays for the start of the grader's process
        reports = [run(path, accuracy) for path in arguments.files]
    finally:
        accuracy.close()
    print("\n".join(line for report in reports for line in lines(report)))
    if arguments.json:
        record = {**conditions("math-verify", "sympy"), "files": [summary(report) for report in reports]}
        arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(report.agreement < arguments.bar or report.broken for report in reports):
        sys.exit(1)


if __name__ == "__main__":
    main()
