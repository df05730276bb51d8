"""Attacks a reward with the known hacks of `rewards.attacks` and says which of them pay.

What a reward judges is its attribute `judges`, a set of aspects; without one it is taken to judge the answer.
An attack on such an aspect pays when it passes, when it earns more than an honest wrong answer, when it earns anything
near what a good completion earns, or when it makes the grader fail: errors are left out of training, so a policy could
hide there.

No attack pays with a reward that is out of order, so two honest completions come first, with a right and with a wrong
answer. Both must get a score; where the answer is judged, the right one must pass and earn more than the wrong one,
elsewhere both must earn something. A reward that does not do so cannot judge the problem (`misjudged`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.problems import Problem
from rewards.attacks import ASPECTS, Attack, attacks, honest, right_answer, wrong_answer
from rewards.calling import judge
from rewards.reward import Score, Verdict
from rewards.testing import make_problem

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


def audit(reward: Any, problems: Iterable[Problem] = PROBLEMS, layout: str | None = None) -> list[Finding]:
    """Per problem, one finding for each honest completion and each attack that concerns the reward.

    `layout` None takes that of the reward. Raises ValueError where the reward judges the answer and no right one is
    known.
    """
    judges = aspects_of(reward)
    layout = layout or str(getattr(getattr(reward, "options", None), "layout", "answer_tags"))
    findings = []
    for problem in problems:
        chosen = [attack for attack in attacks(problem, layout) if attack.breaks & judges]
        known = right_answer(problem)
        if known is None and "answer" in judges:
            raise ValueError(
                f"no right answer is known to {problem.question[:40]!r} (checker {problem.checker}); "
                'give one as "metadata": {"right_answer": "..."}.'
            )
        wrong = honest(problem, wrong_answer(problem), layout)
        right = wrong if known is None else honest(problem, known, layout)
        completions = [right, wrong, *(attack.completion for attack in chosen)]
        of_right, of_wrong, *scores = judge(reward, [problem] * len(completions), completions)
        findings += _find_honest(problem, (right, wrong), (of_right, of_wrong), judges)
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
