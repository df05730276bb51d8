"""Word problems: right by an independent reckoning, disjoint splits, reproducible."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problem_pool import ProblemPool, ProblemsConfig
from data.word_problems import WORD_FAMILIES, word_problem

EVERY = [(family, level) for family in WORD_FAMILIES for level in (1, 2, 3)]
EQUATION = re.compile(r"(\d+(?: [-+*/] \d+)+) = (\d+)")


@pytest.mark.parametrize(("family", "level"), EVERY)
def test_every_step_is_true_and_the_last_one_is_the_answer(family, level):
    for index in range(150):
        problem = word_problem(family, level, index, "train")
        equations = EQUATION.findall(problem.metadata["solution"])
        assert len(equations) == problem.metadata["solution"].count("=") >= 1
        for left, right in equations:
            assert _value(left) == int(right) >= 0, problem
        assert equations[-1][1] == problem.ground_truth


@given(family=st.sampled_from(WORD_FAMILIES), level=st.integers(1, 3), index=st.integers(0, 10**6))
def test_the_steps_use_what_the_question_says(family, level, index):
    """No number appears from nowhere: each is in the question or the result of an earlier step."""
    problem = word_problem(family, level, index, "held_out", seed=1)
    known = set(re.findall(r"\d+", problem.question))
    if family == "sharing":
        known |= {"1"}  # "one box"
    for left, right in EQUATION.findall(problem.metadata["solution"]):
        assert set(re.findall(r"\d+", left)) <= known
        known.add(right)


def test_held_out_problems_are_never_trained_on():
    def told(split, seed):  # what is reckoned is the problem; names and things are not
        return {
            (family, *EQUATION.findall(word_problem(family, level, index, split, seed).metadata["solution"]))
            for family, level in EVERY
            for index in range(200)
        }

    assert not told("train", 0) & told("held_out", 0)
    assert not told("train", 3) & told("held_out", 7)


def test_levels_take_more_steps():
    for family in WORD_FAMILIES:
        steps = [word_problem(family, level, 0, "train").metadata["solution"].count("=") for level in (1, 2, 3)]
        assert steps == sorted(steps) and steps[0] < steps[2]


def test_a_pool_draws_them_again_alike_and_by_seed():
    config = ProblemsConfig(families=WORD_FAMILIES, languages=("en",))
    once, again = (ProblemPool(config, "train", 5).draw(10, 40) for _ in range(2))
    assert once == again != ProblemPool(config, "train", 6).draw(10, 40)
    assert {problem.domain for problem in once} == set(WORD_FAMILIES)


def test_they_are_told_in_english_only():
    with pytest.raises(ValueError, match=r"belongings is told in English only; set languages: \[en\]"):
        ProblemsConfig(families=("belongings", "chain_sum"))


def _value(expression: str) -> Fraction:
    """Left to right with products and quotients first, by hand rather than by eval."""
    terms, ops = [Fraction(n) for n in re.findall(r"\d+", expression)], re.findall(r"[-+*/]", expression)
    for these in ("*/", "+-"):
        place = 0
        while place < len(ops):
            if ops[place] not in these:
                place += 1
                continue
            a, op, b = terms[place], ops.pop(place), terms.pop(place + 1)
            terms[place] = {"*": a * b, "/": a / b if b else a, "+": a + b, "-": a - b}[op]
    return terms[0]


def test_every_question_can_end_with_an_instruction():
    asked = "Put your final answer within \\boxed{}."
    config = ProblemsConfig(families=("seats", "chain_sum"), languages=("en",), instruction=asked)
    plain = config.model_copy(update={"instruction": ""})
    told, bare = (ProblemPool(these, "train", 0).draw(0, 20) for these in (config, plain))
    assert all(problem.question == f"{other.question}\n{asked}" for problem, other in zip(told, bare, strict=True))
