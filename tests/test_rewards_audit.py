"""None of our rewards pays for a known hack, and the audit finds the rewards that do."""

import json
import subprocess
import sys

import pytest

from rewards.accuracy import Accuracy, AccuracyOptions
from rewards.attacks import ASPECTS, attacks
from rewards.audit import PROBLEMS, audit, misjudged, paying, problems_for
from rewards.code import Code, CodeOptions
from rewards.format import Format, FormatOptions
from rewards.language import LanguageConsistency
from rewards.length import CosineLength, CosineOptions, Overlong, TokenBudget, TokenBudgetOptions
from rewards.repetition import Repetition
from rewards.reward import Score
from rewards.testing import make_problem

TEXTS = problems_for(Accuracy)
QUICK = AccuracyOptions(deadline_s=2.0)  # a busy machine must still read the gold answers in time


def describe(findings) -> list[str]:
    return [f"{f.attack.name} on {f.problem.question}: {f.got} ({f.score.detail})" for f in findings]


@pytest.mark.parametrize(
    ("problem", "layout"), [*((problem, "answer_tags") for problem in TEXTS), (PROBLEMS[0], "summary")]
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


CODE = problems_for(Code)


@pytest.fixture(scope="module")
def code():
    if sys.platform != "linux":
        pytest.skip("the jail is Linux only")
    reward = Code(CodeOptions(cpu_s=2.0, memory_mb=128))
    yield reward
    reward.close()


@pytest.mark.parametrize(("problem", "layout"), [*((problem, "answer_tags") for problem in CODE), (CODE[0], "summary")])
def test_code_pays_for_no_attack(code, problem, layout):
    findings = audit(code, [problem], layout)
    assert not describe(misjudged(findings)) and not describe(paying(findings))
    assert {"program is equal to everything", "program gives every answer"} <= {f.attack.name for f in findings}


def in_one_process(problem, completion):
    """What many first code rewards look like: tests and program in one interpreter, the exit code decides."""
    test = json.loads(problem.ground_truth)["unit_tests"][0]["source"]
    program = f"{program_of(completion)}\n{test}\ncheck(double)\nunittest.main()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def prints_it_somewhere(problem, completion):
    for test in json.loads(problem.ground_truth)["stdio"]:
        command = [sys.executable, "-c", program_of(completion)]
        ran = subprocess.run(command, input=test["input"], capture_output=True, text=True)
        if test["output"] not in ran.stdout:
            return False
    return True


def program_of(completion):
    return completion.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize(
    ("reward", "problem", "names"),
    [
        (in_one_process, CODE[2], {"leaves at once", "is equal to everything"}),
        (prints_it_somewhere, CODE[0], {"gives every answer"}),
    ],
)
def test_code_rewards_that_can_be_hacked_are_found(reward, problem, names):
    found = {finding.attack.name for finding in paying(audit(reward, [problem]))}
    assert {f"program {name}" for name in names} <= found


def test_right_programs_may_be_given_with_or_without_a_fence(code):
    for written in ("print(7)", "```python\nprint(7)\n```", "Here:\n```\nprint(7)\n```"):
        gold = {"stdio": [{"input": "", "output": "7"}]}
        problem = make_problem(json.dumps(gold), checker="code", metadata={"right_answer": written})
        assert not misjudged(audit(code, [problem]))


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


def is_right(problem, completion):
    return f"<answer>{problem.ground_truth}</answer>" in completion


def longer_is_better(problem, completion):
    return is_right(problem, completion) or min(0.9, len(completion) / 1000)


def fails_on_braces(problem, completion):
    return Score.error("cannot read it") if "{" in completion else is_right(problem, completion)


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
    assert len({id(finding.problem) for finding in misjudged(audit(reward))}) == len(TEXTS)


@pytest.mark.parametrize("reward", [broken, constant, Mute()])
def test_nothing_is_attacked_that_fails_honest_answers(reward):
    assert len(audit(reward)) == 2 * len(TEXTS), "one row for each honest answer: the attacks would all say the same"


def test_accuracy_can_judge_every_problem():
    reward = Accuracy(QUICK)
    assert not describe(misjudged(audit(reward)))
    assert misjudged(audit(reward, [make_problem(gold="4", checker="mathh")]))
    reward.close()


def test_right_answers_that_cannot_be_guessed_are_asked_for():
    problem = make_problem(gold='{"numbers": [2, 3], "target": 6}', checker="countdown", question="Reach 6.")
    with pytest.raises(ValueError, match=r"no right answer is known to 'Reach 6\.'.*right_answer"):
        audit(Accuracy(QUICK), [problem])
