"""Tests for rewards: cases in a file (`r1 reward test FILE`), and checks for pytest.

from rewards.testing import assert_scores, case, check_properties

def test_my_reward():
    assert_scores(MyReward(), [case(r"\\boxed{4}", gold="4", expect="pass"), case("", gold="4", expect="fail")])
    check_properties(MyReward(), gold="4", wrong="5")
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.problems import Problem
from rewards.calling import judge
from rewards.reward import Score, Verdict

_PROBLEM_KEYS = {"gold", "question", "checker", "domain", "language", "metadata"}
_CASE_KEYS = {"completion", "expect", "name"} | _PROBLEM_KEYS
TOLERANCE = 1e-9  # between an expected value and the one given


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A completion and what it should get: a verdict ("pass", "fail", "error") or a value."""

    name: str
    problem: Problem
    completion: str
    expect: str | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A case and what it got."""

    case: Case
    score: Score

    @property
    def ok(self) -> bool:
        if isinstance(self.case.expect, str):
            return self.score.verdict == self.case.expect
        return self.score.value is not None and abs(self.score.value - self.case.expect) <= TOLERANCE

    @property
    def got(self) -> str:
        return str(self.score.verdict) if self.score.value is None else f"{self.score.verdict} {self.score.value:g}"


def case(completion: str, *, expect: str | float, name: str = "", **problem: Any) -> Case:
    """One case. `problem` may hold gold, question, checker, domain, language and metadata."""
    return _read_case({"completion": completion, "expect": expect, "name": name, **problem}, name or completion[:40])


def make_problem(
    gold: str = "",
    question: str = "",
    checker: str = "math",
    domain: str = "math",
    language: str = "en",
    metadata: Mapping[str, Any] | None = None,
) -> Problem:
    """A problem for tests, of one user turn."""
    return Problem(
        id="case",
        messages=({"role": "user", "content": question},),
        ground_truth=gold,
        checker=checker,
        domain=domain,
        language=language,
        metadata=dict(metadata or {}),
    )


def load_cases(path: Path) -> tuple[list[Case], dict[str, Any]]:
    """The cases of a YAML or JSONL file, and its settings `reward` and `options`, which only YAML can have.

    YAML is a list of cases, or a mapping {reward, options, defaults, cases}; `defaults` are added to every case.
    Raises ValueError saying which case is wrong and how.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            content: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ValueError(f"{path}: cannot be read: it is nested too deeply.") from None
    document = content if isinstance(content, dict) else {"cases": content}
    unknown = set(document) - {"reward", "options", "defaults", "cases"}
    rows = document.get("cases")
    if unknown or not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of cases, or a mapping with reward, options, defaults and cases.")
    for key in ("options", "defaults"):
        if not isinstance(document.get(key) or {}, dict):
            raise ValueError(f"{path}: {key} is {type(document[key]).__name__}, not a mapping.")
    cases = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: case {number} is {type(row).__name__}, not a mapping.")
        try:
            cases.append(_read_case({**(document.get("defaults") or {}), **row}, f"case {number}"))
        except ValueError as error:
            raise ValueError(f"{path}: case {number}: {error}") from None
    return cases, {key: document[key] for key in ("reward", "options") if key in document}


def run_cases(reward: Any, cases: Sequence[Case]) -> list[Outcome]:
    """Score all cases, in order."""
    scores = judge(reward, [each.problem for each in cases], [each.completion for each in cases])
    return [Outcome(case=each, score=score) for each, score in zip(cases, scores, strict=True)]


def assert_scores(reward: Any, cases: Sequence[Case]) -> None:
    """Fail with one line for every case that did not get what it should."""
    wrong = [outcome for outcome in run_cases(reward, cases) if not outcome.ok]
    lines = [f"{o.case.name!r}: should be {o.case.expect}, got {o.got} ({o.score.detail})" for o in wrong]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)} cases:", *lines])


# --- Properties -----------------------------------------------------------------------------------------------------

_FRAME = "<think>I think about it for a while.</think>"


def check_properties(reward: Any, *, gold: str, wrong: str, **problem: Any) -> None:
    """All properties below that a reward for right answers should have. `wrong` is a wrong answer of gold's kind."""
    asked = make_problem(gold=gold, **problem)
    never_pays_empty(reward, asked)
    ignores_whitespace(reward, asked, _FRAME + f"\\boxed{{{gold}}}")
    listing_does_not_pay(reward, asked, [gold, wrong])
    ignores_reasoning(reward, asked, gold, wrong)
    repeats_itself(reward, asked, _FRAME + f"\\boxed{{{gold}}}")
    survives_garbage(reward, asked)


def never_pays_empty(reward: Any, problem: Problem) -> None:
    """No completion without an answer passes or earns anything."""
    for completion in ("", " \n", "<think></think>", _FRAME, _FRAME + "\\boxed{}", "<think>", "<answer></answer>"):
        score = _score(reward, problem, completion)
        assert score.verdict is not Verdict.PASS and not score.value, f"{completion!r} earned {score}"


def ignores_whitespace(reward: Any, problem: Problem, completion: str) -> None:
    """Spaces and line breaks around the completion and its answer change nothing."""
    expected = _score(reward, problem, completion)
    spaced = completion.replace("\\boxed{", "\\boxed{ ").replace("</think>", "\n</think>\n\n")
    for variant in (f"\n {completion}", f"{completion} \n\n", spaced):
        score = _score(reward, problem, variant)
        assert _outcome(score) == _outcome(expected), f"{variant!r} got {score}, {completion!r} got {expected}"


def listing_does_not_pay(reward: Any, problem: Problem, candidates: Sequence[str]) -> None:
    """Offering several answers earns nothing, whatever their order and however they are joined."""
    for ordered in (list(candidates), list(reversed(candidates))):
        for joint in (", ", " or ", " and ", "; ", " = ", r" \text{ or } ", r" \lor ", " / ", "?"):
            for text in (f"\\boxed{{{joint.join(ordered)}}}", joint.join(f"\\boxed{{{each}}}" for each in ordered)):
                if text.endswith(f"\\boxed{{{ordered[-1]}}}") and joint not in (", ", " or ", " and ", "; "):
                    continue  # the last of several boxes is a decision
                score = _score(reward, problem, _FRAME + text)
                assert score.verdict is not Verdict.PASS and not score.value, f"{text!r} earned {score}"


def ignores_reasoning(reward: Any, problem: Problem, gold: str, wrong: str) -> None:
    """What stands in the reasoning neither earns nor costs an answer its reward."""
    score = _score(reward, problem, f"<think>It may be \\boxed{{{gold}}}.</think>It is \\boxed{{{wrong}}}.")
    assert score.verdict is not Verdict.PASS, f"an answer in the reasoning earned {score}"
    score = _score(reward, problem, f"<think>It may be \\boxed{{{wrong}}}.</think>It is \\boxed{{{gold}}}.")
    assert score.verdict is Verdict.PASS, f"a wrong try in the reasoning cost the reward: {score}"


def repeats_itself(reward: Any, problem: Problem, completion: str) -> None:
    """The same completion gets the same score again."""
    first, second = (_score(reward, problem, completion) for _ in range(2))
    assert _outcome(first) == _outcome(second), f"first {first}, then {second}"


def survives_garbage(reward: Any, problem: Problem) -> None:
    """Text that no sane model writes gets a score, and not a passing one."""
    for garbage in (
        "\x00",
        "\\boxed{" * 200,
        "}" * 200,
        "\ud7ff\uffff",
        "<think>" * 50,
        "\\boxed{\\frac{1}{",
        "🂡" * 99,
    ):
        score = _score(reward, problem, _FRAME + garbage)
        assert score.verdict is Verdict.FAIL, f"{garbage[:20]!r}... got {score}"


def _score(reward: Any, problem: Problem, completion: str) -> Score:
    return judge(reward, [problem], [completion])[0]


def _outcome(score: Score) -> tuple[Verdict, float | None]:
    return score.verdict, score.value


def read_problem(row: Any) -> Problem:
    """The problem of a mapping {gold, question, checker, ...}. Raises ValueError saying what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError(f"it is {type(row).__name__}, not a mapping.")
    _refuse_unknown(row, _PROBLEM_KEYS)
    settings = dict(row)
    for key, value in settings.items():
        kind = Mapping if key == "metadata" else str
        if key != "gold" and not isinstance(value, kind):
            raise ValueError(f"{key} is {value!r}, not {'a mapping' if kind is Mapping else 'text'}.")
    gold = settings.get("gold", "")
    if isinstance(gold, dict | list):
        settings["gold"] = json.dumps(gold, ensure_ascii=False)
    elif isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise ValueError(f"gold is {gold!r}; write it in quotes.")
    else:
        settings["gold"] = str(gold)
    return make_problem(**settings)


def _refuse_unknown(row: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(map(repr, set(row) - known)):
        raise ValueError(f"unknown key {unknown[0]}; known are {', '.join(sorted(known))}.")


def _read_case(row: Mapping[str, Any], name: str) -> Case:
    _refuse_unknown(row, _CASE_KEYS)
    for key in ("completion", "expect"):
        if key not in row:
            raise ValueError(f"{key} is missing.")
    if not isinstance(row["completion"], str):
        raise ValueError(f"completion is {type(row['completion']).__name__}, not text; write it in quotes.")
    expect = row["expect"]
    if isinstance(expect, bool) or not (isinstance(expect, int | float) or expect in ("pass", "fail", "error")):
        raise ValueError(f"expect is {expect!r}, not pass, fail, error or a number.")
    return Case(
        name=str(row.get("name") or name),
        problem=read_problem({key: row[key] for key in _PROBLEM_KEYS & set(row)}),
        completion=row["completion"],
        expect=expect if isinstance(expect, str) else float(expect),
    )
