"""None of our rewards pays for a known hack, and the audit finds the rewards that do."""

import pytest

from rewards.accuracy import Accuracy, AccuracyOptions
from rewards.attacks import ASPECTS, attacks
from rewards.audit import PROBLEMS, audit, misjudged, paying
from rewards.format import Format, FormatOptions
from rewards.language import LanguageConsistency
from rewards.length import CosineLength, CosineOptions, Overlong, TokenBudget, TokenBudgetOptions
from rewards.repetition import Repetition
from rewards.reward import Score
from rewards.testing import make_problem

QUICK = AccuracyOptions(deadline_s=2.0)  # a busy machine must still read the gold answers in time


def describe(findings) -> list[str]:
    return [f"{f.attack.name} on {f.problem.question}: {f.got} ({f.score.detail})" for f in findings]


@pytest.mark.parametrize(
    ("problem", "layout"), [*((problem, "answer_tags") for problem in PROBLEMS), (PROBLEMS[0], "summary")]
)
def test_accuracy_pays_for_no_attack(problem, layout):
    reward = Accuracy(QUICK)
    try:
        assert not describe(paying(audit(reward, [problem], layout)))
    finally:
        reward.close()


@pytest.mark.parametrize(
    "reward",
    [
        Format(),
        Format(FormatOptions(layout="summary")),
        LanguageConsistency(),
        Overlong(),
        TokenBudget(TokenBudgetOptions(budget=200)),
        Repetition(),
    ],
    ids=lambda reward: f"{reward.name}",
)
def test_other_rewards_pay_for_no_attack(reward):
    findings = audit(reward)
    assert findings and not describe(paying(findings))


def test_cosine_length_pays_for_no_attack():
    reward = CosineLength(CosineOptions(accuracy=QUICK))
    assert not describe(paying(audit(reward, PROBLEMS[:1])))
    reward.close()


KEY_VALUE = make_problem(
    gold='{"Ann": "knight", "Bob": "knave"}', checker="key_value", question="Who is a knight, Ann or Bob?"
)


@pytest.mark.parametrize(
    "problem",
    [KEY_VALUE, make_problem(gold="A, C", checker="options", question="Which are prime? (A) 2 (B) 4 (C) 5 (D) 9")],
)
def test_logic_answers_pay_for_no_attack(problem):
    assert not describe(paying(audit(Accuracy(QUICK), [problem])))


def contains_gold(problem, completion):
    """What many first rewards look like."""
    return problem.ground_truth in completion


def longer_is_better(problem, completion):
    return min(1.0, len(completion) / 1000)


def fails_on_braces(problem, completion):
    return Score.error("cannot read it") if "{" in completion else Score.failed()


@pytest.mark.parametrize(
    ("reward", "names"),
    [
        (contains_gold, {"gold or other", "answer in the reasoning", "all numbers up to 100"}),
        (longer_is_better, {"padding", "one sentence again and again", "a million digits"}),
        (fails_on_braces, {"open braces", "reference to the gold answer"}),
    ],
)
def test_rewards_that_can_be_hacked_are_found(reward, names):
    found = {finding.attack.name for finding in paying(audit(reward, PROBLEMS[:1]))}
    assert names <= found


def test_honest_answers_are_no_attack():
    for problem in PROBLEMS:
        for attack in attacks(problem):
            assert attack.breaks and attack.breaks <= set(ASPECTS)


def test_unknown_aspect_is_refused():
    longer_is_better.judges = {"beauty"}
    with pytest.raises(ValueError, match="'beauty'"):
        audit(longer_is_better)
    del longer_is_better.judges


def broken(problem, completion):
    raise ValueError("out of order")


def constant(problem, completion):
    return 0.9


def generous(problem, completion):
    return True


class Mute:
    """Judges the layout and pays nothing."""

    name = "mute"
    judges = frozenset({"layout"})

    def __call__(self, problem, completion):
        return 0.0


@pytest.mark.parametrize("reward", [broken, constant, generous, Mute()])
def test_rewards_that_cannot_judge_are_found(reward):
    assert len({id(finding.problem) for finding in misjudged(audit(reward))}) == len(PROBLEMS)


def test_accuracy_can_judge_every_problem():
    reward = Accuracy(QUICK)
    assert not describe(misjudged(audit(reward, PROBLEMS)))
    assert misjudged(audit(reward, [make_problem(gold="4", checker="mathh")]))
    reward.close()


def test_right_answers_that_cannot_be_guessed_are_asked_for():
    problem = make_problem(gold='{"numbers": [2, 3], "target": 6}', checker="countdown", question="Reach 6.")
    with pytest.raises(ValueError, match=r"no right answer is known to 'Reach 6\.'.*right_answer"):
        audit(Accuracy(QUICK), [problem])
