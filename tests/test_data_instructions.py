"""General instructions: good answers meet their checks, bad ones do not, and no question is in both splits."""

import json
import random
import re

import pytest

from data.instructions import bad_answer, good_answer, instruction_problem, instructions
from data.schemas import problem_from_row, problem_to_row

SPLITS, LANGUAGES = ("train", "held_out"), ("en", "zh")


def holds(check: dict, text: str, language: str) -> bool:
    """An independent reading of the checks documented in data.instructions."""
    han, latin = re.findall(r"[\u4e00-\u9fff]", text), re.findall(r"[A-Za-z]+", text)
    return {
        "one_line": lambda: "\n" not in text.strip(),
        "use_word": lambda: (
            check["word"] in text if language == "zh" else re.search(rf"\b{check['word']}\b", text) is not None
        ),
        "max_words": lambda: len(han if language == "zh" else text.split()) <= check["n"],
        "n_items": lambda: len(re.findall(r"^- \S", text, re.MULTILINE)) == check["n"],
        "language": lambda: (len(han) if check["code"] == "zh" else len(latin)) >= 0.8 * max(1, len(han) + len(latin)),
        "repeat": lambda: text == " ".join([check["text"]] * check["n"]),
        "ends_with": lambda: text.endswith(check["text"]),
        "uppercase": lambda: text == text.upper(),
        "lowercase": lambda: text == text.lower(),
    }[check["kind"]]()


def checks_of(problem):
    return json.loads(problem.ground_truth)["checks"]


def all_problems(split, language, seed=0):
    count = len(instructions(split, language))
    return [instruction_problem(index, split, language, seed) for index in range(count)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_good_answers_meet_every_check(split, language):
    for problem in all_problems(split, language):
        for seed in range(5):
            answer = good_answer(problem, random.Random(seed))
            failed = [check for check in checks_of(problem) if not holds(check, answer, language)]
            assert not failed, (problem.question, answer, failed)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_bad_answers_break_a_check(split, language):
    for problem in all_problems(split, language):
        for seed in range(8):
            answer = bad_answer(problem, random.Random(seed))
            assert answer.strip()
            assert not all(holds(check, answer, language) for check in checks_of(problem)), (problem.question, answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_share_no_question_and_rounds_repeat_none(language):
    train, held_out = ([problem.question for problem in all_problems(split, language)] for split in SPLITS)
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train) > 4 * len(held_out) - 30 and len(set(held_out)) == len(held_out) > 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_has_every_task_but_facts(language):
    tasks = {split: {problem.metadata["task"] for problem in all_problems(split, language)} for split in SPLITS}
    assert tasks["train"] - tasks["held_out"] == {"fact"}


def test_problems_depend_on_index_split_language_and_seed_alone():
    problem = instruction_problem(5, "train", "en", 1)
    assert problem == instruction_problem(5, "train", "en", 1)
    assert problem == problem_from_row(problem_to_row(problem))
    assert (problem.checker, problem.domain, problem.language) == ("instruction", "general", "en")
    others = {instruction_problem(5, "train", "en", seed).question for seed in range(20)}
    assert len(others) > 5
    assert good_answer(problem, random.Random(3)) == good_answer(problem, random.Random(3))


def test_the_sequence_has_no_end_and_reshuffles_every_round():
    count = len(instructions("held_out", "en"))
    rounds = [
        [instruction_problem(index, "held_out", "en", 0).question for index in range(start, start + count)]
        for start in (0, count)
    ]
    assert sorted(rounds[0]) == sorted(rounds[1]) and rounds[0] != rounds[1]


def test_vocabulary_is_small():
    for language, limit in (("en", 220), ("zh", 330)):
        questions = [problem.question for split in SPLITS for problem in all_problems(split, language)]
        pattern = r"[A-Za-z]+" if language == "en" else r"[\u4e00-\u9fff]"
        assert len({word.lower() for question in questions for word in re.findall(pattern, question)}) < limit


@pytest.mark.parametrize("arguments", [(-1, "train", "en", 0), (0, "test", "en", 0), (0, "train", "fr", 0)])
def test_unknown_requests_are_refused(arguments):
    with pytest.raises(ValueError, match="instruction"):
        instruction_problem(*arguments)
