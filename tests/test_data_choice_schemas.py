"""Multiple-choice benchmarks by their public columns."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.choice_schemas import LETTERS, lettered
from data.config import ProblemSource
from data.schemas import SourceError
from data.sources import read_problems
from rewards.accuracy import Accuracy
from rewards.reward import Verdict

GPQA = {
    "Record ID": "rec1",
    "Question": "Which is a base?",
    "Correct Answer": "NaOH",
    "Incorrect Answer 1": "HCl",
    "Incorrect Answer 2": "H2SO4",
    "Incorrect Answer 3": "HNO3",
    "High-level domain": "Chemistry",
    "Explanation": "It takes a proton.",
}
MMLU = {"question": "What is 2 + 2?", "subject": "elementary_mathematics", "choices": ["3", "4", "5", "6"], "answer": 1}


def read(path, rows, **keys):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_problems(ProblemSource(path=str(path), **keys)))


def options_of(problem) -> dict[str, str]:
    return dict(line.split(". ", 1) for line in problem.question.splitlines()[2:])


def test_gpqa_options_are_shuffled_and_the_letter_is_the_right_one(tmp_path):
    rows = [GPQA | {"Record ID": f"r{n}", "Question": f"Which is a base, number {n}?"} for n in range(40)]
    problems = read(tmp_path / "gpqa.jsonl", rows)
    assert {problem.ground_truth for problem in problems} == set("ABCD"), "the right one is not always first"
    for problem in problems:
        assert options_of(problem)[problem.ground_truth] == "NaOH" and len(options_of(problem)) == 4
        assert (problem.checker, problem.domain, problem.metadata["subject"]) == ("choice", "gpqa", "Chemistry")
    assert [p.question for p in read(tmp_path / "again.jsonl", rows)] == [p.question for p in problems]


def test_mmlu_answers_are_numbers_from_zero_or_letters(tmp_path):
    problems = read(tmp_path / "mmlu.jsonl", [MMLU, MMLU | {"answer": "D"}, MMLU | {"answer": "1"}], domain="mine")
    assert [problem.ground_truth for problem in problems] == ["B", "D", "B"]
    assert problems[0].question == "What is 2 + 2?\n\nA. 3\nB. 4\nC. 5\nD. 6" and problems[0].domain == "mine"


def test_the_letter_is_what_is_graded(tmp_path):
    (problem,) = read(tmp_path / "mmlu.jsonl", [MMLU], instruction="Answer with the letter within \\boxed{}.")
    assert problem.question.endswith("D. 6\nAnswer with the letter within \\boxed{}.")
    right, wrong = (Accuracy()(problem, f"<think>\nIt is 4.\n</think>\n\n\\boxed{{{letter}}}") for letter in "BC")
    assert (right.verdict, wrong.verdict) == (Verdict.PASS, Verdict.FAIL)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GPQA | {"Incorrect Answer 2": ""}, "options, none empty"),
        (MMLU | {"answer": 4}, "the right option is number 4 of 4"),
        (MMLU | {"answer": None}, "answer a number or a letter, got answer None"),
        (MMLU | {"choices": "3 4 5 6", "answer": -1}, "options"),
    ],
)
def test_a_row_that_is_no_choice_is_named(tmp_path, row, said):
    with pytest.raises(SourceError, match=rf"rows\.jsonl line 1: .*{said}"):
        read(tmp_path / "rows.jsonl", [row])


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=len(LETTERS)), st.data())
def test_every_option_has_a_letter_of_its_own(options, data):
    right = data.draw(st.integers(0, len(options) - 1))
    fields = lettered("?", options, right)
    assert fields["answer"] == LETTERS[right] and fields["question"].startswith("?\n\nA. ")
