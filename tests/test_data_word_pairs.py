"""Prompts that ask for two words: their answers can be checked, and there are more than anyone can know by heart."""

import random

import pytest

from data.problem_pool import ProblemPool, ProblemsConfig
from data.word_pairs import WORD_PAIR, both_words, one_word, word_pair_problem
from rewards.instruction import check_instruction
from rewards.utility import utility


@pytest.mark.parametrize("language", ["en", "zh"])
def test_good_answers_meet_every_check_and_near_ones_miss_one_word(language):
    for index in range(100):
        problem, rng = word_pair_problem(index, language, 0), random.Random(index)
        asked = problem.metadata["arguments"]["words"]
        assert len(set(asked)) == 2 and all(word in problem.question for word in asked)
        assert utility(problem, both_words(problem, rng)) == 1
        near = one_word(problem, rng)
        assert check_instruction(problem, near).value == pytest.approx(3 / 4)
        assert sum(word in near for word in asked) == 1


def test_they_hardly_ever_come_twice_and_depend_on_the_seed():
    questions = {word_pair_problem(index, "en", 0).question for index in range(500)}
    assert len(questions) > 450
    assert word_pair_problem(3, "en", 1) == word_pair_problem(3, "en", 1) != word_pair_problem(3, "en", 2)


def test_a_pool_has_its_share_of_them_in_training_and_none_held_out():
    config = ProblemsConfig(instruction_share=0.8, word_pair_share=0.5)
    tasks = [problem.metadata.get("task") for problem in ProblemPool(config, "train", 0).draw(0, 500)]
    assert 0.3 < tasks.count(WORD_PAIR) / 500 < 0.5
    assert WORD_PAIR not in [p.metadata.get("task") for p in ProblemPool(config, "held_out", 0).draw(0, 200)]


def test_without_a_share_the_problems_are_those_of_before():
    asked, plain = ({"instruction_share": 0.5, "word_pair_share": 0.0}, {"instruction_share": 0.5})
    drawn = [ProblemPool(ProblemsConfig(**settings), "train", 3).draw(0, 50) for settings in (asked, plain)]
    assert drawn[0] == drawn[1]
