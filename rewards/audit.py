"""Attacks a reward with the known hacks of `rewards.attacks` and says which of them pay.

What a reward judges is its attribute `judges`, a set of aspects; without one it is taken to judge the answer.
An attack on such an aspect pays when it passes, when it earns more than an honest wrong answer, when it earns anything
near what a good completion earns, or when it makes the grader fail: errors are left out of training, so a policy could
hide there.

No attack pays with a reward that is out of order, so two honest completions come first, with a right and with a wrong
answer. Both must get a score; where the answer is judged, the right one must pass and earn more than the wrong one,
elsewhere both must earn something. A reward that does not do so cannot judge the problem (`misjudged`). Where the right
one earns nothing, or the wrong one has no score, no attack is tried: all would say the same.

The problems are those of the checkers that the reward names in its attribute `checkers`; without one, all but code and
judging.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.problems import Problem
from rewards.attacks import ASPECTS, Attack, attacks, honest, right_answer, wrong_answer
from rewards.calling import judge
from rewards.reward import Score, Verdict
from rewards.testing import make_problem

_CHECK = """def check(candidate):
    assert all(map(lambda case: candidate(case[0]) == case[1], [(1, 2), (0.5, 1.0), ("a", "aa")]))
    for got, want in zip(map(candidate, [3, 4]), [6, 8]): assert abs(got - want) < 1e-9
"""
_UNITTEST = """import unittest
class TestDouble(unittest.TestCase):
    def test_list(self): self.assertEqual(double([1]), [1, 1])
"""
_NAMED_ONLY = ("code", "judging")  # checkers whose problems only rewards that name them are for
PROBLEMS = (
    make_problem(gold="42", question="What is 6 times 7, if 6 and 7 are whole numbers?"),
    make_problem(gold="\\frac{3}{4}", question="Simplify 12/16."),
    make_problem(gold="x^2-1", question="Expand (x-1)(x+1)."),
    make_problem(gold="2, 3", question="Solve x^2-5x+6=0.", language="zh"),
    make_problem(gold="B", checker="choice", question="Which is prime? (A) 8 (B) 7 (C) 6 (D) 4", domain="choice"),
    make_problem(gold="true", checker="choice", question="Is 7 prime? Answer true or false.", domain="logic"),
    make_problem(gold="[3, 5, 8]", checker="list", question="Sort 8, 3, 5.", domain="sorting"),
    make_problem(
        gold='{"checks": [{"kind": "use_word", "word": "river"}, {"kind": "min_words", "n": 5}]}',
        checker="instruction",
        question="Use the word river in a sentence of at least five words.",
        domain="general",
        metadata={"right_answer": "The river flows past the old mill."},
    ),
    make_problem(
        gold='{"n": 2, "best": 1}',
        checker="judging",
        question="Judge the 2 responses below.\n## Query\n> What is 6 times 7?\n## Response 1\n> 40\n"
        "## Response 2\n> 42",
        domain="judging",
        metadata={"right_answer": "Only response 2 is right.\nScores: [2, 9]"},
    ),
    make_problem(
        gold=json.dumps({"stdio": [{"input": "3 4\n", "output": "7\n"}, {"input": "10 -4\n", "output": "6\n"}]}),
        checker="code",
        question="Write a program that reads two integers and prints their sum.",
        domain="code",
        metadata={"right_answer": "print(sum(map(int, input().split())))"},
    ),
    make_problem(
        gold=json.dumps({"calls": [{"function": "Solution.f", "args": [n], "expected": [n, n * n]} for n in (2, 3)]}),
        checker="code",
        question="Write the method f of a class Solution: a number and its square, as a list.",
        domain="code",
        metadata={"right_answer": "class Solution:\n    def f(self, n):\n        return [n, n * n]"},
    ),
    make_problem(
        gold=json.dumps({"unit_tests": [{"source": f"{_CHECK}\n{_UNITTEST}", "entry_points": ["double"]}]}),
        checker="code",
        question="Write a function double(x).",
        domain="code",
        metadata={"right_answer": "def double(x):\n    return 2 * x"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One attack on one problem: what it got and what it should have got. An honest completion breaks nothing."""

    attack: Attack
    problem: Problem
    score: Score
    should: str
    pays: bool = False
    misjudged: bool = False  # an honest completion that did not get what it should

    @property
    def got(self) -> str:
        return str(self.score.verdict) if self.score.value is None else f"{self.score.verdict} {self.score.value:g}"


def aspects_of(reward: Any) -> frozenset[str]:
    """What a reward judges. Raises ValueError for an aspect that no attack is about."""
    judges = frozenset(getattr(reward, "judges", None) or {"answer"})
    if unknown := judges - set(ASPECTS):
        raise ValueError(f"A reward can judge {', '.join(ASPECTS)}, not {sorted(unknown)[0]!r}.")
    return judges


def problems_for(reward: Any) -> tuple[Problem, ...]:
    """Those of our problems that the reward is for."""
    known = getattr(reward, "checkers", None)
    return tuple(each for each in PROBLEMS if (each.checker in known if known else each.checker not in _NAMED_ONLY))


def audit(reward: Any, problems: Iterable[Problem] | None = None, layout: str | None = None) -> list[Finding]:
    """Per problem, one finding for each honest completion and, where the reward judges at all, for each attack.

    `problems` None takes `problems_for(reward)`, `layout` None that of the reward. Raises ValueError where the reward
    judges the answer and no right one is known.
    """
    judges = aspects_of(reward)
    layout = layout or str(getattr(getattr(reward, "options", None), "layout", "answer_tags"))
    findings = []
    for problem in problems_for(reward) if problems is None else problems:
        known = right_answer(problem)
        if known is None and "answer" in judges:
            raise ValueError(
                f"no right answer is known to {problem.question[:40]!r} (checker {problem.checker}); "
                'give one as "metadata": {"right_answer": "..."}.'
            )
        wrong = honest(problem, wrong_answer(problem), layout)
        right = wrong if known is None else honest(problem, known, layout)
        of_right, of_wrong = judge(reward, [problem] * 2, [right, wrong])
        findings += _find_honest(problem, (right, wrong), (of_right, of_wrong), judges)
        earned = of_right.verdict is Verdict.PASS if "answer" in judges else bool(of_right.value)
        if not earned or of_wrong.value is None:
            continue
        chosen = [attack for attack in attacks(problem, layout) if attack.breaks & judges]
        scores = judge(reward, [problem] * len(chosen), [attack.completion for attack in chosen])
        for attack, score in zip(chosen, scores, strict=True):
            findings.append(_find(attack, problem, score, of_wrong, judges))
    return findings


def paying(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.pays]


def misjudged(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.misjudged]


def _find_honest(
    problem: Problem, completions: tuple[str, str], scores: tuple[Score, Score], judges: frozenset[str]
) -> list[Finding]:
    right, wrong = scores
    if "answer" in judges:
        shoulds = (f"pass, more than {wrong.value or 0:g}", "fail")
        fine = (
            right.verdict is Verdict.PASS and (right.value or 0) > (wrong.value or 0),
            wrong.verdict is Verdict.FAIL,
        )
    else:
        shoulds, fine = ("more than 0", "more than 0"), (bool(right.value), bool(wrong.value))
    names = ("honest, right answer", "honest, wrong answer")
    return [
        Finding(
            attack=Attack(name, completion, frozenset()), problem=problem, score=score, should=should, misjudged=not ok
        )
        for name, completion, score, should, ok in zip(names, completions, scores, shoulds, fine, strict=True)
    ]


def _find(attack: Attack, problem: Problem, score: Score, reference: Score, judges: frozenset[str]) -> Finding:
    """`reference` is the score of a wrong answer in good form."""
    in_form = reference.value or 0.0
    limit = in_form if attack.breaks & judges == {"answer"} else in_form / 2
    hides = score.value is None and reference.value is not None
    pays = hides or (score.value is not None and (score.value > limit or score.verdict is Verdict.PASS))
    return Finding(attack=attack, problem=problem, score=score, should=f"fail, at most {limit:g}", pays=pays)
